"""The tables of a recording as a repair sees them: number columns, episodes with their videos, parquet files written anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.training.episode_table import Episode, read_episode_table
from zk0desk.training.recording_files import parquet_files, read_table
from zk0desk.training.recording_info import Info

if TYPE_CHECKING:
    import pyarrow as pa

Tell = Callable[[float], None]
"""Called between two files with the part of a step that is done, from 0 to 1. Raises when the repair is to stop."""


def video_keys(info: Info) -> list[str]:
    """The cameras whose pictures lie in videos."""
    return [feature.key for feature in info.cameras if feature.dtype == "video"]


def episodes_of(folder: Path, info: Info) -> list[Episode]:
    """The table of episodes, in the order of their numbers. `RecordingError` where it cannot be used."""
    return sorted(read_episode_table(folder, info), key=lambda episode: episode.number)


def by_video(episodes: Iterable[Episode], camera: str) -> dict[Path, list[Episode]]:
    """The episodes in each video file of `camera`, in the order in which they lie in it."""
    files: dict[Path, list[Episode]] = {}
    for episode in episodes:
        files.setdefault(episode.videos[camera].path, []).append(episode)
    return {path: sorted(rows, key=lambda row: (row.videos[camera].start, row.number)) for path, rows in files.items()}


def data_file(folder: Path, info: Info, number: int) -> Path:
    """The data file of an episode, in the format that has one for each."""
    at = {"episode_index": number, "episode_chunk": number // info.chunks_size, "chunk_index": 0, "file_index": 0}
    return folder / info.data_file(**at)


def numbers(folder: Path, info: Info, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Columns of all frames, (frames, values a frame) each; columns that are not there or hold no numbers are left away."""
    parts: dict[str, list[np.ndarray]] = {}
    files = parquet_files(folder / "data")
    for path in files:
        table = read_table(path, list(names))
        for name in table.column_names:
            values = matrix(table.column(name), info.features[name].dim if name in info.features else 1)
            if values is not None:
                parts.setdefault(name, []).append(values)
    return {name: np.concatenate(part) for name, part in parts.items() if len(part) == len(files)}


def rows_of(episode: np.ndarray) -> dict[int, np.ndarray]:
    """Which rows belong to each episode, in their order; `episode` (rows,) holds its number."""
    order = np.argsort(episode, kind="stable")
    found, firsts = np.unique(episode[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, firsts[1:]), strict=True)) if len(order) else {}


def matrix(column: pa.ChunkedArray, dim: int) -> np.ndarray | None:
    """A column as an array (rows, dim); None where it does not hold `dim` numbers in each row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat, rows = column.combine_chunks(), len(column)
    if isinstance(flat, pa.ChunkedArray):
        flat = pa.concat_arrays(flat.chunks) if flat.num_chunks else pa.array([], flat.type)
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type) or pa.types.is_large_list(flat.type):
        flat = pc.list_flatten(flat)
    if pa.types.is_boolean(flat.type):
        flat = flat.cast(pa.uint8())
    number = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
    if not number or flat.null_count or len(flat) != rows * dim:
        return None
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(rows, dim)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> int:
    """Write a parquet file anew, row group by row group, each through `change`. Its compression and, with the same columns, its
    schema and metadata stay. The rows that it holds then; a file without rows is removed."""
    import pyarrow.parquet as pq

    partial, writer, rows = path.with_name(f"{path.name}.new"), None, 0
    with pq.ParquetFile(path) as file:
        compression = file.metadata.row_group(0).column(0).compression if file.num_row_groups else "SNAPPY"
        for group in range(file.num_row_groups):
            table = change(file.read_row_group(group))
            if writer is None:
                codec = "none" if compression == "UNCOMPRESSED" else compression.lower()
                writer = pq.ParquetWriter(partial, table.schema, compression=codec)
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)
                rows += table.num_rows
    if writer is not None:
        writer.close()
    if rows:
        os.replace(partial, path)
    else:
        partial.unlink(missing_ok=True)
        path.unlink()
    return rows


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with a column's values replaced, of the type that the column had."""
    import pyarrow as pa

    place = table.schema.get_field_index(name)
    field_ = table.schema.field(place)
    return table.set_column(place, field_, pa.array(values).cast(field_.type))
