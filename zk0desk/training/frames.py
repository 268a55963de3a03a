"""Recordings as batches for SmolVLA: state and action normalised per recording, cameras in the policy's slots, tokenised tasks.

State, action, task and time of every frame lie in memory. Video is decoded by LeRobot's own function, on threads, and
decoded pictures are kept, as bytes, up to a budget: a small recording is decoded once in the life of a node.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.quiet import quiet_libraries
from zk0desk.settings import ChosenRecording
from zk0desk.training.decoder import decoder_of
from zk0desk.training.policy_files import PolicyError

if TYPE_CHECKING:
    import torch
    from lerobot.datasets.video_utils import VideoDecoderCache

    from zk0desk.training.policy import TrainablePolicy

KEEP_BYTES = 512 * 2**20
"""Decoded pictures that are kept in memory."""
RUN = 64
"""Consecutive frames that are decoded together while pictures are kept."""
TOLERANCE_S = 1e-4
OPEN_VIDEOS = 4
"""Videos that a thread keeps open."""
_log = logging.getLogger(__name__)

Batch = dict[str, "torch.Tensor"]


def require_readable(path: Path) -> None:
    """Raise RecordingError unless the recording at `path` is whole; LeRobot would ask the Hub for what is missing."""
    from zk0desk.training.recordings import RecordingError, quick_check

    result = quick_check(path)
    if result.status != "ok":
        first = result.findings[0]
        raise RecordingError(first.what, first.why, first.remedy)


def camera_slots(policy_folder: Path, chosen: ChosenRecording) -> dict[str, str]:
    """Which camera of the recording fills which slot of the policy: {slot's key: camera's key}."""
    from zk0desk.training.recordings import map_cameras, policy_needs, read_recording

    return dict(map_cameras(read_recording(chosen.path), policy_needs(policy_folder), chosen.cameras).slots)


@dataclass(frozen=True)
class FrameTable:
    """One recording without its pictures. `n` frames, states (n, state dims), actions (n, action dims), both normalised.

    `first` and `last` are the positions of a frame's episode (last is exclusive). `content` is a SHA-256 of what was read.
    """

    name: str
    states: np.ndarray
    actions: np.ndarray
    first: np.ndarray
    last: np.ndarray
    tasks: list[str]
    content: str
    pictures: Pictures

    def __len__(self) -> int:
        return len(self.states)


class Frames:
    """The frames of several recordings, numbered 0, 1, ... `len(frames)` in the order of the recordings. Thread-safe."""

    def __init__(self, policy: TrainablePolicy, recordings: Sequence[ChosenRecording], *, keep_bytes: int = KEEP_BYTES) -> None:
        config = policy.policy.config
        self.chunk = int(config.chunk_size)
        budget = _Budget(keep_bytes)
        self.tables = [_read_table(policy, chosen, budget) for chosen in recordings]
        self.starts = np.cumsum([0, *map(len, self.tables)])
        tokenizer = policy.policy.model.vlm_with_expert.processor.tokenizer
        texts = sorted({task for table in self.tables for task in table.tasks})
        # As LeRobot's steps do: a task ends with a new line, padding is on the right.
        tokens = tokenizer(
            [text if text.endswith("\n") else f"{text}\n" for text in texts],
            max_length=config.tokenizer_max_length,
            truncation=True,
            padding=config.pad_language_to,
            padding_side="right",
            return_tensors="pt",
        )
        self._token_row = {text: row for row, text in enumerate(texts)}
        self._tokens, self._token_mask = tokens["input_ids"], tokens["attention_mask"].bool()

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def stay(self) -> bool:
        """Whether all decoded pictures stay in memory: then a frame is decoded once."""
        return all(table.pictures.stay for table in self.tables)

    @property
    def picture_bytes(self) -> int:
        """Bytes of a frame's decoded pictures, in the mean."""
        return sum(len(table) * table.pictures.frame_bytes for table in self.tables) // max(1, len(self))

    def locate(self, index: int) -> tuple[FrameTable, int]:
        """The recording and the position in it of frame `index`."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.tables[number], int(index - self.starts[number])

    def valid_entries(self, indices: Sequence[int]) -> np.ndarray:
        """For each frame the number of (time, dimension) entries that its loss averages: what lies in its episode."""
        result = np.empty(len(indices), np.int64)
        for place, index in enumerate(indices):
            table, row = self.locate(index)
            result[place] = min(self.chunk, table.last[row] - row) * table.actions.shape[1]
        return result

    def alike(self, indices: Sequence[int]) -> list[list[int]]:
        """Places in `indices`, grouped so that one batch can hold each group: equal action dimensions, cameras and sizes."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, index in enumerate(indices):
            table, _ = self.locate(index)
            groups.setdefault((table.actions.shape[1], table.states.shape[1], table.pictures.signature), []).append(place)
        return list(groups.values())

    def action_size(self, index: int) -> int:
        """Action dimensions of the recording that frame `index` belongs to."""
        return int(self.locate(index)[0].actions.shape[1])

    def batch(self, indices: Sequence[int], pool: ThreadPoolExecutor | None = None) -> Batch:
        """A batch of frames that are alike, on the CPU: pictures uint8 (b, 3, h, w), the rest as `SmolVLAPolicy.forward` takes it."""
        return self.columns(indices) | self.pictures(indices, pool)

    def columns(self, indices: Sequence[int]) -> Batch:
        """A batch without its pictures: state, actions and the tokens of the instruction, all from memory."""
        import torch

        places = [self.locate(index) for index in indices]
        steps = np.arange(self.chunk)
        actions, padded = [], []
        for table, row in places:
            rows = row + steps
            actions.append(table.actions[np.minimum(rows, table.last[row] - 1)])
            padded.append(rows >= table.last[row])
        rows = torch.tensor([self._token_row[table.tasks[row]] for table, row in places])
        return {
            "observation.state": torch.from_numpy(np.stack([table.states[row] for table, row in places])),
            "action": torch.from_numpy(np.stack(actions)),
            "action_is_pad": torch.from_numpy(np.stack(padded)),
            "observation.language.tokens": self._tokens[rows],
            "observation.language.attention_mask": self._token_mask[rows],
        }

    def pictures(self, indices: Sequence[int], pool: ThreadPoolExecutor | None = None) -> Batch:
        """The pictures of frames that are alike: uint8 (b, 3, h, w) for each slot. Decoded where they are not kept in memory."""
        import torch

        places = [self.locate(index) for index in indices]
        run = pool.map if pool and not all(table.pictures.kept(row) for table, row in places) else map
        seen = list(run(lambda place: place[0].pictures.of(place[1]), places))
        return {slot: torch.stack([pictures[slot] for pictures in seen]) for slot in places[0][0].pictures.slots}

    def instruction(self, task: str) -> list[int]:
        """The token ids of a task of these recordings, without padding."""
        row = self._token_row[task]
        ids: list[int] = self._tokens[row][self._token_mask[row]].tolist()
        return ids


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, pictures as float32 in [0, 1]."""
    import torch

    moved = {key: value.to(device) for key, value in batch.items()}
    return {key: value.float().div_(255) if value.dtype is torch.uint8 else value for key, value in moved.items()}


def ahead(work: Callable[[Any], Any], items: Iterator[Any], pool: ThreadPoolExecutor) -> Iterator[Any]:
    """Yield (item, work(item)); the next item's work is done on `pool` while the caller uses this one's."""
    waiting: tuple[Any, Future[Any]] | None = None
    try:
        for item in items:
            following = (item, pool.submit(work, item))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
    finally:
        if waiting is not None:
            waiting[1].cancel()


class _Budget:
    """Bytes of pictures that may still be kept."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True


