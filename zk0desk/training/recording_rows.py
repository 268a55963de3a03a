"""The quick check of the rows: the number columns of every data file, a batch at a time, so that memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.training.recording_files import Episodes, pointer_error, unreadable_data
from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, shown
from zk0desk.training.recording_types import LEAVE_OUT, Finding, RecordingError, Severity

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

STATE, ACTION = "observation.state", "action"
NUMBERS = (STATE, ACTION, "timestamp", "frame_index", "episode_index", "index", "task_index")
TOLERANCE_S = 1e-4
"""LeRobot's own: how far a timestamp may lie from the frame that is fetched for it."""
MAX_ROWS = 20_000_000
BATCH_ROWS = 65_536
VECTORS = ((STATE, "state"), (ACTION, "action"))


def read_rows(files: Sequence[Path], info: Info, tasks: int | None) -> Rows:
    """Read the number columns of `files`; `tasks` are listed (None: too many to say). `RecordingError` where they cannot be read."""
    rows = Rows(info, tasks)
    for path in files:
        for table in _tables(path, rows):
            dims = {name: info.features[name].dim if name in info.features else 1 for name in table.column_names}
            rows.take({name: as_array(table.column(name), name, dim) for name, dim in dims.items()})
            if rows.count > MAX_ROWS:
                raise RecordingError(
                    "The recording has more frames than zk0desk reads.", f"It has over {MAX_ROWS:,}.", "Cut it.", code="too-large"
                )
    return rows


def _tables(path: Path, rows: Rows) -> Iterator[pa.Table]:
    """The number columns of a file, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_pointer(path):
            raise pointer_error(shown("/".join(path.parts[-3:])))
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            there = file.schema_arrow.names
            rows.look_at_names(path, there)
            wanted = [name for name in NUMBERS if name in there]
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise unreadable_data(path, error) from error


def as_array(column: object, name: str, dim: int) -> np.ndarray:
    """An Arrow column of `dim` numbers a row: (rows, dim) for state and action, else (rows,) or (rows * dim,). `RecordingError`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    assert isinstance(column, pa.ChunkedArray)
    flat = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    rows = len(flat)
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type) or pa.types.is_large_list(flat.type):
        flat = pc.list_flatten(flat)
    number = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
    if not number or flat.null_count or len(flat) != rows * dim:
        raise RecordingError(
            f"Column {name} is not what the description says.",
            f"It holds {len(flat):,} values of {flat.type} in {rows:,} rows where {dim} numbers a row are declared.",
            FETCH_AGAIN,
            code="column-wrong",
        )
    # Arrow's own conversion would import pandas, which takes longer than the whole check.
    array = np.from_dlpack(flat) if len(flat) else np.zeros(0)
    return array.reshape(rows, dim) if name in (STATE, ACTION) else array


