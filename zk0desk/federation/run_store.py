"""What a node keeps on disk of a run, in `folders.runs_folder()/RUN/`: enough to go on after a power cut, and to take the policy home.

    run.json          the federation, the policy's fingerprints, which rounds the files below are of
    global-last.npy   the newest global weights that came (float32, flat, in the layout's order)
    global-best.npy   those with the lowest held-out loss that the coordinator told
    round/            the middle of the round that is under way (`training.checkpoint`)
    optimiser/        its moments after the last two rounds, when the operator wants them kept (`training.optimiser`)
    update.npy        this node's update of a round until it was delivered, with update.json beside it
    residual-N.npy    what the encoding left out of the update of round N (`error_feedback`)

Files are written whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from zk0desk import folders
from zk0desk.federation.error_feedback import ErrorFeedback
from zk0desk.federation.messages import FinalWeights, TrainRequest
from zk0desk.federation.updates import weights_sha256
from zk0desk.training.checkpoint import EVERY_S, OPTIMISER, SPARE_BYTES, RoundCheckpoint
from zk0desk.training.rounds import RoundResult

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation
    from zk0desk.training.policy_files import PolicyFiles

RUN, LAST, BEST, UPDATE, UPDATE_FACTS = "run.json", "global-last.npy", "global-best.npy", "update.npy", "update.json"
ROUND = "round"


class RunStore:
    """The folder of one run. `run` is a name that the wire contract allows, so it names a folder inside of `runs`."""

    def __init__(self, run: str, runs: Path | None = None) -> None:
        self.folder = folders.private_folder((runs or folders.runs_folder()) / run)

    @classmethod
    def existing(cls, run: str, runs: Path | None = None) -> RunStore | None:
        """The folder of a run of which something is kept, else None; nothing is made."""
        return cls(run, runs) if ((runs or folders.runs_folder()) / run / RUN).is_file() else None

    def describe(self) -> dict[str, Any]:
        """What `run.json` holds, or an empty dictionary."""
        return _read_json(self.folder / RUN)

    def keep_weights(self, request: TrainRequest | FinalWeights, weights: np.ndarray, invitation: Invitation, files: PolicyFiles) -> None:
        """Keep the weights of `request` as the last, and as the best when the held-out loss told with them is the lowest so far."""
        facts = self.describe()
        loss = request.last.get("last-eval-loss")
        told = {"round": request.formed_by, "weights-sha256": request.weights_sha256, "eval-loss": loss}
        if facts.get("last", {}).get("weights-sha256") != request.weights_sha256 or not (self.folder / LAST).exists():
            _write(self.folder / LAST, lambda file: np.save(file, weights, allow_pickle=False))
        best = facts.get("best") or {}
        if loss is not None and loss < best.get("eval-loss", math.inf):
            _link(self.folder / LAST, self.folder / BEST)
            best = told
        facts = {
            "run": request.run_uid,
            "rounds": request.num_rounds,
            "federation": invitation.federation,
            "policy-id": files.policy_id,
            "backbone-sha256": files.backbone_sha256,
            "layout-sha256": files.layout.sha256,
            "policy-folder": str(files.folder),
            "last": told,
            "best": best,
        }
        _write_json(self.folder / RUN, facts)

    def weights(self, size: int, sha256: str = "") -> np.ndarray | None:
        """The last global weights, if they are there, of `size` values, and (when given) of that hash."""
        weights = _load(self.folder / LAST, size)
        if weights is None or (sha256 and weights_sha256(weights) != sha256):
            return None
        return weights

    def last(self) -> tuple[int, str] | None:
        """The round that formed the last global weights, and their hash; None when there are none."""
        told = self.describe().get("last")
        if not isinstance(told, dict) or not isinstance(told.get("round"), int):
            return None
        return told["round"], str(told.get("weights-sha256"))

    def feedback(self) -> ErrorFeedback:
        """What encodes the updates of this run. What is owed to other runs is removed: a node takes part in one."""
        for other in self.folder.parent.glob("*/residual-*.npy"):
            if other.parent != self.folder:
                with suppress(OSError):
                    other.unlink()
        return ErrorFeedback(self.folder)

    def keep_update(self, request: TrainRequest, result: RoundResult) -> None:
        """Keep what a round gave until it was delivered."""
        _write(self.folder / UPDATE, lambda file: np.save(file, result.delta, allow_pickle=False))
        _write_json(self.folder / UPDATE_FACTS, {**_identity(request), "metrics": result.metrics, "partial": result.partial})

    def checkpoint(self, every_s: float = EVERY_S, *, memory_free: float = 0.0) -> RoundCheckpoint:
        """Where the middle of a round is kept, and beside it the optimiser. Those of other runs are removed: a node takes part in one.

        `every_s` and `memory_free` (GB) are the operator's settings.
        """
        for name in (ROUND, OPTIMISER):
            for other in self.folder.parent.glob(f"*/{name}"):
                if other.parent != self.folder:
                    shutil.rmtree(other, ignore_errors=True)
        return RoundCheckpoint(self.folder / ROUND, every_s, spare=SPARE_BYTES + int(memory_free * 1e9))

    def update(self, request: TrainRequest, size: int) -> RoundResult | None:
        """The update of the very round that `request` asks for, if it was computed before."""
        facts = _read_json(self.folder / UPDATE_FACTS)
        if any(facts.get(key) != value for key, value in _identity(request).items()):
            return None
        delta = _load(self.folder / UPDATE, size)
        return None if delta is None else RoundResult(delta=delta, metrics=facts["metrics"], partial=facts["partial"])


def _identity(request: TrainRequest) -> dict[str, Any]:
    """What makes two requests the same round. The deadline and the message around it may differ."""
    config = request.to_config()
    return {
        key: config[key]
        for key in ("run-uid", "server-round", "weights-sha256", "layout-sha256", "seed", "lr", "proximal-mu", "batch-size")
    }


def _load(path: Path, size: int) -> np.ndarray | None:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if isinstance(values, np.ndarray) and values.dtype == np.float32 and values.shape == (size,) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    _write(path, lambda file: file.write(json.dumps(data, indent=1).encode()))


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _link(source: Path, target: Path) -> None:
    """Make `target` name what `source` names now; later replacements of `source` leave it alone."""
    temporary = target.with_name(target.name + ".partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        _write(target, lambda file: file.write(source.read_bytes()))
        return
    temporary.replace(target)
