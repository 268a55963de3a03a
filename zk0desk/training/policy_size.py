"""How much memory training a policy takes, by its size. Numbers only: nothing is looked at, and torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass

from zk0desk.training.hardware_types import Precision

PARAMETERS, TRAINABLE = 450_046_176, 99_880_992
"""SmolVLA's, in full size."""
BATCH = 64
"""Frames of one optimiser step, as the paper has them."""
LARGE_POLICY = 50_000_000
"""From this many parameters on, a CPU computes two frames at once: no operation then takes long, and Stop is quick."""
LARGE_AT_ONCE = 2
PREPARED_AT_ONCE = 8
"""So many instead where frames are prepared (levels V and P): an operation is then a seventh as long, or less."""
ACTIVATIONS_PER_FRAME = 220e6
"""Bytes of saved activations for one frame with two cameras at full size, in fp32."""
BF16_SHARE = 0.6
"""Of that, what is saved under bfloat16 autocast; norms and the loss stay fp32."""
LIBRARIES = 2.2e9
"""Bytes that torch, LeRobot, decoded pictures and copies of what travels take in memory.

Measured on a processor: at most 6.0 GB in all at full size with two frames at once, 2.2 to 2.5 GB with a tiny policy.
"""
GPU_LIBRARIES = 0.6e9
"""Bytes of a GPU's memory that CUDA's context and kernels take."""


def memory_needed(
    parameters: int = PARAMETERS, trainable: int = TRAINABLE, *, frames: int = 1, precision: Precision = "fp32"
) -> int:  # fmt: skip
    """Bytes that training takes: all weights; gradient, two AdamW moments and w_t of the trainable set; activations.

    They are fp32; under bfloat16 the activations are smaller, and the trainable set has a copy.
    """
    activations = frames * ACTIVATIONS_PER_FRAME * parameters / PARAMETERS
    if precision == "bf16":
        return int(4 * parameters + (4 * 4 + 2) * trainable + BF16_SHARE * activations)
    return int(4 * parameters + 4 * 4 * trainable + activations)


@dataclass(frozen=True)
class PolicySize:
    """A policy and the steps in which it is trained: `batch` frames each. `precision` None: the device's own.

    At most `at_once` frames are computed together (0: as the trainer does it); `leave` bytes of the device's memory stay free.
    """

    parameters: int
    trainable: int
    batch: int
    precision: Precision | None
    at_once: int = 0
    leave: int = 0

    def needed(self, frames: int, precision: Precision) -> int:
        """Bytes that training with so many frames at once takes."""
        return memory_needed(self.parameters, self.trainable, frames=frames, precision=precision)

    def fits(self, at_once: int, free: float, precision: Precision) -> int:
        """`at_once`, halved as the trainer does until it fits into `free` bytes; 0 where one frame does not."""
        while at_once and self.needed(at_once, precision) > free:
            at_once //= 2
        return at_once
