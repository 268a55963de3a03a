"""Faults that a step over a stored prefix could have: each is injected, and the comparison with LeRobot's forward must see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.prefix_parts import CAMERAS, a_batch, a_policy, apart
from zk0desk.settings import ChosenRecording
from zk0desk.training import prefix_forward
from zk0desk.training.frozen_prefix import EXACT, STORED, FrozenPrefix, as_array, as_entry
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.policy_files import WEIGHTS, PolicyError
from zk0desk.training.prefix_values import StorageRangeError

Patch = pytest.MonkeyPatch


@pytest.fixture
def tiny(demo_policy: Path, tmp_path: Path) -> TrainablePolicy:
    return a_policy(demo_policy, tmp_path / "policy")


def _one_key_off(patch: Patch) -> None:
    sound = prefix_forward.frozen_prefix

    def faulty(*args: Any) -> prefix_forward.Prefix:
        prefix = sound(*args)
        keys = [each.clone() for each in prefix.keys]
        keys[1][:, 3] *= 1.05
        return replace(prefix, keys=keys)

    patch.setattr(prefix_forward, "frozen_prefix", faulty)


def _state_one_further(patch: Patch) -> None:
    sound = prefix_forward.action_losses

    def faulty(policy: Any, layers: Any, heads: Any, prefix: prefix_forward.Prefix, *rest: Any) -> torch.Tensor:
        rotation, calls = prefix_forward._rotation, [0]

        def shifted(positions: torch.Tensor, *args: Any) -> Any:
            calls[0] += 1
            return rotation(positions + (calls[0] == 1), *args)

        with Patch.context() as inner:
            inner.setattr(prefix_forward, "_rotation", shifted)
            return sound(policy, layers, heads, prefix, *rest)

    patch.setattr(prefix_forward, "action_losses", faulty)


def _padding_unmasked(patch: Patch) -> None:
    patch.setattr(prefix_forward, "_valid_mask", lambda lengths, count: torch.ones(len(lengths), count, dtype=torch.bool))


def _wrong_frame(patch: Patch) -> None:
    sound = prefix_forward.embed
    patch.setattr(prefix_forward, "embed", lambda policy, batch, vision: sound(policy, batch, vision.flip(0)))


def _no_gradient_through_the_state(patch: Patch) -> None:
    sound = prefix_forward._expert
    patch.setattr(
        prefix_forward, "_expert", lambda expert, layers, heads, prefix, state, actions: sound(
            expert, layers, heads, prefix, state.detach(), actions
        )
    )  # fmt: skip


FAULTS: Sequence[Callable[[Patch], None]] = (
    _one_key_off,
    _state_one_further,
    _padding_unmasked,
    _wrong_frame,
    _no_gradient_through_the_state,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
@pytest.mark.parametrize("level", ["N", "V", "P"])
def test_that_the_self_check_sees_a_fault_in_the_step(
    tiny: TrainablePolicy, monkeypatch: Patch, level: Any, fault: Callable[[Patch], None]
):
    drawn = a_batch(tiny, 3, 2)
    sound = FrozenPrefix(tiny, level).self_check(*drawn)
    assert sound.ok and sound.exact < EXACT / 20
    fault(monkeypatch)
    found = FrozenPrefix(tiny, level).self_check(*drawn)
    assert not found.ok and found.exact > 2 * EXACT


def test_that_the_self_check_sees_stored_entries_of_other_frames(tiny: TrainablePolicy):
    drawn = a_batch(tiny, 3, 2)
    for level in ("V", "P"):
        prefix = FrozenPrefix(tiny, level)
        entries = list(prefix.vision(drawn[0]) if level == "V" else prefix.prefix(drawn[0]))
        assert prefix.self_check(*drawn, entries=entries).ok
        found = prefix.self_check(*drawn, entries=[entries[1], entries[0]])
        assert not found.ok and found.exact < EXACT, "the mathematics is sound, the store is not"


def test_that_the_self_check_leaves_gradients_and_batch_alone_and_sees_a_loss_that_is_no_number(tiny: TrainablePolicy):
    batch, noise, time = a_batch(tiny, 3, 2)
    before = {key: value.clone() for key, value in batch.items()}
    tiny.parameters[0].grad = torch.ones_like(tiny.parameters[0])
    FrozenPrefix(tiny, "P").self_check(batch, noise, time)
    assert torch.equal(tiny.parameters[0].grad, torch.ones_like(tiny.parameters[0])) and tiny.parameters[1].grad is None
    assert all(torch.equal(before[key], batch[key]) for key in batch)
    batch["action"][0, 0, 0] = torch.nan
    assert not FrozenPrefix(tiny, "P").self_check(batch, noise, time).ok


def test_that_a_sound_policy_may_be_cached(tiny: TrainablePolicy, recordings: Path):
    frames = tiny.frames_of([ChosenRecording(path=recordings / "node0")])
    assert all(FrozenPrefix(tiny, level).refusal(frames) == "" for level in ("off", "N", "V", "P"))


def test_that_it_refuses_a_backbone_that_trains_or_is_in_training_mode(tiny: TrainablePolicy):
    vlm, prefix = tiny.policy.model.vlm_with_expert.vlm, FrozenPrefix(tiny, "P")
    weight = vlm.model.connector.modality_projection.proj.weight
    weight.requires_grad_(True)
    assert "trained too" in prefix.refusal() and "connector" in prefix.refusal()
    assert FrozenPrefix(tiny, "off").refusal() == "", "LeRobot's own forward always may"
    weight.requires_grad_(False)
    vlm.model.vision_model.train()
    assert "training mode" in prefix.refusal()


def test_that_it_refuses_pictures_that_are_transformed_at_random(tiny: TrainablePolicy, recordings: Path):
    frames = tiny.frames_of([ChosenRecording(path=recordings / "node0")])
    frames.tables[0].pictures._dataset.set_image_transforms(lambda picture: picture)
    assert "at random" in FrozenPrefix(tiny, "V").refusal(frames)


def test_that_it_refuses_arrangements_that_it_does_not_know(tiny: TrainablePolicy):
    both, prefix = tiny.policy.model.vlm_with_expert, FrozenPrefix(tiny, "P")
    both.attention_mode = "cross_gated"
    assert "cross_gated" in prefix.refusal()
    both.attention_mode = "cross_attn"
    both.lm_expert.layers[1].self_attn.add_module("q_norm", torch.nn.Identity())
    assert "q_norm" in prefix.refusal()
    del both.lm_expert.layers[1].self_attn.q_norm
    both.num_expert_layers = 3
    assert "do not agree" in prefix.refusal()
    tiny.policy.model.__class__ = type("OtherModel", (type(tiny.policy.model),), {})
    assert "OtherModel" in prefix.refusal()


def test_that_numbers_beyond_the_storage_type_are_refused_and_not_stored(tiny: TrainablePolicy):
    batch, noise, time = a_batch(tiny, 2, 1)
    both = tiny.policy.model.vlm_with_expert
    with torch.no_grad():
        both.get_vlm_model().text_model.layers[0].self_attn.v_proj.weight.mul_(1e5)
    with pytest.raises(StorageRangeError, match="float16"):
        FrozenPrefix(tiny, "P").prefix(batch)
    with pytest.raises(StorageRangeError, match="float16"):
        FrozenPrefix(tiny, "P").loss(batch, noise, time)
    assert FrozenPrefix(tiny, "P", storage="bfloat16").prefix(batch)


@pytest.mark.parametrize("level", ["V", "P"])
def test_that_what_a_step_does_not_need_is_released_and_comes_back_when_a_frame_is_missing(tiny: TrainablePolicy, level: Any):
    drawn = a_batch(tiny, 3, 2)
    prefix = FrozenPrefix(tiny, level)
    before = {name: parameter.detach().clone() for name, parameter in tiny.policy.named_parameters()}
    entries = prefix.vision(drawn[0]) if level == "V" else prefix.prefix(drawn[0])
    expected, key = prefix.loss(*drawn, entries=entries), prefix.key_parts({CAMERAS[0]: "top"}, [5])
    freed = prefix.release()
    gone = {name for name, parameter in tiny.policy.named_parameters() if parameter.numel() == 0}
    assert prefix.released and freed == sum(before[name].numel() * 4 for name in gone)
    words = "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"
    assert any("vision_model" in name for name in gone) and any("lm_head" in name for name in gone) and (words in gone) == (level == "P")
    tiny.policy.to("cpu")
    tiny.policy.train()
    assert torch.equal(prefix.loss(*drawn, entries=entries), expected) and prefix.released
    assert prefix.key_parts({CAMERAS[0]: "top"}, [5]) == key and prefix.released
    assert torch.equal(prefix.loss(*drawn), expected) and not prefix.released, "a miss brings it back"
    assert all(torch.equal(parameter, before[name]) for name, parameter in tiny.policy.named_parameters())
    assert apart(prefix, tiny, *drawn) < STORED["float16"]


def test_that_a_policy_file_that_changed_meanwhile_is_not_taken(tiny: TrainablePolicy):
    from safetensors.torch import load_file, save_file

    prefix = FrozenPrefix(tiny, "P")
    prefix.release()
    tensors = load_file(tiny.files.folder / WEIGHTS)
    name = next(name for name in tensors if "connector" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, tiny.files.folder / WEIGHTS)
    with pytest.raises(PolicyError, match="changed"):
        prefix.restore()


def test_that_the_key_changes_with_all_that_an_entry_depends_on(demo_policy: Path, tmp_path: Path):
    def key(level: Any = "P", *, slots: dict[str, str] | None = None, words: Sequence[int] = (4, 5), bf16: bool = False,
            storage: str = "", change: Callable[[TrainablePolicy], None] = lambda _: None, **config: Any) -> str:  # fmt: skip
        policy = a_policy(demo_policy, tmp_path / f"{len(list(tmp_path.iterdir()))}", **config)
        change(policy)
        return str(FrozenPrefix(policy, level, bf16=bf16, storage=storage).key_parts(slots or {CAMERAS[0]: "top"}, words))

    def part(name: str) -> Callable[[TrainablePolicy], None]:
        def change(policy: TrainablePolicy) -> None:
            next(value for key, value in policy.policy.named_parameters() if name in key).data.view(-1)[0] += 1

        return change

    same = key()
    others = [key("V"), key(slots={CAMERAS[0]: "wrist"}), key(slots={CAMERAS[1]: "top"}), key(words=(4, 6)), key(bf16=True),
              key(storage="float32"), key(change=part("vision_model")), key(change=part("embed_tokens")), key(change=part("layers.1.mlp")),
              key(change=part("vlm.model.text_model.layers.3.self_attn.k_proj")), key(resize_imgs_with_padding=(32, 32)),
              key(add_image_special_tokens=True), key(empty_cameras=1), key(num_vlm_layers=3)]  # fmt: skip
    assert key() == same and len({same, *others}) == 1 + len(others)
    assert key(change=part("lm_expert")) == same == key(change=part("lm_head")), "what is trained or unused is no part of it"
    assert key("V", words=(4, 6)) == key("V", words=(4, 5)) and key("V", change=part("embed_tokens")) == key("V")


def test_that_entries_go_through_an_array_and_back_bit_for_bit(tiny: TrainablePolicy):
    batch, _, _ = a_batch(tiny, 2, 1)
    for storage in ("float16", "bfloat16", "float32"):
        entry = FrozenPrefix(tiny, "P", storage=storage).prefix(batch)[0]
        again = as_entry(as_array(entry))
        assert again.dtype is entry.dtype and torch.equal(again, entry)


def test_that_hooks_on_the_policys_modules_are_called_in_the_step(tiny: TrainablePolicy):
    batch, noise, time = a_batch(tiny, 2, 1)
    prefix = FrozenPrefix(tiny, "P")
    entries, called = prefix.prefix(batch), set()
    for name, module in tiny.policy.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    prefix.loss(batch, noise, time, entries=entries)
    expert = {name for name, module in tiny.policy.named_modules() if "lm_expert.layers" in name and isinstance(module, torch.nn.Linear)}
    assert expert <= called and not any("vision_model" in name for name in called)
