"""Small pictures of what a camera saw: first, and at a few moments."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.training.recording_files import parquet_files, read_episodes
from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, read_info, reason, shown
from zk0desk.training.recording_types import RecordingError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_PIXELS = 64_000_000


def videos_of(folder: Path, info: Info, camera: str) -> list[Path]:
    """The video files of `camera` that the table of episodes names and that are there, in its order."""
    episodes = read_episodes(folder, info)
    return [video.path for video in episodes.videos if video.camera == camera and video.path.is_file()] if episodes else []


def first_frame(path: Path) -> np.ndarray:
    """The first frame of a video: H x W x 3, uint8. `RecordingError` says what is wrong with it."""
    return _play(path)[1]


def frame_count(path: Path) -> int:
    """How many frames a video's header tells of, 0 where it does not. `RecordingError` says what is wrong with it."""
    return _play(path, decode=False)[0]


def _play(path: Path, *, decode: bool = True) -> tuple[int, np.ndarray]:
    import av
    import numpy as np

    name = shown("/".join(path.parts[-4:]))
    why = "It holds no picture."
    try:
        if is_pointer(path):
            raise RecordingError(
                f"{name} is a Git LFS pointer, not the video itself.",
                "The recording was cloned without its large files.",
                "Run `git lfs pull` where it was cloned, or download it again.",
                code="lfs-pointers",
            )
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            # A stream whose codec is not known has no codec context, and with it no size.
            if stream is not None and stream.codec_context is not None and stream.width * stream.height <= MAX_PIXELS:
                if not decode:
                    return stream.frames, np.empty((0, 0, 3), np.uint8)
                for frame in container.decode(stream):
                    return stream.frames, frame.to_ndarray(format="rgb24")
    except PermissionError as error:
        remedy = "Check the permissions, then look again."
        raise RecordingError(f"{name} cannot be read.", "You may not read it.", remedy, code="unreadable") from error
    except (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
        why = f"PyAV says: {reason(error)}."
    raise RecordingError(f"{name} cannot be played.", why, FETCH_AGAIN, code="video-unreadable")


def thumbnail(path: Path, camera_key: str, width: int = 160) -> np.ndarray:
    """The first picture of a camera, `width` pixels wide: H x W x 3, uint8. `RecordingError` where there is none."""
    import numpy as np
    from PIL import Image

    info = read_info(path)
    feature = info.features.get(camera_key)
    if feature is None or not feature.is_camera:
        raise RecordingError(
            f"{shown(camera_key)} is no camera of this recording.", "", "Look at the recording again.", code="camera-missing"
        )
    if feature.dtype == "video":
        videos = videos_of(path, info, camera_key)
        if not videos:
            raise RecordingError(f"Camera {shown(camera_key)} has no video.", "", FETCH_AGAIN, code="video-missing")
        image = Image.fromarray(first_frame(videos[0]))
    else:
        image = _embedded(path, camera_key)
    return np.asarray(_small(image, width))


def moments(path: Path, camera_key: str, width: int, count: int) -> list[np.ndarray]:
    """Pictures of a camera at up to `count` moments, evenly spaced over its first video, as `thumbnail` gives them.

    Only the first where its pictures are not in a video, or the video does not tell how long it is. `RecordingError` where there is none.
    """
    import av
    import numpy as np
    from PIL import Image

    first = [thumbnail(path, camera_key, width)]
    info = read_info(path)
    videos = videos_of(path, info, camera_key) if info.features[camera_key].dtype == "video" else []
    if count < 2 or not videos:
        return first
    found: list[np.ndarray] = []
    try:
        with av.open(str(videos[0])) as container:
            stream = container.streams.video[0]
            length = stream.duration or 0
            for place in range(count if length else 0):
                container.seek((stream.start_time or 0) + place * length // count, stream=stream)
                frame = next(container.decode(stream))
                found.append(np.asarray(_small(Image.fromarray(frame.to_ndarray(format="rgb24")), width)))
    except (av.FFmpegError, StopIteration, OSError, ValueError, RuntimeError, MemoryError):
        pass  # a defect further on is the deep check's to tell; here the moments before it suffice
    return found or first


def _small(image: Image.Image, width: int) -> Image.Image:
    from PIL import Image

    height = max(1, round(width * image.height / image.width))
    return image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)


def _embedded(path: Path, camera_key: str) -> Image.Image:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image, UnidentifiedImageError

    why = "Its column is empty."
    try:
        for name in parquet_files(path / "data")[:1]:
            with pq.ParquetFile(name) as file:
                # One row: all pictures of a recording do not fit into memory.
                for batch in file.iter_batches(1, columns=[camera_key]):
                    value = batch.column(0)[0].as_py() if batch.num_columns else None
                    raw = value.get("bytes") if isinstance(value, dict) else None
                    if raw:
                        return Image.open(io.BytesIO(raw))
                    break
    except (UnidentifiedImageError, OSError, ValueError, pa.ArrowException, Image.DecompressionBombError) as error:
        why = f"{shown(error)}."
    raise RecordingError(f"Camera {shown(camera_key)} has no picture that can be read.", why, FETCH_AGAIN, code="image-unreadable")
