"""This computer: devices, memory, disk, versions, and whether the policy can be trained here. Never imports torch.

`inspect_computer` looks, `verdict` decides: a pure function over what was seen, so that a computer can be described in a test.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zk0desk import folders
from zk0desk.errors import ExitStatus
from zk0desk.training.recording_types import Finding, Severity, in_order

PARAMETERS, TRAINABLE = 450_046_176, 99_880_992
"""SmolVLA's, in full size."""
MIN_DRIVER = 580
"""NVIDIA driver that CUDA 13, with which torch is built, asks for."""
MIN_CAPABILITY = (7, 5)
"""Oldest GPU generation (Turing) that CUDA 13 has code for."""
ACTIVATIONS_PER_FRAME = 220e6
"""Bytes of saved activations for one frame with two cameras at full size."""
LIBRARIES = 1.5e9
"""Bytes that torch, LeRobot and their data take in memory."""
ENGINE = ("torch", "lerobot", "flwr")
PROBE_LIMIT_S = 120
INSTRUCTIONS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")
"""Of a processor, those that decide how fast torch is."""

Answer = Literal["ok", "limits", "no"]


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it. Bytes; `driver` such as "580.65"; `capability` such as (8, 6), or (0, 0)."""

    kind: Literal["cuda", "mps"]
    name: str
    memory: int
    memory_free: int
    driver: str = ""
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Computer:
    """What was seen of a computer. Bytes; `versions` maps a library to its version, "" where it is not installed."""

    system: str
    cpu: str
    cores: int
    instructions: tuple[str, ...]
    memory: int
    memory_free: int
    disk_free: int
    versions: dict[str, str]
    gpus: tuple[Gpu, ...] = ()
    engine_error: str = ""
    torch_cuda: bool | None = None
    display: bool = True
    keyring: str = ""

    def to_json(self) -> dict[str, Any]:
        """The computer as a JSON object, keys in kebab-case."""
        return {key.replace("_", "-"): value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Verdict:
    """Whether the policy trains here: `ok`, with `limits`, or `no`; on which device, and why."""

    answer: Answer
    sentence: str
    device: str
    memory_needed: int
    findings: tuple[Finding, ...] = ()

    @property
    def exit_status(self) -> ExitStatus:
        """0 it works, 3 with limits, 4 not."""
        return {"ok": ExitStatus.OK, "limits": ExitStatus.REPAIRABLE, "no": ExitStatus.UNUSABLE}[self.answer]

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object with keys `status`, `sentence`, `device`, `memory-needed`, `findings`."""
        return {
            "status": self.answer,
            "sentence": self.sentence,
            "device": self.device,
            "memory-needed": self.memory_needed,
            "findings": [finding.to_json() for finding in self.findings],
        }


def memory_needed(parameters: int = PARAMETERS, trainable: int = TRAINABLE, *, frames: int = 1) -> int:
    """Bytes that training takes in fp32: all weights; gradient, two AdamW moments and w_t of the trainable set; activations."""
    scale = parameters / PARAMETERS
    return int(4 * parameters + 4 * 4 * trainable + frames * ACTIVATIONS_PER_FRAME * scale)