class Pictures:
    """The pictures of one recording, by row: decoded when asked for, kept while the budget lasts."""

    def __init__(self, dataset: Any, rows: np.ndarray, slots: Mapping[str, str], budget: _Budget, decoder: str = "pyav") -> None:
        self._dataset = dataset
        self.decoder = decoder
        self._own = threading.local()
        self._rows = rows
        self.slots = dict(slots)
        self.root = Path(dataset.root)
        self._budget = budget
        self._kept: dict[tuple[str, int], torch.Tensor] = {}
        self._locks: dict[tuple[str, int], threading.Lock] = {}
        self._lock = threading.Lock()
        features = dataset.meta.features
        self.signature = tuple((slot, tuple(features[camera]["shape"])) for slot, camera in sorted(self.slots.items()))
        columns = dataset.hf_dataset.select_columns(["episode_index", "timestamp"]).with_format("numpy")[:]
        self._episode, self._time = np.asarray(columns["episode_index"])[rows], np.asarray(columns["timestamp"])[rows]
        self.frame_bytes = sum(int(np.prod(shape)) for _, shape in self.signature)
        # Neighbours are decoded along only if all can stay: else they would be decoded again and again.
        self.stay = self.frame_bytes * len(rows) <= budget._left
        self._run = RUN if self.stay else 1

    @property
    def total(self) -> int:
        """Frames of the recording, those that are left out included."""
        return len(self._dataset.hf_dataset)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first camera's pictures."""
        shape = self.signature[0][1]
        return (shape[0], shape[1]) if shape[-1] == 3 else (shape[1], shape[2])

    def row_of(self, row: int) -> int:
        """The place in the whole recording of a row: it stays when other episodes are left out."""
        return int(self._rows[row])

    def forget(self) -> None:
        """Give the memory of decoded pictures back. What is asked for again is decoded again."""
        with self._lock:
            gone, self._kept = self._kept, {}
        self._budget.take(-sum(picture.numel() for picture in gone.values()))

    @property
    def transformed(self) -> bool:
        """Whether the pictures of a row are changed at random each time that they are read."""
        return getattr(self._dataset, "image_transforms", None) is not None

    def kept(self, row: int) -> bool:
        """Whether the pictures of a row need no decoding."""
        return all((camera, row) in self._kept for camera in self.slots.values())

    def of(self, row: int) -> dict[str, torch.Tensor]:
        """The pictures of a row: {slot's key: uint8 (3, h, w)}."""
        return {slot: self._picture(camera, row) for slot, camera in self.slots.items()}

    def _picture(self, camera: str, row: int) -> torch.Tensor:
        picture = self._kept.get((camera, row))
        if picture is not None:
            return picture
        with self._lock:
            lock = self._locks.setdefault((camera, row // self._run), threading.Lock())
        with lock:
            picture = self._kept.get((camera, row))
            if picture is not None:
                return picture
            start = row // self._run * self._run
            rows = [n for n in range(start, min(start + self._run, len(self._rows))) if self._episode[n] == self._episode[row]]
            decoded = self._decode(camera, rows)
            for n, value in zip(rows, decoded, strict=True):
                if (camera, n) not in self._kept and self._budget.take(value.numel()):
                    self._kept[camera, n] = value.clone()
            return decoded[rows.index(row)]

    def _decode(self, camera: str, rows: list[int]) -> torch.Tensor:
        import torch
        from lerobot.datasets.video_utils import decode_video_frames, decode_video_frames_torchcodec

        meta = self._dataset.meta
        if camera in meta.image_keys:
            pictures = torch.stack([self._dataset.hf_dataset[int(self._rows[n])][camera] for n in rows])
            return (pictures * 255).round().to(torch.uint8)
        episode = int(self._episode[rows[0]])
        begin = meta.episodes[episode][f"videos/{camera}/from_timestamp"]
        path = self._dataset.root / meta.get_video_file_path(episode, camera)
        times = [begin + float(self._time[n]) for n in rows]
        if self.decoder == "torchcodec":
            try:
                return decode_video_frames_torchcodec(path, times, TOLERANCE_S, decoder_cache=self._videos(), return_uint8=True)
            except Exception as error:  # noqa: BLE001 - whatever it cannot do, PyAV may; what neither can, PyAV says
                _log.warning("torchcodec cannot decode %s, PyAV is used: %s", path, error)
                self.decoder = "pyav"
        return decode_video_frames(path, times, TOLERANCE_S, backend="pyav", return_uint8=True)

    def _videos(self) -> VideoDecoderCache:
        """The calling thread's open videos: torchcodec's decoders are not for several threads at once."""
        from lerobot.datasets.video_utils import VideoDecoderCache

        if not hasattr(self._own, "videos"):
            self._own.videos = VideoDecoderCache(OPEN_VIDEOS)
        videos: VideoDecoderCache = self._own.videos
        return videos


def _read_table(policy: TrainablePolicy, chosen: ChosenRecording, budget: _Budget) -> FrameTable:
    quiet_libraries()
    import torch
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.processor import TransitionKey
    from lerobot.processor.converters import create_transition
    from lerobot.processor.normalize_processor import NormalizerProcessorStep

    from zk0desk.training.curation import require_current
    from zk0desk.training.recordings import RecordingError

    config = policy.policy.config
    if config.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY) is not NormalizationMode.IDENTITY:
        raise PolicyError(
            "This policy cannot be trained.", "It normalises pictures by a recording's statistics.", "Use a SmolVLA base policy."
        )
    require_readable(chosen.path)
    require_current(chosen)
    slots = camera_slots(policy.files.folder, chosen)
    if not slots:
        raise RecordingError(
            f"{chosen.path.name} cannot be trained on.",
            "No camera of it fills a slot of the policy.",
            "Choose which camera fills which slot.",
        )
    dataset = LeRobotDataset(f"local/{chosen.path.name}", root=chosen.path, video_backend="pyav")
    columns = dataset.hf_dataset.select_columns(["observation.state", "action", "episode_index", "task_index"]).with_format("numpy")[:]
    episode = np.asarray(columns["episode_index"])
    rows = np.flatnonzero(~np.isin(episode, chosen.leave_out))
    if not len(rows):
        raise RecordingError(
            f"{chosen.path.name} has no frames to train on.", "All its episodes are left out.", "Leave in at least one episode."
        )
    states = _matrix(columns["observation.state"])[rows]
    actions = _matrix(columns["action"])[rows]
    if states.shape[1] > config.max_state_dim or actions.shape[1] > config.max_action_dim:
        raise RecordingError(
            f"{chosen.path.name} does not fit the policy.",
            f"It has {states.shape[1]} state and {actions.shape[1]} action dimensions;"
            f" the policy takes {config.max_state_dim} and {config.max_action_dim}.",
            "Choose a recording of a robot with fewer joints.",
        )
    episode = episode[rows]
    borders = np.flatnonzero(np.diff(episode)) + 1
    starts, ends = np.r_[0, borders], np.r_[borders, len(rows)]
    names = {int(number): str(text) for text, number in dataset.meta.tasks["task_index"].items()}
    tasks = [names[int(number)] for number in np.asarray(columns["task_index"])[rows]]
    digest = hashlib.sha256(states.tobytes() + actions.tobytes() + "\n".join(tasks).encode())
    normalise = NormalizerProcessorStep(
        features={
            "observation.state": PolicyFeature(FeatureType.STATE, (states.shape[1],)),
            "action": PolicyFeature(FeatureType.ACTION, (actions.shape[1],)),
        },
        norm_map={FeatureType(key): mode for key, mode in config.normalization_mapping.items()},
        stats={key: dataset.meta.stats[key] for key in ("observation.state", "action")},
    )
    normal = normalise(create_transition(observation={"observation.state": torch.from_numpy(states)}, action=torch.from_numpy(actions)))
    return FrameTable(
        name=chosen.path.name,
        states=normal[TransitionKey.OBSERVATION]["observation.state"].numpy(),
        actions=normal[TransitionKey.ACTION].numpy(),
        first=np.repeat(starts, ends - starts),
        last=np.repeat(ends, ends - starts),
        tasks=tasks,
        content=digest.hexdigest(),
        pictures=Pictures(dataset, rows, slots, budget, decoder_of(chosen.path).name),
    )


def _matrix(column: Any) -> np.ndarray:
    values = np.ascontiguousarray(np.asarray(column), np.float32)
    return values.reshape(len(values), -1)
