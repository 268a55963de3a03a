"""Where the time of each round goes: from the node's states and what its training counted. Without Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from zk0desk import events
from zk0desk.federation.node_state import NodeState
from zk0desk.ui.durations import duration_short

if TYPE_CHECKING:
    from zk0desk.journal import Journal

PARTS = {
    "idle": "idle",
    "download": "download",
    "prepare": "prepare frames",
    "wait": "wait for data",
    "forward": "forward",
    "backward": "backward",
    "optimiser": "optimiser",
    "other": "other",
    "paused": "paused",
    "upload": "upload",
}
"""Name and words, in the order in which they are shown."""

_OF_STATE = {
    NodeState.DOWNLOADING: "download",
    NodeState.UPLOADING: "upload",
    NodeState.PAUSED: "paused",
    NodeState.WAITING_FOR_ROUND: "idle",
    NodeState.RECONNECTING: "idle",
}
"""What a state's time is counted as. Training counts its own; before the first round nothing waits for it."""

BEFORE_S = 3600.0
"""What a run's first round waited for is looked for in so many seconds before it."""


@dataclass
class RoundTime:
    """One round, from the update before it to its own. `seconds` by part; entries found (`hits`) of those `asked`; `filled` of `frames`."""

    number: int
    seconds: dict[str, float] = field(default_factory=dict)
    hits: int = 0
    asked: int = 0
    filled: int = 0
    frames: int = 0

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def words(self) -> str:
        """The round's time and each of its parts; what the cache gave, where it was asked."""
        parts = [(PARTS[name], self.seconds[name]) for name in PARTS if self.seconds.get(name, 0.0) >= 0.005 * self.total > 0]
        text = f"round {self.number}, {duration_short(self.total)}: "
        text += ", ".join(f"{name} {duration_short(seconds)} ({seconds / self.total:.0%})" for name, seconds in parts)
        return f"{text}. {self.cache_words()}".strip()

    def cache_words(self) -> str:
        """What the round found prepared, and how much of the recordings is; "" where nothing is kept."""
        if not self.asked:
            return ""
        return f"{self.hits / self.asked:.0%} of the frames were prepared; {self.filled:,} of {self.frames:,} are now."


class RoundParts:
    """Takes events of one run in order. `version` grows when something changed."""

    def __init__(self) -> None:
        self.rounds: dict[int, RoundTime] = {}
        self.chosen: events.PrefixChosen | None = None
        """How the run computes the frozen part, and why."""
        self.version = 0
        self._state: NodeState | None = None
        self._since = 0.0
        self._gathered: dict[str, float] = {}
        self._paused_in_training = 0.0

    def take_all(self, batch: Iterable[events.Event]) -> None:
        """Take events in order."""
        for event in batch:
            self.take(event)

    def take(self, event: events.Event) -> None:
        """Take one event; others than those that tell of time are left out."""
        match event:
            case events.NodeStateChanged():
                self._count(event.time)
                self._state = NodeState(event.state)
                if self._state is NodeState.CHECKING:  # a new start: what was before it belongs to no round
                    self._gathered.clear()
                return
            case events.RoundStarted():
                self._begin(event.time)
                return
            case events.PrefixChosen():
                self.chosen = event
            case events.RoundTimes():
                self._count(event.time)
                self._end_training(event)
            case events.UpdateSent():
                self._sent(event.round, event.time)
            case _:
                return
        self.version += 1

    def read(self, journal: Journal, run: str, rounds: Sequence[Mapping[str, Any]]) -> None:
        """What the journal knows of these rows of its table of rounds. Not for the window's thread."""
        began = [row["began"] for row in rounds if row["began"]]
        if not began:
            return
        told = journal.told("node-state-changed", "prefix-chosen", "round-times", since=min(began) - BEFORE_S)
        last = max(row[name] or 0.0 for row in rounds for name in ("began", "trained", "sent"))
        acts: list[tuple[float, Callable[[], None]]] = [
            (event.time, partial(self.take, event)) for event in told if getattr(event, "run", run) == run and event.time <= last
        ]
        for row in rounds:
            if row["began"]:
                acts.append((row["began"], partial(self._begin, row["began"])))
            if row["sent"]:
                acts.append((row["sent"], partial(self._sent, row["round"], row["sent"])))
        for _when, act in sorted(acts, key=lambda each: each[0]):
            act()
        self.version += 1

    def merge(self, earlier: RoundParts) -> None:
        """Put what an earlier start of this run told before what is known."""
        self.rounds = {**earlier.rounds, **self.rounds}
        self.chosen = self.chosen or earlier.chosen
        self.version += 1

    @property
    def newest(self) -> RoundTime | None:
        """The last round that was counted."""
        return self.rounds[max(self.rounds)] if self.rounds else None

    def _count(self, now: float) -> None:
        """Count the time since the last event to what the node did."""
        part = _OF_STATE.get(self._state) if self._state is not None else None
        seconds = max(0.0, now - self._since) if self._since else 0.0
        if part is not None:
            self._gathered[part] = self._gathered.get(part, 0.0) + seconds
            if part == "paused":
                self._paused_in_training += seconds
        self._since = now

    def _end_training(self, event: events.RoundTimes) -> None:
        counted = RoundTime(event.round, dict(event.seconds), event.hits, event.asked, event.filled, event.frames)
        # The trainer counts a pause as other; the state says which part of it that was.
        counted.seconds["other"] = max(0.0, counted.seconds.get("other", 0.0) - self._paused_in_training)
        self._add(counted)
        self.rounds[event.round] = counted
        self._paused_in_training = 0.0

    def _begin(self, now: float) -> None:
        self._count(now)
        self._paused_in_training = 0.0

    def _sent(self, number: int, now: float) -> None:
        self._count(now)
        if number in self.rounds:
            self._add(self.rounds[number])
        else:  # sent again after a restart: what was trained is not known any more
            self._gathered.clear()

    def _add(self, to: RoundTime) -> None:
        for part, seconds in self._gathered.items():
            to.seconds[part] = to.seconds.get(part, 0.0) + seconds
        self._gathered.clear()
