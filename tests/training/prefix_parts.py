"""What the tests of the frozen prefix share: tiny policies of any arrangement, batches, and LeRobot's forward in float64."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zk0desk.training.frozen_prefix import FrozenPrefix, difference
from zk0desk.training.policy import TrainablePolicy

CAMERAS = [f"observation.images.camera{n}" for n in (1, 2, 3)]
CHUNK = 6


def a_policy(demo_policy: Path, folder: Path, **changes: Any) -> TrainablePolicy:
    """A tiny policy with random weights and so changed configuration, saved in `folder` and loaded as the product does."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    config = PreTrainedConfig.from_pretrained(demo_policy)
    for key, value in {"vlm_model_name": str(demo_policy / "vlm"), "chunk_size": CHUNK, "n_action_steps": CHUNK, "device": "cpu"}.items():
        setattr(config, key, value)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        policy = SmolVLAPolicy(config)
        for parameter in policy.parameters():  # norms of one and biases of zero would hide faults
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    policy.save_pretrained(folder)
    text = json.loads((folder / "config.json").read_text())
    assert text["type"] == "smolvla"
    loaded = TrainablePolicy.load(folder)
    loaded.policy.train()
    return loaded


def a_batch(policy: TrainablePolicy, frames: int = 3, cameras: int = 2, *, seed: int = 0, lengths: tuple[int, ...] = (5, 9, 2),
            masked: bool = False, padded: bool = True) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:  # fmt: skip
    """A batch with instructions of `lengths` in turn, some cameras masked, some actions padded; noise and time."""
    draw = torch.Generator().manual_seed(seed)
    config, dtype = policy.policy.config, next(policy.policy.parameters()).dtype
    dtype = torch.float64 if dtype is torch.float64 else torch.float32
    count = [lengths[n % len(lengths)] for n in range(frames)]
    batch: dict[str, torch.Tensor] = {
        "observation.state": torch.randn(frames, 3, generator=draw),
        "action": torch.randn(frames, config.chunk_size, 3, generator=draw),
        "observation.language.tokens": torch.randint(8, 300, (frames, max(count)), generator=draw),
        "observation.language.attention_mask": torch.arange(max(count)) < torch.tensor(count)[:, None],
    }
    if padded:
        batch["action_is_pad"] = torch.arange(config.chunk_size) >= torch.tensor([2 + 3 * n for n in range(frames)])[:, None]
    for number, slot in enumerate(CAMERAS[:cameras]):
        batch[slot] = torch.rand(frames, 3, 96, 96, generator=draw)
        if masked:
            batch[f"{slot}_padding_mask"] = torch.tensor([(n + number) % 3 != 0 for n in range(frames)])
    noise = torch.randn(frames, config.chunk_size, config.max_action_dim, generator=draw)
    time = 0.001 + 0.999 * torch.rand(frames, generator=draw)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    return batch, noise.to(dtype), time.to(dtype)


def gradients(policy: TrainablePolicy, loss: torch.Tensor) -> tuple[float, list[torch.Tensor | None]]:
    return float(loss.detach()), list(torch.autograd.grad(loss, policy.parameters, allow_unused=True))


def theirs(policy: TrainablePolicy, batch: Any, noise: torch.Tensor, time: torch.Tensor) -> tuple[float, list[torch.Tensor | None]]:
    """LeRobot's loss and gradients."""
    loss, _ = policy.policy.forward({key: value.clone() for key, value in batch.items()}, noise=noise, time=time)
    return gradients(policy, loss)


def apart(prefix: FrozenPrefix, policy: TrainablePolicy, batch: Any, noise: torch.Tensor, time: torch.Tensor, **options: Any) -> float:
    """How far the step is from LeRobot's, in loss and gradient."""
    return difference(gradients(policy, prefix.loss(batch, noise, time, **options)), theirs(policy, batch, noise, time))


class _Wide:
    """torch as LeRobot and transformers see it, where float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def in_float64(policy: TrainablePolicy) -> Iterator[None]:
    """LeRobot's code computes some of it in float32 whatever the weights are. Within it, in float64 as all the rest."""
    from lerobot.policies.smolvla import modeling_smolvla, smolvlm_with_expert
    from transformers.models.llama import modeling_llama

    policy.policy.double()
    with pytest.MonkeyPatch.context() as patch:
        for module in (modeling_smolvla, smolvlm_with_expert, modeling_llama):
            patch.setattr(module, "torch", _Wide())
        yield
