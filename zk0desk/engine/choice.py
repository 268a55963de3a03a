"""Which engine a computer needs, and why: a table of rules over what the driver tells. torch is never asked.

What a build of torch needs of a driver and a GPU: NVIDIA's CUDA compatibility tables, and the list of architectures in each build
(CUDA 13 dropped Maxwell, Pascal and Volta; CUDA 12.6 has no code for Blackwell).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zk0desk.engine import lists
from zk0desk.engine.lists import EngineList
from zk0desk.gpus import JETSONS, MIN_CAPABILITY, MIN_DRIVER, NO_DRIVER, Gpu


@dataclass(frozen=True)
class _Build:
    """What a back end of torch asks for: of the driver (major version), and of the GPU (the oldest and the newest generation)."""

    backend: str
    driver: int
    oldest: tuple[int, int]
    newest: tuple[int, int]
    words: str


CUDA_BUILDS = (
    _Build("cu130", MIN_DRIVER[13], MIN_CAPABILITY[13], (99, 0), "CUDA 13.0"),
    _Build("cu126", MIN_DRIVER[12], MIN_CAPABILITY[12], (9, 9), "CUDA 12.6"),
    _Build("cu128", 570, (10, 0), (12, 9), "CUDA 12.8"),
)
"""In the order in which they are preferred."""
_UNTOLD = (0, 0)
WORDS = {**{build.backend: build.words for build in CUDA_BUILDS}, "cpu": "processor", "mps": "Apple GPU"}


@dataclass(frozen=True)
class Machine:
    """A computer as far as the choice goes. `system` and `arch` as lists name them; `wsl`: Linux inside Windows, which has the driver."""

    system: str
    arch: str
    gpus: tuple[Gpu, ...] = ()
    wsl: bool = False


@dataclass(frozen=True)
class Option:
    """A back end that this zk0desk brings. `works`: whether this computer can use what it is for; bytes to fetch and on the disk."""

    backend: str
    works: bool
    why: str
    download: int = 0
    unpacked: int = 0

    def to_json(self) -> dict[str, Any]:
        """It as a JSON object."""
        return {"backend": self.backend, "works": self.works, "why": self.why, "download": self.download, "unpacked": self.unpacked}


@dataclass(frozen=True)
class Choice:
    """The back end for a computer (None: there is none for it), why, and what would give more.

    `options`: all that can be chosen, this one first.
    """

    backend: str | None
    why: str
    remedy: str = ""
    options: tuple[Option, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The choice as a JSON object."""
        return {"backend": self.backend, "why": self.why, "remedy": self.remedy, "options": [each.to_json() for each in self.options]}


def here() -> Choice:
    """The choice for this computer, among the lists that this zk0desk brings."""
    import platform

    from zk0desk.gpus import find_gpus

    system, arch = lists.this_system()
    machine = Machine(system, arch, find_gpus(0, 0), "microsoft" in platform.release().lower())
    return choose(machine, lists.shipped())


def choose(machine: Machine, offered: Mapping[str, EngineList] | Iterable[str]) -> Choice:
    """The back end for `machine` among those that are offered. Pure: nothing is looked at."""
    known = dict(offered) if isinstance(offered, Mapping) else dict.fromkeys(offered)
    wanted, why, remedy = _wanted(machine)
    if not known:
        return Choice(None, f"There is no engine for {machine.system} on {machine.arch}. {_why_not(machine)}".strip(), _OTHER)
    backend = next((each for each in wanted if each in known), None)
    if backend is None:
        backend, why = _instead(known, wanted, why)
    elif backend != wanted[0]:
        why = f"{why} This zk0desk brings no engine for {WORDS[wanted[0]]}; the one for {WORDS[backend]} is taken."
    options = [
        _option(each, machine, known[each]) for each in (backend, *(each for each in lists.BACKENDS if each in known and each != backend))
    ]
    return Choice(backend, why, remedy, tuple(options))


_OTHER = "Use a computer with Linux or Windows and a 64-bit Intel or AMD processor, or a Mac with an Apple chip."


def _wanted(machine: Machine) -> tuple[list[str], str, str]:
    """The back ends that fit, the best first, why, and what would give more."""
    if machine.system == "macos":
        return ["mps", "cpu"], "This Mac has an Apple chip, whose GPU torch uses.", ""
    nvidia = [gpu for gpu in machine.gpus if gpu.kind == "cuda"]
    if not nvidia:
        if amd := next((gpu for gpu in machine.gpus if gpu.kind == "rocm"), None):
            return ["cpu"], f"{amd.name} needs torch for ROCm, which zk0desk does not bring; the processor is used.", _ROCM
        return ["cpu"], "There is no NVIDIA GPU here, so the processor trains.", ""
    fitting = [build for build in CUDA_BUILDS if any(_runs(gpu, build) for gpu in nvidia)]
    if fitting:
        best = fitting[0]
        gpu = next(gpu for gpu in nvidia if _runs(gpu, best))
        others = [each for each in nvidia if not _runs(each, best)]
        more = f" {', '.join(sorted({each.name for each in others}))} cannot use it." if others else ""
        remedy = _newer_driver(gpu, machine) if best.backend == "cu128" else ""
        return [*(each.backend for each in fitting), "cpu"], f"{_named(gpu)} with driver {gpu.driver} runs {best.words}.{more}", remedy
    gpu = max(nvidia, key=lambda each: each.capability)
    why, remedy = _not_usable(gpu, machine)
    return ["cpu"], f"{why} The processor is used.", remedy


