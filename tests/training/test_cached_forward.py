"""Training over the prefix cache: which level, and whether an entry was found or computed, shows in no number beyond rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0desk.control import NodeControl
from zk0desk.events import Event, Notice, PrefixChosen, RoundTimes
from zk0desk.settings import Cache, ChosenRecording
from zk0desk.training.demo_data import make_demo_recording
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.rounds import RoundPlan
from zk0desk.training.trainer import LocalTrainer

PLAN = RoundPlan(run="r", round=1, rounds=2, seed=3, lr=1e-4, mu=0.01, batch_size=5, local_steps=6)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[ChosenRecording]:
    """Two robots: two cameras and one, instructions of different length."""
    folder = tmp_path_factory.mktemp("recordings")
    return [ChosenRecording(path=make_demo_recording(folder / f"node{n}", n, seed=2, episodes=2, frames=9)) for n in (0, 1)]


class Run:
    """Rounds of a fresh trainer at a level, with its events."""

    def __init__(self, policy: Path, recordings: list[ChosenRecording], cache: Cache | None) -> None:
        self.events: list[Event] = []
        self.policy = TrainablePolicy.load(policy)
        self.start = self.policy.get_weights()
        self.trainer = LocalTrainer(
            self.policy, recordings, node="n", threads=1, cache=cache, emit=self.events.append, control=NodeControl()
        )

    def round(self, number: int = 1, run: str = "r") -> np.ndarray:
        return self.trainer.train(replace(PLAN, round=number, run=run), self.start).delta

    def said(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def cache_of(folder: Path, level: Any, **more: Any) -> Cache:
    return Cache(level=level, folder=folder, **more)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(("level", "limit"), [("N", 1e-3), ("V", 2e-2), ("P", 2e-2)])
def test_a_round_at_each_level_is_lerobots(level: str, limit: float, demo_policy: Path, recordings: list[ChosenRecording], tmp_path: Path):
    theirs = Run(demo_policy, recordings, None).round()
    run = Run(demo_policy, recordings, cache_of(tmp_path, level))
    ours = run.round()
    assert run.said(PrefixChosen)[0].level == level and not run.said(Notice)
    assert apart(ours, theirs) < limit  # AdamW's first steps turn a rounding of the gradient into one of the step
    run.trainer.close()


@pytest.mark.parametrize("level", ["V", "P"])
def test_hits_and_misses_give_the_same_update_to_the_bit(level: str, demo_policy: Path, recordings: list[ChosenRecording], tmp_path: Path):
    first = Run(demo_policy, recordings, cache_of(tmp_path, level))
    missed = first.round()
    times = first.said(RoundTimes)[0]
    assert times.filled == times.asked - times.hits == 30 and times.seconds["prepare"] > 0
    again = first.round()
    assert np.array_equal(missed, again)
    first.trainer.close()
    other = Run(demo_policy, recordings, cache_of(tmp_path, level))
    assert np.array_equal(other.round(run="another"), missed)
    assert other.said(RoundTimes)[0].hits == other.said(RoundTimes)[0].asked
    other.trainer.close()


def test_a_cache_that_takes_little_gives_the_same_update(demo_policy: Path, recordings: list[ChosenRecording], tmp_path: Path):
    whole = Run(demo_policy, recordings, cache_of(tmp_path / "whole", "V"))
    update = whole.round()
    budget = 5 * 4096 + 10 * whole.trainer.forward.entry_bytes  # files take whole blocks
    small = Run(demo_policy, recordings, cache_of(tmp_path / "small", "V", budget_gb=budget / 1e9))
    assert np.array_equal(small.round(), update)
    assert 0 < small.said(RoundTimes)[0].filled < whole.said(RoundTimes)[0].filled
    whole.trainer.close()
    small.trainer.close()


def test_the_backbone_is_freed_when_all_is_kept_and_comes_back(demo_policy: Path, recordings: list[ChosenRecording], tmp_path: Path):
    run = Run(demo_policy, recordings, cache_of(tmp_path, "P"))
    forward = None
    first = run.trainer.train(replace(PLAN, local_steps=0, local_epochs=1.0), run.start).delta
    forward = run.trainer.forward
    assert forward.missing() == []
    second = run.trainer.train(replace(PLAN, local_steps=0, local_epochs=1.0), run.start).delta
    vision = run.policy.policy.model.vlm_with_expert.get_vlm_model().vision_model
    assert all(parameter.numel() == 0 for parameter in vision.parameters())
    assert np.array_equal(first, second)
    run.trainer.close()
    assert all(parameter.numel() > 0 for parameter in vision.parameters())


def test_a_step_that_differs_from_lerobots_is_not_used(
    demo_policy: Path, recordings: list[ChosenRecording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from zk0desk.training import prefix_forward

    right = prefix_forward.frozen_prefix

    def wrong(layers: Any, heads: Any, hidden: Any, lengths: Any) -> Any:
        prefix = right(layers, heads, hidden, lengths)
        return replace(prefix, keys=[prefix.keys[0] * 1.05, *prefix.keys[1:]])

    monkeypatch.setattr(prefix_forward, "frozen_prefix", wrong)
    run = Run(demo_policy, recordings, cache_of(tmp_path, "P"))
    ours = run.round()
    assert run.said(PrefixChosen)[0].level == "off" and run.said(Notice)[0].code == "prefix-differs"
    assert np.array_equal(ours, Run(demo_policy, recordings, None).round())


def test_what_changes_in_a_recording_is_another_shelf(demo_policy: Path, recordings: list[ChosenRecording], tmp_path: Path):
    import shutil

    from zk0desk.training.recording_content import pictures_digest

    copy = tmp_path / "copy"
    shutil.copytree(recordings[0].path, copy)
    cameras = ["observation.images.top"]
    before = pictures_digest(recordings[0].path, cameras)
    assert pictures_digest(copy, cameras) == before
    (copy / "meta" / "stats.json").unlink()
    assert pictures_digest(copy, cameras) == before
    video = next((copy / "videos" / cameras[0]).rglob("*.mp4"))
    data = bytearray(video.read_bytes())
    data[len(data) // 2] ^= 1
    video.write_bytes(bytes(data))
    assert pictures_digest(copy, cameras) != before
