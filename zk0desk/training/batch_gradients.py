"""The data gradient of one batch, in micro-batches that fit the memory, equal to that of the whole batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.events import Notice, Sink
from zk0desk.training.devices import out_of_memory, release_unused
from zk0desk.training.forward import Forward
from zk0desk.training.frames import Batch, Frames
from zk0desk.training.rounds import RoundFailedError

if TYPE_CHECKING:
    import torch

    from zk0desk.training.policy import TrainablePolicy

Groups = list[tuple[list[int], Batch]]
"""A batch as parts that can be computed together: their places in it, and their data."""


class BatchGradients:
    """Computes gradients with `forward`; learns how many frames fit the memory at once (`micro`; 0: the whole batch)."""

    def __init__(self, policy: TrainablePolicy, frames: Frames, forward: Forward, *, micro: int, emit: Sink) -> None:
        self._policy, self._frames, self._emit = policy, frames, emit
        self.forward = forward
        self.micro = micro
        self.forward_s = self.backward_s = 0.0
        """Seconds since this was made, as this thread sees them. What the forward prepares is within the first."""

    def of(self, indices: list[int], groups: Groups, noise: torch.Tensor, moment: torch.Tensor) -> tuple[float, float]:
        """Leave the gradient of the batch's loss in `.grad`; the loss, and the gradient's norm.

        `noise` and `moment` are those of the frames `indices`, in their order. Halves the micro-batch when memory runs out.
        """
        import torch

        valid = self._frames.valid_entries(indices)
        while True:
            size = min(self.micro or len(indices), len(indices))
            try:
                loss = self._accumulate(indices, groups, size, noise, moment, valid)
                gradients = [parameter.grad for parameter in self._policy.parameters if parameter.grad is not None]
                return loss, float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._policy.policy.zero_grad(set_to_none=True)
                if size == 1:
                    raise RoundFailedError(
                        "There is not enough memory to train on a single frame.",
                        f"{self._policy.device.type}: {str(error).splitlines()[0] if str(error) else 'out of memory'}",
                        "Close other programs, or train on a computer with more memory.",
                    ) from error
                self.micro = size // 2
            # Outside of the handler: the traceback holds what filled the memory.
            release_unused(self._policy.device)
            self._emit(
                Notice(
                    severity="note",
                    code="micro-batch-halved",
                    what=f"Memory ran out; {self.micro} frames are computed at once from here on.",
                    why=f"{size} did not fit.",
                    remedy="Nothing is lost: the update is the same, training is a little slower.",
                )
            )

    def _accumulate(
        self, indices: list[int], groups: Groups, size: int, noise: torch.Tensor, moment: torch.Tensor, valid: np.ndarray
    ) -> float:
        """Add up the gradients of micro-batches of `size` frames, each weighted by its share of valid entries."""
        total, loss = int(valid.sum()), 0.0
        for places, data in groups:
            for start in range(0, len(places), size):
                part = places[start : start + size]
                share = float(valid[part].sum() / total)
                micro = {key: value[start : start + size] for key, value in data.items()}
                began = time.perf_counter()
                value = self.forward.loss(micro, [indices[place] for place in part], noise[part], moment[part])
                loss += share * float(value.detach())
                computed = time.perf_counter()
                self.forward_s += computed - began
                if not np.isfinite(loss):
                    return loss
                (value * share).backward()
                self.backward_s += time.perf_counter() - computed
        return loss
