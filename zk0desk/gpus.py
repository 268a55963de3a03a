"""The GPUs of this computer: NVIDIA's by NVML, AMD's by the kernel's files, Apple's by the system; and what torch asks of them."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PCI, DRM, KFD = Path("/sys/bus/pci/devices"), Path("/sys/class/drm"), Path("/sys/class/kfd/kfd/topology/nodes")
NVIDIA, AMD = "0x10de", "0x1002"
JETSON = Path("/proc/device-tree/model")
_APPLE_SHARE = (3, 4)
"""Apple's chips share the memory; Metal lets one program have about three quarters of it."""

GpuKind = Literal["cuda", "rocm", "mps"]
NO_DRIVER = "none"
"""The driver of a GPU that is in the computer and answers to nobody."""
MIN_DRIVER = {13: 580, 12: 525, 11: 450}
"""NVIDIA driver that a CUDA version asks for."""
MIN_CAPABILITY = {13: (7, 5), 12: (5, 0), 11: (3, 7)}
"""Oldest GPU generation that a CUDA version has code for."""
JETSONS = {(5, 3), (6, 2), (7, 2), (8, 7)}
"""Generations of NVIDIA's boards for which torch as published has no code: Nano, TX2, Xavier, Orin."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it. Bytes; `driver` such as "580.65"; `capability` such as (8, 6), or (0, 0) where it is not told.

    `shared`: its memory is the computer's own. `temperature` in degrees Celsius, `utilisation` in percent, `memory_others` what other
    programs hold of its memory; None where the driver does not tell.
    """

    kind: GpuKind
    name: str
    memory: int
    memory_free: int
    driver: str = ""
    capability: tuple[int, int] = (0, 0)
    shared: bool = False
    temperature: int | None = None
    utilisation: int | None = None
    memory_others: int | None = None


def find_gpus(memory: int, memory_free: int) -> tuple[Gpu, ...]:
    """The GPUs that torch might use, in the order of their bus. `memory` is this computer's, for chips that share it."""
    nvidia = nvidia_gpus(memory, memory_free)
    if not nvidia and sys.platform == "linux":
        nvidia = _without_driver(memory, memory_free)
    return (*nvidia, *amd_gpus(), *_apple(memory, memory_free))


def nvidia_gpus(memory: int = 0, memory_free: int = 0) -> list[Gpu]:
    """NVIDIA's GPUs that `CUDA_VISIBLE_DEVICES` leaves to see. Nothing where NVML or the driver is missing."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        order = visible([_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles], os.environ.get("CUDA_VISIBLE_DEVICES"))
        return [_nvidia(pynvml, handles[number], driver, memory, memory_free) for number in order]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def visible(uuids: list[str], chosen: str | None) -> list[int]:
    """Which of the GPUs with these ids CUDA shows, and in which order, by `CUDA_VISIBLE_DEVICES`; it ends at the first that is missing."""
    if chosen is None:
        return list(range(len(uuids)))
    order: list[int] = []
    for word in (part.strip() for part in chosen.split(",")):
        found = [n for n, uuid in enumerate(uuids) if word == str(n) or (len(word) > 4 and uuid.startswith(word))]
        if len(found) != 1 or found[0] in order:
            break
        order += found
    return order


def _nvidia(nvml: Any, handle: Any, driver: str, memory: int, memory_free: int) -> Gpu:
    def told(call: Any, *arguments: Any) -> Any:
        try:
            return call(handle, *arguments)
        except nvml.NVMLError:
            return None

    name = _text(told(nvml.nvmlDeviceGetName) or "NVIDIA GPU")
    capability = told(nvml.nvmlDeviceGetCudaComputeCapability) or (0, 0)
    seen = told(nvml.nvmlDeviceGetMemoryInfo)
    use = told(nvml.nvmlDeviceGetUtilizationRates)
    # A Jetson's GPU has no memory of its own to tell of.
    shared = seen is None
    return Gpu(
        "cuda",
        name,
        memory if shared else int(seen.total),
        memory_free if shared else int(seen.free),
        driver,
        (int(capability[0]), int(capability[1])),
        shared=shared,
        temperature=told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        utilisation=None if use is None else int(use.gpu),
        memory_others=_held_by_others(told(nvml.nvmlDeviceGetComputeRunningProcesses), told(nvml.nvmlDeviceGetGraphicsRunningProcesses)),
    )


def _held_by_others(*lists: Any) -> int | None:
    """Bytes that other processes hold, each counted once; None where the driver does not tell (Windows, WSL)."""
    held: dict[int, int] = {}
    for processes in lists:
        if processes is None:
            return None
        for process in processes:
            if process.pid == os.getpid():
                continue
            if process.usedGpuMemory is None:
                return None
            held[process.pid] = max(held.get(process.pid, 0), int(process.usedGpuMemory))
    return sum(held.values())


def _without_driver(memory: int, memory_free: int) -> list[Gpu]:
    """NVIDIA's GPUs that are on the bus while no driver answers; an older Jetson's, which is on no bus and has no NVML."""
    if model := jetson_model():
        return [Gpu("cuda", model, memory, memory_free, shared=True)]
    found = []
    for device in _sorted(PCI):
        if _line(device / "vendor") == NVIDIA and _line(device / "class").startswith("0x03"):
            found.append(Gpu("cuda", "NVIDIA GPU", 0, 0, NO_DRIVER))
    return found


def jetson_model() -> str:
    """The name of an NVIDIA Jetson, or "" on other computers."""
    model = _line(JETSON).strip("\0")
    return model if "Jetson" in model or Path("/etc/nv_tegra_release").exists() else ""


def amd_gpus(drm: Path = DRM, kfd: Path = KFD) -> list[Gpu]:
    """AMD's GPUs that the kernel's compute driver knows, from its own files."""
    versions = []
    for node in _sorted(kfd):
        facts = dict(line.split(" ", 1) for line in _read(node / "properties").splitlines() if " " in line)
        if int(facts.get("simd_count", "0") or 0) > 0:
            versions.append(int(facts.get("gfx_target_version", "0") or 0))
    cards = [card / "device" for card in _sorted(drm) if card.name.removeprefix("card").isdigit() and _line(card / "device/vendor") == AMD]
    found = []
    for device, version in zip(cards, versions, strict=False):
        total, used = _number(device / "mem_info_vram_total"), _number(device / "mem_info_vram_used")
        sensors = [_number(path) for path in sorted(device.glob("hwmon/hwmon*/temp1_input"))]
        busy = _line(device / "gpu_busy_percent")
        found.append(
            Gpu(
                "rocm",
                _line(device / "product_name") or f"AMD GPU gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}",
                total,
                max(0, total - used),
                _line(Path("/sys/module/amdgpu/version")) or "amdgpu",
                (version // 10000, version // 100 % 100),
                temperature=sensors[0] // 1000 if sensors else None,
                utilisation=int(busy) if busy.isdigit() else None,
                memory_others=used,
            )
        )
    return found


def _apple(memory: int, free: int) -> list[Gpu]:
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return []
    most = memory * _APPLE_SHARE[0] // _APPLE_SHARE[1]
    return [Gpu("mps", "Apple GPU", most, min(free, most), shared=True)]


def _sorted(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name))
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _read(path).strip()


def _number(path: Path) -> int:
    text = _line(path)
    return int(text) if text.isdigit() else 0


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
