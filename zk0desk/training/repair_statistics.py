"""The statistics of a copy in v3.0, computed anew: in meta/stats.json, and of each episode in the table of episodes.

The numbers are LeRobot's: minimum, maximum, mean, standard deviation, count and five quantiles of each dimension; of pictures per
colour, in [0, 1], from some frames of each episode. Quantiles of the whole are exact, where LeRobot averages those of the episodes.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.training.episode_table import Episode
from zk0desk.training.recording_files import parquet_files, read_table
from zk0desk.training.recording_info import FETCH_AGAIN, Feature, Info, read_json, shown
from zk0desk.training.recording_types import RecordingError
from zk0desk.training.repair_tables import Tell, by_video, episodes_of, numbers, rewrite, rows_of

if TYPE_CHECKING:
    import pyarrow as pa

Stats = dict[str, np.ndarray]
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
WORDS = ("min", "max", "mean", "std", "count")
SAMPLES, SIDE = 100, 150
"""Pictures of an episode that are looked at, and about how many of their pixels in a row, as LeRobot does."""


def write_statistics(folder: Path, info: Info, tell: Tell) -> None:
    """Compute the statistics of the recording in `folder` and write them. Those of pictures stay where they can be used."""
    episodes = episodes_of(folder, info)
    names = [feature.key for feature in info.features.values() if not feature.is_camera and feature.dtype not in ("string", "language")]
    columns = numbers(folder, info, dict.fromkeys([*names, "episode_index"]))
    rows = rows_of(columns["episode_index"][:, 0])
    whole: dict[str, Stats] = {}
    each: dict[str, list[Stats]] = {}
    for key in names:
        if key in columns and len(columns[key]):
            whole[key] = of_numbers(columns[key])
            each[key] = [of_numbers(columns[key][rows[episode.number]]) for episode in episodes]
    tell(0.1)
    cameras = [feature for feature in info.cameras if not feature.depth]
    for place, camera in enumerate(cameras):
        found = _kept(folder, camera.key, len(episodes))
        if found is None:
            found = _of_pictures(folder, info, camera, episodes, lambda part, at=place: tell(0.1 + 0.8 * (at + part) / len(cameras)))  # type: ignore[misc]
        each[camera.key], whole[camera.key] = found, together(found)
    _write(folder, whole, each, {episode.number: place for place, episode in enumerate(episodes)})


def of_numbers(values: np.ndarray) -> Stats:
    """The statistics of `values` (frames, dimensions)."""
    wide = values.astype(np.float64)
    stats = {"min": wide.min(axis=0), "max": wide.max(axis=0), "mean": wide.mean(axis=0), "std": wide.std(axis=0)}
    stats["count"] = np.array([len(values)])
    return stats | dict(zip(QUANTILES, np.quantile(wide, list(QUANTILES.values()), axis=0), strict=True))


def together(parts: Sequence[Stats]) -> Stats:
    """The statistics of all from those of parts, weighted by their counts."""
    counts = np.array([float(part["count"][0]) for part in parts])
    weights = (counts / counts.sum()).reshape(-1, *([1] * parts[0]["mean"].ndim))
    means, stds = np.stack([part["mean"] for part in parts]), np.stack([part["std"] for part in parts])
    mean = (weights * means).sum(axis=0)
    stats = {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((weights * (stds**2 + (means - mean) ** 2)).sum(axis=0)),
        "count": np.array([int(counts.sum())]),
    }
    shared = [name for name in QUANTILES if all(name in part for part in parts)]
    return stats | {name: (weights * np.stack([part[name] for part in parts])).sum(axis=0) for name in shared}


# --- pictures


def _kept(folder: Path, camera: str, count: int) -> list[Stats] | None:
    """The episodes' statistics of a camera's pictures as the table has them; None unless all of them can be used."""
    found: list[tuple[int, Stats]] = []
    for path in parquet_files(folder / "meta" / "episodes"):
        names = [f"stats/{camera}/{word}" for word in (*WORDS, *QUANTILES)]
        columns: dict[str, list[Any]] = read_table(path, ["episode_index", *names]).to_pydict()
        try:
            for place, number in enumerate(columns["episode_index"]):
                stats = {name.rsplit("/", 1)[1]: np.array(columns[name][place], np.float64) for name in names if name in columns}
                if not all(_usable(word, stats[word]) for word in {*WORDS, *stats}):
                    return None
                found.append((number, stats | {"count": stats["count"].astype(np.int64)}))
        except (KeyError, TypeError, ValueError):
            return None
    return [stats for _, stats in sorted(found, key=lambda pair: pair[0])] if len(found) == count and count else None


def _usable(word: str, values: np.ndarray) -> bool:
    if word == "count":
        return values.shape == (1,) and bool(values[0] > 0)
    return values.shape in ((3, 1, 1), (1, 1, 1)) and bool(((values >= 0) & (values <= 1)).all())


def _of_pictures(folder: Path, info: Info, camera: Feature, episodes: Sequence[Episode], tell: Tell) -> list[Stats]:
    found: dict[int, Stats] = {}
    pictures = _played if camera.dtype == "video" else _embedded
    for number, sample in pictures(folder, info, camera.key, episodes):
        found[number] = _of_sample(sample)
        tell(len(found) / len(episodes))
    if missing := [episode.number for episode in episodes if episode.number not in found]:
        why = f"Camera {shown(camera.key)} has no picture of episode {missing[0]}."
        raise RecordingError("The statistics of the pictures cannot be computed.", why, FETCH_AGAIN, code="video-unreadable")
    return [found[episode.number] for episode in episodes]


def _of_sample(pictures: Sequence[np.ndarray]) -> Stats:
    """The statistics of pictures (height, width, 3), uint8, per colour."""
    counts = [[np.bincount(picture[..., colour].ravel(), minlength=256) for colour in range(3)] for picture in pictures]
    levels = np.asarray(np.sum(counts, axis=0), np.float64)
    total, value = levels.sum(axis=1), np.arange(256) / 255
    mean = levels @ value / total
    seen = levels > 0
    below = levels.cumsum(axis=1) / total[:, None]
    stats = {
        "min": value[seen.argmax(axis=1)],
        "max": value[255 - seen[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(0, levels @ value**2 / total - mean**2)),
        **{name: value[(below >= part).argmax(axis=1)] for name, part in QUANTILES.items()},
    }
    return {name: values.reshape(3, 1, 1) for name, values in stats.items()} | {"count": np.array([len(pictures)])}


def _sampled(length: int) -> set[int]:
    return set(np.round(np.linspace(0, length - 1, min(length, SAMPLES))).astype(int).tolist())


def _small(picture: np.ndarray) -> np.ndarray:
    step = max(1, max(picture.shape[:2]) // SIDE)
    return picture[::step, ::step]


def _played(folder: Path, info: Info, camera: str, episodes: Sequence[Episode]) -> Iterator[tuple[int, list[np.ndarray]]]:
    import av

    for path, rows in by_video(episodes, camera).items():
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                wanted = {round(row.videos[camera].start * info.fps) + n: row for row in rows for n in _sampled(row.length)}
                sample: dict[int, list[np.ndarray]] = {}
                for frame in _decoded(container, stream):
                    place = round(float(frame.pts * stream.time_base) * info.fps) if frame.pts is not None else -1
                    if (row := wanted.pop(place, None)) is None:
                        continue
                    sample.setdefault(row.number, []).append(_small(frame.to_ndarray(format="rgb24")))
                    if not any(other is row for other in wanted.values()):
                        yield row.number, sample.pop(row.number)
                yield from sample.items()
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            why = f"PyAV says: {shown(error)}."
            raise RecordingError(f"{'/'.join(path.parts[-3:])} cannot be played.", why, FETCH_AGAIN, code="video-unreadable") from error


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The pictures of a video that can be decoded: what is damaged may belong to episodes that are left out."""
    import av

    for packet in container.demux(stream):
        with contextlib.suppress(av.FFmpegError):
            yield from packet.decode()


