"""What is known about one run, for plots: append-only buffers of numbers, without Qt.

A `Track` keeps minima and maxima of blocks of 4, 16, 64, ... values beside the values, so that any view of a
million points is drawn from a few thousand, whatever the zoom.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk import events
from zk0desk.federation import schedule
from zk0desk.federation.node_state import NodeState
from zk0desk.ui.durations import duration
from zk0desk.ui.round_parts import RoundParts

if TYPE_CHECKING:
    from zk0desk.journal import Journal

SMOOTHED = 49
"""Steps in the moving mean."""
_FACTOR = 4

DECIDES: dict[str, tuple[str, ...]] = {
    "lr": (schedule.SPIKE, schedule.CALM, schedule.RISING, schedule.PLATEAU, schedule.CYCLE_END),
    "mu": (schedule.PLATEAU, schedule.WORSE, schedule.BETTER),
}
"""The signals of the coordinator's schedule that are marked in the curves of the learning rate and of mu."""

COLUMNS = ("loss", "proximal", "grad_norm", "lr", "mu")
"""The series of a step, as in `events.StepDone`."""


class _Buffer:
    """A numpy array that grows by doubling."""

    def __init__(self, dtype: Any = np.float64) -> None:
        self._data = np.empty(1024, dtype)
        self.size = 0

    @property
    def values(self) -> np.ndarray:
        """What was appended; a view."""
        return self._data[: self.size]

    def extend(self, values: np.ndarray) -> None:
        """Append `values`."""
        needed = self.size + len(values)
        if needed > len(self._data):
            grown = np.empty(max(needed, 2 * len(self._data)), self._data.dtype)
            grown[: self.size] = self.values
            self._data = grown
        self._data[self.size : needed] = values
        self.size = needed

    def cut(self, size: int) -> None:
        """Keep the first `size`."""
        self.size = min(self.size, size)


class Track:
    """Values over steps 0, 1, 2, ...; not-a-number marks a gap."""

    def __init__(self) -> None:
        self._raw = _Buffer()
        self._low: list[_Buffer] = []
        self._high: list[_Buffer] = []

    def __len__(self) -> int:
        return self._raw.size

    @property
    def values(self) -> np.ndarray:
        """All values; a view."""
        return self._raw.values

    def extend(self, values: np.ndarray) -> None:
        """Append `values` and bring the blocks up to date."""
        self._raw.extend(np.asarray(values, np.float64))
        low = high = self._raw.values
        level = 0
        while len(low) >= _FACTOR:
            if level == len(self._low):
                self._low.append(_Buffer())
                self._high.append(_Buffer())
            done, whole = self._low[level].size, len(low) // _FACTOR
            if whole > done:
                part = slice(done * _FACTOR, whole * _FACTOR)
                self._low[level].extend(np.fmin.reduce(low[part].reshape(-1, _FACTOR), axis=1))
                self._high[level].extend(np.fmax.reduce(high[part].reshape(-1, _FACTOR), axis=1))
            low, high = self._low[level].values, self._high[level].values
            level += 1

    def cut(self, size: int) -> None:
        """Keep the first `size` values."""
        self._raw.cut(size)
        for low, high in zip(self._low, self._high, strict=True):
            size //= _FACTOR
            low.cut(size)
            high.cut(size)

    def view(self, first: float, last: float, points: int) -> tuple[np.ndarray, np.ndarray]:
        """What to draw for steps `first` to `last`: x and y, at most about `4 * points` of them.

        Where values are merged, each block gives its minimum and its maximum, so that no peak is lost.
        """
        begin = max(0, math.floor(first) - 1)
        end = min(len(self), math.ceil(last) + 2)
        if end <= begin:
            return np.empty(0), np.empty(0)
        level, block = -1, 1
        while level + 1 < len(self._low) and (end - begin) / block > 2 * points:
            level, block = level + 1, block * _FACTOR
        if level < 0:
            return np.arange(begin, end, dtype=np.float64), self._raw.values[begin:end]
        left, right = begin // block, min(-(-end // block), self._low[level].size)
        x = np.repeat(np.arange(left, right, dtype=np.float64) * block, 2)
        x[1::2] += block / 2
        y = np.empty(2 * (right - left))
        y[0::2] = self._low[level].values[left:right]
        y[1::2] = self._high[level].values[left:right]
        tail = right * block  # values that do not fill a block yet
        if tail < end:
            x = np.concatenate([x, np.arange(tail, end, dtype=np.float64)])
            y = np.concatenate([y, self._raw.values[tail:end]])
        return x, y


