"""The deep check of the videos: the first, middle and last frame of every episode is decoded, where training will look for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.training.episode_table import Episode, Span
from zk0desk.training.recording_info import FETCH_AGAIN, Feature, Info, is_pointer, reason, shown
from zk0desk.training.recording_types import REENCODE, Finding, Severity
from zk0desk.training.thumbnails import MAX_PIXELS

if TYPE_CHECKING:
    import av

OFF_SHARE = 0.5
"""A frame that lies further than this share of a frame's length from where it should be, is another frame."""
MAX_DECODED = 3000
"""Frames that are decoded on the way to one; beyond that, the video has no key frames that help."""


@dataclass(frozen=True)
class _Trouble:
    code: str
    camera: str
    episode: int
    words: str


class VideoCheck:
    """Looks at the videos of one camera, file by file."""

    def __init__(self, info: Info, camera: Feature) -> None:
        self._info, self._camera = info, camera
        self._troubles: list[_Trouble] = []
        self._size: tuple[int, int] | None = None

    def look(self, path: Path, episodes: Iterable[tuple[Episode, Span]], step: Callable[[], None]) -> None:
        """Decode three frames of each of `episodes`, which lie in the file `path`. `step` is called after each."""
        import av

        listed = list(episodes)
        try:
            if is_pointer(path):
                self._whole_file(listed, "lfs-pointers", "")
                return
            with av.open(str(path)) as container:
                stream = next(iter(container.streams.video), None)
                if stream is None or stream.codec_context is None:
                    raise ValueError("it holds no picture of a known codec")
                if stream.width * stream.height > MAX_PIXELS:
                    raise ValueError(f"its pictures are of {stream.width} x {stream.height} pixels")
                stream.thread_type = "AUTO"
                self._size = (stream.width, stream.height)
                for episode, span in listed:
                    self._episode(container, stream, episode, span)
                    step()
        except (av.FFmpegError, ValueError, RuntimeError, MemoryError) as error:
            self._whole_file(listed, "video-unreadable", reason(error))
        except OSError as error:
            if not path.exists():
                raise  # the disk is gone, not the video
            self._whole_file(listed, "video-unreadable", reason(error))

    def _whole_file(self, listed: list[tuple[Episode, Span]], code: str, words: str) -> None:
        self._troubles += [_Trouble(code, self._camera.key, episode.number, words) for episode, _ in listed]

    def _episode(self, container: av.container.InputContainer, stream: av.VideoStream, episode: Episode, span: Span) -> None:
        import av

        fps = self._info.fps
        frames = max(1, episode.length)
        for frame in sorted({0, frames // 2, frames - 1}):
            at = span.start + frame / fps
            try:
                found = _time_at(container, stream, at, 0.5 / fps)
            except (av.FFmpegError, ValueError, RuntimeError, MemoryError) as error:
                self._troubles.append(_Trouble("video-unreadable", self._camera.key, episode.number, reason(error)))
                return
            if found is None:
                words = f"episode {episode.number}, frame {frame:,} would be at {at:.2f} s"
                self._troubles.append(_Trouble("video-too-short", self._camera.key, episode.number, words))
                return
            if abs(found - at) > OFF_SHARE / fps:
                words = f"episode {episode.number}, frame {frame:,}: the nearest picture is {1000 * abs(found - at):.0f} ms away"
                self._troubles.append(_Trouble("video-frames-off", self._camera.key, episode.number, words))
                return

    def findings(self) -> list[Finding]:
        """What was found."""
        name = shown(self._camera.key.rsplit(".", 1)[-1], 60)
        found = []
        tried = "PyAV" + ("; torchcodec was not tried" if importlib.util.find_spec("torchcodec") else "; torchcodec is not installed")
        texts = {
            "video-unreadable": ("The video of {name} cannot be decoded, in {many}.", f"{{first}}. Tried with: {tried}.", FETCH_AGAIN),
            "video-too-short": ("The video of {name} ends before its episodes do, in {many}.", "{first}.", FETCH_AGAIN),
            "video-frames-off": ("The video of {name} has no picture where frames should be, in {many}.", "{first}.",
                                 REENCODE),
            "lfs-pointers": ("The video of {name} is a Git LFS pointer, in {many}.", "The recording was cloned without its large files.",
                             "Run `git lfs pull` where it was cloned, or download it again."),
        }  # fmt: skip
        for code, (what, why, remedy) in texts.items():
            touched = [trouble for trouble in self._troubles if trouble.code == code]
            if touched:
                episodes = tuple(sorted({trouble.episode for trouble in touched}))
                many = f"episode {episodes[0]}" if len(episodes) == 1 else f"{len(episodes):,} episodes"
                words = {"name": name, "many": many, "first": touched[0].words}
                found.append(Finding(code, Severity.BLOCKS, what.format(**words), why.format(**words), remedy, episodes))
        declared = self._camera.size
        if self._size is not None and all(declared) and self._size != declared:
            what = f"The pictures of {name} are {self._size[0]} x {self._size[1]}; the description says {declared[0]} x {declared[1]}."
            why = "The policy scales every picture, so training works; the description is of another camera."
            found.append(Finding("video-size-differs", Severity.NOTE, what, why, "Check that the video belongs to this recording."))
        return found


def _time_at(container: av.container.InputContainer, stream: av.VideoStream, at: float, half: float) -> float | None:
    """The time of the first decoded frame from `at` - `half` on, None where the video ends before."""
    base = stream.time_base
    assert base is not None
    start = stream.start_time or 0
    container.seek(max(0, int((at - half) / base)) + start, stream=stream, backward=True)
    keyed = False
    for count, frame in enumerate(container.decode(stream)):
        if count > MAX_DECODED:
            raise ValueError(f"it has no key frame within {MAX_DECODED:,} frames")
        keyed = keyed or frame.key_frame
        # What is wrong before the first key frame lies in another group of pictures; after it, it is in all that follow.
        if keyed and frame.is_corrupt:
            raise ValueError("its data is damaged on the way to a picture that training asks for")
        if frame.pts is None:
            continue
        time = float((frame.pts - start) * base)
        if time >= at - half:
            return time
    return None
