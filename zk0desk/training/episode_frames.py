"""The pictures and the numbers of one episode, frame by frame, for a person who looks at it. Reads only; no torch, no pandas."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk.training.episode_table import Episode, Span, read_episode_table
from zk0desk.training.recording_files import parquet_files, pointer_error, read_lines, read_table, unreadable_data
from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, read_info, shown
from zk0desk.training.recording_rows import ACTION, STATE, as_array
from zk0desk.training.recording_types import RecordingError
from zk0desk.training.thumbnails import MAX_PIXELS

if TYPE_CHECKING:
    import av
    import numpy as np
    import pyarrow as pa

KEPT_BYTES = 24_000_000
"""Decoded frames that each camera keeps, so that stepping back does not decode a group of pictures again."""
MAX_DECODED = 3000
"""Frames that are decoded on the way to one; beyond that, the video has no key frames that help."""


@dataclass(frozen=True)
class EpisodeRows:
    """State and action of an episode's frames: (frames, dimensions), and the dimensions' names. Empty where there is none."""

    state: np.ndarray
    action: np.ndarray
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]


@dataclass(frozen=True)
class EpisodeList:
    """What there is to look at: the description, the episodes, and the instructions of each by its number."""

    info: Info
    episodes: tuple[Episode, ...]
    tasks: dict[int, tuple[str, ...]]


def list_episodes(recording: Path) -> EpisodeList:
    """The episodes of the recording in this folder. `RecordingError` where the table cannot be used or names none."""
    info = read_info(recording)
    episodes = read_episode_table(recording, info)
    if not episodes:
        raise RecordingError("The recording lists no episodes.", "Its table of episodes is missing or empty.", FETCH_AGAIN)
    return EpisodeList(info, tuple(episodes), _tasks(recording, info))


def _tasks(recording: Path, info: Info) -> dict[int, tuple[str, ...]]:
    told: list[tuple[Any, Any]] = []
    if info.major < 3:
        told = [(line.get("episode_index"), line.get("tasks")) for line in read_lines(recording / "meta" / "episodes.jsonl")]
    else:
        for path in parquet_files(recording / "meta" / "episodes"):
            columns = read_table(path, ("episode_index", "tasks")).to_pydict()
            told += zip(columns.get("episode_index", ()), columns.get("tasks", ()), strict=False)
    return {
        number: tuple(shown(task, 500) for task in tasks if isinstance(task, str))
        for number, tasks in told
        if isinstance(number, int) and isinstance(tasks, list)
    }


class EpisodeFrames:
    """The decoded pictures of one episode, and its rows. For one thread at a time; `close` frees its files."""

    def __init__(self, recording: Path, episode: Episode, info: Info | None = None) -> None:
        self._recording, self.episode = recording, episode
        self.info = info or read_info(recording)
        self._videos: dict[str, _Video] = {}
        self._embedded: dict[str, list[bytes]] = {}

    @property
    def cameras(self) -> tuple[str, ...]:
        """The keys of the cameras, in the description's order."""
        return tuple(feature.key for feature in self.info.cameras)

    def picture(self, camera: str, frame: int, width: int = 0) -> np.ndarray:
        """What `camera` saw at `frame` (from 0): H x W x 3, uint8, at most `width` pixels wide if that is not 0.

        `IndexError` outside the episode, `RecordingError` where the picture cannot be decoded.
        """
        if not 0 <= frame < self.episode.length:
            raise IndexError(f"episode {self.episode.number} has no frame {frame}")
        if camera not in self.cameras:
            raise RecordingError(f"{shown(camera)} is no camera of this recording.", code="camera-missing")
        span = self.episode.videos.get(camera)
        if span is None:
            return self._embedded_picture(camera, frame, width)
        if camera not in self._videos:
            self._videos[camera] = _Video(span, self.info.fps)
        return self._videos[camera].picture(frame, width)

    def rows(self) -> EpisodeRows:
        """State and action of the episode. `RecordingError` where they cannot be read."""
        import numpy as np

        found: dict[str, np.ndarray] = {}
        names: dict[str, tuple[str, ...]] = {}
        wanted = [key for key in (STATE, ACTION) if key in self.info.features]
        tables = list(self._tables(wanted))
        for key in (STATE, ACTION):
            feature = self.info.features.get(key)
            parts = [as_array(table.column(key), key, feature.dim) for table in tables if key in table.column_names] if feature else []
            found[key] = np.concatenate(parts) if parts else np.zeros((0, feature.dim if feature else 0))
            names[key] = (feature.names or tuple(f"{number}" for number in range(feature.dim))) if feature else ()
        return EpisodeRows(found[STATE], found[ACTION], names[STATE], names[ACTION])

    def close(self) -> None:
        """Close the videos; they open again when a picture is asked for."""
        for video in self._videos.values():
            video.close()
        self._videos.clear()
        self._embedded.clear()

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """The episode's rows of `columns`; row groups that hold other episodes only are passed over."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        number = self.episode.number
        if self.info.major < 3:
            at = {"episode_index": number, "episode_chunk": number // self.info.chunks_size, "chunk_index": 0, "file_index": 0}
            files = [self._recording / self.info.data_file(**at)]
        else:
            files = parquet_files(self._recording / "data")
        for path in files:
            try:
                if is_pointer(path):
                    raise pointer_error(shown("/".join(path.parts[-3:])))
                with pq.ParquetFile(path) as file:
                    there = file.schema_arrow.names
                    names = ["episode_index", *(name for name in columns if name in there)]
                    for group in range(file.num_row_groups if "episode_index" in there else 0):
                        if _holds(file, group, number):
                            table = file.read_row_group(group, columns=names)
                            yield table.filter(pc.equal(table.column("episode_index"), number))
            except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
                raise unreadable_data(path, error) from error

    def _embedded_picture(self, camera: str, frame: int, width: int) -> np.ndarray:
        import numpy as np
        from PIL import Image, UnidentifiedImageError

        if camera not in self._embedded:
            values = [value for table in self._tables([camera]) for value in table.column(camera).to_pylist()]
            self._embedded[camera] = [value.get("bytes") or b"" if isinstance(value, dict) else b"" for value in values]
        try:
            image = Image.open(io.BytesIO(self._embedded[camera][frame])).convert("RGB")
        except (IndexError, UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise _unplayable(camera, shown(error)) from error
        if 0 < width < image.width:
            image = image.resize((width, max(1, round(width * image.height / image.width))))
        return np.asarray(image)


def _holds(file: Any, group: int, number: int) -> bool:
    place = file.schema_arrow.names.index("episode_index")
    # A leaf's place is the column's only where no column before it is a struct; its path says which it is.
    meta = file.metadata.row_group(group)
    for leaf in range(place, meta.num_columns):
        column = meta.column(leaf)
        if column.path_in_schema == "episode_index":
            told = column.statistics
            return told is None or not told.has_min_max or told.min <= number <= told.max
    return True


class _Video:
    """One camera's part of a video file. Asked for one frame after the other, it goes on decoding; else it seeks."""

    def __init__(self, span: Span, fps: float) -> None:
        import av

        self._span, self._fps = span, fps
        self._kept: OrderedDict[int, av.VideoFrame] = OrderedDict()
        self._decoding: Iterator[av.VideoFrame] | None = None
        self._last = -1
        self.seeks = 0
        name = shown("/".join(span.path.parts[-4:]))
        try:
            if is_pointer(span.path):
                raise pointer_error(name)
            self._container = av.open(str(span.path))
        except (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
            raise _unplayable(name, shown(error)) from error
        stream = next(iter(self._container.streams.video), None)
        if stream is None or stream.codec_context is None or stream.width * stream.height > MAX_PIXELS:
            self._container.close()
            raise _unplayable(name, "it holds no picture that can be shown")
        stream.thread_type = "AUTO"
        self._stream, self._name = stream, name
        self._keep = max(4, min(64, KEPT_BYTES // max(1, stream.width * stream.height * 3 // 2)))

    def close(self) -> None:
        self._kept.clear()
        self._decoding = None
        self._container.close()

    def picture(self, frame: int, width: int) -> np.ndarray:
        import av

        try:
            found = self._frame(frame)
            if 0 < width < found.width:
                height = max(2, round(width * found.height / found.width))
                return found.to_ndarray(format="rgb24", width=width, height=height)
            return found.to_ndarray(format="rgb24")
        except (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
            self._decoding = None
            raise _unplayable(self._name, shown(error)) from error

    def _frame(self, frame: int) -> av.VideoFrame:
        if frame in self._kept:
            self._kept.move_to_end(frame)
            return self._kept[frame]
        # Up to a second ahead, decoding on costs no more than seeking back to the key frame before.
        if self._decoding is None or not 0 < frame - self._last <= max(1, self._fps):
            self._seek(frame)
        assert self._decoding is not None
        base = self._stream.time_base
        assert base is not None
        first = self._stream.start_time or 0
        for count, picture in enumerate(self._decoding):
            if count > MAX_DECODED:
                raise ValueError(f"it has no key frame within {MAX_DECODED:,} frames")
            if picture.pts is None:
                continue
            time = float((picture.pts - first) * base) - self._span.start
            self._last = round(time * self._fps)
            self._kept[self._last] = picture
            self._kept.move_to_end(self._last)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
            if self._last >= frame:
                return picture
        self._decoding = None
        raise ValueError(f"it ends before frame {frame:,} of episode")

    def _seek(self, frame: int) -> None:
        base = self._stream.time_base
        assert base is not None
        at = self._span.start + (frame - 0.5) / self._fps
        self._container.seek(max(0, int(at / base)) + (self._stream.start_time or 0), stream=self._stream, backward=True)
        self._decoding = self._container.decode(self._stream)
        self._last = -1
        self.seeks += 1


def _unplayable(name: str, why: str) -> RecordingError:
    return RecordingError(f"{name} cannot be played.", f"{why}.", FETCH_AGAIN, code="video-unreadable")
