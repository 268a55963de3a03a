"""A base policy and one trained from it: merged, and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zk0desk.cli import main
from zk0desk.settings import ChosenRecording
from zk0desk.training import policy_files
from zk0desk.training.evaluation import evaluate
from zk0desk.training.merging import distance, merged
from zk0desk.training.policy import TrainablePolicy


@pytest.fixture(scope="module")
def trained(demo_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo policy with weights a little elsewhere."""
    weights = policy_files.trainable_weights(demo_policy)
    change = np.random.default_rng(3).standard_normal(weights.size).astype(np.float32) * np.float32(0.01)
    return policy_files.write_policy(tmp_path_factory.mktemp("trained") / "policy", demo_policy, weights + change)


def test_that_the_ends_of_a_merge_are_the_policies_themselves_to_the_bit() -> None:
    draw = np.random.default_rng(0)
    base, other = (draw.standard_normal(5_000_000).astype(np.float32) for _ in range(2))
    assert np.array_equal(merged(base, other, 0.0), base) and np.array_equal(merged(base, other, 1.0), other)
    half = merged(base, other, 0.25)
    assert half.dtype == np.float32 and np.array_equal(half, (0.75 * base.astype(float) + 0.25 * other.astype(float)).astype(np.float32))
    apart, relative = distance(base, half)
    assert apart == pytest.approx(0.25 * np.linalg.norm(other.astype(float) - base), rel=1e-6)
    assert relative == pytest.approx(apart / np.linalg.norm(base.astype(float)), rel=1e-6)
    with pytest.raises(ValueError, match="one size"):
        merged(base, other[:-1], 0.5)


def test_that_a_merge_without_recordings_writes_a_policy_that_is_between_the_two(demo_policy, trained, tmp_path, capsys) -> None:
    assert main(["policy", "merge", str(demo_policy), str(trained), "--alpha", "0.5", "--out", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alpha"] == 0.5
    base, other = policy_files.trainable_weights(demo_policy), policy_files.trainable_weights(trained)
    assert np.array_equal(policy_files.trainable_weights(tmp_path / "m"), merged(base, other, 0.5))
    assert policy_files.read_policy(tmp_path / "m").policy_id == policy_files.read_policy(demo_policy).policy_id


def test_that_a_sweep_measures_both_ends_as_they_are_and_takes_the_alpha_that_is_best_for_both(
    demo_policy, trained, recordings, tmp_path, capsys
) -> None:
    named = ["--recordings", str(recordings / "held-out"), "--retention", str(recordings / "node0"), "--steps", "3"]
    files = ["--out", str(tmp_path / "m"), "--picture", str(tmp_path / "alpha.png")]
    assert main(["policy", "merge", str(demo_policy), str(trained), "--sweep", *named, *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    points = {point["alpha"]: point for point in found["points"]}
    assert set(points) == {0.0, 0.5, 1.0}
    policy, both = TrainablePolicy.load(demo_policy), [ChosenRecording(path=recordings / name) for name in ("held-out", "node0")]
    for alpha, folder in ((0.0, demo_policy), (1.0, trained)):
        policy.set_weights(policy_files.trainable_weights(folder))
        expected = evaluate(policy, both, batch=8).recordings
        assert points[alpha]["loss"] == pytest.approx(expected["held-out"], rel=1e-4)
        assert points[alpha]["retention"]["node0"]["loss"] == pytest.approx(expected["node0"], rel=1e-4)
        assert 0 < points[alpha]["standard-error"] < points[alpha]["loss"]
    assert found["alpha"] == min(points, key=lambda alpha: points[alpha]["loss"] + points[alpha]["retention-loss"])
    weights = [policy_files.trainable_weights(folder) for folder in (demo_policy, trained)]
    assert np.array_equal(policy_files.trainable_weights(tmp_path / "m"), merged(*weights, found["alpha"]))
    with Image.open(tmp_path / "alpha.png") as picture:
        assert picture.size == (960, 460) and len(picture.getcolors(100_000)) > 10


def test_that_a_comparison_tells_the_distance_and_a_difference_surer_than_either_loss(demo_policy, trained, recordings, capsys) -> None:
    named = ["policy", "compare", str(demo_policy), str(trained), "--recordings", str(recordings / "held-out")]
    assert main([*named, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    weights = [policy_files.trainable_weights(folder) for folder in (demo_policy, trained)]
    assert found["distance"] == pytest.approx(np.linalg.norm(weights[1] - weights[0]), rel=1e-5)
    assert found["one"]["weights-sha256"] != found["other"]["weights-sha256"]
    losses = found["losses"]["held-out"]
    assert losses["difference"] == pytest.approx(losses["other"] - losses["one"], abs=1e-9)
    assert 0 < losses["difference-error"] < losses["one-error"]
    assert main(named) == 0
    assert "held-out" in capsys.readouterr().out


def test_that_policies_of_different_bases_are_neither_merged_nor_compared(demo_policy, tmp_path, capsys) -> None:
    from tests.federation.coordinator_parts import make_policy

    other = make_policy(tmp_path / "other")
    assert main(["policy", "merge", str(demo_policy), str(other), "--alpha", "0.5", "--out", str(tmp_path / "m")]) == 5
    assert "not of one base policy" in capsys.readouterr().err and not (tmp_path / "m").exists()
    assert main(["policy", "compare", str(demo_policy), str(other)]) == 5


@pytest.mark.parametrize("options", [[], ["--alpha", "0.5", "--sweep"], ["--sweep"], ["--alpha", "0.5", "--retention", "r"]])
def test_that_what_a_merge_needs_is_said(demo_policy, tmp_path, capsys, options) -> None:
    assert main(["policy", "merge", str(demo_policy), str(demo_policy), *options, "--out", str(tmp_path / "m")]) == 2
    assert "Nothing was merged" in capsys.readouterr().err
