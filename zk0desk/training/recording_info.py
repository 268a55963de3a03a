"""`meta/info.json` of a recording: untrusted text in, a checked description out.

Whoever published a recording wrote this file, and LeRobot builds paths from it by `str.format`. So everything in it is
checked before use: size, nesting, types, ranges, and that no path leads out of the recording's folder.
"""

from __future__ import annotations

import errno
import json
import math
import re
import stat
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from zk0desk.training.recording_types import FETCH_AGAIN, RecordingError

MAX_JSON_BYTES = 4 * 2**20
MAX_DEPTH = 32
MAX_FEATURES = 512
MAX_COUNT = 10**10
MAX_DIM = 10**6
_DEFAULTS = {
    3: (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
    2: (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
}
_DTYPE = re.compile(r"video|image|bool|(large_)?string|(large_)?binary|language|double|float|u?int(8|16|32|64)|float(16|32|64)")
_ABOUT_VIDEO = ("video_info", "info")
_FIELDS = {"chunk_index", "file_index", "episode_chunk", "episode_index", "video_key"}


@dataclass(frozen=True)
class Feature:
    """A column of a recording: LeRobot's dtype word, shape, names of its dimensions (may be empty), and what is said of its video."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    codec: str = ""
    depth: bool = False

    @property
    def is_camera(self) -> bool:
        """Whether the feature holds pictures."""
        return self.dtype in {"video", "image"}

    @property
    def dim(self) -> int:
        """Number of values of a vector; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a picture, in pixels; zeros where the shape is no picture's."""
        if len(self.shape) != 3:
            return 0, 0
        first = self.names[0] if self.names else ""
        channels_first = first.startswith("channel") if first else self.shape[0] <= 4 < self.shape[2]
        height, width = self.shape[1:] if channels_first else self.shape[:2]
        return width, height


@dataclass(frozen=True)
class Info:
    """A recording's `info.json`, checked. `fps` in Hz; paths are templates relative to the recording's folder."""

    version: str
    major: int
    minor: int
    fps: float
    episodes: int
    frames: int
    tasks: int
    chunks_size: int
    features: dict[str, Feature]
    data_path: str
    video_path: str
    robot: str

    @property
    def cameras(self) -> tuple[Feature, ...]:
        """The features that hold pictures, in the file's order."""
        return tuple(feature for feature in self.features.values() if feature.is_camera)

    def data_file(self, **numbers: int) -> str:
        """The relative path of a data file."""
        return self.data_path.format(**numbers)

    def video_file(self, camera: str, **numbers: int) -> str:
        """The relative path of a video file of `camera`."""
        return self.video_path.format(video_key=camera, **numbers)


def shown(value: object, limit: int = 120) -> str:
    """`value` as one printable line of at most `limit` characters, whatever bytes it was made of."""
    text = str(value)[: 4 * limit].encode("utf-8", "replace").decode("utf-8")
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def reason(error: BaseException) -> str:
    """Why a library could not read something, in its own words: no number and no path, and no full stop at the end."""
    said = getattr(error, "strerror", None) or str(error)
    return shown(said).rstrip(". ") or type(error).__name__


def is_pointer(path: Path) -> bool:
    """Whether `path` is a pointer of Git LFS or git-annex that stands where a file should be. `OSError` if it cannot be read."""
    if _size(path) > 1024:
        return False
    with path.open("rb") as file:
        start = file.read(200)
    return start.startswith(b"version https://git-lfs") or b"/annex/objects/" in start


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse the JSON file at `path`; `ValueError` with the reason when it is too large, too deep or not JSON, `OSError` as opening."""
    _size(path)
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    return parse_json(raw, limit)


def _size(path: Path) -> int:
    """Bytes of a file. `OSError` where it is a pipe or a device: opening one may wait without end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EINVAL, "It is no file, but a pipe or a device", str(path))
    return found.st_size


def parse_json(raw: bytes, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse `raw`, which nobody has checked yet; `ValueError` with the reason."""
    if len(raw) > limit:
        raise ValueError(f"it is larger than {limit // 2**20} MB")
    if not raw.strip():
        raise ValueError("it is empty")
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    if _depth(value) > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    return value


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
    return depth


def read_info(folder: Path) -> Info:
    """The checked description of the recording in `folder`; `RecordingError` says what is wrong with it."""
    path = folder / "meta" / "info.json"
    try:
        if not folder.is_dir():
            raise RecordingError(
                f"{shown(folder)} is not a folder." if folder.exists() else f"There is no folder {shown(folder)}.",
                "A recording is a folder with `meta`, `data` and `videos` in it.",
                "Choose the recording's folder.",
                code="folder-missing",
            )
        if is_pointer(path):
            raise RecordingError(
                "meta/info.json is a Git LFS pointer, not the file itself.",
                "The recording was cloned without its large files.",
                "Run `git lfs pull` where it was cloned, or download it again.",
                code="lfs-pointers",
            )
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise RecordingError(
            f"{shown(folder.name)} is no LeRobot recording.",
            "It has no file meta/info.json.",
            "Choose a folder that LeRobot recorded, or copy it again with all of its files.",
            code="info-missing",
        ) from error
    except (OSError, ValueError) as error:
        raise RecordingError(
            "meta/info.json cannot be read.", f"{shown(error)}.", "Check the folder's permissions and the disk.", code="info-unreadable"
        ) from error
    return parse_info(raw)


def parse_info(raw: bytes) -> Info:
    """Check the text of an `info.json`; `RecordingError` names the key, what it holds and what is allowed."""
    if not raw.strip():
        raise RecordingError(
            "meta/info.json is empty.",
            "The recording ended before its description was written, or was copied in part.",
            FETCH_AGAIN,
            code="info-empty",
        )
    try:
        value = parse_json(raw)
    except ValueError as error:
        raise RecordingError("meta/info.json cannot be read.", f"As JSON, {shown(error)}.", FETCH_AGAIN, code="info-unreadable") from error
    if not isinstance(value, dict):
        _wrong("the file", value, "a JSON object")
    version = value.get("codebase_version")
    match = re.fullmatch(r"v?(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?", version) if isinstance(version, str) else None
    if match is None:
        _wrong("codebase_version", version, "a version such as v3.0")
    major, minor = int(match[1]), int(match[2])
    fps = value.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= 100_000:
        _wrong("fps", fps, "a number of frames per second above 0")
    data_path, video_path = _DEFAULTS.get(major, _DEFAULTS[3])
    robot = value.get("robot_type")
    features = _features(value.get("features"))
    if value.get("video_path", "") is None and any(feature.dtype == "video" for feature in features.values()):
        _wrong("video_path", None, "a path in the recording's folder, since there are videos")
    return Info(
        version=f"v{major}.{minor}",
        major=major,
        minor=minor,
        fps=float(fps),
        episodes=_count(value, "total_episodes"),
        frames=_count(value, "total_frames"),
        tasks=_count(value, "total_tasks"),
        chunks_size=_sizes(value),
        features=features,
        data_path=_template("data_path", value.get("data_path"), data_path),
        video_path=_template("video_path", value.get("video_path"), video_path),
        robot=shown(robot, 64) if isinstance(robot, str) else "",
    )


def _wrong(key: str, value: object, allowed: str) -> NoReturn:
    found = "nothing" if value is None else shown(repr(value) if not isinstance(value, dict | list) else type(value).__name__, 60)
    raise RecordingError(
        f"meta/info.json says something that cannot be: `{shown(key, 80)}`.",
        f"It holds {found}; it must be {allowed}.",
        FETCH_AGAIN,
        code="info-wrong",
    )


def _count(value: dict[str, Any], key: str) -> int:
    number = value.get(key, 0)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_COUNT:
        _wrong(key, number, "a whole number of a possible size")
    return number


def _sizes(value: dict[str, Any]) -> int:
    """The episodes of a chunk. LeRobot refuses this size and those of files unless they are above 0."""
    for key in ("chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
        if key in value and (_count(value, key) < 1):
            _wrong(key, value[key], "a whole number above 0")
    return _count(value, "chunks_size") or 1000


def _template(key: str, value: object, usual: str) -> str:
    """A path template that only fills in numbers and the camera's key, and stays in the recording's folder, or `usual`."""
    if value is None:
        return usual
    if not isinstance(value, str) or len(value) > 512:
        _wrong(key, value, "a path in the recording's folder")
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError:
        _wrong(key, value, "a path in the recording's folder")
    for _, name, spec, conversion in parts:
        if name is not None and (name not in _FIELDS or conversion or not re.fullmatch(r"(0?[1-9]?d)?", spec or "")):
            _wrong(key, value, "a path that fills in chunk, file, episode and camera only")
    plain = "".join(text for text, *_ in parts)
    if not is_inside(plain + "x" if plain.endswith("/") else plain):
        raise RecordingError(
            f"meta/info.json leads out of the recording's folder: `{key}`.",
            f"It holds {shown(repr(value))}.",
            "Do not use this recording; get it from a source that you trust.",
            code="path-outside",
        )
    return value


def is_inside(relative: str) -> bool:
    """Whether the relative path stays inside its folder, read as a POSIX and as a Windows path."""
    windows = PureWindowsPath(relative)
    absolute = PurePosixPath(relative).is_absolute() or windows.is_absolute() or bool(windows.drive) or bool(windows.root)
    return bool(relative) and not absolute and ".." not in windows.parts and "\0" not in relative


def _features(value: object) -> dict[str, Feature]:
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_FEATURES:
        _wrong("features", value, "a table of the recording's columns")
    return {key: _feature(key, entry) for key, entry in value.items()}


def _feature(key: str, entry: object) -> Feature:
    where = f"features.{key}"
    if not key or len(key) > 200 or not key.isprintable() or re.search(r'[/\\:*?"<>|{}]', key) or ".." in key:
        _wrong(where, key, "a column's name without path signs")
    if not isinstance(entry, dict):
        _wrong(where, entry, "a table with dtype and shape")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        _wrong(f"{where}.dtype", dtype, "a type's name such as float32 or video")
    for part in _ABOUT_VIDEO:
        if not isinstance(entry.get(part), dict | None):
            _wrong(f"{where}.{part}", entry[part], "a table of what is known of the video")
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= 8
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MAX_DIM for n in shape)
        or math.prod(shape) > 2**31
    ):
        _wrong(f"{where}.shape", shape, "a list of sizes")
    said = dict(_video_words(entry))
    for word in ("video.is_depth_map", "is_depth_map"):
        if not isinstance(said.get(word), bool | None):  # LeRobot takes any number or text there for yes
            _wrong(f"{where}.{word}", said[word], "true or false")
    depth = said.get("video.is_depth_map", said.get("is_depth_map", False)) is True
    codec = said.get("video.codec", "")
    if dtype not in {"video", "image"} and len(shape) > 5:
        _wrong(f"{where}.shape", shape, "a list of at most five sizes")
    names = _names(entry.get("names"), math.prod(shape) if dtype not in {"video", "image"} else len(shape))
    return Feature(key, shown(dtype, 64), tuple(shape), names, "images" if dtype == "image" else shown(codec, 32), depth)


def _video_words(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in _ABOUT_VIDEO:
        if isinstance(entry.get(part), dict):
            yield from entry[part].items()


def _names(value: object, count: int) -> tuple[str, ...]:
    """Names of dimensions: LeRobot writes a list, a table of one list (`motors`), or nothing. Empty unless there is one for each."""
    while isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if isinstance(value, dict):
        value = list(value)
    if not isinstance(value, list) or len(value) != count:
        return ()
    return tuple(shown(name, 64) for name in value)