def verdict(computer: Computer, parameters: int = PARAMETERS, trainable: int = TRAINABLE) -> Verdict:
    """Decide whether a policy of this size trains on `computer`. Pure: nothing is looked at."""
    needed = memory_needed(parameters, trainable)
    findings = _engine(computer)
    device, on_gpu = _device(computer, needed, findings)
    if computer.cpu and platform_is_x86(computer.system) and computer.instructions and "avx2" not in computer.instructions:
        why = "torch's kernels are made for AVX2; without it each step takes several times as long."
        findings.append(Finding("cpu-old", Severity.NOTE, "The processor has no AVX2.", why, "Use a newer computer if rounds are slow."))
    in_memory = LIBRARIES if on_gpu else LIBRARIES + needed
    if computer.memory < in_memory:
        findings.append(
            Finding(
                "memory-too-small",
                Severity.BLOCKS,
                f"Training needs {gigabytes(in_memory)} of memory; this computer has {gigabytes(computer.memory)}.",
                "The weights, their gradients and AdamW's moments have to fit.",
                "Use a computer with more memory, or a GPU.",
            )
        )
    elif computer.memory_free < in_memory:
        findings.append(
            Finding(
                "memory-taken",
                Severity.REPAIRABLE,
                f"{gigabytes(computer.memory_free)} of memory is free; training needs {gigabytes(in_memory)}.",
                "Other programs hold the rest.",
                "Close other programs before you join.",
            )
        )
    room = 3 * 4 * trainable + 4 * parameters
    if computer.disk_free < room:
        findings.append(
            Finding(
                "disk-full",
                Severity.BLOCKS,
                f"{gigabytes(computer.disk_free)} of disk is free; the weights of a run take {gigabytes(room)}.",
                f"They are kept in {folders.runs_folder()}.",
                "Free some space, or set ZK0DESK_HOME to another disk.",
            )
        )
    blocked = any(finding.severity == Severity.BLOCKS for finding in findings)
    slow = not on_gpu and parameters > 50_000_000
    if slow and not blocked:
        findings.append(
            Finding(
                "no-gpu",
                Severity.REPAIRABLE,
                "The policy trains on the processor, which takes long.",
                "A step of one frame takes about five seconds at full size on two cores.",
                "A computer with an NVIDIA GPU or an Apple chip does it many times faster.",
            )
        )
    limited = any(finding.severity == Severity.REPAIRABLE for finding in findings)
    answer: Answer = "no" if blocked else "limits" if limited else "ok"
    return Verdict(answer, _sentence(answer, computer, device, in_order(findings)), device, needed, in_order(findings))


def platform_is_x86(system: str) -> bool:
    """Whether `system` names an x86 machine."""
    return any(word in system.lower() for word in ("x86_64", "amd64"))


