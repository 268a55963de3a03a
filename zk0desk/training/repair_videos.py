"""The videos of a copy encoded anew as H.264, yuv420p, one file at a time, with the pictures that episodes point at and no others."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk.training.episode_table import Episode
from zk0desk.training.recording_info import FETCH_AGAIN, Info, read_json, shown
from zk0desk.training.recording_types import RecordingError
from zk0desk.training.repair_tables import Tell, by_video, episodes_of
from zk0desk.training.repair_times import first_pictures, picture_times, write_spans

OPTIONS = {"crf": "20", "preset": "veryfast", "g": "8", "bf": "0"}
"""A key picture every 8: training jumps to any frame and decodes from the one before."""


def reencode(folder: Path, info: Info, tell: Tell) -> None:
    """Encode the colour videos of the recording in `folder` anew, at its fps. `RecordingError` where pictures are missing."""
    episodes = episodes_of(folder, info)
    cameras = [feature.key for feature in info.cameras if feature.dtype == "video" and not feature.depth]
    jobs = [(camera, path, rows) for camera in cameras for path, rows in by_video(episodes, camera).items()]
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for number, (camera, path, rows) in enumerate(jobs):
        # Half of the tells is within a file: a long video must be left when asked.
        found |= _file(path, camera, rows, info.fps, lambda part, at=number: tell((at + part) / len(jobs)))  # type: ignore[misc]
    write_spans(folder, found)
    described_at = folder / "meta" / "info.json"
    described = read_json(described_at)
    for camera in cameras:
        _describe(described["features"][camera])
    described_at.write_text(json.dumps(described, indent=4, ensure_ascii=False), encoding="utf-8")


def _describe(feature: dict[str, Any]) -> None:
    for name in ("info", "video_info"):
        said = feature.get(name)
        if isinstance(said, dict):
            encoder = {"video.crf", "video.preset", "video.g", "video.extra_options", "video.fast_decode", "video.video_backend"}
            feature[name] = {key: value for key, value in said.items() if key not in encoder}
            feature[name] |= {"video.codec": "h264", "video.pix_fmt": "yuv420p"}


def _file(path: Path, camera: str, rows: list[Episode], fps: float, tell: Tell) -> dict[tuple[str, int], tuple[float, float]]:
    import av

    lengths = np.array([row.length for row in rows])
    begins = np.cumsum(lengths) - lengths
    times = picture_times(path)
    firsts = first_pictures(path, times, camera, rows, fps, on_grid=False)
    wanted = np.zeros(len(times), bool)
    for first, length in zip(firsts, lengths, strict=True):
        wanted[first : first + length] = True
    partial, name = path.with_name(f"{path.stem}.new.mp4"), "/".join(path.parts[-3:])
    written = 0
    try:
        with av.open(os.fspath(path)) as old, av.open(os.fspath(partial), "w", options={"movflags": "faststart"}) as new:
            source = old.streams.video[0]
            source.thread_type = "AUTO"
            stream = new.add_stream("h264", rate=Fraction(fps).limit_denominator(1001), options=OPTIONS)
            stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
            for number, frame in enumerate(old.decode(source)):
                if number % 32 == 0:
                    tell(number / len(times))
                if number < len(wanted) and wanted[number]:
                    picture = frame.reformat(width=stream.width, height=stream.height, format="yuv420p")
                    picture.pts, picture.time_base = written, 1 / Fraction(fps).limit_denominator(1001)
                    picture.pict_type = 0  # the encoder chooses key pictures itself
                    new.mux(stream.encode(picture))
                    written += 1
            new.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        why = f"PyAV says: {shown(error)}."
        raise RecordingError(f"{name} cannot be encoded anew.", why, FETCH_AGAIN, code="video-unreadable") from error
    if (seen := len(picture_times(partial))) != lengths.sum():
        raise _short(name, seen, int(lengths.sum()))
    os.replace(partial, path)
    return {(camera, row.number): (float(begin) / fps, float(begin + row.length) / fps) for row, begin in zip(rows, begins, strict=True)}


def _short(name: str, seen: int, needed: int) -> RecordingError:
    why = f"{seen:,} pictures could be read; its episodes need {needed:,}."
    return RecordingError(f"{name} cannot be encoded anew.", why, FETCH_AGAIN, code="video-too-short")
