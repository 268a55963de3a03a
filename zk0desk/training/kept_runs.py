"""The global weights that this node kept of the runs it took part in (`federation.run_store` writes them). No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zk0desk import folders
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.training.policy_files import read_policy

Which = Literal["last", "best"]


class NoSharedPolicyError(OperatorError):
    """This computer holds no global weights."""

    code = "no-shared-policy"
    exit_status = ExitStatus.UNUSABLE


@dataclass(frozen=True)
class KeptRun:
    """A run of which the newest global weights are here, and the best by held-out loss if one was told.

    `rounds` and `losses` have the keys `last` and, if there is a best, `best`: the round after which the weights were
    formed, and their held-out loss. `policy` is the base policy's folder.
    """

    folder: Path
    policy: Path
    layout_sha256: str
    rounds: dict[str, int]
    losses: dict[str, float | None]

    @property
    def run(self) -> str:
        """The run's id."""
        return self.folder.name

    def which(self, best: bool) -> Which:
        """What to take: the best if it is wanted and known, else the last."""
        return "best" if best and "best" in self.rounds else "last"

    def weights(self, which: Which = "last") -> np.ndarray:
        """The kept weights, float32, flat. `NoSharedPolicyError` when they do not fit the base policy that is in its folder now."""
        weights = np.asarray(np.load(self.folder / f"global-{which}.npy", allow_pickle=False))
        layout = read_policy(self.policy).layout
        if self.layout_sha256 != layout.sha256 or weights.dtype != np.float32 or weights.shape != (layout.size,):
            raise NoSharedPolicyError(
                f"The weights kept of run {self.run} cannot be saved.",
                f"They are not of the policy that is in {self.policy}.",
                "Put the base policy of that run back into its folder.",
            )
        return weights


def kept_runs() -> list[KeptRun]:
    """The runs whose global weights are on this computer, newest first."""
    runs = folders.runs_folder()
    found = sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True) if runs.is_dir() else []
    return [run for path in found if (run := _kept(path)) is not None]


def newest_run() -> KeptRun:
    """The run whose weights came last; `NoSharedPolicyError` when there is none."""
    for run in kept_runs():
        return run
    raise NoSharedPolicyError(
        "There is no shared policy on this computer yet.",
        "It comes with the first round that this node takes part in.",
        "Join a federation, and save after its first round.",
    )


def _kept(path: Path) -> KeptRun | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: data[name] for name in ("last", "best") if data.get(name) and (path.parent / f"global-{name}.npy").exists()}
        if "last" not in kept:
            return None
        return KeptRun(
            folder=path.parent,
            policy=Path(data["policy-folder"]),
            layout_sha256=data["layout-sha256"],
            rounds={name: int(entry["round"]) for name, entry in kept.items()},
            losses={name: entry.get("eval-loss") for name, entry in kept.items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # another program's, or cut short: not a run that can be saved
