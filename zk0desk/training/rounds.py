"""What one local round is asked to do and what it returns. Plain data: neither torch nor Qt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    import numpy as np


class RoundFailedError(OperatorError):
    """The local round ended without an update."""

    code = "round-failed"


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One round of Algorithm 1, as the coordinator asks for it (validated by `federation.messages`).

    Either `local_steps` > 0 (a step budget) or `local_epochs` passes over the node's frames. `deadline` is the Unix
    time by which training has to end, or 0. `seed` is the run's; what a node draws comes from (seed, node, round).
    """

    run: str
    round: int
    rounds: int
    seed: int
    lr: float
    mu: float
    batch_size: int
    local_epochs: float = 1.0
    local_steps: int = 0
    deadline: float = 0.0
    mu_max: float = 0.02
    mu_alpha: float = 1.0
    mu_loss_std: float = 1.2
    mu_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What a local round gives: `delta` = w - w_t, float32, flat in the order of the layout, and its metrics.

    `metrics` holds the allow-list of the wire contract (`federation.messages.TRAIN_METRICS`). `partial` says why less
    than the plan was done, or is empty.
    """

    delta: np.ndarray
    metrics: dict[str, float]
    partial: str = ""
    losses: list[float] = field(default_factory=list)
