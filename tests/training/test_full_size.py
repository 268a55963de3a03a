from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from zk0desk.control import NodeControl, Stopped
from zk0desk.settings import ChosenRecording
from zk0desk.training.demo_data import CAMERA_SLOTS, write_backbone
from zk0desk.training.frozen_prefix import FrozenPrefix, difference
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.policy_files import read_policy
from zk0desk.training.rounds import RoundPlan
from zk0desk.training.trainer import LocalTrainer


@pytest.fixture(scope="module")
def full_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolVLA at its real size with random weights: 1.8 GB."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    folder = tmp_path_factory.mktemp("full") / "policy"
    text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512}
    spread = {"initializer_range": 0.02}  # SmolVLM2's; with the tiny policy's, attention at this width looks at one token alone
    write_backbone(
        folder / "vlm", text={**text, **spread, "head_dim": 64, "vocab_size": 49280}, vision={**vision, **spread}, scale_factor=4
    )
    features = {slot: PolicyFeature(FeatureType.VISUAL, (3, 96, 96)) for slot in CAMERA_SLOTS}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (3,))
    config = SmolVLAConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
        vlm_model_name=str(folder / "vlm"),
        device="cpu",
        push_to_hub=False,
    )
    SmolVLAPolicy(config).save_pretrained(folder)
    return folder


@pytest.mark.long
@pytest.mark.timeout(900)
def test_that_stop_takes_effect_within_two_seconds_in_the_middle_of_a_step_that_takes_many(full_policy: Path, demo_recording: Path):
    files = read_policy(full_policy)
    assert (files.parameters, files.trainable_parameters) == (450_046_176, 99_880_992)
    policy = TrainablePolicy.load(full_policy)
    model = policy.policy.model
    weights = policy.get_weights()
    chosen = [ChosenRecording(path=demo_recording)]

    vision, expert = model.vlm_with_expert.vlm.model.vision_model.encoder.layers[3].mlp, model.vlm_with_expert.lm_expert.layers[5].mlp
    moments = [
        vision.register_forward_hook,
        expert.register_forward_hook,
        model.action_out_proj.weight.register_post_accumulate_grad_hook,
    ]
    for moment in moments:
        control, asked = NodeControl(), []

        def stop_soon(*_: object, control: NodeControl = control, asked: list[float] = asked) -> None:
            asked.append(time.monotonic())
            timer = threading.Timer(0.1, control.stop_now)
            timer.start()

        trainer = LocalTrainer(policy, chosen, node="a", device="cpu", threads=1, emit=lambda _: None, control=control)
        plan = RoundPlan(run="r", round=1, rounds=1, seed=1, lr=1e-4, mu=0.01, batch_size=4, local_steps=4)
        handle = moment(stop_soon)
        with pytest.raises(Stopped):
            trainer.train(plan, weights)
        assert time.monotonic() - asked[0] < 2.0
        handle.remove()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_that_the_frozen_prefix_gives_lerobots_loss_and_gradients_at_full_size(full_policy: Path):
    import torch

    policy = TrainablePolicy.load(full_policy)
    policy.policy.train()
    draw = torch.Generator().manual_seed(1)
    batch = {
        "observation.state": torch.randn(2, 3, generator=draw),
        "action": torch.randn(2, 50, 3, generator=draw),
        "action_is_pad": torch.arange(50) >= torch.tensor([50, 20])[:, None],
        "observation.language.tokens": torch.randint(8, 300, (2, 12), generator=draw),
        "observation.language.attention_mask": torch.arange(12) < torch.tensor([12, 7])[:, None],
    } | {slot: torch.rand(2, 3, 96, 96, generator=draw) for slot in CAMERA_SLOTS[:2]}
    noise, moment = torch.randn(2, 50, 32, generator=draw), torch.rand(2, generator=draw)

    def gradients(loss: torch.Tensor) -> tuple[float, list[torch.Tensor | None]]:
        return float(loss.detach()), list(torch.autograd.grad(loss, policy.parameters, allow_unused=True))

    theirs = gradients(policy.policy.forward(dict(batch), noise=noise, time=moment)[0])
    seen = FrozenPrefix(policy, "V", storage="float32").vision(batch)
    whole = FrozenPrefix(policy, "P", storage="float32").prefix(batch, seen)
    for storage, limit in (("float32", 1e-6), ("float16", 1e-4), ("bfloat16", 1e-3)):
        of_type = getattr(torch, storage)
        stored: dict[str, Any] = {"V": seen.to(of_type), "P": [entry.to(of_type) for entry in whole]}
        for level in ("V", "P"):
            prefix = FrozenPrefix(policy, level, storage=storage)
            assert difference(gradients(prefix.loss(batch, noise, moment, entries=stored[level])), theirs) < limit
    assert difference(gradients(FrozenPrefix(policy, "N").loss(batch, noise, moment)), theirs) < 1e-6
    prefix = FrozenPrefix(policy, "P")
    assert (
        [entry.shape for entry in whole] == [prefix.entry_shape(2, 12), prefix.entry_shape(2, 7)] == [(16, 2, 140, 320), (16, 2, 135, 320)]
    )
    assert prefix.release() > 0.77e9
