"""Reading every row of a data file for the deep check, some at a time; pictures inside the rows are decoded here and there."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.training.recording_files import pointer_error, unreadable_data
from zk0desk.training.recording_info import FETCH_AGAIN, Feature, Info, is_pointer, shown
from zk0desk.training.recording_rows import ACTION, NUMBERS, STATE, as_array
from zk0desk.training.recording_types import Finding, Severity
from zk0desk.training.thumbnails import MAX_PIXELS

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS, BATCH_PICTURES = 4096, 64
"""Rows that are read at once; fewer where they hold pictures."""


def batches(
    path: Path, pictures: PictureCheck, saw_type: Callable[[str, pa.DataType], None], step: Callable[[int], None]
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a parquet file, number columns as arrays; all other columns are read too.

    `saw_type` gets each column's name and type, `step` the rows that were read.
    """
    size = BATCH_PICTURES if pictures.cameras else BATCH_ROWS
    for batch in _read(path, size, saw_type):
        numbers = _numbers(batch, pictures.info)
        pictures.look(batch, numbers)
        yield numbers
        step(batch.num_rows)


def read_through(path: Path) -> None:
    """Read every column of a table, as LeRobot does, also those that nothing here asks for. `RecordingError` where one cannot be read."""
    for _ in _read(path, BATCH_ROWS, lambda *_: None):
        pass


def _read(path: Path, size: int, saw_type: Callable[[str, pa.DataType], None]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_pointer(path):
            raise pointer_error(shown("/".join(path.parts[-3:])))
        with path.open("rb") as opened, pq.ParquetFile(opened, buffer_size=2**20) as file:
            for column in file.schema_arrow:
                saw_type(column.name, column.type)
            rows = 0
            for batch in file.iter_batches(size, use_threads=False):
                batch.validate(full=True)  # a damaged column may come out shorter than the others
                rows += batch.num_rows
                yield batch
            if rows != file.metadata.num_rows:
                raise ValueError(f"it holds {rows:,} rows where its end says {file.metadata.num_rows:,}")
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise unreadable_data(path, error) from error


def _numbers(batch: pa.RecordBatch, info: Info) -> dict[str, np.ndarray]:
    import pyarrow as pa

    table, found = pa.Table.from_batches([batch]), {}
    for column in table.column_names:
        feature = info.features.get(column)
        if feature is None and column in (STATE, ACTION):
            continue  # a vector of which nothing is said
        if column in NUMBERS or (feature is not None and feature.dtype.startswith(("float", "double"))):
            dim = feature.dim if feature else 1
            values = as_array(table.column(column), column, dim)
            found[column] = values if dim == 1 or values.ndim > 1 else values.reshape(-1, dim)
    return found


class PictureCheck:
    """Decodes pictures that lie in the rows: the first and the last of every episode, and some between."""

    def __init__(self, info: Info) -> None:
        self.info = info
        self.cameras: list[Feature] = [feature for feature in info.cameras if feature.dtype == "image"]
        self._touched: dict[str, dict[int, str]] = {}

    def look(self, batch: pa.RecordBatch, numbers: Mapping[str, np.ndarray]) -> None:
        """Decode the first and the last picture of each episode's rows in `batch`."""
        episodes = numbers.get("episode_index")
        if not self.cameras or episodes is None or not len(episodes):
            return
        borders = (np.flatnonzero(np.diff(episodes)) + 1).tolist()
        for camera in self.cameras:
            if camera.key not in batch.schema.names:
                continue
            column = batch.column(camera.key)
            for row in sorted({0, *(border - 1 for border in borders), *borders, len(episodes) - 1}):
                if words := _why_not(column[row].as_py()):
                    self._touched.setdefault(camera.key, {}).setdefault(int(episodes[row]), words)

    def findings(self) -> list[Finding]:
        """Cameras whose pictures cannot be decoded, with the episodes."""
        found = []
        for key, touched in self._touched.items():
            episodes = tuple(sorted(touched))
            many = f"episode {episodes[0]}" if len(episodes) == 1 else f"{len(episodes):,} episodes"
            what = f"The pictures of {shown(key.rsplit('.', 1)[-1], 60)} cannot be decoded, in {many}."
            why = f"{next(iter(touched.values()))}. Tried with: Pillow, which LeRobot uses."
            found.append(Finding("image-unreadable", Severity.BLOCKS, what, why, FETCH_AGAIN, episodes))
        return found


def _why_not(value: Any) -> str:
    """Why this is no picture; empty where it is one."""
    from PIL import Image, UnidentifiedImageError

    raw = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(raw, bytes) or not raw:
        return "A row holds no picture"
    try:
        with Image.open(io.BytesIO(raw)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"It is of {image.width} x {image.height} pixels"
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, MemoryError) as error:
        return shown(error).split(" <")[0]  # an address in memory says nothing
    return ""
