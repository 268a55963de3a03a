"""What a round tells the coordinator of itself: the numbers of the wire contract, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zk0desk.training.fedprox import loss_spread
from zk0desk.training.progress import Progress
from zk0desk.training.rounds import RoundPlan

MIN_FRAMES = 32
"""A loss that is sent averages at least this many frames, where the round visited as many."""


def round_metrics(
    plan: RoundPlan, progress: Progress, delta: np.ndarray, *, frames: int, epoch_losses: Sequence[float], seconds: float
) -> dict[str, float]:
    """The metrics of a round over `frames` frames. `epoch_losses` are those of all epochs of the run, this round's last."""
    seen = sum(progress.sizes)
    return {
        "num-examples": float(len(progress.visited)),
        "frames-seen": float(seen),
        "epochs-done": seen / frames,
        "steps-done": float(len(progress.losses)),
        "loss-first": _mean_of_first(progress.losses, progress.sizes),
        "loss-last": _mean_of_first(progress.losses[::-1], progress.sizes[::-1]),
        "loss-mean": float(np.average(progress.losses, weights=progress.sizes)),
        "loss-std": loss_spread(epoch_losses),
        "proximal-last": progress.proximal,
        "grad-norm": float(np.mean(progress.norms)),
        "update-norm": float(np.linalg.norm(delta)),
        "mu-used": float(np.mean(progress.mus)),
        "lr-used": plan.lr,
        "seconds": seconds,
    }


def _mean_of_first(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """Mean over as many steps as hold `MIN_FRAMES` frames, weighted by frames."""
    steps = int(np.searchsorted(np.cumsum(sizes), MIN_FRAMES)) + 1
    return float(np.average(losses[:steps], weights=sizes[:steps]))
