"""Episodes left out of a copy in v3.0: their rows go, the others are numbered anew. No video is touched, so no picture changes.

LeRobot's own `delete_episodes` encodes every video again that held one of them; here their pictures stay where they are and no row
points at them any more. Encoding the videos anew, which a person may ask for, takes them away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.training.recording_files import parquet_files
from zk0desk.training.recording_info import Info, read_json
from zk0desk.training.repair_tables import Tell, episodes_of, rewrite, video_keys, with_column

if TYPE_CHECKING:
    import pyarrow as pa


def leave_out(folder: Path, info: Info, kept: Sequence[int], tell: Tell) -> None:
    """Keep the episodes `kept` of the recording in `folder`, in their order, numbered 0, 1, ..."""
    videos = {span.path for episode in episodes_of(folder, info) for span in episode.videos.values()}
    new = {number: place for place, number in enumerate(kept)}
    frames = 0
    first: dict[int, int] = {}
    last: dict[int, int] = {}

    def rows(table: pa.Table) -> pa.Table:
        nonlocal frames
        table = _of(table, new)
        numbers = np.array([new[n] for n in table.column("episode_index").to_pylist()], np.int64)
        for place in np.unique(numbers).tolist():
            at = np.flatnonzero(numbers == place)
            first[place], last[place] = min(first.get(place, 2**62), frames + int(at[0])), frames + int(at[-1]) + 1
        table = with_column(table, "index", np.arange(frames, frames + table.num_rows))
        frames += table.num_rows
        return with_column(table, "episode_index", numbers)

    def listed(table: pa.Table) -> pa.Table:
        table = _of(table, new)
        numbers = [new[n] for n in table.column("episode_index").to_pylist()]
        table = with_column(table, "episode_index", numbers)
        table = with_column(table, "dataset_from_index", [first[n] for n in numbers])
        return with_column(table, "dataset_to_index", [last[n] for n in numbers])

    files = parquet_files(folder / "data")
    for place, path in enumerate(files):
        tell(place / len(files))
        rewrite(path, rows)
    for path in parquet_files(folder / "meta" / "episodes"):
        rewrite(path, listed)
    path = folder / "meta" / "info.json"
    described = read_json(path)
    described |= {"total_episodes": len(kept), "total_frames": frames, "splits": {"train": f"0:{len(kept)}"}}
    path.write_text(json.dumps(described, indent=4, ensure_ascii=False), encoding="utf-8")
    if video_keys(info):
        for video in videos - {span.path for episode in episodes_of(folder, info) for span in episode.videos.values()}:
            video.unlink(missing_ok=True)


def _of(table: pa.Table, kept: dict[int, int]) -> pa.Table:
    return table.filter(np.isin(table.column("episode_index").to_numpy(), list(kept)))