class Smoothed(Track):
    """The mean of the last `SMOOTHED` finite values, appended with the values themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._sums, self._counts = _Buffer(), _Buffer()
        self._reset()

    def _reset(self) -> None:
        self._sums.cut(0)
        self._counts.cut(0)
        self._sums.extend(np.zeros(1))
        self._counts.extend(np.zeros(1))

    def feed(self, raw: np.ndarray) -> None:
        """Append the means that end at each of the values of `raw`."""
        finite = np.isfinite(raw)
        before = self._sums.size
        self._sums.extend(self._sums.values[-1] + np.cumsum(np.where(finite, raw, 0.0)))
        self._counts.extend(self._counts.values[-1] + np.cumsum(finite))
        ends = np.arange(before, self._sums.size)
        begins = np.maximum(ends - SMOOTHED, 0)
        counts = self._counts.values[ends] - self._counts.values[begins]
        with np.errstate(invalid="ignore", divide="ignore"):
            self.extend((self._sums.values[ends] - self._sums.values[begins]) / counts)

    def view(self, first: float, last: float, points: int) -> tuple[np.ndarray, np.ndarray]:
        """What to draw: means change little from step to step, so every n-th is enough."""
        begin, end = max(0, math.floor(first) - 1), min(len(self), math.ceil(last) + 2)
        stride = max(1, (end - begin) // points)
        x: np.ndarray = np.arange(begin - begin % stride, max(begin, end), stride)
        if len(x) and x[-1] != end - 1:
            x = np.append(x, end - 1)
        return x.astype(np.float64), self.values[x]

    def cut(self, size: int) -> None:
        """Keep the first `size` means."""
        super().cut(size)
        self._sums.cut(size + 1)
        self._counts.cut(size + 1)


@dataclass
class Round:
    """One round: `first` is the index of its first step in the tracks; losses are NaN until they are known."""

    number: int
    first: int
    began: float
    steps: int = 0
    epochs: float = 0.0
    frames: int = 0
    deadline: float = 0.0
    trained: float = math.nan
    train_loss: float = math.nan
    federation_loss: float = math.nan
    held_out: float = math.nan
    trains_here: bool = True


@dataclass
class Band:
    """A pause or a lost connection before step `at`; `ended` is NaN while it lasts."""

    kind: str
    at: int
    began: float
    ended: float = math.nan

    def words(self, now: float) -> str:
        """`paused 12 min`."""
        seconds = (now if math.isnan(self.ended) else self.ended) - self.began
        return f"{self.kind} {duration(seconds)}"


@dataclass
class Mark:
    """A decision changed a series before step `at`; `words` say how and why."""

    at: int
    raised: bool
    words: str


@dataclass
class ScheduleMark:
    """The coordinator's schedule decided something about round `number`; `words` say why."""

    number: int
    signal: str
    lr: float
    mu: float
    words: str


