"""How a batch becomes a loss. Training and evaluation use a `Forward` and do not know which one it is.

`WholeForward` is LeRobot's own: pictures are decoded and go through the whole policy, every time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal, Protocol

from zk0desk.training.frames import Batch, Frames, to_device
from zk0desk.training.noise import action_size

if TYPE_CHECKING:
    import torch

    from zk0desk.training.policy import TrainablePolicy

Reduction = Literal["mean", "none"]


class Forward(Protocol):
    """A batch's data, and its loss. All frames of a batch are alike (`Frames.alike`).

    `level` says what is computed beforehand; a round that goes on after an unclean end goes on with the same.
    """

    level: str

    def batch(self, indices: list[int], decoders: ThreadPoolExecutor | None = None) -> Batch:
        """The data of frames on the CPU: tensors whose first dimension is the frame. Called from a thread of its own."""

    def loss(self, data: Batch, indices: list[int], noise: torch.Tensor, time: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
        """LeRobot's loss of `data`, which is that of frames `indices`: the mean over valid entries, or with "none" each frame's (b,)."""


class WholeForward:
    """LeRobot's forward over pictures, state and actions; with `bf16` under bfloat16 autocast."""

    level = "off"

    def __init__(self, policy: TrainablePolicy, frames: Frames, *, bf16: bool = False) -> None:
        self._policy, self._frames, self._bf16 = policy, frames, bf16

    def batch(self, indices: list[int], decoders: ThreadPoolExecutor | None = None) -> Batch:
        """As `Frames.batch`."""
        return self._frames.batch(indices, decoders)

    def loss(self, data: Batch, indices: list[int], noise: torch.Tensor, time: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
        """As `Forward.loss`."""
        device = self._policy.device
        with action_size(self._policy, self._frames.action_size(indices[0])), self._precision(device):
            value, _ = self._policy.policy.forward(
                to_device(data, device), noise=noise.to(device), time=time.to(device), reduction=reduction
            )
        return value

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        import torch

        return torch.autocast(device.type, torch.bfloat16) if self._bf16 else nullcontext()