_ROCM = "With a Python of your own: install torch for ROCm from pytorch.org, then zk0desk with pip."


def _runs(gpu: Gpu, build: _Build) -> bool:
    if gpu.driver == NO_DRIVER or _is_jetson(gpu):
        return False
    return _major(gpu.driver) >= build.driver and _has_code(build, gpu)


def _has_code(build: _Build, gpu: Gpu) -> bool:
    """Whether the build has code for this generation; where the driver does not tell it, the self-test will."""
    return gpu.capability == _UNTOLD or build.oldest <= gpu.capability <= build.newest


def _is_jetson(gpu: Gpu) -> bool:
    return gpu.shared and gpu.capability in JETSONS | {_UNTOLD}


def _major(driver: str) -> int:
    major = driver.partition(".")[0]
    return int(major) if major.isdigit() else 0


def _not_usable(gpu: Gpu, machine: Machine) -> tuple[str, str]:
    if _is_jetson(gpu):
        remedy = "NVIDIA makes a torch for this board's JetPack: with a Python of your own install that, then zk0desk with pip."
        return f"{gpu.name} is one of NVIDIA's small boards, for which torch as it is published has no code.", remedy
    if gpu.driver == NO_DRIVER:
        return f"There is an {gpu.name}, and its driver does not answer.", _driver(MIN_DRIVER[13], machine)
    if _UNTOLD < gpu.capability < MIN_CAPABILITY[12]:
        what = f"{_named(gpu)} is too old: torch begins at generation {MIN_CAPABILITY[12][0]}.{MIN_CAPABILITY[12][1]}."
        return what, ""
    needed = min(build.driver for build in CUDA_BUILDS if _has_code(build, gpu))
    best = MIN_DRIVER[13] if _has_code(CUDA_BUILDS[0], gpu) else needed
    has = f"has driver {gpu.driver}" if gpu.driver else "has a driver of an unknown version"
    return f"{_named(gpu)} {has}; torch needs {needed} or newer.", _driver(best, machine)


def _newer_driver(gpu: Gpu, machine: Machine) -> str:
    return f"{_driver(MIN_DRIVER[13], machine)} {gpu.name} then runs CUDA 13.0." if _major(gpu.driver) < MIN_DRIVER[13] else ""


def _driver(version: int, machine: Machine) -> str:
    where = " in Windows, whose driver WSL uses" if machine.wsl else ""
    return f"Install NVIDIA's driver {version} or newer{where}, then choose again."


def _named(gpu: Gpu) -> str:
    return gpu.name if gpu.capability == _UNTOLD else f"{gpu.name} (generation {gpu.capability[0]}.{gpu.capability[1]})"


def _instead(known: Mapping[str, EngineList | None], wanted: Sequence[str], why: str) -> tuple[str, str]:
    """Of what is offered the one to take when nothing that fits is: every build computes on the processor too, the smallest is enough."""
    backend = min(known, key=lambda each: (getattr(known[each], "size", 0), lists.BACKENDS.index(each)))
    lacking = " or ".join(WORDS[each] for each in wanted)
    return backend, f"{why} This zk0desk brings no engine for {lacking}; the one for {WORDS[backend]} computes on the processor too."


def _option(backend: str, machine: Machine, one: EngineList | None) -> Option:
    works, why = _about(backend, machine)
    return Option(backend, works, why, one.size if one else 0, one.unpacked if one else 0)


def _about(backend: str, machine: Machine) -> tuple[bool, str]:
    if backend == "cpu":
        return True, "Trains on the processor, slowly. Works on every computer."
    if backend == "mps":
        return machine.system == "macos", "Trains on the Apple GPU."
    build = next(each for each in CUDA_BUILDS if each.backend == backend)
    needs = f"an NVIDIA GPU of generation {build.oldest[0]}.{build.oldest[1]} or later with driver {build.driver} or newer"
    if found := next((gpu for gpu in machine.gpus if gpu.kind == "cuda" and _runs(gpu, build)), None):
        return True, f"Trains on {found.name}."
    return False, f"Needs {needs}; here it would train on the processor."


def _why_not(machine: Machine) -> str:
    if machine.system == "macos" and machine.arch != "arm64":
        return "torch is no longer made for Intel Macs."
    if machine.system == "linux" and any(_is_jetson(gpu) for gpu in machine.gpus):
        return "NVIDIA's small boards need a torch of their own, for the board's JetPack."
    return ""
