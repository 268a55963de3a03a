"""The step over a precomputed prefix gives LeRobot's loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.prefix_parts import CAMERAS, a_batch, a_policy, apart, gradients, in_float64, theirs
from zk0desk.training.frozen_prefix import FrozenPrefix, difference
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.prefix_rules import Level

LEVELS: tuple[Level, ...] = ("N", "V", "P")
FP32 = 1e-6
TINY_STORED = {"float16": 1e-3, "bfloat16": 1e-2}
"""Rounding of 2^-12 and 2^-9 in a mean over the 32 numbers of a tiny policy's token; at full size it is a tenth of it."""


@pytest.fixture
def tiny(demo_policy: Path, tmp_path: Path) -> TrainablePolicy:
    return a_policy(demo_policy, tmp_path / "policy")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cameras", [1, 2, 3])
def test_that_each_level_gives_lerobots_loss_and_gradients_in_float64(tiny: TrainablePolicy, level: Level, cameras: int):
    with in_float64(tiny):
        for masked, padded in ((False, True), (True, True), (False, False)):
            for frames in (1, 3, 8):
                drawn = a_batch(tiny, frames, cameras, masked=masked, padded=padded)
                assert apart(FrozenPrefix(tiny, level, storage="float64"), tiny, *drawn) < 1e-12


@pytest.mark.parametrize("level", LEVELS)
def test_that_each_level_gives_lerobots_loss_and_gradients_in_float32_and_with_16_bits(tiny: TrainablePolicy, level: Level):
    for masked in (False, True):
        drawn = a_batch(tiny, 4, 2, masked=masked)
        assert apart(FrozenPrefix(tiny, level, storage="float32"), tiny, *drawn) < FP32
        for storage, limit in TINY_STORED.items():
            assert apart(FrozenPrefix(tiny, level, storage=storage), tiny, *drawn) < limit


ARRANGEMENTS = st.fixed_dictionaries({
    "attention_mode": st.sampled_from(["cross_attn", "self_attn"]),
    "layers": st.sampled_from([(1, -1), (2, -1), (4, -1), (4, 2), (4, 1), (3, 3), (3, 1)]),
    "self_attn_every_n_layers": st.sampled_from([-1, 2, 3]),
    "add_image_special_tokens": st.booleans(),
    "empty_cameras": st.integers(0, 2),
    "prefix_length": st.sampled_from([-1, 60]),
    "expert_width_multiplier": st.sampled_from([0.5, 0.75, 1.0]),
})  # fmt: skip


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(shape=ARRANGEMENTS, frames=st.integers(1, 8), cameras=st.integers(1, 3), masked=st.booleans(), padded=st.booleans(),
       seed=st.integers(0, 999))  # fmt: skip
def test_that_any_arrangement_of_layers_cameras_and_masks_agrees_with_lerobot(
    demo_policy: Path, tmp_path_factory: pytest.TempPathFactory, shape: dict[str, Any], frames: int, cameras: int, masked: bool,
    padded: bool, seed: int,
):  # fmt: skip
    vlm, expert = shape.pop("layers")
    if expert > 0 and vlm != expert and shape["attention_mode"] == "cross_attn":
        # LeRobot builds the expert's layers by their own number and runs them by the backbone's: only then do both agree.
        shape["self_attn_every_n_layers"] = 3 if vlm // expert != 3 else 2
    policy = a_policy(demo_policy, tmp_path_factory.mktemp("any") / "policy", num_vlm_layers=vlm, num_expert_layers=expert, **shape)
    drawn = a_batch(policy, frames, cameras, masked=masked, padded=padded, seed=seed)
    assert apart(FrozenPrefix(policy, "P"), policy, *drawn) < 2 * TINY_STORED["float16"]
    with in_float64(policy):
        drawn = a_batch(policy, frames, cameras, masked=masked, padded=padded, seed=seed)
        for level in LEVELS:
            assert apart(FrozenPrefix(policy, level, storage="float64"), policy, *drawn) < 1e-12


def test_that_the_loss_of_each_frame_is_lerobots_and_that_off_is_lerobots_own_forward(tiny: TrainablePolicy):
    batch, noise, time = a_batch(tiny, 4, 2)
    expected, _ = tiny.policy.forward(dict(batch), noise=noise, time=time, reduction="none")
    for level in LEVELS:
        found = FrozenPrefix(tiny, level, storage="float32").loss(batch, noise, time, reduction="none")
        assert found.shape == (4,) and torch.allclose(found, expected, rtol=1e-5)
    assert torch.equal(FrozenPrefix(tiny, "off").loss(batch, noise, time, reduction="none"), expected)


def test_that_the_loss_counts_the_recordings_own_dimensions(tiny: TrainablePolicy):
    from zk0desk.training.noise import action_size

    batch, noise, time = a_batch(tiny, 2, 1)
    with action_size(tiny, 2):
        assert apart(FrozenPrefix(tiny, "P", storage="float32"), tiny, batch, noise, time) < FP32


