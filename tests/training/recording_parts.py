"""A small LeRobot v3.0 recording made of its parts, so that a test can break any of them. No torch, no LeRobot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FPS = 10
LENGTHS = (6, 4)
CAMERAS = ("top", "wrist")
Info = dict[str, Any]
Table = dict[str, Any]


def make_recording(
    folder: Path,
    *,
    info: Callable[[Info], object] = lambda info: None,
    data: Callable[[Table], object] = lambda table: None,
    episodes: Callable[[Table], object] = lambda table: None,
    cameras: tuple[str, ...] = CAMERAS,
    dims: tuple[int, int] = (3, 3),
) -> Path:
    """Make a recording of two episodes; `info`, `data` and `episodes` change what is written into those files. Returns `folder`."""
    keys = [f"observation.images.{name}" for name in cameras]
    described, rows, listed = _info(keys, dims), _data(dims), _episodes(keys)
    info(described)
    data(rows)
    episodes(listed)
    for name in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / name).mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(described), encoding="utf-8")
    stats = {key: _statistics(rows.get(key), dim) for key, dim in zip(("observation.state", "action"), dims, strict=True)}
    (folder / "meta/stats.json").write_text(json.dumps(stats), encoding="utf-8")
    pq.write_table(pa.table({"task_index": [0], "task": ["Put the cube into the box."]}), folder / "meta/tasks.parquet")
    pq.write_table(pa.table(listed), folder / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table(rows), folder / "data/chunk-000/file-000.parquet")
    for key in keys:
        write_video(folder / f"videos/{key}/chunk-000/file-000.mp4")
    return folder


def _statistics(values: Any, dim: int) -> dict[str, list[float]]:
    """Those of the rows that are numbers; made up where there are none."""
    try:
        found = np.asarray(values, np.float64).reshape(-1, dim)
    except (TypeError, ValueError):
        found = np.zeros((0, dim))
    found = found[np.isfinite(found).all(axis=1)]
    if not len(found):
        return {"mean": [0.0] * dim, "std": [1.0] * dim, "min": [0.0] * dim, "max": [1.0] * dim}
    told = {"mean": found.mean(axis=0), "std": found.std(axis=0), "min": found.min(axis=0), "max": found.max(axis=0)}
    return {word: each.tolist() for word, each in told.items()}


def write_video(path: Path, frames: int = sum(LENGTHS)) -> None:
    """Write a video of `frames` frames, 64 x 48 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), 20 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))


def _info(keys: list[str], dims: tuple[int, int]) -> Info:
    scalars = {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index", "task_index")}
    video = {"video.codec": "mpeg4", "video.is_depth_map": False}
    return {
        "codebase_version": "v3.0",
        "robot_type": "desk-arm",
        "fps": FPS,
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [dims[0]], "names": [f"joint_{n}.pos" for n in range(dims[0])]},
            "action": {"dtype": "float32", "shape": [dims[1]], "names": {"motors": [f"joint_{n}.pos" for n in range(dims[1])]}},
            **{key: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"], "info": video} for key in keys},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **scalars,
        },
    }


def _data(dims: tuple[int, int]) -> Table:
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    draw = np.random.default_rng(0)
    vectors = [list(draw.normal(size=(len(frame), dim)).astype(np.float32)) for dim in dims]
    return {
        "observation.state": vectors[0],
        "action": vectors[1],
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "index": np.arange(len(frame)),
        "task_index": np.zeros(len(frame), np.int64),
    }


def _episodes(keys: list[str]) -> Table:
    ends = np.cumsum(LENGTHS)
    zeros = [0] * len(LENGTHS)
    table: Table = {
        "episode_index": list(range(len(LENGTHS))),
        "tasks": [["Put the cube into the box."]] * len(LENGTHS),
        "length": list(LENGTHS),
        "data/chunk_index": zeros,
        "data/file_index": list(zeros),
        "dataset_from_index": [int(end) - length for end, length in zip(ends, LENGTHS, strict=True)],
        "dataset_to_index": [int(end) for end in ends],
    }
    for key in keys:
        table[f"videos/{key}/chunk_index"] = list(zeros)
        table[f"videos/{key}/file_index"] = list(zeros)
        table[f"videos/{key}/from_timestamp"] = [(int(end) - length) / FPS for end, length in zip(ends, LENGTHS, strict=True)]
        table[f"videos/{key}/to_timestamp"] = [int(end) / FPS for end in ends]
    return table
