"""`zk0desk policy evaluate`: a policy, or the shared one beside its base, on one's own recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zk0desk import folders
from zk0desk.cli import main
from zk0desk.settings import ChosenRecording
from zk0desk.training.evaluation import evaluate
from zk0desk.training.policy import TrainablePolicy


def test_it_prints_what_the_evaluation_says(demo_policy: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["policy", "evaluate", str(demo_policy), "--recordings", str(recordings / "node0"), "--recordings", str(recordings / "node1")]
    assert main([*named, "--json", "--progress"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])["policy"]
    chosen = [ChosenRecording(path=recordings / name) for name in ("node0", "node1")]
    expected = evaluate(TrainablePolicy.load(demo_policy), chosen, batch=5)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5) and found["frames"] == 76
    assert {name: part["loss"] for name, part in found["parts"]["recording"].items()} == pytest.approx(expected.recordings, rel=1e-5)
    assert "progress 76 76" in err
    assert main([*named, "--sample", "20"]) == 0
    table = capsys.readouterr().out
    assert "recording: node0" in table and "cameras: top + wrist" in table and "±" in table and "20 of 76" in table


def test_the_shared_policy_is_put_beside_its_base(demo_policy: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = TrainablePolicy.load(demo_policy)
    shared = policy.get_weights() * np.float32(0.9)
    folder = folders.private_folder(folders.runs_folder() / "run-7")
    np.save(folder / "global-last.npy", shared)
    facts = {"policy-folder": str(demo_policy), "layout-sha256": policy.layout.sha256, "last": {"round": 4, "eval-loss": None}}
    (folder / "run.json").write_text(json.dumps(facts))
    assert main(["policy", "evaluate", "--recordings", str(recordings / "node0"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    chosen = [ChosenRecording(path=recordings / "node0")]
    assert found["base"]["loss"] == pytest.approx(evaluate(policy, chosen, batch=8).loss, rel=1e-6)
    policy.set_weights(shared)
    assert found["shared"]["loss"] == pytest.approx(evaluate(policy, chosen, batch=8).loss, rel=1e-6) and found["round"] == 4


def test_nothing_to_evaluate_on_is_said(demo_policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "evaluate", str(demo_policy)]) != 0
    assert "No recordings are named or chosen" in capsys.readouterr().err
