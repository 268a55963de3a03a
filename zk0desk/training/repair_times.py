"""Timestamps on the grid of a recording's fps: whether that is right, and doing it.

LeRobot finds the picture of a frame by its timestamp, frame_index / fps. A recording whose timestamps are those of a wall
clock holds the right pictures in the right order; only its timestamps name them wrongly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zk0desk.training.episode_table import Episode
from zk0desk.training.recording_check import TOLERANCE_S
from zk0desk.training.recording_files import parquet_files
from zk0desk.training.recording_info import FETCH_AGAIN, Info
from zk0desk.training.recording_types import RecordingError
from zk0desk.training.repair_tables import Tell, by_video, episodes_of, rewrite, rows_of, video_keys, with_column

SURE_RATE, SURE_GAP = 0.02, 1.5
"""Within these nothing needs to be said: the mean rate's deviation from fps, and the longest time between two frames in 1 / fps."""
RATE, GAP, LATE = 0.05, 5.0, 0.02
"""Beyond these the timestamps are not re-laid. `LATE` is the part of the frames that may come later than `SURE_GAP`, twice
that in one episode: a control loop that was held up now and then. A real arm was seen at a rate 2.8% low, with a gap of 2.9 and 1.3%
of its frames late, whose video has a picture for each frame all the same."""


@dataclass(frozen=True)
class Timing:
    """What was measured in an episode: mean frames a second, the longest gap in 1 / fps, frames later than `SURE_GAP`."""

    episode: int
    frames: int
    rate: float
    gap: float
    late: int
    problem: str = ""


def measure(episode: np.ndarray, frame: np.ndarray, time: np.ndarray, fps: float) -> list[Timing]:
    """The timing of each episode; all arrays (frames,). Timestamps that are no numbers are passed over while most are."""
    return [timing_of(number, frame[rows], time[rows], fps) for number, rows in rows_of(episode).items()]


def timing_of(number: int, frame: np.ndarray, time: np.ndarray, fps: float) -> Timing:
    """The timing of the episode `number`; both arrays (frames,)."""
    count = len(frame)
    if not np.array_equal(frame, np.arange(count)):
        return Timing(number, count, fps, 1.0, 0, "its frames are not numbered 0, 1, 2 and so on")
    known = np.isfinite(time)
    if 2 * known.sum() < count or (known.sum() < 2 <= count):
        return Timing(number, count, fps, 1.0, 0, f"{int(count - known.sum()):,} of its {count:,} timestamps are no numbers")
    if count < 2:
        return Timing(number, count, fps, 1.0, 0)
    steps, times = np.diff(frame[known]), np.diff(time[known].astype(np.float64))
    if (times <= 0).any():
        at = int(frame[known][1:][times <= 0][0])
        return Timing(number, count, fps, 1.0, 0, f"its timestamps do not increase, first at frame {at}")
    gaps = times / steps * fps
    return Timing(number, count, float(steps.sum() / times.sum()), float(gaps.max()), int((gaps > SURE_GAP).sum()))


def refusal(timings: Sequence[Timing], fps: float) -> str:
    """Why the timestamps cannot be re-laid, with the measured figure; empty where they can."""
    for timing in timings:
        if timing.problem:
            return f"In episode {timing.episode} {timing.problem}."
    for timing in timings:
        if abs(timing.rate / fps - 1) > RATE:
            return f"Episode {timing.episode} was recorded at {timing.rate:.2f} frames per second, not {fps:g}: {RATE:.0%} may differ."
        if timing.gap > GAP:
            return f"In episode {timing.episode} a frame comes {timing.gap:.1f} frame times after the one before; {GAP:g} may pass."
    for timing in timings:
        if timing.late > max(1.0, 2 * LATE * timing.frames):
            return f"In episode {timing.episode} {timing.late:,} of {timing.frames:,} frames come late."
    late, frames = sum(timing.late for timing in timings), sum(timing.frames for timing in timings)
    if late > max(1.0, LATE * frames):
        return f"{late:,} of {frames:,} frames come more than {SURE_GAP:g} frame times after the one before; {LATE:.0%} may."
    return ""


def common_rate(timings: Sequence[Timing]) -> int:
    """The whole number of frames a second at which all episodes were recorded, 0 where there is none."""
    rates = np.array([timing.rate for timing in timings])
    rate = int(np.round(np.median(rates)))
    return rate if rate and (np.abs(rates / rate - 1) <= SURE_RATE).all() else 0


