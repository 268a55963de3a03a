"""Estimates that were measured on this computer, in the state folder, and what real training teaches about them. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk import folders
from zk0desk.events import Event, PrefixChosen, RoundStarted, RoundTimes, RoundTrained, Sink, StepDone
from zk0desk.settings import Cache, ChosenRecording, Policy, Recordings, Settings, Training
from zk0desk.training.estimate import KEEPING, Estimate, Key
from zk0desk.training.hardware_look import cpu_name

if TYPE_CHECKING:
    from zk0desk.training.hardware_types import Computer, Verdict
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.prefix_level import LevelChoice
    from zk0desk.training.trainer import LocalTrainer

KEPT = 100
"""Estimates that are kept; the oldest go."""


def kept(policy_id: str, cameras: Sequence[str], frames: int, computer: Computer, answer: Verdict, expected: str) -> Estimate | None:
    """The estimate that was made for this policy and these cameras on the device that the verdict names, for so many frames.

    `expected` is the level that the files let expect now: what was measured when they let expect the same comes first, whatever level it
    had in the end; else what was measured at that level.
    """
    device = answer.device.partition(":")[0]
    name = computer.cpu
    if device == "cuda":
        name = [gpu for gpu in computer.gpus if gpu.kind != "mps"][int(answer.device.partition(":")[2])].name
    key = Key(device, name, answer.precision, policy_id, tuple(cameras), "")
    same = sorted((each for each in _read() if each.key._replace(level="") == key), key=lambda each: -each.date)
    found = [each for each in same if each.expected == expected] + [each for each in same if each.level == expected]
    return replace(found[0], frames=frames) if found else None


def any_kept(policy_id: str) -> bool:
    """Whether anything was measured for this policy."""
    return any(each.policy_id == policy_id for each in _read())


def keep(estimate: Estimate) -> None:
    """Keep `estimate` in place of what was kept for the same. A disk that cannot be written costs only the memory of it."""
    others = [other for other in _read() if other.key != estimate.key]
    newest = sorted([*others, estimate], key=lambda each: each.date)[-KEPT:]
    path = _file()
    with contextlib.suppress(OSError):
        folders.private_folder(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump([each.to_json() for each in newest], file, indent=1)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


class Learning:
    """A sink before `emit` that lets what steps of real training took correct the estimate that is kept for them, if there is one.

    Pauses and waiting for data are left out: computing is compared with computing. So are rounds in which a frame was prepared: an
    estimate's step is one over frames that were visited before.
    """

    def __init__(self, emit: Sink) -> None:
        self._emit = emit
        self._key: Key | None = None
        self._frames = self._steps = self._missed = 0
        self._seconds = 0.0

    def watch(self, key: Key) -> None:
        """What is trained from here on; its level is the one that is chosen."""
        self._key = key

    def __call__(self, event: Event) -> None:
        self._emit(event)
        match event:
            case RoundStarted():
                self._frames, self._steps, self._missed, self._seconds = 0, 0, 0, 0.0
            case PrefixChosen() if self._key is not None:
                self._key = self._key._replace(level=event.level)
            case StepDone():
                self._frames, self._steps, self._seconds = self._frames + event.frames, self._steps + 1, self._seconds + event.seconds
            case RoundTimes():
                self._missed = event.asked - event.hits
            case RoundTrained() if self._steps and not self._missed:
                self._correct()

    def _correct(self) -> None:
        estimate = next((each for each in _read() if each.key == self._key), None)
        if estimate is not None:
            seconds = self._seconds / (1 - estimate.waiting)
            keep(estimate.corrected(self._steps, seconds, batch=max(1, round(self._frames / self._steps))))


def key_of(policy: TrainablePolicy, trainer: LocalTrainer, recordings: Sequence[ChosenRecording]) -> Key:
    """What an estimate of this training is kept for, at the level that it has now. torch is loaded already."""
    import torch

    name = torch.cuda.get_device_name(policy.device) if trainer.device == "cuda" else cpu_name()
    cameras = camera_sizes(policy.files.folder, recordings)
    return Key(trainer.device, name, trainer.precision, policy.files.policy_id, cameras, trainer.forward.level)


def camera_sizes(policy_folder: Path, recordings: Sequence[ChosenRecording]) -> tuple[str, ...]:
    """The sizes of the pictures of a frame, of each recording that differs: "640x480", or "640x480+320x240" with two cameras."""
    from zk0desk.training.frames import camera_slots
    from zk0desk.training.recordings import read_recording

    sizes = set()
    for chosen in recordings:
        by_key = {camera.key: f"{camera.width}x{camera.height}" for camera in read_recording(chosen.path).cameras}
        sizes.add("+".join(sorted(by_key[camera] for camera in camera_slots(policy_folder, chosen).values())))
    return tuple(sorted(sizes))


def expected_choice(policy: Path, recordings: Sequence[ChosenRecording], training: Training, cache: Cache) -> LevelChoice | None:
    """What the files let expect of the prefix cache (`prefix_estimate.estimated_choice`)."""
    from zk0desk.training.prefix_estimate import estimated_choice

    chosen = Recordings(chosen=tuple(recordings))
    return estimated_choice(Settings(policy=Policy(folder=policy), recordings=chosen, training=training, cache=cache))


def with_what_is_prepared(estimate: Estimate, recordings: Sequence[ChosenRecording], cache: Cache, expected: LevelChoice) -> Estimate:
    """`estimate` with the frames that are prepared now at its level, by the cache's index, and the share of them that is kept."""
    from zk0desk.training.prefix_cache import PrefixCache
    from zk0desk.training.recordings import read_recording

    if estimate.level not in KEEPING:
        return estimate
    frames = {chosen.path.expanduser().resolve(): read_recording(chosen.path).frames for chosen in recordings}
    filled: dict[tuple[Path, object], int] = {}
    with PrefixCache(cache.folder.expanduser() if cache.folder else None) as shelves:
        for shelf in shelves.shelves():  # the one that was used last first: an older one is of a content that changed
            path, about = Path(str(shelf.about.get("path"))).expanduser().resolve(), shelf.about
            if (about.get("level"), about.get("policy")) == (estimate.level, estimate.policy_id) and shelf.entries == frames.get(path):
                filled.setdefault((path, about.get("task")), shelf.filled)
    share = expected.share if expected.level == estimate.level else estimate.share
    return replace(estimate, prepared=min(estimate.frames, sum(filled.values())), share=share)


def _file() -> Path:
    return folders.state_folder() / "estimates.json"


def _read() -> list[Estimate]:
    try:
        data = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = []
    for each in data if isinstance(data, list) else []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found.append(Estimate.from_json(each))
    return found
