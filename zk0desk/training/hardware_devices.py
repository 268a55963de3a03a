"""Which device of a described computer trains a policy, and what keeps the others from it. Pure rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zk0desk.amounts import gigabytes
from zk0desk.engine.missing import build_remedy
from zk0desk.gpus import JETSONS, MIN_CAPABILITY, MIN_DRIVER, NO_DRIVER, Gpu
from zk0desk.training.hardware_types import Computer, Precision
from zk0desk.training.policy_size import GPU_LIBRARIES, LARGE_AT_ONCE, LARGE_POLICY, LIBRARIES, PolicySize
from zk0desk.training.recording_types import Finding, Severity

CUDA = 13
"""The CUDA version with which torch is built, where it is not told."""
BF16_CAPABILITY = (8, 0)
"""From Ampere on NVIDIA's GPUs compute in bfloat16."""


@dataclass(frozen=True)
class Place:
    """A device that could train, and how.

    Frames at once: what the trainer begins with (`wanted`), what fits (`micro_batch`, 0: not even one), and what fits with nothing else
    on the device (`undisturbed`). Bytes of the device's memory: `needed` by that, and `free` for it.
    """

    device: str
    gpu: Gpu | None
    precision: Precision
    wanted: int
    micro_batch: int
    undisturbed: int
    needed: int
    free: int


def has_bf16(gpu: Gpu) -> bool:
    """Whether the GPU computes in bfloat16 by itself, as the trainer asks torch."""
    return gpu.kind == "rocm" or (gpu.kind == "cuda" and gpu.capability >= BF16_CAPABILITY)


def best_of(gpus: Sequence[Gpu]) -> int:
    """Of several GPUs that work the place of the one to train on: one with bfloat16, and of those the one with the most free memory."""
    return max(range(len(gpus)), key=lambda place: (has_bf16(gpus[place]), gpus[place].memory_free, -place))


def processor(computer: Computer, size: PolicySize) -> Place:
    """Training on the processor."""
    at_once = min(size.batch, size.at_once or (LARGE_AT_ONCE if size.parameters >= LARGE_POLICY else size.batch))
    precision = size.precision or "fp32"
    free = computer.memory_free - LIBRARIES - size.leave
    fits = size.fits(at_once, free, precision)
    whole = size.fits(at_once, computer.memory - LIBRARIES - size.leave, precision)
    return Place("cpu", None, precision, at_once, fits, whole, size.needed(max(1, fits), precision), max(0, int(free)))


def best_place(computer: Computer, size: PolicySize, wanted: str) -> tuple[Place | None, list[Finding]]:
    """The best GPU that works. What keeps others from working is a note once there is one."""
    places, problems = [], []
    number = 0
    for gpu in computer.gpus:
        name = "mps" if gpu.kind == "mps" else f"cuda:{number}"
        number += gpu.kind != "mps"
        if wanted not in ("auto", name.partition(":")[0]):
            continue
        place = _gpu_place(gpu, name, size)
        problem = _gpu_problem(gpu, computer, size, place)
        if problem is None:
            places.append(place)
        else:
            problems.append(problem)
    if not places:
        return None, problems
    gpus = [place.gpu for place in places if place.gpu is not None]
    best = places[best_of(gpus)]
    remedy = f"There is nothing to do: {gpus[best_of(gpus)].name} is used."
    return best, [Finding(each.code, Severity.NOTE, each.what, each.why, remedy) for each in problems]


def _gpu_place(gpu: Gpu, name: str, size: PolicySize) -> Place:
    precision = size.precision or ("bf16" if has_bf16(gpu) else "fp32")
    taken = size.leave + (LIBRARIES if gpu.shared else GPU_LIBRARIES)
    free, whole = gpu.memory_free - taken, gpu.memory - taken
    at_once = min(size.batch, size.at_once or size.batch)
    fits = size.fits(at_once, free, precision)
    undisturbed = size.fits(at_once, whole, precision)
    return Place(name, gpu, precision, at_once, fits, undisturbed, size.needed(max(1, fits), precision), max(0, int(free)))


