"""The global weights that a node keeps of each run: the newest, and the best by held-out loss. No torch.

A folder `runs/RUN/` holds `global-last.npy`, `global-best.npy` (float32, flat, in the order of the layout) and `run.json`,
which is written last: {"policy": folder, "recordings": [...], "last": {"round", "eval-loss"}, "best": {...}}.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zk0desk import folders
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.settings import ChosenRecording

Which = Literal["last", "best"]


class NoKeptRunError(OperatorError):
    """This computer holds no global weights."""

    code = "no-shared-policy"
    exit_status = ExitStatus.UNUSABLE


@dataclass(frozen=True)
class KeptRun:
    """A run that this node took part in. `rounds` and `losses` say which round the kept weights are of, and its held-out loss."""

    folder: Path
    policy: Path
    recordings: tuple[ChosenRecording, ...]
    rounds: dict[str, int]
    losses: dict[str, float | None]

    @property
    def run(self) -> str:
        """The run's id."""
        return self.folder.name

    def weights(self, which: Which = "last") -> np.ndarray:
        """The kept weights, float32, flat. Where no held-out loss was told, the best are the last."""
        path = self.folder / f"global-{which}.npy"
        if not path.exists():
            path = self.folder / "global-last.npy"
        return np.asarray(np.load(path, allow_pickle=False))


def keep_weights(
    run: str, weights: np.ndarray, *, round: int, eval_loss: float | None, policy: Path, recordings: Sequence[ChosenRecording]
) -> Path:
    """Keep the global weights after `round`, and as the best when `eval_loss` is the lowest so far. Returns the run's folder."""
    folder = folders.private_folder(folders.runs_folder() / _safe(run))
    data = _read(folder)
    entry = {"round": round, "eval-loss": eval_loss}
    best = data.get("best")
    names: list[str] = ["last"]
    if eval_loss is not None and (best is None or best["eval-loss"] is None or eval_loss < best["eval-loss"]):
        names.append("best")
    for name in names:
        _write(folder / f"global-{name}.npy", lambda file: np.save(file, weights, allow_pickle=False))
        data[name] = entry
    data |= {"policy": str(policy), "recordings": [each.model_dump(mode="json", by_alias=True) for each in recordings]}
    _write(folder / "run.json", lambda file: file.write(json.dumps(data, indent=1).encode()))
    return folder


def kept_runs() -> list[KeptRun]:
    """The runs whose global weights are on this computer, newest first."""
    runs = folders.runs_folder()
    found = sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True) if runs.is_dir() else []
    return [run for path in found if (run := _kept(path.parent)) is not None]


def newest_run() -> KeptRun:
    """The run whose weights came last; `NoKeptRunError` when there is none."""
    for run in kept_runs():
        return run
    raise NoKeptRunError(
        "There is no shared policy on this computer yet.",
        "It comes with the first round that this node takes part in.",
        "Join a federation, and save after its first round.",
    )


def _kept(folder: Path) -> KeptRun | None:
    data = _read(folder)
    if "last" not in data or not (folder / "global-last.npy").exists():
        return None
    return KeptRun(
        folder=folder,
        policy=Path(data["policy"]),
        recordings=tuple(ChosenRecording.model_validate(each) for each in data["recordings"]),
        rounds={name: int(data[name]["round"]) for name in ("last", "best") if name in data},
        losses={name: data[name]["eval-loss"] for name in ("last", "best") if name in data},
    )


def _read(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _safe(run: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", run)[:128]
    return name if name.strip(".") else "run"


def _write(path: Path, fill: Any) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
