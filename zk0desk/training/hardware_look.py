"""Looks at this computer: processor, memory, disk, GPUs, versions, keyring, screen. Never imports torch; a child process may."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from zk0desk import folders
from zk0desk.engine.selftest import last_words
from zk0desk.gpus import find_gpus, jetson_model
from zk0desk.training.container_limits import container_limits, in_container, usable_cores, usable_memory
from zk0desk.training.hardware_types import ENGINE, Computer

PROBE_LIMIT_S = 120
INSTRUCTIONS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")
"""Of a processor, those that decide how fast torch is."""


def inspect_computer(*, probe_engine: bool = False) -> Computer:
    """Look at this computer. With `probe_engine` torch is imported in a child process, which takes seconds."""
    limits = container_limits()
    memory, free = usable_memory()
    error, build, sees = _probe_engine() if probe_engine else ("", "", "")
    place = runs_place()
    return Computer(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        instructions=_instructions(),
        memory=memory,
        memory_free=free,
        disk_free=shutil.disk_usage(place).free,
        versions=_versions(),
        gpus=find_gpus(memory, free),
        engine_error=error,
        torch_build=build or torch_build(),
        torch_sees=sees,
        display=_display(),
        keyring=_keyring(),
        wsl="microsoft" in platform.release().lower(),
        container=in_container(),
        memory_limit=limits.memory if limits.memory == memory else 0,
        cpu_limit=limits.cpu if limits.cpu < (os.cpu_count() or 1) else 0.0,
        disk_place=str(folders.runs_folder()),
    )


def runs_place() -> Path:
    """The folder where runs are kept, or the nearest one above it that is there."""
    place = folders.runs_folder()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def torch_build() -> str:
    """What torch was built for, from its own file `version.py`: "cpu", "cuda 13.0", "rocm 6.4"; "" where it is not known."""
    try:
        spec = find_spec("torch")
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8") if spec and spec.origin else ""
    except (ImportError, OSError, ValueError):
        return ""
    told = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *['\"]?([\w.]+)", text, re.MULTILINE))
    if not told:
        return ""
    return _build(told.get("cuda"), told.get("hip"))


def _build(cuda: str | None, hip: str | None) -> str:
    if hip not in (None, "None"):
        return "rocm " + ".".join(str(hip).split(".")[:2])
    return f"cuda {cuda}" if cuda not in (None, "None") else "cpu"


def cpu_name() -> str:
    """The processor's name."""
    if sys.platform == "linux":
        for line in _lines("/proc/cpuinfo"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
        return jetson_model() or platform.processor() or platform.machine()
    if sys.platform == "darwin":
        return _run(["sysctl", "-n", "machdep.cpu.brand_string"])
    return platform.processor() or platform.machine()


def _instructions() -> tuple[str, ...]:
    flags: set[str] = set()
    if sys.platform == "linux":
        line = next((line for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))), "")
        flags = set(line.partition(":")[2].split())
    elif sys.platform == "darwin":
        flags = set(_run(["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]).lower().split())
    return tuple(name for name in INSTRUCTIONS if name in flags)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from zk0desk import __version__

    found = {"zk0desk": __version__, "python": platform.python_version()}
    for name in (*ENGINE, "torchvision", "transformers", "PySide6-Essentials"):
        try:
            found[name] = version(name)
            if name in ENGINE and find_spec(name) is None:
                found[name] = ""  # its description is there, it is not
        except (PackageNotFoundError, ImportError, ValueError):
            found[name] = ""
    return found


def _display() -> bool:
    if sys.platform != "linux":
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))


def _keyring() -> str:
    try:
        import keyring

        backend = keyring.get_keyring()
    except Exception as error:  # noqa: BLE001 - a broken backend raises whatever its library raises
        return f"none: {type(error).__name__}"
    priority = getattr(type(backend), "priority", 0)
    return "none" if "fail" in type(backend).__module__ or priority < 0 else getattr(backend, "name", type(backend).__name__)


_PROBE = """
import json, torch
sees = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
print(json.dumps({"cuda": torch.version.cuda, "hip": torch.version.hip, "sees": sees}), flush=True)
import lerobot, flwr
"""


def _probe_engine() -> tuple[str, str, str]:
    """What went wrong, torch's build, and the device that torch itself sees."""
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: it did not load within {PROBE_LIMIT_S} s.", "", ""
    build = sees = ""
    for line in done.stdout.splitlines():
        try:
            told = json.loads(line)
            build, sees = _build(told["cuda"], told["hip"]), str(told["sees"])
        except (ValueError, KeyError, TypeError):
            continue  # a library's own words
    return ("" if done.returncode == 0 else last_words(done.returncode, done.stderr)), build, sees
