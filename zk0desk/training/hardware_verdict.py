"""Whether a policy trains on a described computer: on which device, in which precision, how many frames at once. Pure rules.

They follow what the trainer does: of several GPUs the same one, bfloat16 where the device computes in it, the whole batch at once on a
GPU and, of a large policy on a processor, two frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from zk0desk.amounts import gigabytes
from zk0desk.engine.missing import remedy as engine_remedy
from zk0desk.training.hardware_devices import Place, best_place, processor, repairable
from zk0desk.training.hardware_types import ENGINE, Answer, Computer, Verdict
from zk0desk.training.policy_size import BATCH, LARGE_POLICY, LIBRARIES, PARAMETERS, TRAINABLE, PolicySize
from zk0desk.training.recording_types import Finding, Severity, in_order

SPARE_DISK = 2**30
"""What a round's checkpoint leaves free."""
HOT, BUSY = 87, 50
"""Degrees Celsius from which a GPU slows itself down; percent from which someone else's work is felt."""
FELT = 0.15
"""Of a GPU's memory, what a desktop may hold without a word."""

_MACHINES = {"x86_64", "amd64", "arm64", "aarch64"}


def verdict(
    computer: Computer,
    parameters: int = PARAMETERS,
    trainable: int = TRAINABLE,
    *,
    batch: int = BATCH,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    micro_batch: int = 0,
    memory_free: float = 0.0,
) -> Verdict:
    """Decide whether a policy of this size trains on `computer`, in steps of `batch` frames. Pure: nothing is looked at.

    `device`, `precision`, `micro_batch` and `memory_free` (GB of the device's memory) are those of the settings.
    """
    size = PolicySize(parameters, trainable, batch, None if precision == "auto" else precision, micro_batch, int(memory_free * 1e9))
    findings = [*_system(computer), *_engine(computer)]
    place = processor(computer, size)
    if device != "cpu":
        best, problems = best_place(computer, size, device)
        place = best or place
        findings += problems
        if best is None and device != "auto":
            findings.append(_no_such_device(device, problems))
    findings += [*_cpu(computer), *_memory(computer, size, place), *_disk(computer, size)]
    if place.gpu is None and parameters >= LARGE_POLICY and not _blocked(findings):
        findings.append(_no_gpu())
    findings += [*_around(computer, place), *_comfort(computer)]
    ordered = in_order(findings)
    limited = any(finding.severity == Severity.REPAIRABLE for finding in ordered)
    answer: Answer = "no" if _blocked(findings) else "limits" if limited else "ok"
    return Verdict(
        answer,
        _sentence(answer, computer, place, ordered),
        place.device,
        place.needed,
        ordered,
        precision=place.precision,
        micro_batch=place.micro_batch,
        memory_left=max(0, place.free - place.needed),
    )


# --- the rest of the computer


def _system(computer: Computer) -> Iterator[Finding]:
    system, machine = computer.system.partition(" ")[0], computer.system.rpartition(" ")[2].lower()
    if machine in _MACHINES and (system, machine) != ("Darwin", "x86_64"):
        return
    what = "torch is no longer made for Intel Macs." if system == "Darwin" else f"torch is not made for {machine} processors."
    remedy = "Use a computer with a 64-bit processor and Linux or Windows, or an Apple chip."
    yield Finding("system-unsupported", Severity.BLOCKS, what, "Training is done by it.", remedy)


def _engine(computer: Computer) -> Iterator[Finding]:
    missing = [name for name in ENGINE if not computer.versions.get(name)]
    if missing:
        yield Finding(
            "engine-missing",
            Severity.BLOCKS,
            f"The training engine is not installed: {', '.join(missing)}.",
            "The window works without it; training does not.",
            engine_remedy(),
        )
    elif computer.engine_error:
        yield Finding(
            "engine-broken",
            Severity.BLOCKS,
            "torch cannot be loaded on this computer.",
            f"It says: {computer.engine_error}",
            engine_remedy(broken=True),
        )


