"""The library of recordings: searched, filtered and sorted. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from zk0desk.training.recording_types import CheckResult, Status

Order = Literal["name", "robot", "episodes", "duration", "size", "health", "date"]
ORDERS: tuple[Order, ...] = ("name", "robot", "episodes", "duration", "size", "health", "date")
HEALTHS: tuple[Status, ...] = ("ok", "repairable", "unusable")
LARGEST_FIRST = ("episodes", "duration", "size", "date")
"""Orders that begin with the most or the newest; the others begin with a, or with what is ready."""
NO_ROBOT = "not named"


@dataclass(frozen=True)
class Entry:
    """A recording in the library: its check, and when it was changed last (seconds since 1970)."""

    result: CheckResult
    changed: float = 0.0

    @property
    def name(self) -> str:
        """The recording's name."""
        return self.result.recording.name if self.result.recording else self.result.path.name

    @property
    def robot(self) -> str:
        """The robot, or that it is not named."""
        return (self.result.recording.robot if self.result.recording else "") or NO_ROBOT

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of its cameras."""
        return tuple(camera.name for camera in self.result.recording.cameras) if self.result.recording else ()

    @property
    def words(self) -> str:
        """All that a search looks at, in small letters."""
        recording = self.result.recording
        told = (recording.robot, recording.version, *recording.tasks) if recording else ()
        return "\n".join((self.name, str(self.result.path), *told, *self.cameras)).casefold()


@dataclass(frozen=True)
class View:
    """What is shown of the library, and in which order. Empty sets let all through; `reverse` turns the order's usual direction."""

    search: str = ""
    order: Order = "name"
    reverse: bool = False
    healths: frozenset[str] = field(default_factory=frozenset)
    robots: frozenset[str] = field(default_factory=frozenset)
    cameras: frozenset[str] = field(default_factory=frozenset)

    @property
    def filters(self) -> bool:
        """Whether anything but the search hides a recording."""
        return bool(self.healths or self.robots or self.cameras)


def arrange(entries: Iterable[Entry], view: View) -> list[Entry]:
    """The entries that `view` lets through, in its order; those that are equal in it by name and folder."""
    asked = view.search.casefold().split()
    shown = [entry for entry in entries if _fits(entry, view) and all(word in entry.words for word in asked)]
    shown.sort(key=lambda entry: (entry.name.casefold(), str(entry.result.path)))
    shown.sort(key=_KEYS[view.order], reverse=(view.order in LARGEST_FIRST) != view.reverse)
    return shown


def _fits(entry: Entry, view: View) -> bool:
    return (
        (not view.healths or entry.result.status in view.healths)
        and (not view.robots or entry.robot in view.robots)
        and (not view.cameras or not view.cameras.isdisjoint(entry.cameras))
    )


def _number(name: str) -> Callable[[Entry], float]:
    return lambda entry: float(getattr(entry.result.recording, name)) if entry.result.recording else 0.0


_KEYS: dict[Order, Callable[[Entry], Any]] = {
    "name": lambda entry: (entry.name.casefold(), str(entry.result.path)),
    "robot": lambda entry: (entry.robot == NO_ROBOT, entry.robot.casefold()),
    "episodes": _number("episodes"),
    "duration": _number("duration"),
    "size": _number("bytes_on_disk"),
    "health": lambda entry: (HEALTHS.index(entry.result.status), len(entry.result.findings)),
    "date": lambda entry: entry.changed,
}


@dataclass(frozen=True)
class Choices:
    """By what can be filtered, each with the number of its recordings."""

    healths: dict[str, int]
    robots: dict[str, int]
    cameras: dict[str, int]


def choices(entries: Iterable[Entry]) -> Choices:
    """What the entries can be filtered by, health in its order, names by the alphabet."""
    listed = list(entries)
    healths = Counter(entry.result.status for entry in listed)
    robots = Counter(entry.robot for entry in listed if entry.result.recording)
    cameras = Counter(name for entry in listed for name in dict.fromkeys(entry.cameras))
    return Choices(
        {health: healths[health] for health in HEALTHS if healths[health]},
        dict(sorted(robots.items(), key=lambda each: each[0].casefold())),
        dict(sorted(cameras.items(), key=lambda each: each[0].casefold())),
    )
