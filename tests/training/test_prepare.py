"""Preparing frames before training: what is done stays, and the round after it computes nothing that is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import SettingsError
from zk0desk.events import Event, Notice, PrefixChosen, Prepared, RoundTimes
from zk0desk.settings import Cache, ChosenRecording, Policy, Recordings, Settings
from zk0desk.training import prepare as module
from zk0desk.training.cached_forward import CachedForward
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.prepare import Preparation, PrepareError, look, prepare, prepare_chosen
from zk0desk.training.rounds import RoundPlan
from zk0desk.training.trainer import LocalTrainer

PLAN = RoundPlan(run="r", round=1, rounds=2, seed=3, lr=1e-4, mu=0.01, batch_size=5, local_epochs=1.0)
FRAMES = 2 * 20 + 2 * 18


class Preparing:
    """A policy, its frames of two robots (one camera and two), and `prepare` on them."""

    def __init__(self, policy: Path, recordings: Path, cache: Path, **more: Any) -> None:
        self.policy = TrainablePolicy.load(policy)
        self.policy.policy.train()
        self.chosen = [ChosenRecording(path=recordings / name) for name in ("node0", "node1")]
        self.settings = Cache(**({"folder": cache, "level": "V"} | more))
        self.control = NodeControl()
        self.events: list[Event] = []
        self.listen: Callable[[Event], None] = lambda _event: None

    def run(self, at_once: int = 8) -> Preparation:
        def emit(event: Event) -> None:
            self.events.append(event)
            self.listen(event)

        frames = self.policy.frames_of(self.chosen)
        return prepare(self.policy, frames, self.settings, at_once=at_once, threads=1, emit=emit, control=self.control)

    def said(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def preparing(demo_policy: Path, recordings: Path, tmp_path: Path) -> Callable[..., Preparing]:
    return lambda **more: Preparing(demo_policy, recordings, tmp_path / "cache", **more)


@pytest.mark.parametrize("level", ["V", "P"])
def test_the_round_after_it_finds_every_frame(preparing: Callable[..., Preparing], level: str) -> None:
    made = preparing(level=level)
    found = made.run()
    assert (found.level, found.filled, found.computed, found.frames, found.why) == (level, FRAMES, FRAMES, FRAMES, "")
    told = made.said(Prepared)
    assert made.said(PrefixChosen)[0].level == level and (told[0].done, told[-1].done, told[-1].frames) == (0, FRAMES, FRAMES)
    events: list[Event] = []
    policy = TrainablePolicy.load(made.policy.files.folder)
    trainer = LocalTrainer(policy, made.chosen, node="n", threads=1, cache=made.settings, emit=events.append, control=NodeControl())
    trainer.train(PLAN, policy.get_weights())
    trainer.close()
    times = next(event for event in events if isinstance(event, RoundTimes))
    assert times.hits == times.asked == FRAMES and times.filled == times.frames == FRAMES
    again = preparing(level=level).run()
    assert (again.filled, again.computed) == (FRAMES, 0)


def test_a_pause_holds_it_and_a_stop_keeps_what_is_done(preparing: Callable[..., Preparing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_S", 0.0)
    made = preparing()
    waiter = threading.Timer(0.3, made.control.resume)

    def listen(event: Event) -> None:
        if isinstance(event, Prepared) and event.done == 16:
            made.control.pause()
            waiter.start()
        if isinstance(event, Prepared) and event.done >= 40:
            made.control.stop_now()

    made.listen = listen
    with pytest.raises(Stopped):
        made.run()
    waiter.join()
    done = made.said(Prepared)[-1].done
    assert 40 <= done < FRAMES
    before, after = (next(event for event in made.said(Prepared) if event.done >= count) for count in (16, 17))
    assert after.time - before.time >= 0.25 and after.seconds - before.seconds < 0.25  # the pause is not counted as work
    rest = preparing().run()
    assert (rest.filled, rest.computed) == (FRAMES, FRAMES - done)


def test_memory_that_runs_out_halves_the_batch(preparing: Callable[..., Preparing], monkeypatch: pytest.MonkeyPatch) -> None:
    real, limit = CachedForward.prepare, 3

    def scarce(self: CachedForward, data: Any, indices: list[int]) -> None:
        if len(indices) > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        real(self, data, indices)

    monkeypatch.setattr(CachedForward, "prepare", scarce)
    made = preparing()
    found = made.run()
    assert found.filled == FRAMES
    assert [notice.code for notice in made.said(Notice)] == ["micro-batch-halved"] * 2
    limit = 0
    with pytest.raises(PrepareError, match="single frame"):
        preparing(folder=made.settings.folder / "other").run()


def test_a_budget_that_is_used_up_ends_it_and_says_so(preparing: Callable[..., Preparing], tmp_path: Path) -> None:
    whole = preparing(folder=tmp_path / "whole").run()
    budget = 4 * 4096 + whole.bytes // 2  # files take whole blocks
    made = preparing(folder=tmp_path / "small", budget_gb=budget / 1e9)
    found = made.run()
    assert 0 < found.filled < FRAMES and "budget" in found.why
    assert made.said(Prepared)[-1].done == found.filled


@pytest.mark.parametrize(("setting", "words"), [("N", "Nothing is kept"), ("off", "LeRobot's own step")])
def test_a_level_that_keeps_nothing_is_said(preparing: Callable[..., Preparing], setting: str, words: str) -> None:
    found = preparing(level=setting).run()
    assert (found.level, found.filled) == (setting, 0) and words in found.why


def test_a_look_says_what_would_be_chosen_and_keeps_nothing(demo_policy: Path, recordings: Path, tmp_path: Path) -> None:
    chosen = Recordings(chosen=(ChosenRecording(path=recordings / "node0"),))
    settings = Settings(policy=Policy(folder=demo_policy), recordings=chosen, cache=Cache(folder=tmp_path / "cache"))
    seen = look(settings, control=NodeControl())
    assert seen.level in ("V", "P") and seen.bytes > 0 and seen.gain > 1 and "frames" in seen.reason
    assert not (tmp_path / "cache").exists()
    events: list[Event] = []
    assert prepare_chosen(settings, emit=events.append, control=NodeControl()).filled == 40
    with pytest.raises(SettingsError, match="nothing to prepare"):
        look(Settings(policy=Policy(folder=demo_policy)), control=NodeControl())
