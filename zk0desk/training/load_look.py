"""What this computer's devices are doing at the moment: load, temperature and free memory. Quick enough to be asked every few seconds."""

from __future__ import annotations

from dataclasses import dataclass

from zk0desk.gpus import find_gpus
from zk0desk.training.container_limits import usable_memory
from zk0desk.training.hardware_look import cpu_name

MEASURED_S = 0.3
"""How long the processor's load is looked at."""
SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")
"""Linux's names for a processor's own sensor, the best first."""


@dataclass(frozen=True)
class DeviceLoad:
    """A device: how busy in percent, degrees Celsius (None where nobody tells), and bytes of its memory, all and free."""

    name: str
    busy: int | None
    temperature: int | None
    memory: int
    memory_free: int


def look_at_load() -> list[DeviceLoad]:
    """The processor first, then the GPUs. Takes `MEASURED_S`: call it in the background."""
    import psutil

    memory, free = usable_memory()
    processor = DeviceLoad(cpu_name(), round(psutil.cpu_percent(MEASURED_S)), _processor_temperature(), memory, free)
    gpus = find_gpus(memory, free)
    return [processor, *(DeviceLoad(gpu.name, gpu.utilisation, gpu.temperature, gpu.memory, gpu.memory_free) for gpu in gpus)]


def _processor_temperature() -> int | None:
    import psutil

    try:
        found = psutil.sensors_temperatures()
    except (AttributeError, OSError):
        return None  # no system but Linux and FreeBSD tells
    for name in SENSORS:
        if readings := [reading.current for reading in found.get(name, []) if reading.current and reading.current > 0]:
            return round(max(readings))
    return None