def platform_is_x86(system: str) -> bool:
    """Whether `system` names an x86 machine."""
    return any(word in system.lower() for word in ("x86_64", "amd64"))


def _cpu(computer: Computer) -> Iterator[Finding]:
    if not (computer.cpu and platform_is_x86(computer.system) and computer.instructions):
        return
    if "avx" not in computer.instructions:
        why = "torch's kernels are made for AVX2; without it they are many times slower, and some libraries end with 'Illegal instruction'."
        yield repairable("cpu-too-old", "The processor has no AVX.", why, "Use a newer computer.")
    elif "avx2" not in computer.instructions:
        why = "torch's kernels are made for AVX2; without it each step takes several times as long."
        yield Finding("cpu-old", Severity.NOTE, "The processor has no AVX2.", why, "Use a newer computer if rounds are slow.")


def _memory(computer: Computer, size: PolicySize, place: Place) -> Iterator[Finding]:
    own = place.gpu is not None and not place.gpu.shared
    needed = LIBRARIES if own else LIBRARIES + size.needed(1, place.precision)
    leave = 0 if own else size.leave
    stays = f", {gigabytes(leave)} of it to stay so" if leave else ""
    more = ""
    if computer.wsl:
        more = " WSL takes half of Windows's memory: give it more with memory= in .wslconfig."
    elif computer.memory_limit:
        more = " It is the container's limit: give it more (--memory)."
    if computer.memory < needed:
        what = f"Training needs {gigabytes(needed)} of memory; this computer has {gigabytes(computer.memory)}."
        why = "The weights, their gradients and AdamW's moments have to fit."
        remedy = more.strip() if computer.memory_limit and not computer.wsl else f"Use a computer with more memory, or a GPU.{more}"
        yield Finding("memory-too-small", Severity.BLOCKS, what, why, remedy)
    elif computer.memory_free < needed:
        what = f"{gigabytes(computer.memory_free)} of memory is free; training needs {gigabytes(needed)}."
        yield repairable("memory-taken", what, "Other programs hold the rest.", f"Close other programs before you join.{more}")
    elif computer.memory_free - leave < needed:
        what = f"{gigabytes(computer.memory_free)} of memory is free{stays}; training needs {gigabytes(needed)}."
        yield repairable(
            "memory-kept-free", what, "One frame at a time is trained all the same, and other programs get less.", "Leave less of it free."
        )
    elif place.gpu is None and place.micro_batch < place.wanted:
        need = gigabytes(LIBRARIES + size.needed(place.wanted, place.precision))
        what = f"{gigabytes(computer.memory_free)} of memory is free{stays}; {place.wanted} frames at once need {need}."
        why = f"{place.micro_batch} at once fit; the update is the same, training is slower."
        ways = [*(["close other programs"] if place.undisturbed > place.micro_batch else []), *(["leave less of it free"] if leave else [])]
        ways.append(f"set Micro batch to {place.micro_batch} in Settings.{more}")
        remedy = ", or ".join(ways)
        remedy = remedy[0].upper() + remedy[1:]
        yield repairable("memory-small-batch", what, why, remedy)


def _disk(computer: Computer, size: PolicySize) -> Iterator[Finding]:
    # The last and the best weights, the update, and what encoding left out of it, before and after.
    room = 5 * 4 * size.trainable + 4 * size.parameters
    place = f"They are kept in {computer.disk_place}." if computer.disk_place else ""
    free = gigabytes(computer.disk_free)
    if computer.disk_free < room:
        what = f"{free} of disk is free; the weights of a run take {gigabytes(room)}."
        yield Finding("disk-full", Severity.BLOCKS, what, place, "Free some space, or set ZK0DESK_HOME to another disk.")
    elif computer.disk_free < room + SPARE_DISK:
        why = "The middle of a round is kept only where 1.1 GB stays free; without it a power cut costs the round."
        yield Finding("disk-tight", Severity.NOTE, f"{free} of disk is free, just enough for a run.", why, "Free some space.")


