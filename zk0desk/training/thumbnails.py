"""A small picture of what a camera saw first."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.training.recording_files import parquet_files, read_table
from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, read_info, shown
from zk0desk.training.recording_types import RecordingError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_PIXELS = 64_000_000


def videos_of(folder: Path, info: Info, camera: str) -> list[Path]:
    """The video files of `camera` that are there, in the order of their names."""
    if info.major >= 3:
        return sorted((folder / "videos" / camera).rglob("*.mp4"))
    return sorted((folder / "videos").glob(f"*/{camera}/*.mp4"))


def first_frame(path: Path) -> np.ndarray:
    """The first frame of a video: H x W x 3, uint8. `RecordingError` says what is wrong with it."""
    import av

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
            if stream is not None and stream.width * stream.height <= MAX_PIXELS:
                for frame in container.decode(stream):
                    picture: np.ndarray = frame.to_ndarray(format="rgb24")
                    return picture
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        why = f"PyAV says: {shown(error)}."
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
    height = max(1, round(width * image.height / image.width))
    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def _embedded(path: Path, camera_key: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    files = parquet_files(path / "data")
    table = read_table(files[0], [camera_key]) if files else None
    value = table.column(0)[0].as_py() if table is not None and table.num_columns and table.num_rows else None
    raw = value.get("bytes") if isinstance(value, dict) else None
    why = "Its column is empty."
    try:
        if raw:
            return Image.open(io.BytesIO(raw))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        why = f"{shown(error)}."
    raise RecordingError(f"Camera {shown(camera_key)} has no picture that can be read.", why, FETCH_AGAIN, code="image-unreadable")
