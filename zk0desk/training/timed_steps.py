"""Rounds that are trained only to time their steps: over frames that are visited for the first time, and over those that were before."""

from __future__ import annotations

import shutil
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.amounts import gigabytes
from zk0desk.errors import OperatorError
from zk0desk.events import Event, Notice, PrefixChosen, RoundStarted, RoundTimes, Sink, StepDone
from zk0desk.settings import Cache
from zk0desk.training.estimate import KEEPING
from zk0desk.training.measuring_folder import forget
from zk0desk.training.prefix_cache import KEEP_FREE
from zk0desk.training.prefix_level import WORTH_KEEPING, LevelChoice
from zk0desk.training.rounds import RoundPlan

if TYPE_CHECKING:
    from zk0desk.training.trainer import LocalTrainer

STEP_LIMIT_S = 12.0
"""A batch that takes longer is measured smaller."""
PREPARE_LIMIT_S = 90.0
"""Seconds that first visits of frames may take, where fewer frames do as well."""
MEASURED_S = 15.0
"""Seconds of steps that are measured, but at least `MIN_STEPS`."""
MIN_STEPS, MAX_STEPS = 2, 8


class MeasureError(OperatorError):
    """A round's time cannot be measured."""

    code = "measure-failed"


@dataclass(frozen=True)
class Timed:
    """What `steps` steps of `batch` frames took, as the fields of an `Estimate` say."""

    batch: int
    steps: int
    compute_s: float
    frame_s: float
    wait_s: float
    prepare_s: float = 0.0


