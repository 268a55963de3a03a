"""The files of a recording: parquet tables and their rows, tasks, size on disk. Reads only, never the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, shown
from zk0desk.training.recording_types import RecordingError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TASKS = 1000
MAX_LINES = 1_000_000


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files under `folder`, in the order of their names."""
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file()) if folder.is_dir() else []


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file's `columns` (those that it has; None: all). `RecordingError` says what is wrong with the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = shown("/".join(path.parts[-3:]))
    try:
        if is_pointer(path):
            raise pointer_error(name)
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            return file.read(columns=None if columns is None else [column for column in columns if column in there])
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise RecordingError(
            f"{name} cannot be read.",
            f"It is not a whole parquet file: {shown(error)}.",
            FETCH_AGAIN,
            code="data-unreadable",
        ) from error


def pointer_error(name: str) -> RecordingError:
    """What is said of a Git LFS pointer in a file's place."""
    return RecordingError(
        f"{name} is a Git LFS pointer, not the file itself.",
        "The recording was cloned without its large files.",
        "Run `git lfs pull` where it was cloned, or download it again.",
        code="lfs-pointers",
    )


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file, as v2 recordings have them. `RecordingError` at the first bad line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if number > MAX_LINES:
                    return
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ValueError(f"line {number} is no object")
                    yield value
    except (OSError, ValueError, RecursionError) as error:
        name = shown("/".join(path.parts[-2:]))
        raise RecordingError(f"{name} cannot be read.", f"{shown(error)}.", FETCH_AGAIN, code="metadata-unreadable") from error


def read_tasks(folder: Path, info: Info) -> tuple[str, ...]:
    """The instructions of the recording, in order of their index. `RecordingError` where the file is there and cannot be read."""
    if info.major < 3:
        path = folder / "meta" / "tasks.jsonl"
        if not path.is_file():
            return ()
        return tuple(shown(line["task"], 500) for line in read_lines(path) if isinstance(line.get("task"), str))[:MAX_TASKS]
    path = folder / "meta" / "tasks.parquet"
    if not path.is_file():
        return ()
    table = read_table(path)
    # pandas writes the index, which holds the instructions, under one of these names.
    column = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if column is None:
        return ()
    return tuple(shown(task, 500) for task in table.column(column).to_pylist()[:MAX_TASKS] if isinstance(task, str))


def size_on_disk(folder: Path) -> int:
    """Bytes of all files under `folder`; what cannot be looked at counts nothing."""
    total, waiting = 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(Path(entry.path))
                        else:
                            total += entry.stat().st_size
                    except OSError:
                        continue
        except OSError:
            continue
    return total
