"""Linear merging of a base policy and one that was trained from it: what was learned against what was forgotten (RETAIN).

w(alpha) = (1 - alpha) * base + alpha * trained, over the trainable set; all else of the two is the same. After RETAIN
(arXiv 2512.08333), which merges the weights of a vision-language-action model before and after fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.training.policy_files import PolicyFiles, PolicyMismatch, read_policy, trainable_weights

if TYPE_CHECKING:
    from zk0desk.settings import Cache, ChosenRecording
    from zk0desk.training.evaluation import Evaluation
    from zk0desk.training.policy import TrainablePolicy

PIECE = 2**22
"""Values that are computed at once: a merge needs little more memory than its result."""


def merged(base: np.ndarray, trained: np.ndarray, alpha: float) -> np.ndarray:
    """`(1 - alpha) * base + alpha * trained`, float32, computed in float64. Exactly `base` at 0 and `trained` at 1.

    ValueError unless both are float32 of one size and `alpha` is finite.
    """
    if base.dtype != np.float32 or base.shape != trained.shape or trained.dtype != np.float32 or not math.isfinite(alpha):
        raise ValueError("two float32 arrays of one size, and a finite alpha, are needed")
    result = np.empty_like(base)
    for start in range(0, base.size, PIECE):
        part = slice(start, start + PIECE)
        result[part] = (1 - alpha) * base[part].astype(np.float64) + alpha * trained[part].astype(np.float64)
    return result


def distance(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """L2 norm of `other - one`, and that norm by the norm of `one` (0 where that is 0), summed in float64."""
    apart = own = 0.0
    for start in range(0, one.size, PIECE):
        part = slice(start, start + PIECE)
        values = one[part].astype(np.float64)
        apart += float(np.sum((other[part] - values) ** 2))
        own += float(np.sum(values**2))
    return math.sqrt(apart), math.sqrt(apart / own) if own else 0.0


def read_alike(one: Path, other: Path) -> tuple[PolicyFiles, PolicyFiles]:
    """Both policies' fingerprints. `PolicyMismatch` unless they differ in the trainable set alone, `PolicyError` where one is no policy."""
    first, second = read_policy(one), read_policy(other)
    if (first.backbone_sha256, first.layout.sha256) != (second.backbone_sha256, second.layout.sha256):
        what = "backbone" if first.backbone_sha256 != second.backbone_sha256 else "layout"
        raise PolicyMismatch(
            f"{first.folder.name} and {second.folder.name} are not of one base policy.",
            f"Their {what} differs: policy {first.policy_id} and {second.policy_id}.",
            "Name two policies of one federation, or a federation's policy and the base that it began with.",
        )
    return first, second


def file_weights(files: PolicyFiles) -> np.ndarray:
    """The trainable set in the policy's file, float32, flat."""
    return trainable_weights(files.folder)


@dataclass(frozen=True)
class Point:
    """Losses at one alpha: over the recordings (`loss`) and over those of retention (`kept`, NaN without any), with standard errors.

    `recordings` and `retention` have a loss and its standard error for each recording.
    """

    alpha: float
    loss: float
    error: float
    kept: float
    kept_error: float
    recordings: dict[str, tuple[float, float]]
    retention: dict[str, tuple[float, float]]

    @property
    def both(self) -> float:
        """What the best alpha is lowest in: the two losses together, each counting the same."""
        return self.loss + (self.kept if math.isfinite(self.kept) else 0.0)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        parts = {
            kind: {name: {"loss": loss, "standard-error": error} for name, (loss, error) in of.items()}
            for kind, of in (("recordings", self.recordings), ("retention", self.retention))
        }
        kept = {"retention-loss": self.kept, "retention-standard-error": self.kept_error} if self.retention else {}
        return {"alpha": self.alpha, "loss": self.loss, "standard-error": self.error, **kept, **parts}

    @classmethod
    def of(cls, alpha: float, found: Evaluation, first: int) -> Point:
        """From an evaluation over `first` recordings and then those of retention."""
        seen = found.seen
        each = [seen.mean([number]) for number in range(len(seen.names))]
        return cls(
            alpha,
            *seen.mean(range(first)),
            *seen.mean(range(first, len(seen.names))),
            dict(zip(seen.names[:first], each[:first], strict=True)),
            dict(zip(seen.names[first:], each[first:], strict=True)),
        )


def along(
    policy: TrainablePolicy,
    weights: Sequence[tuple[float, Callable[[], np.ndarray]]],
    recordings: Sequence[ChosenRecording],
    retention: Sequence[ChosenRecording],
    cache: Cache,
    *,
    batch: int,
    sample: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """The losses for each alpha with its weights, on the same frames with the same noise. The frozen part is computed once (`cache`)."""
    from zk0desk.training.evaluation import evaluate
    from zk0desk.training.forward_choice import ForwardChoice

    every = [*recordings, *retention]
    choice = ForwardChoice(policy, policy.frames_of(every), cache, emit=lambda event: None)
    points = []
    try:
        for number, (alpha, made) in enumerate(weights):
            policy.set_weights(made())

            def told(done: int, total: int, number: int = number) -> None:
                if progress:
                    progress(number * total + done, len(weights) * total)

            forward = choice.begin("merge", visits=len(weights))
            found = evaluate(policy, every, batch=batch, sample=sample, seed=seed, progress=told, forward=forward)
            points.append(Point.of(alpha, found, len(recordings)))
    finally:
        choice.close()
    return points