def gigabytes(count: float) -> str:
    """Bytes for a person: GB, or MB where that would be 0.0 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.0f} MB"


def _engine(computer: Computer) -> list[Finding]:
    missing = [name for name in ENGINE if not computer.versions.get(name)]
    if missing:
        return [
            Finding(
                "engine-missing",
                Severity.BLOCKS,
                f"The training engine is not installed: {', '.join(missing)}.",
                "The window works without it; training does not.",
                'Install it: pip install "zk0desk[engine]"',
            )
        ]
    if computer.engine_error:
        return [
            Finding(
                "engine-broken",
                Severity.BLOCKS,
                "torch cannot be loaded on this computer.",
                f"It says: {computer.engine_error}",
                'Install it again: pip install --force-reinstall "zk0desk[engine]"',
            )
        ]
    return []


def _device(computer: Computer, needed: int, findings: list[Finding]) -> tuple[str, bool]:
    """The best device that works, and whether it is a GPU; what keeps a GPU from working is added to `findings`."""
    best = ("cpu", False)
    for number, gpu in enumerate(computer.gpus):
        problem = _gpu_problem(gpu, computer, needed)
        if problem is not None:
            findings.append(problem)
        elif not best[1]:
            best = ("mps" if gpu.kind == "mps" else f"cuda:{number}", True)
    return best


def _gpu_problem(gpu: Gpu, computer: Computer, needed: int) -> Finding | None:
    if gpu.kind == "cuda":
        major = int(gpu.driver.split(".")[0]) if gpu.driver.split(".")[0].isdigit() else 0
        if gpu.capability != (0, 0) and gpu.capability < MIN_CAPABILITY:
            why = f"Its generation is {gpu.capability[0]}.{gpu.capability[1]}; CUDA 13 begins at {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}."
            what = f"{gpu.name} is too old for this torch."
            return Finding("gpu-too-old", Severity.REPAIRABLE, what, why, "The processor is used instead.")
        if major and major < MIN_DRIVER:
            return Finding(
                "driver-too-old",
                Severity.REPAIRABLE,
                f"The driver {gpu.driver} of {gpu.name} is older than CUDA 13 needs.",
                "Until then the processor is used.",
                f"Install driver {MIN_DRIVER} or newer.",
            )
        if computer.torch_cuda is False:
            return Finding(
                "torch-without-cuda",
                Severity.REPAIRABLE,
                "torch was built without CUDA.",
                f"{gpu.name} is there and cannot be used.",
                "Install the CUDA build of torch.",
            )
    if gpu.memory_free < needed:
        small = gpu.memory < needed
        return Finding(
            "gpu-memory",
            Severity.REPAIRABLE,
            f"{gigabytes(gpu.memory_free)} of {gpu.name}'s memory is free; {gigabytes(needed)} is needed.",
            "It is too small for this policy." if small else "Other programs hold the rest.",
            "The processor is used instead." if small else "Close what uses the GPU.",
        )
    return None


def _sentence(answer: Answer, computer: Computer, device: str, findings: tuple[Finding, ...]) -> str:
    if answer == "no":
        return f"The policy cannot be trained here. {findings[0].what} {findings[0].remedy}"
    gpu = next((gpu.name for number, gpu in enumerate(computer.gpus) if device in (f"cuda:{number}", gpu.kind)), "")
    place = f"on {gpu}" if gpu else f"on the processor, {computer.cores} cores"
    if answer == "ok":
        return f"The policy trains here, {place}."
    return f"The policy trains here, {place}, with limits. {findings[0].what} {findings[0].remedy}"


# --- looking ----------------------------------------------------------------------------------------------------


def inspect_computer(*, probe_engine: bool = False) -> Computer:
    """Look at this computer. With `probe_engine` torch is imported in a child process, which takes seconds."""
    import psutil

    memory = psutil.virtual_memory()
    limit = _container_limit()
    error, cuda = _probe_engine() if probe_engine else ("", None)
    return Computer(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instructions=_instructions(),
        memory=min(memory.total, limit or memory.total),
        memory_free=min(memory.available, limit or memory.available),
        disk_free=_disk_free(),
        versions=_versions(),
        gpus=(*_nvidia(), *_apple(memory.total, memory.available)),
        engine_error=error,
        torch_cuda=cuda,
        display=sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")),
        keyring=_keyring(),
    )


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in _lines("/proc/cpuinfo"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
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


def _container_limit() -> int:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = "".join(_lines(path)).strip()
        if text.isdigit() and int(text) < 2**50:
            return int(text)
    return 0


def _disk_free() -> int:
    place = folders.runs_folder()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from zk0desk import __version__

    found = {"zk0desk": __version__, "python": platform.python_version()}
    for name in (*ENGINE, "torchvision", "transformers", "PySide6-Essentials"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _nvidia() -> list[Gpu]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        gpus = []
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
            name = _text(pynvml.nvmlDeviceGetName(handle))
            gpus.append(Gpu("cuda", name, int(memory.total), int(memory.free), driver, (capability[0], capability[1])))
        return gpus
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _apple(memory: int, free: int) -> list[Gpu]:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        # Apple's chips share the memory; Metal lets one program have about three quarters of it.
        return [Gpu("mps", f"{_cpu_name()} GPU", memory * 3 // 4, min(free, memory * 3 // 4))]
    return []


def _keyring() -> str:
    try:
        import keyring

        backend = keyring.get_keyring()
    except Exception as error:  # noqa: BLE001 - a broken backend raises whatever its library raises
        return f"none: {type(error).__name__}"
    priority = getattr(type(backend), "priority", 0)
    return "none" if "fail" in type(backend).__module__ or priority < 0 else getattr(backend, "name", type(backend).__name__)


_PROBE = "import torch; print('cuda', torch.version.cuda is not None); import lerobot, flwr"


def _probe_engine() -> tuple[str, bool | None]:
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: it did not load within {PROBE_LIMIT_S} s.", None
    cuda = "cuda True" in done.stdout if "cuda " in done.stdout else None
    if done.returncode == 0:
        return "", cuda
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return last[:300], cuda
