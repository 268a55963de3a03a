"""The deep check of the columns: every row of every parquet file, a batch at a time, so that memory does not grow with the recording."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.training.deep_places import place_findings
from zk0desk.training.episode_table import Episode
from zk0desk.training.recording_info import FETCH_AGAIN, Info, shown
from zk0desk.training.recording_rows import ACTION, STATE, TOLERANCE_S
from zk0desk.training.recording_schema import ignored_findings, renames
from zk0desk.training.recording_types import BY_EPISODE, LEAVE_OUT, Finding, PolicyNeeds, Severity
from zk0desk.training.repair_times import Timing, common_rate, refusal, timing_of

if TYPE_CHECKING:
    import pyarrow as pa

JUMP_SHARE, JUMP_TIMES, JUMP_OF_ALL = 0.4, 8.0, 0.1
"""A jump moves two or more dimensions in one frame: each by so much of its range in the episode, so many times its usual
step, and so much of its range in the whole recording."""
STILL = 0.02
"""A dimension whose range in the recording is less than so much of the widest one's stands still."""
MAX_JUMPS = 3
"""Places in an episode that are kept until that range is known."""
STALE_NOTE, STALE_WRONG = 0.05, 0.5
"""Statistics that are off by this much of a standard deviation are told; by the second, they spoil training."""
DTYPES = {"float32": "float", "float64": "double", "int64": "int64", "int32": "int32", "bool": "bool", "string": "string"}


@dataclass
class _Series:
    """Count, sum, sum of squares, least and largest of a column, per dimension."""

    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, values: np.ndarray) -> None:
        """Take `values` (rows, dimensions), finite, in. Chan's rule: sums of squares about the mean lose no digits."""
        if not len(values):
            return
        mean, squares = values.mean(axis=0), ((values - values.mean(axis=0)) ** 2).sum(axis=0)
        if not self.count:
            self.count, self.mean, self.squares = len(values), mean, squares
            self.low, self.high = values.min(axis=0), values.max(axis=0)
            return
        total, apart = self.count + len(values), mean - self.mean
        self.squares = self.squares + squares + apart**2 * (self.count * len(values) / total)
        self.mean = self.mean + apart * (len(values) / total)
        self.count = total
        self.low, self.high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))

    @property
    def std(self) -> np.ndarray:
        """Standard deviation."""
        return np.sqrt(self.squares / max(1, self.count))