def _around(computer: Computer, place: Place) -> Iterator[Finding]:
    """What else uses the chosen device."""
    gpu = place.gpu
    if gpu is None:
        return
    if place.micro_batch < place.undisturbed and gpu.memory - gpu.memory_free > FELT * gpu.memory:
        held = f"Other programs hold {gigabytes(gpu.memory_others)}." if gpu.memory_others else "Other programs hold a part of it."
        what = f"{gigabytes(gpu.memory_free)} of {gpu.name}'s {gigabytes(gpu.memory)} is free: {place.micro_batch} frames at once fit."
        close = "Close other programs" if gpu.shared else "Close what uses the GPU"
        yield Finding("gpu-shared", Severity.NOTE, what, held, f"{close}; then {place.undisturbed} at once fit.")
    if gpu.utilisation is not None and gpu.utilisation >= BUSY:
        what = f"{gpu.name} is busy at {gpu.utilisation}%."
        why = "Another program computes on it; each step takes longer."
        yield Finding("gpu-busy", Severity.NOTE, what, why, "Close what uses the GPU.")
    if gpu.temperature is not None and gpu.temperature >= HOT:
        what = f"{gpu.name} is at {gpu.temperature} degrees Celsius."
        yield Finding("gpu-hot", Severity.NOTE, what, "It slows itself down to cool.", "Look after its fans and the air around it.")


def _comfort(computer: Computer) -> Iterator[Finding]:
    """What does not keep the policy from training, and should be known before joining."""
    if computer.wsl and computer.disk_place.startswith("/mnt/"):
        what = "Runs are kept on a disk of Windows."
        yield Finding("wsl-disk", Severity.NOTE, what, "From WSL it is many times slower.", "Set ZK0DESK_HOME to a folder of Linux.")
    if computer.cpu_limit:
        what = f"This container may use {computer.cpu_limit:g} cores."
        yield Finding("cores-limited", Severity.NOTE, what, "Decoding and training share them.", "Give the container more (--cpus).")
    if computer.keyring.startswith("none"):
        why = "The node's private key is kept in it, unless it is kept in a file."
        remedy = "Unlock it, or choose file as Key storage in Settings (key-storage in the settings file)."
        yield Finding("no-keyring", Severity.NOTE, "No keyring answers.", why, remedy)
    if computer.display is False:
        why = "The window cannot open; all else works."
        yield Finding("no-display", Severity.NOTE, "There is no screen.", why, "Use `zk0desk node`, which needs none.")


def _no_such_device(device: str, problems: list[Finding]) -> Finding:
    """The trainer takes no other device than the one that it is set to."""
    what = f"Training is set to {device}, which cannot be used here."
    why = problems[0].what if problems else "No such GPU was found."
    best = "et the best device be taken: Device on This computer, or device = auto in the settings."
    remedy = f"{problems[0].remedy} Or l{best}" if problems else f"L{best}"
    return Finding("device-missing", Severity.BLOCKS, what, why, remedy)


def _no_gpu() -> Finding:
    return repairable(
        "no-gpu",
        "The policy trains on the processor, which takes long.",
        "A step of one frame takes about five seconds at full size on two cores.",
        "A computer with an NVIDIA GPU or an Apple chip does it many times faster.",
    )


# --- words


def _blocked(findings: list[Finding]) -> bool:
    return any(finding.severity == Severity.BLOCKS for finding in findings)


def _sentence(answer: Answer, computer: Computer, place: Place, findings: tuple[Finding, ...]) -> str:
    if answer == "no":
        return f"The policy cannot be trained here. {findings[0].what} {findings[0].remedy}"
    where = f"on {place.gpu.name}" if place.gpu else f"on the processor, {computer.cores} cores"
    if answer == "ok":
        return f"The policy trains here, {where}."
    return f"The policy trains here, {where}, with limits. {findings[0].what} {findings[0].remedy}"
