"""The statistics that a policy was trained with, from the normaliser that LeRobot saves beside it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zk0desk.training.policy_files import PROCESSORS
from zk0desk.training.recording_info import read_json

MAX_BYTES = 64 * 2**20
NORMALISER = "normalizer_processor"
WORDS = ("min", "max", "mean", "std")


def policy_statistics(folder: Path) -> dict[str, dict[str, Any]]:
    """As a recording's `stats.json`: of each feature, lists by `min`, `max`, `mean` and `std`, as far as they are there.

    Empty where the policy has no normaliser, or one that cannot be read: a policy needs none to be trained here.
    """
    try:
        pipeline = read_json(folder / f"{PROCESSORS[0]}.json", MAX_BYTES)
        names = [step["state_file"] for step in pipeline["steps"] if step.get("registry_name") == NORMALISER and step.get("state_file")]
        path = folder / Path(str(names[0])).name  # never a file elsewhere
        if path.stat().st_size > MAX_BYTES:
            return {}
        return _read(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError):
        return {}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    found: dict[str, dict[str, Any]] = {}
    try:
        for key, values in load_file(path).items():
            feature, _, word = key.rpartition(".")
            if word in WORDS and values.ndim == 1:
                found.setdefault(feature, {})[word] = values.astype(float).tolist()
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return found