class RunData:
    """One run, from events or from the journal."""

    def __init__(self, run: str, rounds: int = 0) -> None:
        self.run = run
        self.total_rounds = rounds
        self.title = ""
        self.tracks = {name: Track() for name in COLUMNS}
        self.smoothed = {name: Smoothed() for name in COLUMNS[:3]}
        self.times = _Buffer()
        self.round_of = _Buffer(np.int32)
        self.step_of = _Buffer(np.int32)
        self.rounds: dict[int, Round] = {}
        self.bands: list[Band] = []
        self.mu_marks: list[Mark] = []
        self.decided: dict[int, ScheduleMark] = {}
        """By round, what the coordinator's schedule decided about it."""
        self.parts = RoundParts()
        """Where the time of each round goes."""
        self.kept: events.RoundKept | None = None
        self.privacy: dict[str, events.PrivacySpent] = {}
        """What was spent last, of "node" and of "federation"."""
        """When the middle of a round was kept on disk last."""
        self.current: Round | None = None
        self.last_step: events.StepDone | None = None
        self.version = 0
        """Grows whenever something changed, so that a plot knows whether to draw."""
        self._pace: deque[tuple[float, int, float]] = deque(maxlen=24)
        self._round_lengths: deque[float] = deque(maxlen=5)
        self._pending: list[events.StepDone] = []

    def __len__(self) -> int:
        return self.times.size

    # --- from events

    def take(self, batch: Iterable[events.Event]) -> None:
        """Take events in order. Those of other runs are left out."""
        for event in batch:
            run = getattr(event, "run", self.run)
            if run == self.run:
                self._take(event)
        self._append()

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            self._pending.append(event)
            return
        self.parts.take(event)
        match event:
            case events.RoundStarted():
                self._append()
                self._start(event)
            case events.RoundTrained():
                round_ = self._round(event.round, event.time)
                round_.trained = event.time
                round_.train_loss = event.metrics.get("loss-mean", math.nan)
                if round_.trains_here and not math.isnan(round_.began):
                    self._round_lengths.append(event.time - round_.began)
            case events.RoundKept():
                self.kept = event
            case events.PrivacySpent():
                self.privacy[event.of] = event
            case events.MuChanged():
                self._append()
                self.mu_marks.append(Mark(len(self), event.mu > event.before, f"{event.what} {event.why}"))
            case events.ScheduleDecided():
                self.decided[event.round] = ScheduleMark(event.round, event.signal, event.lr, event.mu, event.why)
            case events.FederationMetrics():
                self.told(event.round, event.train_loss, event.eval_loss)
            case events.NodeStateChanged():
                self._append()
                self._state(event)
            case _:
                return
        self.version += 1

    def _start(self, event: events.RoundStarted) -> None:
        begun = self.rounds.get(event.round)
        first = len(self)
        if begun is not None and begun.trains_here:  # begun again after an interruption, or gone on with
            first = begun.first
            self._cut(min(len(self), first + int(np.sum(self.step_of.values[first:] <= event.done))))
        previous = self.current
        if previous is not None and previous.number == event.round - 1 and not math.isnan(previous.began):
            if self._round_lengths:
                self._round_lengths.pop()
            self._round_lengths.append(event.time - previous.began)
        told = self.rounds.get(event.round)
        self.current = Round(event.round, first, event.time, event.steps, event.epochs, event.frames, event.deadline)
        if told is not None:
            self.current.federation_loss, self.current.held_out = told.federation_loss, told.held_out
        self.rounds[event.round] = self.current
        self.total_rounds = event.rounds or self.total_rounds
        self.last_step = None
        self._pace.clear()

    def _round(self, number: int, began: float = math.nan) -> Round:
        if number not in self.rounds:
            self.rounds[number] = Round(number, len(self), began, trains_here=False)
        return self.rounds[number]

    def told(self, number: int, train_loss: float | None, eval_loss: float | None) -> None:
        """Keep what the coordinator told about round `number`."""
        round_ = self._round(number)
        round_.federation_loss = math.nan if train_loss is None else train_loss
        round_.held_out = math.nan if eval_loss is None else eval_loss

    def _state(self, event: events.NodeStateChanged) -> None:
        open_band = self.bands[-1] if self.bands and math.isnan(self.bands[-1].ended) else None
        kind = {NodeState.PAUSED: "paused", NodeState.RECONNECTING: "reconnecting"}.get(NodeState(event.state))
        if open_band is not None and open_band.kind != kind:
            open_band.ended = event.time
            open_band = None
        if kind is not None and open_band is None:
            self.bands.append(Band(kind, len(self), event.time))
            self._pace.clear()

    def _append(self) -> None:
        steps, self._pending = self._pending, []
        if not steps:
            return
        columns = {name: np.array([getattr(step, name) for step in steps], np.float64) for name in COLUMNS}
        self._extend(columns, [s.time for s in steps], [s.round for s in steps], [s.step for s in steps])
        self.last_step = steps[-1]
        for step in steps:
            self._pace.append((step.time, step.frames, step.seconds))
        self.version += 1

    def _extend(self, columns: Mapping[str, np.ndarray], times: Sequence[float], rounds: Sequence[int], steps: Sequence[int]) -> None:
        for name, values in columns.items():
            clean = np.where(np.isfinite(values), values, np.nan)
            self.tracks[name].extend(clean)
            if name in self.smoothed:
                self.smoothed[name].feed(clean)
        self.times.extend(np.asarray(times, np.float64))
        self.round_of.extend(np.asarray(rounds, np.int32))
        self.step_of.extend(np.asarray(steps, np.int32))

    def _cut(self, size: int) -> None:
        for track in (*self.tracks.values(), *self.smoothed.values()):
            track.cut(size)
        for buffer in (self.times, self.round_of, self.step_of):
            buffer.cut(size)
        for band in self.bands:
            band.at = min(band.at, size)
        self.mu_marks = [mark for mark in self.mu_marks if mark.at <= size]

    # --- from the journal

    @classmethod
    def from_journal(cls, journal: Journal, run: str, before_round: int = 0, and_steps: int = 0) -> RunData:
        """A run of the past, or what of it is before `before_round`, and the first `and_steps` steps of that.

        Slow for long runs: not for the window's thread.
        """
        data = cls(run)
        for row in journal.runs():
            if row["run"] == run:
                data.total_rounds = row["rounds"]
                data.title = row["federation"]
        rows = journal.steps(run)
        if before_round:
            rows = [row for row in rows if row["round"] < before_round or (row["round"] == before_round and row["step"] <= and_steps)]
        if rows:
            columns = {name: np.array([row[name] for row in rows], np.float64) for name in COLUMNS}
            data._extend(columns, [row["time"] for row in rows], [row["round"] for row in rows], [row["step"] for row in rows])
        numbers = data.round_of.values
        kept = journal.rounds(run)
        data.parts.read(journal, run, [row for row in kept if not before_round or row["round"] < before_round])
        for row in kept:
            if before_round and row["round"] >= before_round + bool(and_steps):
                continue
            first = int(np.searchsorted(numbers, row["round"]))
            here = first < len(numbers) and numbers[first] == row["round"]
            round_ = Round(row["round"], first, row["began"] or math.nan, trained=row["trained"] or math.nan, trains_here=bool(here))
            round_.train_loss = row["metrics"].get("loss-mean", math.nan)
            round_.federation_loss = math.nan if row["train_loss"] is None else row["train_loss"]
            round_.held_out = math.nan if row["eval_loss"] is None else row["eval_loss"]
            data.rounds[row["round"]] = round_
            if here:
                data.current = round_
                round_.steps = int(np.searchsorted(numbers, row["round"], side="right")) - first
        for event in journal.mu_changes(run):
            begin, end = (int(np.searchsorted(numbers, event.round, side=side)) for side in ("left", "right"))
            at = begin + int(np.searchsorted(data.step_of.values[begin:end], event.step, side="right"))
            if end > begin and event.step <= data.step_of.values[end - 1]:
                data.mu_marks.append(Mark(at, event.mu > event.before, f"{event.what} {event.why}"))
        for told in journal.told("schedule-decided"):
            if isinstance(told, events.ScheduleDecided) and told.run == run and not (before_round and told.round >= before_round):
                data._take(told)
        data.version = 1
        return data

    def prepend(self, earlier: RunData) -> None:
        """Put the rounds that an earlier start of this run trained before those of now."""
        shift = len(earlier)
        own = {name: self.tracks[name].values.copy() for name in COLUMNS}
        times, rounds, steps = (buffer.values.copy() for buffer in (self.times, self.round_of, self.step_of))
        marks = [Mark(mark.at + shift, mark.raised, mark.words) for mark in self.mu_marks]
        self._cut(0)
        self.mu_marks = [*earlier.mu_marks, *marks]
        self.decided = {**earlier.decided, **self.decided}
        self.parts.merge(earlier.parts)
        for band in self.bands:
            band.at += shift
        both = {name: np.concatenate([earlier.tracks[name].values, own[name]]) for name in COLUMNS}
        self._extend(
            both,
            np.concatenate([earlier.times.values, times]).tolist(),
            np.concatenate([earlier.round_of.values, rounds]).tolist(),
            np.concatenate([earlier.step_of.values, steps]).tolist(),
        )
        for round_ in self.rounds.values():
            round_.first += shift
        for number, round_ in earlier.rounds.items():
            told = self.rounds.get(number)
            if told is None or not told.trains_here:
                self.rounds[number] = round_
                if told is not None:  # heard since then
                    round_.federation_loss, round_.held_out = told.federation_loss, told.held_out
            elif round_.trains_here:
                told.first = round_.first  # the round that goes on
        self.version += 1

    # --- read

    def marks(self, column: str) -> list[Mark]:
        """Where `lr` or `mu` was changed by a decision, in order: by the coordinator's schedule, and mu by the node's own rule.

        Of decisions of the schedule with one signal that follow each other from round to round, the first has the mark.
        """
        found, before = list(self.mu_marks) if column == "mu" else [], None
        for number in sorted(self.decided):
            decided, round_ = self.decided[number], self.rounds.get(number)
            goes_on = before is not None and (before.number, before.signal) == (number - 1, decided.signal)
            before = decided
            if goes_on or decided.signal not in DECIDES[column] or round_ is None or not round_.trains_here or round_.first >= len(self):
                continue
            last = float(self.tracks[column].values[round_.first - 1]) if round_.first else math.nan
            found.append(Mark(round_.first, getattr(decided, column) > last, f"Round {number}: {decided.words}"))
        return sorted(found, key=lambda mark: mark.at)

    def mark(self, column: str, step: int) -> Mark | None:
        """The last of `marks` up to `step`, counted over the run, if there is one."""
        return next((mark for mark in reversed(self.marks(column)) if mark.at <= step), None) if column in DECIDES else None

    def ordered(self) -> list[Round]:
        """Rounds by number."""
        return [self.rounds[number] for number in sorted(self.rounds)]

    def per_round(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Round numbers and values of `train_loss`, `federation_loss` or `held_out`, where known."""
        pairs = [(r.number, getattr(r, name)) for r in self.ordered() if math.isfinite(getattr(r, name))]
        array = np.array(pairs, np.float64).reshape(-1, 2)
        return array[:, 0], array[:, 1]

    @property
    def frames_per_second(self) -> float:
        """Measured over the last steps; NaN before there are any."""
        seconds = sum(item[2] for item in self._pace)
        return sum(item[1] for item in self._pace) / seconds if seconds > 0 else math.nan

    @property
    def step_seconds(self) -> float:
        """How long a step takes, waiting for data included: from the times of the last steps. NaN before it is measured."""
        if len(self._pace) < 2:
            return self._pace[0][2] if self._pace else math.nan
        return (self._pace[-1][0] - self._pace[0][0]) / (len(self._pace) - 1)

    def round_left(self, now: float) -> float:
        """Seconds until this round's training ends, at the pace measured, at most until its deadline; NaN when not known."""
        if self.current is None or self.last_step is None or not math.isnan(self.current.trained):
            return math.nan
        left = (self.last_step.steps - self.last_step.step) * self.step_seconds
        if self.current.deadline:
            left = min(left, max(0.0, self.current.deadline - now))
        return left

    def run_left(self, now: float) -> float:
        """Seconds until the run's last round ends: the rounds to come take as long as those measured did; NaN when not known."""
        if self.current is None or not self._round_lengths or not self.total_rounds:
            return math.nan
        mean = sum(self._round_lengths) / len(self._round_lengths)
        to_come = max(0, self.total_rounds - self.current.number) * mean
        left = self.round_left(now)
        return to_come + (0.0 if math.isnan(left) else left)
