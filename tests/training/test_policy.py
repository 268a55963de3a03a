from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from zk0desk import folders, settings
from zk0desk.errors import OperatorError
from zk0desk.settings import ChosenRecording, Recordings, Settings
from zk0desk.training.demo_data import write_backbone
from zk0desk.training.policy import TrainablePolicy, module_layout, save_shared_policy
from zk0desk.training.policy_files import PolicyError, copy_policy, is_trainable, read_policy, trainable_weights


@pytest.fixture
def operator(recordings: Path) -> list[ChosenRecording]:
    return [ChosenRecording(path=recordings / "node1")]


def test_that_the_full_architecture_trains_99_880_992_of_450_046_176_parameters(tmp_path: Path):
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    heads = {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64}
    write_backbone(
        tmp_path / "vlm",
        text={"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "vocab_size": 49280, **heads},
        vision={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 512, "patch_size": 16,
        },
        scale_factor=4,
    )  # fmt: skip
    with torch.device("meta"):
        policy = SmolVLAPolicy(
            SmolVLAConfig(
                input_features={"observation.state": PolicyFeature(FeatureType.STATE, (6,))},
                output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
                vlm_model_name=str(tmp_path / "vlm"),
                device="cpu",
            )
        )
    assert sum(parameter.numel() for parameter in policy.parameters()) == 450_046_176
    assert module_layout(policy).size == 99_880_992
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == {n for n, _, _ in module_layout(policy).parameters}


def test_that_a_loaded_policy_is_float32_and_only_the_trainable_set_requires_gradients(demo_policy: Path):
    policy = TrainablePolicy.load(demo_policy)
    assert policy.layout == read_policy(demo_policy).layout
    for name, parameter in policy.policy.named_parameters():
        assert parameter.dtype is torch.float32 and parameter.requires_grad == is_trainable(name)


def test_that_weights_go_in_and_out_bitwise(demo_policy: Path):
    policy = TrainablePolicy.load(demo_policy)
    assert np.array_equal(policy.get_weights(), trainable_weights(demo_policy))
    weights = np.random.default_rng(1).normal(size=policy.layout.size).astype(np.float32)
    policy.set_weights(weights)
    assert np.array_equal(policy.get_weights(), weights)
    weights[0] = 7
    assert policy.get_weights()[0] != 7, "a copy, never a view"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_that_weights_that_are_not_finite_are_refused(demo_policy: Path, value: float):
    policy = TrainablePolicy.load(demo_policy)
    weights = policy.get_weights()
    weights[5] = value
    with pytest.raises(ValueError, match="not finite"):
        policy.set_weights(weights)


def test_that_loading_leaves_the_processs_generator_and_standard_output_alone(demo_policy: Path, capsys):
    before = torch.random.get_rng_state()
    TrainablePolicy.load(demo_policy)
    assert torch.equal(before, torch.random.get_rng_state()) and capsys.readouterr().out == ""


def test_that_a_policy_with_a_tensor_missing_is_refused_rather_than_filled_at_random(demo_policy: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    folder = copy_policy(tmp_path / "cut", demo_policy)
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in sorted(tensors) if not is_trainable(name))]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(PolicyError, match="not whole"):
        TrainablePolicy.load(folder)


def test_that_the_shared_policy_loads_in_lerobot_with_the_operators_statistics_and_cameras(demo_policy: Path, operator, tmp_path: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    weights = trainable_weights(demo_policy) + np.float32(0.01)
    folder = save_shared_policy(tmp_path / "mine", demo_policy, weights, operator)
    policy = SmolVLAPolicy.from_pretrained(folder)
    named = dict(policy.named_parameters())
    assert np.array_equal(np.concatenate([named[n].detach().numpy().ravel() for n, _, _ in read_policy(folder).layout.parameters]), weights)

    preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    dataset = LeRobotDataset("local/node1", root=operator[0].path, video_backend="pyav")
    frame = dataset[4]
    seen = {key: value for key, value in frame.items() if key.startswith("observation")} | {"task": frame["task"]}
    batch = preprocess(seen)
    stats = dataset.meta.stats["observation.state"]
    expected = (frame["observation.state"].numpy() - stats["mean"]) / (stats["std"] + 1e-8)
    np.testing.assert_allclose(batch["observation.state"][0], expected, rtol=1e-4, atol=1e-4)
    assert {"observation.images.camera1", "observation.images.camera2"} <= set(batch)
    action = postprocess(policy.select_action(batch))
    assert action.shape == (1, 3) and torch.isfinite(action).all()


def test_that_policy_show_prints_the_fingerprints(demo_policy: Path):
    from zk0desk.commands.policy import app

    shown = CliRunner().invoke(app, ["show", str(demo_policy), "--json"])
    data = json.loads(shown.stdout)
    files = read_policy(demo_policy)
    assert shown.exit_code == 0 and data["policy-id"] == files.policy_id and data["backbone-sha256"] == files.backbone_sha256
    assert files.policy_id in CliRunner().invoke(app, ["show", str(demo_policy)]).stdout


def keep(demo_policy: Path, run: str, weights: dict[str, np.ndarray]) -> None:
    folder = folders.runs_folder() / run
    folder.mkdir(parents=True)
    for name, values in weights.items():
        np.save(folder / f"global-{name}.npy", values)
    told = {"last": {"round": 4, "eval-loss": 1.5}, "best": {"round": 2, "eval-loss": 1.2}}
    about = {"policy-folder": str(demo_policy), "layout-sha256": read_policy(demo_policy).layout.sha256, **told}
    (folder / "run.json").write_text(json.dumps(about))


def test_that_policy_save_takes_the_newest_runs_last_or_best_weights(demo_policy: Path, operator, tmp_path: Path):
    from zk0desk.commands.policy import app

    base = trainable_weights(demo_policy)
    keep(demo_policy, "run-1", {"last": base + np.float32(1), "best": base + np.float32(2)})
    settings.save(Settings(recordings=Recordings(chosen=tuple(operator))))
    for option, added, number in (("--last", 1, 4), ("--best", 2, 2)):
        saved = CliRunner().invoke(app, ["save", str(tmp_path / "mine"), option, "--json"])
        assert saved.exit_code == 0, saved.output
        assert json.loads(saved.stdout)["round"] == number
        assert np.array_equal(trainable_weights(tmp_path / "mine"), base + np.float32(added))


def test_that_policy_save_says_what_is_missing_when_no_run_is_kept(tmp_path: Path):
    from zk0desk.commands.policy import app

    result = CliRunner().invoke(app, ["save", str(tmp_path / "mine")])
    assert isinstance(result.exception, OperatorError) and "no shared policy" in str(result.exception)


def test_that_kept_weights_of_another_policy_are_not_saved(demo_policy: Path, operator, tmp_path: Path):
    from zk0desk.commands.policy import app

    keep(demo_policy, "run-1", {"last": np.zeros(3, np.float32)})
    settings.save(Settings(recordings=Recordings(chosen=tuple(operator))))
    result = CliRunner().invoke(app, ["save", str(tmp_path / "mine")])
    assert isinstance(result.exception, OperatorError) and "run-1" in str(result.exception) and not (tmp_path / "mine").exists()
