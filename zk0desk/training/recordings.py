"""Recordings on this computer: finding and reading them. The public names of everything about recordings are here.

Nothing here imports torch, asks the Hub, or writes into a recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from zk0desk.training.camera_mapping import fit_together, map_cameras
from zk0desk.training.deep_check import Progress, deep_check, kept_answer
from zk0desk.training.recording_check import describe, quick_check
from zk0desk.training.recording_info import parse_json, read_info
from zk0desk.training.recording_types import (
    Camera,
    CameraMapping,
    CheckResult,
    Finding,
    PolicyNeeds,
    Recording,
    RecordingError,
    Severity,
    Status,
)
from zk0desk.training.recording_watch import MAX_DEPTH, Tree
from zk0desk.training.thumbnails import thumbnail

__all__ = [
    "MAX_DEPTH",
    "Camera", "CameraMapping", "CheckResult", "Finding", "PolicyNeeds", "Progress", "Recording", "RecordingError", "Severity", "Status",
    "deep_check", "find_recordings", "fit_together", "kept_answer", "map_cameras", "policy_needs", "quick_check", "read_recording",
    "standard_folders", "thumbnail",
]  # fmt: skip


def standard_folders() -> list[Path]:
    """Where LeRobot keeps recordings itself: `HF_LEROBOT_HOME` and the Hub's cache below it."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    cache = Path(os.environ.get("HF_HOME", f"{base}/huggingface")).expanduser()
    return [Path(os.environ.get("HF_LEROBOT_HOME", cache / "lerobot")).expanduser()]


def find_recordings(folders: Iterable[Path], *, standard: bool = True) -> list[Path]:
    """The recordings in `folders` and, with `standard`, where LeRobot keeps its own: folders that hold meta/info.json.

    A link is followed once, and nothing is looked for inside a recording. Folders that cannot be read are passed over.
    """
    tree = Tree()
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for start in [*folders, *(standard_folders() if standard else [])]:
        for path in tree.recordings(Path(start).expanduser(), seen):
            if path not in found:
                found.append(path)
    return found


def read_recording(path: Path) -> Recording:
    """The recording in `path` as it describes itself, without looking at its data. `RecordingError` where it cannot be read."""
    path = Path(path).expanduser()
    return describe(path, read_info(path))


def policy_needs(folder: Path) -> PolicyNeeds:
    """What the policy in `folder` asks of a recording, from its config.json. `RecordingError` when that cannot be read."""
    path = Path(folder).expanduser() / "config.json"
    default = PolicyNeeds()
    try:
        with path.open("rb") as file:
            config = parse_json(file.read(2**22))
        features = config.get("input_features") or {}
        slots = tuple(key for key, value in features.items() if str(value.get("type")).upper() == "VISUAL")
        numbers = [int(config.get(key, at)) for key, at in (("max_state_dim", 32), ("max_action_dim", 32), ("chunk_size", 50))]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecordingError(
            f"{path} cannot be read.", f"{error}.", "Choose a SmolVLA policy's folder: it holds config.json.", code="policy-unreadable"
        ) from error
    return PolicyNeeds(numbers[0], numbers[1], slots or default.camera_slots, numbers[2])