def _embedded(folder: Path, info: Info, camera: str, episodes: Sequence[Episode]) -> Iterator[tuple[int, list[np.ndarray]]]:
    import pyarrow.parquet as pq
    from PIL import Image

    wanted = {row.number: _sampled(row.length) for row in episodes}
    sample: dict[int, list[np.ndarray]] = {}
    for path in parquet_files(folder / "data"):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(32, columns=["episode_index", "frame_index", camera]):
                for row in batch.to_pylist():
                    number = row["episode_index"]
                    if row["frame_index"] not in wanted.get(number, ()) or not (row[camera] or {}).get("bytes"):
                        continue
                    picture = Image.open(io.BytesIO(row[camera]["bytes"])).convert("RGB")
                    sample.setdefault(number, []).append(_small(np.asarray(picture)))
                    if len(sample[number]) == len(wanted[number]):
                        yield number, sample.pop(number)


# --- writing


def _write(folder: Path, whole: Mapping[str, Stats], each: Mapping[str, Sequence[Stats]], place_of: Mapping[int, int]) -> None:
    import pyarrow as pa

    def with_stats(table: pa.Table) -> pa.Table:
        order = [place_of[number] for number in table.column("episode_index").to_pylist()]
        for key, stats in each.items():
            old = [name for name in table.column_names if name.startswith(f"stats/{key}/")]
            table = table.drop_columns(old) if old else table
            for word in stats[0]:
                values = [stats[place][word].tolist() for place in order]
                kind = pa.list_(pa.int64()) if word == "count" else _list_of(stats[0][word].ndim)
                table = table.append_column(f"stats/{key}/{word}", pa.array(values, kind))
        # The table's own description of its columns, which the datasets library reads, is of the old ones.
        return table.replace_schema_metadata({k: v for k, v in (table.schema.metadata or {}).items() if k != b"huggingface"})

    for path in parquet_files(folder / "meta" / "episodes"):
        rewrite(path, with_stats)
    path = folder / "meta" / "stats.json"
    try:
        said = read_json(path, 64 * 2**20)
    except (OSError, ValueError):
        said = {}
    said = {key: value for key, value in said.items() if key not in whole} if isinstance(said, dict) else {}
    said |= {key: {word: values.tolist() for word, values in stats.items()} for key, stats in whole.items()}
    path.write_text(json.dumps(said, indent=4), encoding="utf-8")


def _list_of(depth: int) -> pa.DataType:
    import pyarrow as pa

    kind = pa.float64()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind
