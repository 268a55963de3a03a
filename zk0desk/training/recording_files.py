"""The files of a recording: parquet tables and their rows, tasks, size on disk. Reads only, never the Hub."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, reason, shown
from zk0desk.training.recording_types import RecordingError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TASKS = 1000
MAX_LINES = 1_000_000
MAX_DEPTH = 8
"""Folders in one another that a recording's files are looked for in."""


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in the chunks of `folder`, as LeRobot looks for them (links followed), in the order of their names."""
    return sorted(path for path in folder.glob("*/*.parquet") if path.is_file())


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file's `columns` (those that it has; None: all). `RecordingError` says what is wrong with the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_pointer(path):
            raise pointer_error(shown("/".join(path.parts[-3:])))
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            return file.read(columns=None if columns is None else [column for column in columns if column in there])
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise unreadable_data(path, error) from error


def unreadable_data(path: Path, error: Exception) -> RecordingError:
    """What is said of a parquet file that cannot be read. A disk that is gone, or a missing permission, is no damage of the file."""
    name = shown("/".join(path.parts[-3:]))
    if isinstance(error, OSError) and error.errno is not None:
        why = "You may not read it." if isinstance(error, PermissionError) else f"The system says: {shown(error.strerror)}."
        remedy = "Connect the disk again or check the permissions, then look again."
        return RecordingError(f"{name} cannot be read.", why, remedy, code="unreadable")
    why = f"It is not a whole parquet file: {reason(error)}."
    return RecordingError(f"{name} cannot be read.", why, FETCH_AGAIN, code="data-unreadable")


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
    try:
        return tuple(shown(task, 500) for task in table.column(column)[:MAX_TASKS].to_pylist() if isinstance(task, str))
    except ValueError as error:
        raise RecordingError("meta/tasks.parquet cannot be read.", f"{shown(error)}.", FETCH_AGAIN, code="metadata-unreadable") from error


@dataclass(frozen=True)
class VideoFile:
    """A video that the episodes' table names: its camera's key, and its episodes, each with the second at which it ends in it."""

    camera: str
    path: Path
    episodes: tuple[tuple[int, float], ...]

    @property
    def ends_at(self) -> float:
        """The second at which its last episode ends."""
        return max(end for _, end in self.episodes)


@dataclass(frozen=True)
class Episodes:
    """The table of episodes: how many there are, and in which video files."""

    count: int
    videos: tuple[VideoFile, ...]


def read_episodes(folder: Path, info: Info) -> Episodes | None:
    """The table of episodes, None where there is none. `RecordingError` where it cannot be read."""
    cameras = [feature.key for feature in info.cameras if feature.dtype == "video"]
    ends: dict[tuple[str, Path], list[tuple[int, float]]] = {}
    count = 0
    if info.major < 3:
        path = folder / "meta" / "episodes.jsonl"
        if not path.is_file():
            return None
        for line in read_lines(path):
            episode, length = line.get("episode_index"), line.get("length")
            if not _is_number(episode) or not _is_number(length):
                raise _bad_episodes("An episode has no number or no length")
            count += 1
            at = {"episode_index": episode, "episode_chunk": episode // info.chunks_size, "chunk_index": 0, "file_index": 0}
            for key in cameras:
                ends.setdefault((key, folder / info.video_file(key, **at)), []).append((episode, length / info.fps))
        return Episodes(count, _video_files(ends))
    files = parquet_files(folder / "meta" / "episodes")
    for path in files:
        names = ["episode_index", *(f"videos/{key}/{part}" for key in cameras for part in ("chunk_index", "file_index", "to_timestamp"))]
        columns = _columns(read_table(path, names))
        absent = [name for name in names if name not in columns]
        if absent:
            raise _bad_episodes(f"It has no column {shown(absent[0])}")
        count += len(columns["episode_index"])
        for key in cameras:
            where = (columns[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index", "to_timestamp"))
            for episode, chunk, file, end in zip(columns["episode_index"], *where, strict=True):
                if not (_is_number(episode) and _is_number(chunk) and _is_number(file) and isinstance(end, float) and 0 <= end < 1e9):
                    raise _bad_episodes("An episode does not say in which video it is")
                at = {"chunk_index": chunk, "file_index": file, "episode_index": episode, "episode_chunk": episode // info.chunks_size}
                ends.setdefault((key, folder / info.video_file(key, **at)), []).append((episode, end))
    return Episodes(count, _video_files(ends)) if files else None


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    try:
        columns: dict[str, list[Any]] = table.to_pydict()
        return columns
    except ValueError as error:
        raise _bad_episodes(shown(error)) from error


def _video_files(ends: dict[tuple[str, Path], list[tuple[int, float]]]) -> tuple[VideoFile, ...]:
    return tuple(VideoFile(camera, path, tuple(listed)) for (camera, path), listed in ends.items())


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _bad_episodes(why: str) -> RecordingError:
    return RecordingError("The table of episodes cannot be used.", f"{why}.", FETCH_AGAIN, code="episodes-wrong")


def files_below(folder: Path) -> list[Path]:
    """All files under `folder`, by their paths: links are followed, but none that leads back. What cannot be looked at is passed over."""
    found: list[Path] = []
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(os.fspath(folder), ())]
    while waiting:
        here, above = waiting.pop()
        try:
            seen = os.stat(here)
            if (seen.st_dev, seen.st_ino) in above or len(above) > MAX_DEPTH:
                continue
            with os.scandir(here) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):  # a link that leads to itself
                        if entry.is_dir():
                            waiting.append((entry.path, (*above, (seen.st_dev, seen.st_ino))))
                        elif entry.is_file():
                            found.append(Path(entry.path))
        except OSError:
            continue
    return sorted(found)


def size_on_disk(folder: Path) -> int:
    """Bytes of all files under `folder`, as a copy of it would have them; what cannot be looked at counts nothing."""
    total = 0
    for path in files_below(folder):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