def test_that_a_stored_entry_gives_what_a_miss_gives_bit_for_bit_alone_and_among_others(tiny: TrainablePolicy):
    batch, noise, time = a_batch(tiny, 3, 2)
    for level in ("V", "P"):
        prefix = FrozenPrefix(tiny, level)
        entries = prefix.vision(batch) if level == "V" else prefix.prefix(batch)
        assert torch.equal(prefix.loss(batch, noise, time, entries=entries), prefix.loss(batch, noise, time))
        assert torch.equal(prefix.loss(batch, noise, time, entries=[entries[n] for n in range(3)]), prefix.loss(batch, noise, time))
    few = {key: batch[key] for key in ("observation.state", "action", "action_is_pad")}
    assert torch.equal(prefix.loss(few, noise, time, entries=entries), prefix.loss(batch, noise, time)), "no pictures, no tokens needed"


def test_that_an_entry_does_not_depend_on_the_batch_that_it_was_made_in(tiny: TrainablePolicy):
    batch, _, _ = a_batch(tiny, 3, 2, masked=True)
    prefix = FrozenPrefix(tiny, "P", storage="float32")
    together = prefix.prefix(batch)
    from_vision = prefix.prefix({key: value for key, value in batch.items() if key not in CAMERAS} | dict.fromkeys(CAMERAS[:2], None),
                                FrozenPrefix(tiny, "V", storage="float32").vision(batch))  # fmt: skip
    for frame in range(3):
        alone = prefix.prefix({key: value[frame : frame + 1] for key, value in batch.items()})[0]
        assert alone.shape == together[frame].shape == from_vision[frame].shape
        assert torch.allclose(alone, together[frame], atol=1e-5) and torch.allclose(from_vision[frame], together[frame], atol=1e-5)


def test_that_the_shape_of_an_entry_is_known_before_anything_is_computed(demo_policy: Path, tmp_path: Path):
    for number, change in enumerate(({}, {"add_image_special_tokens": True, "empty_cameras": 1, "num_vlm_layers": 4, "num_expert_layers": 2,
                                          "self_attn_every_n_layers": 3})):  # fmt: skip
        policy = a_policy(demo_policy, tmp_path / str(number), **change)
        for cameras in (1, 3):
            batch, _, _ = a_batch(policy, 2, cameras, lengths=(7,))
            seen, entries = FrozenPrefix(policy, "V").vision(batch), FrozenPrefix(policy, "P").prefix(batch)
            assert seen.is_contiguous() and seen.dtype is torch.float16
            assert seen.shape == (2, *FrozenPrefix(policy, "V").entry_shape(cameras))
            assert [entry.shape for entry in entries] == 2 * [FrozenPrefix(policy, "P").entry_shape(cameras, 7)]


def test_that_a_policy_in_bfloat16_is_followed_as_closely_as_its_rounding_allows(demo_policy: Path, tmp_path: Path):
    policy = a_policy(demo_policy, tmp_path / "policy")
    drawn = a_batch(policy, 4, 2)
    exact = theirs(policy, *drawn)
    policy.policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    halved = theirs(policy, *drawn)
    rounding = difference(halved, exact)
    for level in LEVELS:
        prefix = FrozenPrefix(policy, level)
        assert prefix.storage == "bfloat16"
        assert difference(gradients(policy, prefix.loss(*drawn)), halved) < 1.5 * rounding


def test_that_the_step_under_autocast_is_as_close_to_float32_as_lerobots(tiny: TrainablePolicy):
    drawn = a_batch(tiny, 4, 2)
    exact = theirs(tiny, *drawn)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = tiny.policy.forward(dict(drawn[0]), noise=drawn[1], time=drawn[2])
    rounding = difference(gradients(tiny, loss), exact)
    for level in LEVELS:
        assert difference(gradients(tiny, FrozenPrefix(tiny, level, bf16=True).loss(*drawn)), exact) < 1.5 * rounding


def test_that_a_hundred_steps_end_where_lerobots_end(demo_policy: Path, tmp_path: Path):
    def trained(step: Any, flip: bool) -> list[torch.Tensor]:
        policy = a_policy(demo_policy, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        start = [parameter.detach().clone() for parameter in policy.parameters]
        optimiser = torch.optim.AdamW(policy.parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-10)
        batches = [a_batch(policy, 4, 2, seed=seed) for seed in range(10)]
        for number in range(100):
            batch, noise, time = batches[number % 10]
            if flip:
                batch, noise, time = {key: value.flip(0) for key, value in batch.items()}, noise.flip(0), time.flip(0)
            optimiser.zero_grad()
            step(policy)(batch, noise, time).backward()
            optimiser.step()
        return [after.detach() - before for after, before in zip(policy.parameters, start, strict=True)]

    lerobot = lambda policy: lambda batch, noise, time: policy.policy.forward(dict(batch), noise=noise, time=time)[0]  # noqa: E731
    plain, turned = trained(lerobot, False), trained(lerobot, True)
    own = difference((1.0, list(turned)), (1.0, list(plain)))
    for level in LEVELS:
        found = trained(lambda policy, level=level: FrozenPrefix(policy, level, storage="float32").loss, False)
        assert difference((1.0, list(found)), (1.0, list(plain))) < 2 * own, level
