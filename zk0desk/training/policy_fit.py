"""How a recording's numbers lie beside the policy's, and what keeps two recordings apart that are to be one node's data. No torch."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zk0desk.training.recording_info import read_json, shown
from zk0desk.training.recording_rows import ACTION, STATE
from zk0desk.training.recording_types import Finding, PolicyNeeds, Recording, Severity

DEGREES = 180 / math.pi
UNIT_TIMES = 10.0
"""Two recordings whose joints reach so many times as far have other units, or other robots."""
MOVES = 1e-3
"""A dimension that reaches less far stands still: nothing follows from its range."""
NAMED_UNITS = {
    "rad": "rad", "radian": "rad", "radians": "rad", "deg": "°", "degree": "°", "degrees": "°", "mm": "mm", "cm": "cm", "meter": "m",
    "meters": "m", "metre": "m", "metres": "m", "percent": "%", "pct": "%",
}  # fmt: skip
MAX_STATS = 64 * 2**20


@dataclass(frozen=True)
class Dimension:
    """One number of a vector: its place in the policy's, name (may be empty), unit as far as known, and statistics (None: not told)."""

    place: int
    name: str
    unit: str
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None

    @property
    def reach(self) -> float:
        """From the least to the largest value; 0 where these are not told."""
        return self.high - self.low if self.low is not None and self.high is not None else 0.0


@dataclass(frozen=True)
class VectorFit:
    """A recording's state or action (`what`) in the policy's, which has room for `most` numbers.

    `before` is what the policy was trained with before, where it tells that; its dimensions have no names.
    """

    what: str
    dimensions: tuple[Dimension, ...]
    most: int
    before: tuple[Dimension, ...] = ()

    @property
    def sentence(self) -> str:
        """How the numbers fill the policy's."""
        count = len(self.dimensions)
        if count > self.most:
            return f"{count} numbers; the policy has room for {self.most}, so it does not fit."
        rest = self.most - count
        filled = f"Places 1 to {count} of the policy's {self.most}"
        return f"{filled}; the other {rest} are filled with zeros and do not count." if rest else f"{filled}."


@dataclass(frozen=True)
class RecordingFit:
    """State and action of a recording beside a policy's."""

    recording: Recording
    state: VectorFit
    action: VectorFit


def recording_fit(recording: Recording, needs: PolicyNeeds, before: Mapping[str, Any] | None = None) -> RecordingFit:
    """How `recording` lies beside a policy that asks for `needs` and was trained with the statistics `before` (`policy_statistics`).

    Statistics that cannot be read are told as none.
    """
    try:
        stats = read_json(recording.path / "meta" / "stats.json", MAX_STATS)
    except (OSError, ValueError):
        stats = None
    state = _vector(stats, STATE, recording.state_dim, recording.state_names)
    action = _vector(stats, ACTION, recording.action_dim, recording.action_names)
    return RecordingFit(
        recording,
        VectorFit("state", state, needs.max_state_dim, _before(before, STATE)),
        VectorFit("action", action, needs.max_action_dim, _before(before, ACTION)),
    )


def _before(statistics: Mapping[str, Any] | None, key: str) -> tuple[Dimension, ...]:
    told = (statistics or {}).get(key)
    sizes = [len(values) for values in told.values() if isinstance(values, list)] if isinstance(told, dict) else []
    return _vector(statistics, key, sizes[0], ()) if sizes else ()


def _vector(stats: Any, key: str, count: int, names: Sequence[str]) -> tuple[Dimension, ...]:
    told = stats.get(key) if isinstance(stats, dict) else None
    columns = {word: _numbers(told, word, count) for word in ("min", "max", "mean", "std")}
    found = []
    for place in range(min(count, 1000)):
        low, high, mean, std = (columns[word][place] for word in ("min", "max", "mean", "std"))
        name = names[place] if place < len(names) else ""
        found.append(Dimension(place, name, unit_of(name, low, high), low, high, mean, std))
    return tuple(found)


