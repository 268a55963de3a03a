"""How long an update may be (DESIGN section 3): a multiple of what is usual in this federation, for the learning rate of the round.

Pure functions. The history holds norms divided by the learning rate ("rates"), since an update's norm follows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

FEW = 4
"""With fewer replies than this their median alone is not trusted."""
GROWTH = 2.0
"""The bound, for the same learning rate, grows at most this many times from one round to the next."""


@dataclass(frozen=True)
class NormHistory:
    """Rates of the updates that were accepted in the last rounds, oldest round first; and the last bound divided by its learning rate."""

    rates: tuple[tuple[float, ...], ...] = ()
    bound: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"rates": [list(each) for each in self.rates], "bound": self.bound}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(tuple(tuple(float(rate) for rate in each) for each in data["rates"]), float(data["bound"]))


def bound_for(
    history: NormHistory, norms: Sequence[float], *, lr: float, steps: float, parameters: int, factor: float, rounds: int
) -> tuple[float, NormHistory]:
    """The bound for a round's accepted updates with these `norms`, and the history after it.

    `factor` times the lower median of norm/lr over these and the last `rounds` rounds, times `lr`; at most `GROWTH` times the last one; and
    with fewer than `FEW` updates at most factor * lr * steps * sqrt(parameters), which is as far as Adam goes (about lr for each parameter
    and step). Updates that are zero do not count. With lr = 0 nothing moves: the bound is 0 and the history stays.
    """
    if lr <= 0 or not norms:
        return 0.0, history
    now = tuple(norm / lr for norm in norms if norm > 0)
    recent = (*history.rates[-rounds:], now) if rounds else (now,)
    bound = factor * _lower_median([rate for each in recent for rate in each])
    if history.bound > 0:
        bound = min(bound, GROWTH * history.bound)
    if len(norms) < FEW:
        bound = min(bound, factor * steps * math.sqrt(parameters))
    kept = recent[-rounds:] if rounds else ()
    # A round of zeros says nothing of how long updates are.
    return bound * lr, NormHistory(kept, bound if bound > 0 else history.bound)


def clip_factor(norm: float, bound: float) -> float:
    """What an update of this norm is multiplied with so that it is not longer than `bound`: 1, or less."""
    return min(1.0, bound / norm) if norm > 0 else 1.0


def _lower_median(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0