def doubt(timings: Sequence[Timing], fps: float) -> str:
    """What a person should know before timestamps are re-laid that came unevenly; empty where they came evenly."""
    late = sum(timing.late for timing in timings)
    slow = [timing for timing in timings if abs(timing.rate / fps - 1) > SURE_RATE]
    said = []
    if late:
        gap = max(timing.gap for timing in timings)
        said.append(f"{late:,} of {sum(t.frames for t in timings):,} frames came late, up to {gap:.1f} frame times after the one before")
    if slow:
        worst = max(slow, key=lambda timing: abs(timing.rate / fps - 1))
        said.append(f"episode {worst.episode} ran at {worst.rate:.2f} frames per second")
    return f"{', and '.join(said)}: the copy says that they came evenly." if said else ""


def lay_times(folder: Path, info: Info, tell: Tell) -> None:
    """Write frame_index / fps into the column of timestamps of the recording in `folder`, and lay its videos."""
    import pyarrow as pa

    def on_grid(table: pa.Table) -> pa.Table:
        return with_column(table, "timestamp", np.asarray(table.column("frame_index").to_numpy(), np.float64) / info.fps)

    files = parquet_files(folder / "data")
    for number, path in enumerate(files):
        tell(0.5 * number / len(files))
        rewrite(path, on_grid)
    lay_videos(folder, info, lambda part: tell(0.5 + 0.5 * part))


def lay_videos(folder: Path, info: Info, tell: Tell) -> None:
    """Write where each episode begins and ends in its videos, measured by the pictures in them.

    `RecordingError` where the pictures do not lie on the grid, or it cannot be told which picture is the episode's first.
    """
    episodes = episodes_of(folder, info)
    found: dict[tuple[str, int], tuple[float, float]] = {}
    jobs = [(camera, path, rows) for camera in video_keys(info) for path, rows in by_video(episodes, camera).items()]
    for number, (camera, path, rows) in enumerate(jobs):
        tell(number / len(jobs))
        times = picture_times(path)
        for row, first in zip(rows, first_pictures(path, times, camera, rows, info.fps, on_grid=True), strict=True):
            found[camera, row.number] = float(times[first]), float(times[first]) + row.length / info.fps
    write_spans(folder, found)


def first_pictures(path: Path, times: np.ndarray, camera: str, rows: Sequence[Episode], fps: float, *, on_grid: bool) -> list[int]:
    """Which of a video's pictures, shown at `times`, is the first of each episode in it; as many follow as it has frames.

    Where pictures and frames are equally many, they follow one another, whatever times the video says, unless they have to lie
    `on_grid`. Else the table and the times say it. `RecordingError` where they do not fit, with the figure.
    """
    lengths = np.array([row.length for row in rows])
    whole, name, firsts = len(times) == lengths.sum(), "/".join(path.parts[-3:]), []
    for row, begin in zip(rows, np.cumsum(lengths) - lengths, strict=True):
        start = row.videos[camera].start
        first = int(begin) if whole else int(np.argmin(np.abs(times - start))) if len(times) else 0
        seen = times[first : first + row.length]
        if len(seen) < row.length:
            raise _unfit(name, f"Episode {row.number} has {row.length:,} frames; {len(seen):,} pictures are there for them.")
        if not whole and abs(seen[0] - start) * fps > 0.25:
            why = f"It has {len(times):,} pictures for {lengths.sum():,} frames, and none where episode {row.number} begins."
            raise _unfit(name, why)
        off = np.abs(seen - seen[0] - np.arange(row.length) / fps)
        if (on_grid or not whole) and off.max() > TOLERANCE_S:
            raise _unfit(name, f"Its pictures in episode {row.number} are up to {1000 * off.max():.1f} ms off {fps:g} a second.")
        firsts.append(first)
    return firsts


def write_spans(folder: Path, found: dict[tuple[str, int], tuple[float, float]]) -> None:
    """Write from and to timestamps, by camera and episode, into the table of episodes."""
    import pyarrow as pa

    cameras = {camera for camera, _ in found}

    def placed(table: pa.Table) -> pa.Table:
        order = table.column("episode_index").to_pylist()
        for camera in cameras:
            for place, name in enumerate(("from_timestamp", "to_timestamp")):
                table = with_column(table, f"videos/{camera}/{name}", [found[camera, number][place] for number in order])
        return table

    for path in parquet_files(folder / "meta" / "episodes"):
        rewrite(path, placed)


def picture_times(path: Path) -> np.ndarray:
    """The seconds at which the pictures of a video are shown, in order: (pictures,). Nothing is decoded."""
    import av

    try:
        with av.open(os.fspath(path)) as container:
            stream = container.streams.video[0]
            times = [p.pts * p.time_base for p in container.demux(stream) if p.pts is not None and p.size and not p.is_discard]
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise _unfit("/".join(path.parts[-3:]), f"It cannot be read: {error}.") from error
    return np.sort(np.array([float(time) for time in times]))


def _unfit(name: str, why: str) -> RecordingError:
    return RecordingError(f"{name} does not fit its episodes.", why, FETCH_AGAIN, code="video-unfit")
