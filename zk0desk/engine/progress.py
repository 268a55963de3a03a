"""How far a long piece of work on the engine is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from zk0desk.amounts import duration, gigabytes

Phase = Literal["linking", "checking", "fetching", "unpacking", "testing", "compiling", "verifying", "writing"]
TOLD_S, SEEN_S = 0.2, 10.0
"""Seconds between two reports at least; seconds of the past from which the pace is taken."""

_WORDS: dict[Phase, str] = {
    "linking": "Taking over what is unchanged",
    "checking": "Checking what is there",
    "fetching": "Fetching",
    "unpacking": "Unpacking",
    "testing": "Testing the engine on this computer",
    "compiling": "Preparing for faster starts; the engine can be used already",
    "verifying": "Verifying",
    "writing": "Writing",
}


@dataclass(frozen=True)
class Progress:
    """`done` of `total` bytes (for "testing" and "compiling" 0 and the number of files); `rate` a second, `seconds_left` None where
    unknown.
    """

    phase: Phase
    done: int
    total: int
    rate: float = 0.0
    seconds_left: float | None = None
    words: str = ""

    def to_json(self) -> dict[str, Any]:
        """The progress as a JSON object, keys in kebab-case."""
        return {
            "phase": self.phase,
            "done": self.done,
            "total": self.total,
            "rate": round(self.rate),
            "seconds-left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "words": self.words,
        }


Told = Callable[[Progress], None]


def nobody(_progress: Progress) -> None:
    """Told by those who do not want to know."""


class Pace:
    """Turns amounts into `Progress`: at most some a second, with the pace of the last seconds."""

    def __init__(self, told: Told, phase: Phase, total: int, done: int = 0, *, unit: Literal["bytes", "files"] = "bytes") -> None:
        self._told = told
        self.phase, self.total = phase, total
        self._unit = unit
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), done)])
        self._last = 0.0

    def at(self, done: int, trouble: str = "", *, now: bool = False) -> None:
        """Report `done`; `trouble` is said instead of the pace. `now`: also when the last report is fresh."""
        moment = time.monotonic()
        if not now and moment - self._last < TOLD_S:
            return
        self._last = moment
        self._seen.append((moment, done))
        while len(self._seen) > 2 and moment - self._seen[0][0] > SEEN_S:
            self._seen.popleft()
        began, first = self._seen[0]
        rate = (done - first) / (moment - began) if moment - began > 0.5 else 0.0
        left = (self.total - done) / rate if rate > 0 else None
        self._told(Progress(self.phase, done, self.total, rate, left, trouble or self._words(done, rate, left)))

    def _words(self, done: int, rate: float, left: float | None) -> str:
        if self._unit == "files":
            return f"{_WORDS[self.phase]}: {done:,} of {self.total:,} files"
        pace = f", {rate / 1e6:.1f} MB/s" if rate and self.phase == "fetching" else ""
        ends = f", about {duration(left)} left" if left is not None and done < self.total else ""
        return f"{_WORDS[self.phase]}: {gigabytes(done)} of {gigabytes(self.total)}{pace}{ends}"


def said(phase: Phase) -> Progress:
    """A phase whose end is not known."""
    return Progress(phase, 0, 0, words=f"{_WORDS[phase]}.")
