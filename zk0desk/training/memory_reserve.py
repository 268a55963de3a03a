"""Memory that a person wants to stay free: fewer frames are computed at once for it, and on CUDA torch is given no more than the rest.

The rules are those of the verdict on this computer, with what is free at the moment when training begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zk0desk.amounts import gigabytes
from zk0desk.events import Notice, Sink
from zk0desk.training.container_limits import usable_memory
from zk0desk.training.hardware_types import Precision
from zk0desk.training.policy_size import LIBRARIES, PolicySize
from zk0desk.training.rounds import RoundFailedError

if TYPE_CHECKING:
    import torch

    from zk0desk.training.policy_files import PolicyFiles

MOST = 4096
"""Frames of the largest batch that a federation may ask for."""


def frames_at_once(files: PolicyFiles, device: torch.device, wanted: int, leave_gb: float, *, bf16: bool, emit: Sink) -> int:
    """How many frames are computed at once so that `leave_gb` GB of the device's memory stay free: at most `wanted`; 0: the whole batch.

    On CUDA torch is given no more than the rest from here on. `RoundFailedError` where that is too little for a single frame; elsewhere
    a single frame is trained all the same, with a notice.
    """
    leave = int(leave_gb * 1e9)
    if not leave and device.type != "cuda":
        return wanted
    budget = _cuda_budget(device, leave) if device.type == "cuda" else _shared_budget(leave)
    if not leave:
        return wanted
    precision: Precision = "bf16" if bf16 else "fp32"
    size = PolicySize(files.parameters, files.trainable_parameters, MOST, precision)
    fits = size.fits(wanted or MOST, budget, precision)
    if not fits:
        what = f"{gigabytes(max(0, budget))} of memory is left for training when {gigabytes(leave)} stay free."
        why = f"A single frame needs {gigabytes(size.needed(1, precision))}."
        if device.type == "cuda":
            raise RoundFailedError(what, why, "Set Memory free in Settings to less, or close other programs that use the GPU.")
        remedy = "Set Memory free in Settings to less, or close other programs."
        emit(Notice(severity="warning", code="memory-kept-free", what=what, why=f"{why} It is trained all the same.", remedy=remedy))
        return 1
    return 0 if fits == MOST else fits


def fits_on(device: torch.device, files: PolicyFiles, leave_gb: float, *, bf16: bool, emit: Sink) -> bool:
    """Whether a single frame can be trained on the GPU `device` while `leave_gb` GB of its memory stay free; else a notice says so.

    The verdict on this computer says by the same rule that the processor is used instead.
    """
    leave, precision = int(leave_gb * 1e9), "bf16" if bf16 else "fp32"
    budget = _cuda_memory(device)[0] - leave if device.type == "cuda" else _shared_budget(leave)
    needed = PolicySize(files.parameters, files.trainable_parameters, MOST, precision).needed(1, precision)  # type: ignore[arg-type]
    if needed <= budget:
        return True
    what = f"{gigabytes(max(0, budget))} of the GPU's memory is left for training; {gigabytes(needed)} is needed."
    remedy = "Close what uses the GPU, or leave less of its memory free, and begin again."
    emit(Notice(severity="warning", code="gpu-memory", what=what, why="The processor is used instead, which takes long.", remedy=remedy))
    return False


def _cuda_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the GPU that are free or torch's already, and all."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device), total


def _cuda_budget(device: torch.device, leave: int) -> int:
    """Bytes that training may take of the GPU; torch refuses more by itself from here on."""
    import torch

    free, total = _cuda_memory(device)
    budget = free - leave
    # What is set by an earlier training of this process is taken back, too.
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, budget / total)) if leave else 1.0, device)
    return budget


def _shared_budget(leave: int) -> int:
    """Bytes of this computer's own memory that training may take, beside its libraries; what this process holds is part of it."""
    import psutil

    return int(usable_memory()[1] + psutil.Process().memory_info().rss - LIBRARIES - leave)
