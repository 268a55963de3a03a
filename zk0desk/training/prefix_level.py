"""Which level of the prefix cache pays on a computer: a pure function over what is known, with its reason in words.

    off  LeRobot's own forward           N  the prefix is computed without gradient at each visit
    V    vision embeddings are kept      P  all keys and values of the prefix are kept

A visit takes the longer of computing and reading: entries are read ahead on another thread. Operations of a visit are in proportion to
LeRobot's, for two cameras at full size; what a computer does in a second is an estimate, so only a clear gain decides for larger entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from zk0desk.amounts import gigabytes
from zk0desk.training.prefix_rules import Level

OPERATIONS = {"off": 500e9, "N": 500e9 / 1.12, "V": 500e9 / 7.3, "P": 500e9 / 16.8}
"""Floating-point operations of one visit of a frame at full size, two cameras."""
CPU_CORE_SPEED, GPU_SPEED = 80e9, 25e12
"""Operations a second that a visit reaches where nothing was measured: one core, and a GPU of some years ago."""
MEMORY_SPEED = 5e9
"""Bytes a second that entries are read with when the system has them in memory."""
UNKNOWN_DISK_SPEED = 150e6
"""Bytes a second of a disk that nobody measured: that of a slow one."""
CLEAR_GAIN = 1.2
"""A level with larger entries is taken where its visits are at least so many times faster."""
WORTH_KEEPING = 0.1
"""A cache that holds less than this share of the frames is not begun."""


@dataclass(frozen=True)
class CacheCase:
    """What the choice is made from. Bytes; speeds in bytes a second, 0 where nobody measured.

    `frames`: entries of all chosen recordings. `v_bytes` and `p_bytes`: an entry's size. `memory_free`: what training leaves free.
    `disk_free`: what the cache may take of the disk beside what it has, its reserve left out. `budget`: the operator's, `kept_v` and
    `kept_p`: entries of these recordings that are there already. `gpu`: whether the policy trains on one; `compute_speed`: operations
    a second there. `visits`: how often a frame is visited in the run, as far as known. `setting`: "auto", or a level that the operator
    set. `refused`: why nothing may be kept ("" where it may).
    """

    frames: int
    v_bytes: int
    p_bytes: int
    memory_free: int
    disk_free: int
    budget: int
    gpu: bool = False
    disk_speed: float = 0.0
    compute_speed: float = 0.0
    cores: int = 1
    visits: float = 20.0
    kept_v: int = 0
    kept_p: int = 0
    setting: Literal["auto", "off", "N", "V", "P"] = "auto"
    refused: str = ""


@dataclass(frozen=True)
class LevelChoice:
    """The level, why in words, the bytes that its cache takes when it is filled, and the share of frames that it then holds (0 to 1).

    `gain`: how many times faster than LeRobot a visit is expected to be, frames that are not kept included. `larger` says what more room
    would give, or "".
    """

    level: Level
    reason: str
    bytes: int = 0
    share: float = 0.0
    gain: float = 1.0
    larger: str = ""


def choose_level(case: CacheCase) -> LevelChoice:
    """The level for `case`. What the operator set is done where it can be, in part where it does not fit whole."""
    if case.refused:
        return LevelChoice("off", f"off: {case.refused}")
    if case.setting == "off":
        return LevelChoice("off", "off: set in Settings. LeRobot's own step is used.")
    if case.setting == "N":
        return _none("set in Settings.")
    if case.frames < 1:
        return _none("there is no frame to keep.")
    if case.setting != "auto":
        choice = _as_set(case, case.setting)
    elif case.visits < 2 and not (case.kept_v or case.kept_p):
        return _none("each frame is visited only once or so, and a cache pays from the second visit on.")
    else:
        choice = _best(case)
    return replace(choice, larger=_with_more_room(case, choice))


def visit_seconds(case: CacheCase, level: Level) -> float:
    """Seconds that a visit of a kept frame is expected to take: the longer of computing and reading."""
    return max(OPERATIONS[level] / _compute_speed(case), _read_seconds(case, level))


def _best(case: CacheCase) -> LevelChoice:
    whole_p = _share(case, "P") >= 1
    if whole_p and visit_seconds(case, "P") * CLEAR_GAIN <= visit_seconds(case, "V"):
        return _kept(case, "P")
    if _share(case, "V") < WORTH_KEEPING:
        return _none(f"{_too_large(case, 'V')}.")
    if visit_seconds(case, "V") * CLEAR_GAIN > visit_seconds(case, "N"):
        return _none(f"reading from a disk with {_speed(case)} would take as long as computing.")
    return _kept(case, "V", not_p=_slow_reads(case) if whole_p else _too_large(case, "P"))


def _as_set(case: CacheCase, level: Literal["V", "P"]) -> LevelChoice:
    if _share(case, level) >= WORTH_KEEPING:
        choice = _kept(case, level)
        return replace(choice, reason=f"{choice.reason} Set in Settings.")
    if level == "P" and _share(case, "V") >= WORTH_KEEPING:
        return _kept(case, "V", not_p=f"P is set in Settings, but {_too_large(case, 'P')}")
    return _none(f"{level} is set in Settings, but {_too_large(case, level)}.")


def _kept(case: CacheCase, level: Literal["V", "P"], *, not_p: str = "") -> LevelChoice:
    """Keep entries of `level`; `not_p` says why not the larger ones."""
    share = min(1.0, _share(case, level))
    how = _fits(case, level) if share >= 1 else f"it {_too_large(case, level, subject=False)}; {share:.0%} of the frames are kept"
    reason = f"{level}: {how}." + (f" {not_p}." if not_p else "")
    mean = share * visit_seconds(case, level) + (1 - share) * visit_seconds(case, "N")
    return LevelChoice(level, reason, int(_needed(case, level) * share), share, visit_seconds(case, "off") / mean)


def _none(why: str) -> LevelChoice:
    return LevelChoice("N", f"N: {why} Nothing is kept.", gain=OPERATIONS["off"] / OPERATIONS["N"])


def _with_more_room(case: CacheCase, choice: LevelChoice) -> str:
    """What the next larger budget, or more room on the disk, would give; "" where nothing."""
    level: Level = "V" if choice.level == "N" or choice.share < 1 and choice.level == "V" else "P"
    gain = visit_seconds(case, "off") / visit_seconds(case, level)
    if _share(case, level) >= 1 or gain < choice.gain * CLEAR_GAIN:
        return ""
    what = "With a budget of" if case.budget < _needed(case, level) else "With room on the disk for"
    return f"{what} {gigabytes(_needed(case, level))} all frames fit at level {level}: about {gain / choice.gain:.1f} times faster."


def _needed(case: CacheCase, level: Level) -> int:
    return case.frames * _entry_bytes(case, level)


def _entry_bytes(case: CacheCase, level: Level) -> int:
    return {"off": 0, "N": 0, "V": case.v_bytes, "P": case.p_bytes}[level]


def _room(case: CacheCase, level: Level) -> int:
    kept = {"off": 0, "N": 0, "V": case.kept_v, "P": case.kept_p}[level]
    return min(case.budget, case.disk_free + kept * _entry_bytes(case, level))


def _share(case: CacheCase, level: Level) -> float:
    """How many times the frames fit."""
    return _room(case, level) / max(1, _needed(case, level))


def _compute_speed(case: CacheCase) -> float:
    return case.compute_speed or (GPU_SPEED if case.gpu else CPU_CORE_SPEED * max(1, case.cores))


def _in_memory(case: CacheCase, level: Level) -> bool:
    return _needed(case, level) <= case.memory_free


def _read_seconds(case: CacheCase, level: Level) -> float:
    disk = case.disk_speed or UNKNOWN_DISK_SPEED
    return _entry_bytes(case, level) / (MEMORY_SPEED if _in_memory(case, level) else min(disk, MEMORY_SPEED))


def _fits(case: CacheCase, level: Level) -> str:
    where = "and the memory" if _in_memory(case, level) else f"and is read from a disk with {_speed(case)}"
    size = f"{gigabytes(_needed(case, level))} for {case.frames:,} frames"
    return f"{size}; fits the budget of {gigabytes(case.budget)} {where}"


def _too_large(case: CacheCase, level: Level, *, subject: bool = True) -> str:
    needed = f"{f'{level} ' if subject else ''}would take {gigabytes(_needed(case, level))}"
    room = _room(case, level)
    if case.budget <= room:
        return f"{needed} of a budget of {gigabytes(case.budget)}"
    return f"{needed} of {gigabytes(room)} that are free on the disk"


def _slow_reads(case: CacheCase) -> str:
    if _in_memory(case, "P"):
        return f"P would gain nothing: reading {gigabytes(case.p_bytes)} a frame takes as long as V computes"
    return f"P would gain nothing: a disk with {_speed(case)} reads {gigabytes(case.p_bytes)} a frame too slowly for it"


def _speed(case: CacheCase) -> str:
    return f"{case.disk_speed / 1e6:,.0f} MB/s" if case.disk_speed else "a speed that nobody measured"
