"""Where each episode of a recording is: its rows, and its part of each camera's video."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0desk.training.recording_files import parquet_files, read_lines, read_table
from zk0desk.training.recording_info import FETCH_AGAIN, Info
from zk0desk.training.recording_types import RecordingError


@dataclass(frozen=True)
class Span:
    """An episode's part of a video file: from `start` to `end`, in seconds."""

    path: Path
    start: float
    end: float


@dataclass(frozen=True)
class Episode:
    """An episode as the table lists it. `rows` are those that it has in the data, None where the table does not say (v2)."""

    number: int
    length: int
    rows: tuple[int, int] | None
    videos: dict[str, Span] = field(default_factory=dict)


def read_episode_table(folder: Path, info: Info) -> list[Episode]:
    """The episodes in the table's order; empty where there is no table. `RecordingError` where it cannot be used."""
    cameras = [feature.key for feature in info.cameras if feature.dtype == "video"]
    try:
        return _from_lines(folder, info, cameras) if info.major < 3 else _from_parquet(folder, info, cameras)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        why = f"{type(error).__name__}: {error!s:.100}."
        raise RecordingError("The table of episodes cannot be used.", why, FETCH_AGAIN, code="episodes-wrong") from error


def _from_lines(folder: Path, info: Info, cameras: list[str]) -> list[Episode]:
    path = folder / "meta" / "episodes.jsonl"
    episodes = []
    for line in read_lines(path) if path.is_file() else ():
        number, length = _whole(line["episode_index"]), _whole(line["length"])
        at = {"episode_index": number, "episode_chunk": number // info.chunks_size, "chunk_index": 0, "file_index": 0}
        videos = {key: Span(folder / info.video_file(key, **at), 0.0, length / info.fps) for key in cameras}
        episodes.append(Episode(number, length, None, videos))
    return episodes


def _from_parquet(folder: Path, info: Info, cameras: list[str]) -> list[Episode]:
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    episodes = []
    for path in parquet_files(folder / "meta" / "episodes"):
        table = read_table(path, names + [f"videos/{key}/{part}" for key in cameras for part in parts])
        columns: dict[str, list[Any]] = table.to_pydict()
        for row in range(table.num_rows):
            number, length, first, last = (_whole(columns[name][row]) for name in names)
            videos = {}
            for key in cameras:
                chunk, file, start, end = (columns[f"videos/{key}/{part}"][row] for part in parts)
                at = {"chunk_index": _whole(chunk), "file_index": _whole(file), "episode_index": number, "episode_chunk": 0}
                if not 0 <= start <= end < 1e9:
                    raise ValueError(f"episode {number} goes from {start!r:.20} to {end!r:.20} seconds of a video")
                videos[key] = Span(folder / info.video_file(key, **at), float(start), float(end))
            episodes.append(Episode(number, length, (first, last), videos))
    return episodes


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r:.40} is no number of an episode, a file or a row")
    return value
