"""Which decoder plays a recording's videos: torchcodec where it works, else PyAV, which brings its own FFmpeg.

torchcodec takes half the time or less, and needs the system's FFmpeg, in a version that it knows. Whether it works is found out by trying,
in a process of its own, which a broken library may crash; the answer is kept for these versions and this codec.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from zk0desk import folders
from zk0desk.engine.selftest import last_words

CHOSEN = "ZK0DESK_DECODER"
"""`pyav` in this variable of the environment spares the trial: the demo's videos are small, and its curve is to be the same everywhere."""
LIMIT_S = 60
FFMPEG = range(60, 55, -1)
"""Versions of FFmpeg's libavutil that torchcodec knows: FFmpeg 8 to 4."""

_TRY = """
import sys
import av, numpy, torch
from torchcodec.decoders import VideoDecoder
seen = VideoDecoder(sys.argv[1], seek_mode="approximate").get_frame_at(0).data
with av.open(sys.argv[1]) as container:
    known = next(container.decode(video=0)).to_ndarray(format="rgb24")
apart = numpy.abs(seen.permute(1, 2, 0).numpy().astype(int) - known).mean()
if apart > 2:
    sys.exit(f"its picture is another one than PyAV's ({apart:.0f} of 255 apart)")
"""

_known: dict[str, str] = {}
"""What this process found out or read."""


@dataclass(frozen=True)
class Decoder:
    """The decoder that training uses, and why it is that one."""

    name: Literal["torchcodec", "pyav"]
    why: str

    def to_json(self) -> dict[str, str]:
        """The decoder as a JSON object with keys `name`, `why`."""
        return {"name": self.name, "why": self.why}


def decoder_of(recording: Path, *, again: bool = False, only_kept: bool = False) -> Decoder:
    """The decoder for the videos of the recording in `recording`, as `decoder_for`. `RecordingError` where it cannot be read."""
    from zk0desk.training.recording_info import read_info
    from zk0desk.training.recordings import read_recording
    from zk0desk.training.thumbnails import videos_of

    camera = next((camera for camera in read_recording(recording).cameras if camera.codec != "images"), None)
    video = next(iter(videos_of(recording, read_info(recording), camera.key)), None) if camera else None
    if camera is None or video is None:
        return Decoder("pyav", "The recording has no video.")
    return decoder_for(video, camera.codec, again=again, only_kept=only_kept)


def decoder_for(video: Path, codec: str, *, again: bool = False, only_kept: bool = False) -> Decoder:
    """The decoder for `video`, whose codec is `codec`. It is tried once for a codec and these versions, and `again` when asked to.

    Trying takes seconds, and is done only where torchcodec and an FFmpeg for it are installed. With `only_kept` nothing is tried.
    """
    if os.environ.get(CHOSEN) == "pyav":
        return Decoder("pyav", f"{CHOSEN} says so.")
    key = _key(codec)
    if key is None:
        return Decoder("pyav", "torchcodec is not installed.")
    if "FFmpeg none" in key:
        return Decoder("pyav", "torchcodec needs FFmpeg, which is not installed.")
    if again or key not in _known:
        kept = _read()
        if only_kept and key not in kept:
            return Decoder("pyav", "torchcodec was not tried yet.")
        if again or key not in kept:
            kept[key] = _try(video)
            _keep(kept)
        _known[key] = kept[key]
    return Decoder("pyav", f"torchcodec does not work: {_known[key]}") if _known[key] else Decoder("torchcodec", "It decodes a frame.")


def _key(codec: str) -> str | None:
    try:
        versions = [f"{name} {version(name)}" for name in ("torchcodec", "torch")]
    except PackageNotFoundError:
        return None
    return ", ".join([*versions, f"FFmpeg {_ffmpeg()}", codec])


def _ffmpeg() -> str:
    """The number of the libavutil that is found, "none" where none is; "" where it is found by other ways than a name."""
    if sys.platform != "linux":
        return ""
    for number in FFMPEG:
        with contextlib.suppress(OSError):
            ctypes.CDLL(f"libavutil.so.{number}")
            return str(number)
    return "none"


def _try(video: Path) -> str:
    """ "" when torchcodec decodes the first frame of `video` as PyAV does, else what went wrong."""
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    try:
        done = subprocess.run([sys.executable, "-c", _TRY, str(video)], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: it gave no frame within {LIMIT_S} s."
    return last_words(done.returncode, done.stderr) if done.returncode else ""


def _file() -> Path:
    return folders.state_folder() / "decoders.json"


def _read() -> dict[str, str]:
    try:
        data = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in data.items()} if isinstance(data, dict) else {}


def _keep(kept: dict[str, str]) -> None:
    path = _file()
    with contextlib.suppress(OSError):
        folders.private_folder(path.parent)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        partial.replace(path)
