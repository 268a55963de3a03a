"""What is drawn at random in training and evaluation: from named seeds, on the CPU, never from the process's own generators."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from zk0desk.training.policy import TrainablePolicy


def seed_of(*parts: object) -> int:
    """A seed in [0, 2^63) from the SHA-256 of `parts`."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "little") >> 1


def draw_noise(policy: TrainablePolicy, frames: int, *seed: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching's noise (frames, chunk, action dims) and time (frames,), on the CPU, so that no device changes them.

    Distributed as LeRobot draws them: standard normal, and 0.001 + 0.999 * Beta(1.5, 1), by inverting its distribution
    function x^1.5.
    """
    import torch

    config = policy.policy.config
    generator = torch.Generator().manual_seed(seed_of(*seed))
    noise = torch.randn((frames, config.chunk_size, config.max_action_dim), generator=generator)
    uniform = torch.rand(frames, generator=generator, dtype=torch.float64)
    return noise, (0.001 + 0.999 * uniform ** (2 / 3)).float()


@contextmanager
def action_size(policy: TrainablePolicy, size: int) -> Iterator[None]:
    """Within it, LeRobot's loss counts the first `size` action dimensions: those of the recording at hand."""
    from lerobot.configs import FeatureType, PolicyFeature

    outputs = policy.policy.config.output_features
    before = outputs["action"]
    outputs["action"] = PolicyFeature(FeatureType.ACTION, (size,))
    try:
        yield
    finally:
        outputs["action"] = before
