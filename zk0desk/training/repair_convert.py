"""A recording of format v2 as a copy in v3.0, by LeRobot's own conversion, which reads the recording and writes elsewhere."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.control import Stopped
from zk0desk.errors import OperatorError
from zk0desk.quiet import quiet_libraries
from zk0desk.training.recording_files import read_lines
from zk0desk.training.recording_info import Info, read_json, shown
from zk0desk.training.recording_types import RecordingError
from zk0desk.training.repair_tables import Tell, data_file, rewrite, video_keys, with_column

if TYPE_CHECKING:
    import pyarrow as pa

DATA_MB, VIDEO_MB = 100, 200
"""Sizes of the files of the copy, as LeRobot has them."""
_patching = threading.Lock()


def convert(source: Path, info: Info, kept: Sequence[int], target: Path, work: Path, tell: Tell) -> None:
    """Write the episodes `kept` (their numbers, in order) of `source` into the new folder `target` as v3.0.

    `work` is an empty folder on the target's disk. Nothing is asked of the Hub, and `source` is only read.
    """
    quiet_libraries()
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    draft = work / "draft"
    _draft(source, info, kept, draft, lambda part: tell(0.1 * part))
    try:
        _convert(draft, target, work, len(kept) * (1 + len(video_keys(info))), lambda part: tell(0.1 + 0.9 * part))
    except (OperatorError, Stopped, ImportError, OSError):
        raise
    except Exception as error:  # whatever pandas, PyAV and datasets raise
        raise RecordingError(
            "LeRobot could not convert the recording.",
            f"{type(error).__name__}: {shown(error)}.",
            "Look which episode is damaged: zk0desk recordings check --deep; then leave it out.",
            code="conversion-failed",
        ) from error


def episode_statistics_whole(source: Path, info: Info, episodes: Sequence[int]) -> bool:
    """Whether meta/episodes_stats.jsonl holds finite statistics of every feature that has numbers, for each of `episodes`."""
    try:
        lines = {line["episode_index"]: line["stats"] for line in read_lines(source / "meta" / "episodes_stats.jsonl")}
        wanted = [feature for feature in info.features.values() if feature.dtype not in ("string", "language")]
        for number in episodes:
            for feature in wanted:
                for word in ("min", "max", "mean", "std", "count"):
                    values = np.asarray(lines[number][feature.key][word], np.float64)
                    size = 1 if word == "count" else values.size if feature.is_camera else feature.dim
                    if values.size != size or not np.isfinite(values).all() or (feature.is_camera and word == "mean" and values.ndim != 3):
                        return False
    except (RecordingError, KeyError, TypeError, ValueError):
        return False
    return True


def _draft(source: Path, info: Info, kept: Sequence[int], draft: Path, tell: Tell) -> None:
    """The recording as LeRobot's conversion wants it: its file names, episodes without gaps. Large files are links."""
    (draft / "meta").mkdir(parents=True)
    described = read_json(source / "meta" / "info.json")
    described.update(codebase_version="v2.1", total_episodes=len(kept), splits={"train": f"0:{len(kept)}"})
    for key in ("total_chunks", "total_videos"):
        described.setdefault(key, 0)
    described.setdefault("video_path", None)
    whole = list(kept) == list(range(info.episodes))
    frames = 0
    for place, number in enumerate(kept):
        tell(place / len(kept))
        data = draft / f"data/chunk-{place // 1000:03d}/episode_{place:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        if whole:
            _link(data_file(source, info, number), data)
        else:
            shutil.copyfile(data_file(source, info, number), data)
            frames += _renumber(data, place, frames)
        at = {"episode_index": number, "episode_chunk": number // info.chunks_size, "chunk_index": 0, "file_index": 0}
        for key in video_keys(info):
            video = draft / f"videos/chunk-{place // 1000:03d}/{key}/episode_{place:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            _link(source / info.video_file(key, **at), video)
    described["total_frames"] = info.frames if whole else frames
    (draft / "meta/info.json").write_text(json.dumps(described), encoding="utf-8")
    shutil.copyfile(source / "meta/tasks.jsonl", draft / "meta/tasks.jsonl")
    new = {number: place for place, number in enumerate(kept)}
    listed = {line["episode_index"]: line for line in read_lines(source / "meta/episodes.jsonl")}
    _write_lines(draft / "meta/episodes.jsonl", [listed[number] | {"episode_index": place} for number, place in new.items()])
    if whole_statistics := episode_statistics_whole(source, info, kept):
        stats = {line["episode_index"]: line["stats"] for line in read_lines(source / "meta/episodes_stats.jsonl")}
    empty: dict[str, Any] = {}
    rows = [{"episode_index": place, "stats": stats[number] if whole_statistics else empty} for number, place in new.items()]
    _write_lines(draft / "meta/episodes_stats.jsonl", rows)


def _renumber(path: Path, episode: int, first: int) -> int:
    def numbered(table: pa.Table) -> pa.Table:
        table = with_column(table, "episode_index", np.full(table.num_rows, episode))
        # Counted on from the frame's own number: the file may have several row groups.
        return with_column(table, "index", first + np.asarray(table.column("frame_index").to_numpy()))

    return rewrite(path, numbered)


def _link(source: Path, place: Path) -> None:
    """A link to a file of the source, or a copy where there are no links."""
    real = source.resolve(strict=True)
    try:
        place.symlink_to(real)
    except OSError:
        shutil.copyfile(real, place)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def _convert(draft: Path, target: Path, work: Path, files: int, tell: Tell) -> None:
    import av.logging
    import datasets
    from lerobot.datasets import video_utils
    from lerobot.scripts import convert_dataset_v21_to_v30 as lerobot

    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)
    done = 0

    def watched(items: Any, **_: Any) -> Iterator[Any]:
        nonlocal done
        for item in items:
            tell(min(1.0, done / files))
            done += 1
            yield item

    def temporary(**options: Any) -> Any:
        make: Any = tempfile.NamedTemporaryFile
        if options.get("suffix") != ".ffconcat":
            return make(dir=work, **options)
        file = make(dir=work, encoding="utf-8", **options)
        write = file.write
        file.write = lambda line: write(_quoted(line))
        return file

    def cached(make: Any) -> Any:
        return datasets.Dataset.from_generator(make, cache_dir=os.fspath(work / "cache"))

    # Between two files the bars tell us where it is and let it be stopped; large temporary files and the cache lie on the
    # target's disk and go with it.
    with _patching, contextlib.ExitStack() as stack:
        for place, name, value in (
            (lerobot, "tqdm", SimpleNamespace(tqdm=watched)),
            (lerobot, "logging", logging.getLogger(__name__)),
            (lerobot, "Dataset", SimpleNamespace(from_generator=cached)),
            (video_utils, "tempfile", SimpleNamespace(NamedTemporaryFile=temporary)),
        ):
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        # It warns that v2.1 says things which v3.0 does not.
        logger = logging.getLogger("lerobot")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        lerobot.convert_info(draft, target, DATA_MB, VIDEO_MB)
        lerobot.convert_tasks(draft, target)
        data = lerobot.convert_data(draft, target, DATA_MB)
        videos = lerobot.convert_videos(draft, target, VIDEO_MB)
        lerobot.convert_episodes_metadata(draft, target, data, videos)
    _as_it_was(draft, target)


def _quoted(line: str) -> str:
    """A line of FFmpeg's list of files, with the apostrophes of a path as FFmpeg wants them: LeRobot writes them as they are."""
    start, end = "file '", "'\n"
    if not (line.startswith(start) and line.endswith(end)):
        return line
    return start + line[len(start) : -len(end)].replace("'", "'\\''") + end


def _as_it_was(draft: Path, target: Path) -> None:
    """What the conversion changes beside the format: a frame rate that is no whole number."""
    fps = read_json(draft / "meta/info.json")["fps"]
    path = target / "meta/info.json"
    described = read_json(path)
    if described["fps"] != fps:
        described["fps"] = fps
        path.write_text(json.dumps(described, indent=4), encoding="utf-8")