class Rows:
    """What was seen of the rows so far."""

    def __init__(self, info: Info, tasks: int | None) -> None:
        import numpy as np

        self._info, self._listed_tasks = info, tasks
        self.count = 0
        self._numbers = np.zeros(0)
        self._bad = {name: 0 for name, _ in VECTORS}
        self._bad_in: dict[str, set[int]] = {name: set() for name, _ in VECTORS}
        self._first_bad: dict[str, int] = {}
        self._range: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._times_bad, self._times_off, self._times_lost = 0, 0.0, False
        self._first_time = (0, 0)
        self._unlisted, self._first_unlisted = 0, 0
        self._differ: dict[str, Finding] = {}

    def look_at_names(self, path: Path, names: Sequence[str]) -> None:
        """Compare a file's columns with those that the description declares. `RecordingError` where one is missing that is read."""
        missing = [name for name in NUMBERS if name not in names and (name in self._info.features or name == "episode_index")]
        if missing:
            what = f"{shown(path.name)} has no column {', '.join(missing)}."
            raise RecordingError(what, "The description declares it.", FETCH_AGAIN, code="column-missing")
        declared = {key for key, feature in self._info.features.items() if feature.dtype != "video"}
        unknown, absent = sorted(set(names) - declared), sorted(declared - set(names))
        pictures = [key for key in absent if self._info.features[key].is_camera]
        if unknown or pictures:
            parts = []
            if unknown:
                parts.append(f"it has {', '.join(map(shown, unknown[:5]))}, which the description does not declare")
            if pictures:
                parts.append(f"it lacks {', '.join(map(shown, pictures[:5]))}")
            what = f"{shown(path.name)} has other columns than the description declares."
            why = f"{shown('; '.join(parts).capitalize(), 300)}. LeRobot loads none but those."
            self._differ.setdefault("columns-differ", Finding("columns-differ", Severity.BLOCKS, what, why, FETCH_AGAIN))
        elif absent:
            what = f"{shown(path.name)} lacks columns that the description declares: {', '.join(map(shown, absent[:5]))}."
            why = "zk0desk does not train on them; LeRobot's own training would fail."
            remedy = "Nothing; take them out of meta/info.json in a copy if you train elsewhere."
            self._differ.setdefault("columns-absent", Finding("columns-absent", Severity.NOTE, what, why, remedy))

    def take(self, rows: Mapping[str, np.ndarray]) -> None:
        """Take the next rows in: number columns, vectors of shape (rows, dimensions)."""
        import numpy as np

        episodes = rows["episode_index"]
        if not len(episodes):
            return
        self._numbers = np.union1d(self._numbers, episodes)
        for name, _ in VECTORS:
            if name in rows:
                self._vector(name, rows[name], episodes)
        self._timestamps(rows)
        numbers = rows.get("task_index")
        if numbers is not None and self._listed_tasks is not None:
            bad = (numbers < 0) | (numbers >= self._listed_tasks)
            if bad.any():
                self._first_unlisted = self._first_unlisted if self._unlisted else int(numbers[bad][0])
                self._unlisted += int(bad.sum())
        self.count += len(episodes)

    def _vector(self, name: str, values: np.ndarray, episodes: np.ndarray) -> None:
        import numpy as np

        sound = np.isfinite(values).all(axis=1)
        if not sound.all():
            self._first_bad.setdefault(name, self.count + int(np.argmin(sound)))
            self._bad[name] += int((~sound).sum())
            self._bad_in[name] |= {int(number) for number in np.unique(episodes[~sound])}
            values = values[sound]
        if len(values):
            low, high = values.min(axis=0), values.max(axis=0)
            if name in self._range:
                low, high = np.minimum(low, self._range[name][0]), np.maximum(high, self._range[name][1])
            self._range[name] = (low, high)

    def _timestamps(self, rows: Mapping[str, np.ndarray]) -> None:
        """LeRobot fetches the frame at a timestamp and refuses one that is further than its tolerance from the fps grid."""
        import numpy as np

        if "timestamp" not in rows or "frame_index" not in rows:
            return
        times, frames = rows["timestamp"].astype(np.float64), rows["frame_index"]
        if not np.isfinite(times).all():
            self._times_lost = True
            return
        off = np.abs(times - frames / self._info.fps)
        # float32 carries the seconds of a long episode only to some digits.
        bad = off > TOLERANCE_S + np.abs(times) * 2**-23
        if bad.any():
            first = int(np.argmax(bad))
            if not self._times_bad:
                self._first_time = (int(rows["episode_index"][first]), int(frames[first]))
            self._times_bad += int(bad.sum())
            self._times_off = max(self._times_off, float(off.max()))

    # --- telling

    def counts(self, listed: Episodes | None, *, table_read: bool = True) -> list[Finding]:
        """Columns, episodes and frames against the description and the table of episodes: None where there is none, or it was not read."""
        import numpy as np

        info, numbers, episodes = self._info, self._numbers, len(self._numbers)
        findings = list(self._differ.values())
        if episodes != info.episodes or self.count != info.frames:
            what = (
                f"The description says {info.episodes:,} episodes and {info.frames:,} frames; "
                f"the data holds {episodes:,} and {self.count:,}."
            )
            why = "Part of the recording is missing, or the description is of another one."
            findings.append(Finding("counts-differ", Severity.BLOCKS, what, why, FETCH_AGAIN))
        elif not np.array_equal(numbers, np.arange(episodes)):
            what = f"The episodes are not numbered from 0 on without gaps: the data has numbers from {numbers[0]:g} to {numbers[-1]:g}."
            why = f"LeRobot asks for numbers 0 to {episodes - 1:,}, and for those that are missing it asks the Hub."
            findings.append(Finding("episodes-misnumbered", Severity.BLOCKS, what, why, "Number them anew in a copy."))
        if listed is None and table_read:
            what = "The table of episodes is missing."
            findings.append(Finding("episodes-missing", Severity.BLOCKS, what, "`meta/episodes` holds no file.", FETCH_AGAIN))
        elif listed is not None and listed.count not in (episodes, info.episodes):
            what = f"The table of episodes lists {listed.count:,}; the data holds {episodes:,}."
            findings.append(Finding("episodes-differ", Severity.BLOCKS, what, "LeRobot finds frames through that table.", FETCH_AGAIN))
        return findings

    def values(self) -> list[Finding]:
        """State and action that are no numbers, or never change."""
        findings = []
        for key, what in VECTORS:
            if self._bad[key]:
                many = "A frame holds" if self._bad[key] == 1 else f"{self._bad[key]:,} frames hold"
                said = f"{many} {'an' if what == 'action' else 'a'} {what} that is no number."
                why = f"The first is frame {self._first_bad[key]}; one such value spoils the whole policy."
                touched = tuple(sorted(self._bad_in[key]))
                findings.append(Finding(f"{what}-not-finite", Severity.BLOCKS, said, why, LEAVE_OUT, touched))
            elif self.count > 1 and key in self._range and not (self._range[key][1] - self._range[key][0]).any():
                said = "The arm never moves." if what == "state" else "The action never changes."
                why = f"All {self.count:,} frames hold the same {what}: there is little to learn from it."
                remedy = "Check that this is the recording that you mean."
                findings.append(Finding(f"{what}-constant", Severity.NOTE, said, why, remedy))
        return findings

    def times(self) -> list[Finding]:
        """Timestamps that are no numbers, or not where the frame rate has them."""
        remedy = "Re-lay the timestamps in a copy."
        if self._times_lost:
            what = "Some timestamps are no numbers."
            return [Finding("timestamps-not-finite", Severity.REPAIRABLE, what, "No frame is found by them.", remedy)]
        if not self._times_bad:
            return []
        what = f"{self._times_bad:,} of {self.count:,} timestamps do not fit {self._info.fps:g} frames per second."
        why = (
            f"They are off by up to {1000 * self._times_off:.1f} ms, first in episode {self._first_time[0]}, frame "
            f"{self._first_time[1]}; LeRobot then finds no picture for them."
        )
        return [Finding("timestamps-jitter", Severity.REPAIRABLE, what, why, remedy)]

    def tasks(self) -> list[Finding]:
        """Frames whose task is not listed."""
        if not self._unlisted:
            return []
        what = f"{'A frame belongs' if self._unlisted == 1 else f'{self._unlisted:,} frames belong'} to a task that is not listed."
        why = f"The recording lists {self._listed_tasks}; the first such frame names number {self._first_unlisted}, counted from 0."
        return [Finding("task-unknown", Severity.BLOCKS, what, why, FETCH_AGAIN)]