def _gpu_problem(gpu: Gpu, computer: Computer, size: PolicySize, place: Place) -> Finding | None:
    """What keeps this GPU from training, or None."""
    if gpu.kind != "mps" and (found := _driver_problem(gpu, computer) or _build_problem(gpu, computer)):
        return found
    if computer.torch_sees == "cpu":
        return repairable(
            "torch-sees-no-gpu",
            f"torch does not see {gpu.name}.",
            "Its driver answers, and torch was built for it. Until torch sees it, the processor is used.",
            "Start this computer again; in a container, hand the GPU to it (--gpus all).",
        )
    if not place.micro_batch:
        needed = gigabytes(place.needed)
        if size.leave and size.fits(1, place.free + size.leave, place.precision):
            what = f"{gigabytes(size.leave)} of {gpu.name}'s memory is to stay free; training needs {needed} of the rest."
            return repairable("memory-kept-free", what, "Not even one frame fits. The processor is used instead.", "Leave less of it free.")
        if not place.undisturbed:
            what = f"{gpu.name} has {gigabytes(gpu.memory)} of memory; {needed} is needed."
            return repairable("gpu-memory", what, "It is too small for this policy.", "The processor is used instead.")
        what = f"{gigabytes(gpu.memory_free)} of {gpu.name}'s memory is free; {needed} is needed."
        held = f"Other programs hold {gigabytes(gpu.memory_others)}." if gpu.memory_others else "Other programs hold the rest."
        return repairable("gpu-memory", what, held, "Close what uses the GPU.")
    return None


def _driver_problem(gpu: Gpu, computer: Computer) -> Finding | None:
    cuda = _cuda(computer)
    if gpu.driver == NO_DRIVER:
        inside = " In a container, hand the GPU to it (--gpus all)." if computer.container else ""
        what, why = f"There is an {gpu.name}, and its driver does not answer.", "Until then the processor is used."
        return repairable("driver-missing", what, why, f"Install NVIDIA's driver {MIN_DRIVER[cuda]} or newer.{inside}")
    if gpu.kind != "cuda":
        return None
    if gpu.shared and gpu.capability in JETSONS | {(0, 0)} and computer.torch_sees != "cuda":
        return repairable(
            "jetson-torch",
            f"torch as it is published has no code for {gpu.name}.",
            "NVIDIA's small boards need a torch of their own. Until then the processor is used.",
            "Install NVIDIA's torch for this board's JetPack.",
        )
    oldest = MIN_CAPABILITY[cuda]
    if gpu.capability != (0, 0) and gpu.capability < oldest:
        why = f"Its generation is {gpu.capability[0]}.{gpu.capability[1]}; CUDA {cuda} begins at {oldest[0]}.{oldest[1]}."
        return repairable("gpu-too-old", f"{gpu.name} is too old for this torch.", why, "The processor is used instead.")
    major = gpu.driver.partition(".")[0]
    if major.isdigit() and int(major) < MIN_DRIVER[cuda]:
        where = " Install it in Windows: WSL uses that one." if computer.wsl else ""
        return repairable(
            "driver-too-old",
            f"Driver {gpu.driver} is older than CUDA {cuda} needs.",
            f"Until then {gpu.name} is not used, and the processor is.",
            f"Install {MIN_DRIVER[cuda]} or newer.{where}",
        )
    return None


def _build_problem(gpu: Gpu, computer: Computer) -> Finding | None:
    build = computer.torch_build.partition(" ")[0]
    if not build or build == gpu.kind:
        return None
    need, source = ("ROCm", "rocm") if gpu.kind == "rocm" else ("CUDA", "cu130")
    return repairable(
        f"torch-without-{need.lower()}",
        f"torch was built without {need}.",
        f"{gpu.name} is there and cannot be used; the processor is.",
        build_remedy(need, source),
    )


def _cuda(computer: Computer) -> int:
    kind, _, version = computer.torch_build.partition(" ")
    major = version.partition(".")[0]
    return int(major) if kind == "cuda" and major.isdigit() and int(major) in MIN_DRIVER else CUDA


def repairable(code: str, what: str, why: str, remedy: str) -> Finding:
    """A finding that limits, and can be mended."""
    return Finding(code, Severity.REPAIRABLE, what, why, remedy)