class ColumnCheck:
    """Takes the rows of a recording in order, then tells what is wrong with them.

    `episodes_of` collects, by the finding's code, the episodes that it touches, and its first words.
    """

    def __init__(self, info: Info, needs: PolicyNeeds, listed: list[Episode]) -> None:
        self._info, self._needs = info, needs
        self._table = listed
        self._known_as = renames(info)
        self.rows = 0
        self.lengths: dict[int, int] = {}
        self._touched: dict[str, dict[int, str]] = {}
        self._series = {STATE: _Series(), ACTION: _Series()}
        self._seen: dict[bytes, int] = {}
        self._jitter = 0.0
        self._timings: list[Timing] = []
        self._late = 0
        self._types: dict[str, str] = {}
        self._jumps: list[tuple[int, int, np.ndarray]] = []
        self._open: int | None = None
        self._held: list[Mapping[str, np.ndarray]] = []

    # --- taking rows in

    def take(self, batch: Mapping[str, np.ndarray]) -> None:
        """Take the next rows: the number columns, vectors of shape (rows, dimensions)."""
        batch = {self._known_as.get(name, name): values for name, values in batch.items()}
        episodes = batch["episode_index"]
        if not len(episodes):
            return
        borders = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
        for start, end in zip(borders, borders[1:], strict=False):
            part = {name: values[start:end] for name, values in batch.items()}
            number = int(episodes[start])
            if number != self._open:
                self.close()
                self._open = number
            self._held.append(part)
            # An episode without end is taken in pieces.
            if sum(len(held["episode_index"]) for held in self._held) > 2**20:
                self.close()

    def close(self) -> None:
        """Look at the episode whose rows were taken."""
        held, self._held = self._held, []
        if not held or self._open is None:
            return
        number = self._open
        rows = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
        self._episode(number, rows)

    def touch(self, code: str, episode: int, words: str = "") -> None:
        """Note that the finding `code` touches `episode`; the first words of each are kept."""
        self._touched.setdefault(code, {}).setdefault(episode, words)

    def saw_type(self, name: str, arrow: pa.DataType) -> None:
        """Compare a column's type with its declaration."""
        feature = self._info.features.get(name)
        wanted = DTYPES.get(feature.dtype) if feature is not None else None
        kind = _element(arrow)
        if feature is not None and wanted and kind != wanted and name not in self._types:
            self._types[name] = f"{shown(name, 60)} holds {kind}, the description says {shown(feature.dtype, 20)}"

    def _episode(self, number: int, rows: Mapping[str, np.ndarray]) -> None:
        count = len(rows["episode_index"])
        if number in self.lengths:
            self.touch("episode-scattered", number)
        self.lengths[number] = self.lengths.get(number, 0) + count
        self._places(number, rows, count)
        self._times(number, rows)
        self._vectors(number, rows)
        self.rows += count

    def _places(self, number: int, rows: Mapping[str, np.ndarray], count: int) -> None:
        index, frames = rows.get("index"), rows.get("frame_index")
        if index is not None and not np.array_equal(index, np.arange(self.rows, self.rows + count)):
            first = int(np.argmax(index != np.arange(self.rows, self.rows + count)))
            self.touch("index-wrong", number, f"row {self.rows + first:,} says {int(index[first]):,}")
        if frames is not None and not np.array_equal(frames, np.arange(frames[0], frames[0] + count)):
            first = int(np.argmax(np.diff(frames) != 1)) + 1
            self.touch("frames-gap", number, f"after frame {int(frames[first - 1]):,} comes {int(frames[first]):,}")

    def _times(self, number: int, rows: Mapping[str, np.ndarray]) -> None:
        times, frames = rows.get("timestamp"), rows.get("frame_index")
        if times is None or frames is None:
            return
        times = times.astype(np.float64)
        self._timings.append(timing_of(number, frames, times, self._info.fps))
        if not np.isfinite(times).all():
            self.touch("timestamps-not-finite", number)
            return
        off = np.abs(times - frames / self._info.fps)
        bad = off > TOLERANCE_S + np.abs(times) * 2**-23
        if bad.any():
            self._late += int(bad.sum())
            self._jitter = max(self._jitter, float(off.max()))
            self.touch("timestamps-jitter", number, f"first in episode {number}, frame {int(frames[int(np.argmax(bad))]):,}")

    def _vectors(self, number: int, rows: Mapping[str, np.ndarray]) -> None:
        sound = True
        for name, values in rows.items():
            if values.dtype.kind != "f" or name == "timestamp":
                continue
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if bad.any():
                what = {STATE: "state", ACTION: "action"}.get(name, "value")
                self.touch(f"{what}-not-finite", number, f"{shown(name, 60)}, frame {int(np.argmax(bad)):,}")
                sound = sound and what == "value"
        if not sound:
            return
        digest, nothing = hashlib.blake2b(digest_size=16), True
        for name, series in self._series.items():
            if (vectors := rows.get(name)) is not None:
                wide = vectors.astype(np.float64)
                series.add(wide)
                digest.update(np.ascontiguousarray(vectors).data)
                nothing = False
                if name == STATE:
                    self._motion(number, wide)
        twin = number if nothing else self._seen.setdefault(digest.digest(), number)
        if twin != number:
            self.touch("episodes-duplicate", number, f"episode {number} repeats episode {twin}")

    def _motion(self, number: int, state: np.ndarray) -> None:
        if len(state) < 3:
            return
        steps, reach = np.abs(np.diff(state, axis=0)), np.ptp(state, axis=0)
        if not reach.any():
            self.touch("episodes-still", number)
            return
        usual = np.quantile(steps, 0.95, axis=0)
        suspect = (steps > JUMP_SHARE * reach) & (steps > JUMP_TIMES * usual) & (reach > 0)
        for frame in np.flatnonzero(suspect.sum(axis=1) >= 2)[:MAX_JUMPS]:
            self._jumps.append((number, int(frame) + 1, np.where(suspect[frame], steps[frame], 0.0)))

    # --- telling

    def findings(self, stats: Any) -> list[Finding]:
        """What was found; `stats` is what meta/stats.json holds, or None."""
        self.close()
        span = self._series[STATE].high - self._series[STATE].low
        for number, frame, moved in self._jumps:
            # A joint that hardly moves in the whole recording shows its noise.
            if moved.shape == span.shape and ((moved > JUMP_OF_ALL * span) & (span > STILL * span.max())).sum() >= 2:
                self.touch("values-jump", number, f"episode {number}, frame {frame:,}")
        if len(self._touched.get("episodes-still", ())) == len(self.lengths):
            self._touched.pop("episodes-still", None)  # the quick check says that the arm never moves
        found = [self._told(*words) for words in _WORDS if words[0] in self._touched]
        found += self._unsafe()
        found += place_findings(self._table, self.lengths, self._info.fps)
        found += self._short()
        found += self._stale(stats)
        found += [_differs(words) for words in self._types.values()]
        found += ignored_findings(self._info)
        if len(self.lengths) == 1:
            what = "The recording has one episode only."
            found.append(Finding("one-episode", Severity.NOTE, what, "None can be held out to measure by.", "Record a few more."))
        return found

    def _told(self, code: str, severity: Severity, what: str, why: str, remedy: str) -> Finding:
        touched = self._touched[code]
        first = next((words for words in touched.values() if words), "")
        count = len(touched)
        episodes = tuple(sorted(touched))
        many = f"episode {episodes[0]}" if count == 1 else f"{count:,} episodes"
        values = {"many": many, "first": first, "late": f"{self._late:,}", "rows": f"{self.rows:,}", "fps": f"{self._info.fps:g}"}
        values["jitter"] = f"{1000 * self._jitter:.1f} ms"
        return Finding(code, severity, what.format(**values), why.format(**values), remedy, episodes)

    def _unsafe(self) -> list[Finding]:
        """Timestamps beside the grid that cannot be re-laid: where they were taken at other moments than the video's pictures."""
        if not self._touched.keys() & {"timestamps-jitter", "timestamps-not-finite"}:
            return []
        fps, broken = self._info.fps, {number for code in BY_EPISODE for number in self._touched.get(code, ())}
        timings = [timing for timing in self._timings if timing.episode not in broken]
        if not (why := refusal(timings, fps)):
            return []
        bad = tuple(timing.episode for timing in timings if refusal([timing], fps))
        what = f"The timestamps cannot be laid on {fps:g} frames per second."
        remedy = LEAVE_OUT
        if len(bad) == len(timings) and (rate := common_rate(timings)):
            remedy = f"If it was recorded at {rate} frames per second, write that as `fps` into meta/info.json of a copy."
        return [Finding("timestamps-unsafe", Severity.BLOCKS, what, why, remedy, bad)]

    def _short(self) -> list[Finding]:
        chunk = self._needs.chunk_size
        short = tuple(sorted(number for number, length in self.lengths.items() if length < chunk))
        if not short:
            return []
        what = f"{'Episode ' + str(short[0]) + ' is' if len(short) == 1 else f'{len(short):,} episodes are'} shorter than {chunk} frames."
        why = f"The policy predicts {chunk} actions at once; what is missing of them is masked."
        return [Finding("episodes-short", Severity.NOTE, what, why, "Leave them out if they went wrong.", short)]

    def _stale(self, stats: Any) -> list[Finding]:
        spoilt = any(code in self._touched for code in ("state-not-finite", "action-not-finite"))
        if not isinstance(stats, dict) or self.rows != self._info.frames or spoilt:
            return []  # where part of the data is missing, its statistics differ for that reason
        stats = {self._known_as.get(name, name): values for name, values in stats.items()}
        worst, where = 0.0, ""
        for name, series in self._series.items():
            try:
                mean, std = (np.asarray(stats[name][word], np.float64).reshape(-1) for word in ("mean", "std"))
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            if series.count < 2 or mean.shape != series.mean.shape or std.shape != mean.shape or not np.isfinite([mean, std]).all():
                continue
            moves = series.std > 1e-6 * (1 + np.abs(series.mean))
            off = np.maximum(np.abs(mean - series.mean), np.abs(std - series.std))[moves] / series.std[moves]
            if len(off) and off.max() > worst:
                worst, where = float(off.max()), name
            # Nothing is normalised with the least and the largest, so they alone are but a note.
            edge = _edges_off(stats[name], series)[moves] / series.std[moves]
            if len(edge) and min(STALE_WRONG, edge.max()) > worst:
                worst, where = min(STALE_WRONG, float(edge.max())), f"{name} (least and largest)"
        if worst < STALE_NOTE:
            return []
        severity = Severity.REPAIRABLE if worst > STALE_WRONG else Severity.NOTE
        what = "The recording's statistics are not those of its data."
        why = f"{where}: off by {worst:.2g} standard deviations. State and action are normalised with them."
        return [Finding("statistics-stale", severity, what, why, "Compute them again in a copy; the frames are whole.")]