def timed_at(rounds: Rounds, chosen: LevelChoice, cache: Cache, batch: int, *, stay: bool, in_memory: bool) -> Timed:
    """Time the level that the trainer takes, which is `chosen` unless its step differs from LeRobot's."""
    first = min(2, batch, max(1, rounds.frames // 2))
    a_frame = rounds.train(first, 2).computing[-1] / first
    if rounds.level not in KEEPING:
        if chosen.level in KEEPING and rounds.level == "N":
            raise _no_room(WORTH_KEEPING * chosen.bytes)
        return _every_visit_alike(rounds, batch, first, a_frame, stay=stay)
    assert cache.folder is not None
    return _first_and_later_visits(rounds, batch, first, a_frame, cache, in_memory=in_memory)


def _every_visit_alike(rounds: Rounds, batch: int, first: int, a_frame: float, *, stay: bool) -> Timed:
    """At the levels off and N."""

    def timed(batch: int, count: int) -> tuple[float, float]:
        """Median computing and mean waiting of `count` steps, after one that is left out."""
        for again in range(2):
            # Where pictures stay, the second time finds them decoded; where not, it meets other frames, as training does.
            steps = rounds.train(batch, count + 1, round=1 if stay else again + 1)
        return statistics.median(steps.computing[1:]), statistics.fmean(steps.waiting[1:])

    while batch > first and batch * a_frame > STEP_LIMIT_S:
        batch //= 2
    count = max(MIN_STEPS, min(MAX_STEPS, int(MEASURED_S / (batch * a_frame))))
    compute_s, wait_s = timed(batch, count)
    fewer = max(1, batch // 4)
    return Timed(batch, count, compute_s, _a_frame(compute_s, batch, timed(fewer, count)[0], fewer), wait_s)


def _first_and_later_visits(rounds: Rounds, batch: int, first: int, new: float, cache: Cache, *, in_memory: bool) -> Timed:
    """At the levels V and P. Two steps of `first` frames were made: a frame's first visit took `new` seconds."""
    assert cache.folder is not None
    room = shutil.disk_usage(cache.folder).free - KEEP_FREE
    most = min(rounds.frames, room // rounds.entry_bytes)
    if most < min(rounds.frames, first * (MIN_STEPS + 1)):
        raise _no_room(first * (MIN_STEPS + 1) * rounds.entry_bytes)
    again = rounds.train(first, 2).computing[-1] / first
    enough = MIN_STEPS + 1
    while batch > first and (batch * again > STEP_LIMIT_S or enough * batch * new > PREPARE_LIMIT_S or enough * batch > most):
        batch //= 2
    count = max(MIN_STEPS, min(MAX_STEPS, int(MEASURED_S / (batch * again)), int(PREPARE_LIMIT_S / (batch * max(new, again))) - 1))
    count = max(1, min(count, most // batch - 1))  # within a pass, in which each frame comes once
    prepared = -(-2 * first // batch)  # steps whose frames were visited already
    fresh = rounds.train(batch, count + 1).computing[max(1, prepared) :]
    if not in_memory:
        forget(cache.folder)
    steps = rounds.train(batch, count + 1)  # the same frames in the same order
    if steps.asked and not steps.hits:
        raise MeasureError(
            "A round's time cannot be measured.", f"No frame that was prepared could be kept. {steps.trouble}".strip(), "Check the disk."
        )
    compute_s, wait_s = statistics.median(steps.computing[1:]), statistics.fmean(steps.waiting[1:])
    prepare_s = (statistics.median(fresh) - compute_s) / batch if fresh else new - again
    fewer = max(1, batch // 4)
    frame_s = _a_frame(compute_s, batch, statistics.median(rounds.train(fewer, count + 1).computing[1:]), fewer)
    return Timed(batch, count, compute_s, frame_s, wait_s, max(0.0, prepare_s))


def _a_frame(compute_s: float, batch: int, fewer_s: float, fewer: int) -> float:
    """What a frame adds to a step's computing, from steps of `batch` and of `fewer` frames."""
    frame_s = (compute_s - fewer_s) / (batch - fewer) if fewer < batch else compute_s / batch
    return min(max(frame_s, 0.0), compute_s / batch)


def _no_room(needed: float) -> MeasureError:
    return MeasureError(
        "A round's time cannot be measured.",
        f"The disk has no room to prepare a few frames beside those that are kept: {gigabytes(int(needed + KEEP_FREE))} have to be free,"
        f" of which {gigabytes(KEEP_FREE)} stay free.",
        "Free some disk, and measure again. Training itself works with what is kept.",
    )


class Rounds:
    """Rounds of one trainer, from the same weights each."""

    def __init__(self, trainer: LocalTrainer, start: np.ndarray, steps: Steps) -> None:
        self._trainer, self._start, self._steps = trainer, start, steps
        self.frames = trainer.frames

    def train(self, batch: int, steps: int, round: int = 1) -> Steps:
        """Train a round. The same `round` gives the same frames in the same order, whatever the batch."""
        self._steps.clear()
        plan = RoundPlan(
            run="estimate", round=round, rounds=1, seed=0, lr=1e-4, mu=0.01, batch_size=batch, local_steps=steps
        )  # fmt: skip
        self._trainer.train(plan, self._start)
        return self._steps

    @property
    def level(self) -> str:
        """The level that was trained with."""
        return self._trainer.forward.level

    @property
    def entry_bytes(self) -> int:
        """Bytes of a frame's entry, at least 1."""
        from zk0desk.training.cached_forward import CachedForward

        forward = self._trainer.forward
        return max(1, forward.entry_bytes if isinstance(forward, CachedForward) else 0)


class Steps:
    """Takes the trainer's events: how long each step of a round computed, how long it waited for its data before, what the cache gave."""

    def __init__(self, emit: Sink) -> None:
        self._emit = emit
        self.start_s, self.trouble = 0.0, ""
        self._began = 0.0
        self.clear()

    def clear(self) -> None:
        """Before a round."""
        self.computing: list[float] = []
        self.waiting: list[float] = []
        self.hits = self.asked = 0
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case PrefixChosen():  # once, in the first round, after the check that comes with a run's start
                self.start_s = now - self._began
            case RoundStarted():
                self._began = now
            case StepDone():
                self.computing.append(event.seconds)
                self.waiting.append(max(0.0, now - self._last - event.seconds))
            case RoundTimes():
                self.hits, self.asked = event.hits, event.asked
            case Notice():
                self.trouble = f"{event.what} {event.why}"
        if isinstance(event, (StepDone, Notice)):
            self._emit(event)
        self._last = time.monotonic()