def _numbers(told: Any, word: str, count: int) -> list[float | None]:
    """`count` finite numbers, None where there is none; nothing that is written there can do harm."""
    values = told.get(word) if isinstance(told, dict) else None
    while isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not isinstance(values, list) or len(values) != count:
        return [None] * count
    return [_finite(value) for value in values]


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30:
        return None
    return float(value) if math.isfinite(value) else None


def unit_of(name: str, low: float | None, high: float | None) -> str:
    """The unit that the name says, else with a question mark what the range looks like; empty where neither tells."""
    words = re.split(r"[^a-z]+", name.lower())
    said = next((NAMED_UNITS[word] for word in words if word in NAMED_UNITS), "")
    if said or low is None or high is None:
        return said
    if high - low < MOVES:
        return ""
    most = max(abs(low), abs(high))
    return "rad, m?" if most <= 2 * math.pi + 0.1 else "°, %?" if most <= 360 else "ticks?"


# --- several recordings as one node's data


def apart(fits: Sequence[RecordingFit]) -> list[Finding]:
    """What keeps the recordings apart in their numbers: units, and ranges that do not meet.

    Each is compared with all before it; of state and action, the first difference of each is told.
    """
    found: list[Finding] = []
    for place, other in enumerate(fits):
        for what in ("state", "action"):
            found += next(filter(None, (_difference(first, other, what) for first in fits[:place])), [])
    return found


def _difference(one: RecordingFit, other: RecordingFit, what: str) -> list[Finding]:
    pairs = _pairs(getattr(one, what).dimensions, getattr(other, what).dimensions)
    names = one.recording.name, other.recording.name
    return _units(*names, what, pairs) or _ranges(*names, what, pairs)


def _pairs(one: Iterable[Dimension], other: Iterable[Dimension]) -> list[tuple[Dimension, Dimension]]:
    """Dimensions of the same name; of the same place where one of them has none."""
    listed = list(other)
    named = {each.name: each for each in listed if each.name}
    pairs = []
    for each in one:
        twin = named.get(each.name) if each.name and named else listed[each.place] if each.place < len(listed) else None
        if twin is not None and each.reach > MOVES and twin.reach > MOVES:
            pairs.append((each, twin))
    return pairs


def _units(one: str, other: str, what: str, pairs: list[tuple[Dimension, Dimension]]) -> list[Finding]:
    said = [(a, b) for a, b in pairs if a.unit and b.unit and a.unit != b.unit and "?" not in a.unit + b.unit]
    if said:
        a, b = said[0]
        why = f"{_name(a)} is in {a.unit} in {shown(one, 40)} and in {b.unit} in {shown(other, 40)}."
        return [_differ("units-differ", f"The {what} is in different units.", why)]
    times = [b.reach / a.reach for a, b in pairs]
    if not times:
        return []
    usual = statistics.median(times)
    far = usual if usual >= 1 else 1 / usual
    if far < UNIT_TIMES:
        return []
    wide, narrow = (other, one) if usual >= 1 else (one, other)
    like = ", as degrees against radians do" if DEGREES / 1.7 < far < DEGREES * 1.7 else ""
    why = f"The joints of {shown(wide, 40)} reach about {far:.0f} times as far as those of {shown(narrow, 40)}{like}."
    return [_differ("units-differ", f"The {what} seems to be in different units.", why)]


def _ranges(one: str, other: str, what: str, pairs: list[tuple[Dimension, Dimension]]) -> list[Finding]:
    for a, b in pairs:
        if a.low is None or a.high is None or b.low is None or b.high is None:
            continue
        if max(a.low, b.low) > min(a.high, b.high):
            why = f"{_name(a)}: {a.low:.3g} to {a.high:.3g} in {shown(one, 40)}, {b.low:.3g} to {b.high:.3g} in {shown(other, 40)}."
            return [_differ("ranges-differ", f"A joint's {what} never meets that of the other recording.", why)]
    return []


def _differ(code: str, what: str, why: str) -> Finding:
    each = "Each recording is normalised on its own, so they can be mixed."
    return Finding(code, Severity.NOTE, what, f"{why} {each}", "Check that both arms were calibrated alike.")


def _name(dimension: Dimension) -> str:
    return shown(dimension.name, 40) if dimension.name else f"Place {dimension.place + 1}"