def _edges_off(stats: Mapping[str, Any], series: _Series) -> np.ndarray:
    """How far the least and the largest values told are from those of the data; zeros where none are told."""
    off = np.zeros_like(series.low)
    for word, held in (("min", series.low), ("max", series.high)):
        try:
            told = np.asarray(stats[word], np.float64).reshape(-1)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if told.shape == held.shape and np.isfinite(told).all():
            off = np.maximum(off, np.abs(told - held))
    return off


_B, _R, _N = Severity.BLOCKS, Severity.REPAIRABLE, Severity.NOTE
_WORDS: tuple[tuple[str, Severity, str, str, str], ...] = (
    ("state-not-finite", _B, "A state that is no number, in {many}.", "The first: {first}. One such value spoils the whole policy.",
     LEAVE_OUT),
    ("action-not-finite", _B, "An action that is no number, in {many}.", "The first: {first}. One such value spoils the whole policy.",
     LEAVE_OUT),
    ("episode-scattered", _B, "The rows of {many} lie apart.", "LeRobot takes an episode's rows as one piece.", FETCH_AGAIN),
    ("index-wrong", _B, "The rows are numbered with gaps or twice, in {many}.", "The first: {first}. Frames are found by that number.",
     FETCH_AGAIN),
    ("frames-gap", _B, "Frames are missing or doubled, in {many}.", "The first: {first}.", LEAVE_OUT),
    ("timestamps-not-finite", _R, "Some timestamps are no numbers, in {many}.", "No frame is found by them.", "Re-lay them in a copy."),
    ("timestamps-jitter", _R, "{late} of {rows} timestamps do not fit {fps} frames per second.",
     "They are off by up to {jitter}, {first}; LeRobot then finds no picture for them.", "Re-lay the timestamps in a copy."),
    ("value-not-finite", _N, "A value that is no number, in {many}.", "The first: {first}. The policy does not use that column.", ""),
    ("values-jump", _N, "The arm jumps from one frame to the next, in {many}.",
     "The first: {first}. A reset inside an episode looks like that; the policy would learn to jump.", "Leave them out if it is so."),
    ("episodes-still", _N, "The arm does not move in {many}.", "There is nothing to learn from them.", "Leave them out."),
    ("episodes-duplicate", _N, "The same motion again, in {many}.", "{first}; it would count double.", "Leave the repeated ones out."),
)  # fmt: skip
"""Code, severity, what, why, remedy."""


def _differs(words: str) -> Finding:
    why = "LeRobot converts it while it loads, or refuses it when it cannot."
    return Finding("type-differs", Severity.NOTE, f"A column's type is not the declared one: {words}.", why, "")


def _element(kind: pa.DataType) -> str:
    import pyarrow as pa

    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return str(kind)
