"""The device that trains: which one it is, in what it computes, and what differs between devices.

What only a GPU does (its numbering, its precision, its memory) is here, so that all else is the same code on every device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from zk0desk.gpus import find_gpus
from zk0desk.training.hardware_devices import BF16_CAPABILITY, best_of
from zk0desk.training.rounds import RoundFailedError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str, fits: Callable[[torch.device], bool] = lambda _device: True) -> torch.device:
    """The device to train on; `auto` takes CUDA, then MPS, then the CPU. RoundFailedError when the wanted one is not there.

    `fits` is asked whether a GPU's memory suffices before `auto` takes it.
    """
    import torch

    # So that CUDA numbers GPUs as their driver does; it reads this when it is first used.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        found = (_device(name) for name, usable in there.items() if usable)
        return next(device for device in found if device.type == "cpu" or fits(device))
    if not there.get(wanted, False):
        raise RoundFailedError(
            f"The device {wanted} cannot be used.",
            "PyTorch does not see it on this computer.",
            "Set the device to auto, or install its driver.",
        )
    return _device(wanted)


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and (count := torch.cuda.device_count()) > 1:
        return torch.device("cuda", _number_of_best(count))
    return torch.device(name)


def _number_of_best(count: int) -> int:
    """Of the `count` GPUs that torch sees, the one that the verdict on this computer names; the first where they cannot be told apart."""
    gpus = [gpu for gpu in find_gpus(0, 0) if gpu.kind != "mps"]
    return best_of(gpus) if len(gpus) == count else 0


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether `precision` (auto, fp32 or bf16) means bfloat16 autocast on `device`."""
    import torch

    if precision == "auto":
        return device.type == "cuda" and (torch.version.hip is not None or torch.cuda.get_device_capability(device) >= BF16_CAPABILITY)
    return precision == "bf16"


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, a GPU's or the computer's."""
    import torch

    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in text or "defaultcpuallocator" in text


def release_unused(device: torch.device) -> None:
    """Hand the memory that torch keeps on `device` for later back to it."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def has_own_memory(device: torch.device) -> bool:
    """Whether moving away from `device` frees memory that main memory does not share: a GPU with memory of its own."""
    return device.type == "cuda"


def set_aside(device: torch.device, tensors: Iterable[torch.Tensor]) -> Callable[[], None]:
    """Move those of `tensors` that are on `device` to main memory, in place; what is returned brings them back.

    The tensors stay the same objects, so that a module and an optimiser that hold them need not know.
    """
    moved = {id(tensor): tensor for tensor in tensors if tensor.device.type == device.type}
    for tensor in moved.values():
        tensor.data = to_main_memory(tensor.data)
    release_unused(device)

    def bring_back() -> None:
        for tensor in moved.values():
            tensor.data = to_device_memory(tensor.data, device)

    return bring_back


def to_main_memory(data: torch.Tensor) -> torch.Tensor:
    """A copy of `data` in main memory."""
    return data.to("cpu")


def to_device_memory(data: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of `data` on `device`."""
    return data.to(device)
