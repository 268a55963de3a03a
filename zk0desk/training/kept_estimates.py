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
from zk0desk.events import Event, RoundStarted, RoundTrained, Sink, StepDone
from zk0desk.settings import ChosenRecording
from zk0desk.training.estimate import Estimate, Key
from zk0desk.training.hardware_look import cpu_name

if TYPE_CHECKING:
    from zk0desk.training.hardware_types import Computer, Verdict
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.trainer import LocalTrainer

KEPT = 100
"""Estimates that are kept; the oldest go."""


def kept(policy_id: str, cameras: Sequence[str], frames: int, computer: Computer, answer: Verdict) -> Estimate | None:
    """The estimate that was made for this policy and these cameras on the device that the verdict names, for so many frames."""
    device = answer.device.partition(":")[0]
    name = computer.cpu
    if device == "cuda":
        name = [gpu for gpu in computer.gpus if gpu.kind != "mps"][int(answer.device.partition(":")[2])].name
    key = (device, name, answer.precision, policy_id, tuple(cameras))
    return next((replace(estimate, frames=frames) for estimate in _read() if estimate.key == key), None)


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

    Pauses and waiting for data are left out: computing is compared with computing.
    """

    def __init__(self, emit: Sink) -> None:
        self._emit = emit
        self._key: Key | None = None
        self._frames = self._steps = 0
        self._seconds = 0.0

    def watch(self, key: Key) -> None:
        """What is trained from here on."""
        self._key = key

    def __call__(self, event: Event) -> None:
        self._emit(event)
        if isinstance(event, RoundStarted):
            self._frames, self._steps, self._seconds = 0, 0, 0.0
        elif isinstance(event, StepDone):
            self._frames, self._steps, self._seconds = self._frames + event.frames, self._steps + 1, self._seconds + event.seconds
        elif isinstance(event, RoundTrained) and self._steps:
            self._correct()

    def _correct(self) -> None:
        estimate = next((each for each in _read() if each.key == self._key), None)
        if estimate is not None:
            seconds = self._seconds / (1 - estimate.waiting)
            keep(estimate.corrected(self._steps, seconds, batch=max(1, round(self._frames / self._steps))))


def key_of(policy: TrainablePolicy, trainer: LocalTrainer, recordings: Sequence[ChosenRecording]) -> Key:
    """What an estimate of this training is kept for. torch is loaded already."""
    import torch

    name = torch.cuda.get_device_name(policy.device) if trainer.device == "cuda" else cpu_name()
    return trainer.device, name, trainer.precision, policy.files.policy_id, camera_sizes(policy.files.folder, recordings)


def camera_sizes(policy_folder: Path, recordings: Sequence[ChosenRecording]) -> tuple[str, ...]:
    """The sizes of the pictures of a frame, of each recording that differs: "640x480", or "640x480+320x240" with two cameras."""
    from zk0desk.training.frames import camera_slots
    from zk0desk.training.recordings import read_recording

    sizes = set()
    for chosen in recordings:
        by_key = {camera.key: f"{camera.width}x{camera.height}" for camera in read_recording(chosen.path).cameras}
        sizes.add("+".join(sorted(by_key[camera] for camera in camera_slots(policy_folder, chosen).values())))
    return tuple(sorted(sizes))


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
