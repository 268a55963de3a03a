"""Differential privacy at the coordinator: updates clipped to a constant, their sum over a constant, and noise (DESIGN section 3).

All count the same, whatever they say of their frames, and the sum is divided by the number of nodes that the settings expect, however many
answered. Nothing is claimed for drawing some of the nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zk0desk.events import PrivacySpent, Sink
from zk0desk.federation import strategy
from zk0desk.federation.combining import Combined
from zk0desk.federation.spool import Spool, Spooled
from zk0desk.settings import ServerPrivacy
from zk0desk.training.privacy import add_noise, secret_generator
from zk0desk.training.privacy_account import PrivacyAccount

WITHIN = 1 - 1e-6
"""What is scaled down stays this much below the bound, since arithmetic in float32 may round up."""


class PrivateSum:
    """The mechanism, and its account in the file `path`, which outlives runs."""

    def __init__(self, chosen: ServerPrivacy, min_nodes: int, path: Path, emit: Sink) -> None:
        self._chosen, self._path, self._emit = chosen, path, emit
        self.expected = chosen.expected_nodes or min_nodes

    def left(self) -> int:
        """Rounds that the budget still allows. `AccountUnreadable` when what was spent is not known."""
        chosen = self._chosen
        return PrivacyAccount(self._path).left(chosen.noise_multiplier, chosen.epsilon, chosen.delta)

    def told(self) -> dict[str, float]:
        """What nodes are told of what is spent."""
        chosen = self._chosen
        spent = PrivacyAccount(self._path).epsilon(chosen.delta)
        return {"privacy-epsilon": spent, "privacy-delta": chosen.delta, "privacy-budget": chosen.epsilon}

    def combine(
        self, spool: Spool, accepted: Sequence[tuple[str, Spooled]], run: str, number: int, generator: np.random.Generator | None = None
    ) -> Combined:
        """The noisy mean of `accepted`, by name; it is counted before it is made. `BudgetSpent` when the budget does not allow it.

        `generator` is for tests: the default cannot be drawn again.
        """
        chosen = self._chosen
        spent = PrivacyAccount(self._path).count(chosen.noise_multiplier, chosen.epsilon, chosen.delta)
        self._emit(PrivacySpent(run=run, round=number, of="federation", epsilon=spent, delta=chosen.delta, budget=chosen.epsilon))
        factors = {name: 1.0 if update.norm <= chosen.clip else WITHIN * chosen.clip / update.norm for name, update in accepted}
        delta = spool.vector(accepted[0][1].values)
        strategy.add_weighted(delta, [(factors[name] / self.expected, update) for name, update in accepted])
        add_noise(delta, chosen.noise_multiplier * chosen.clip / self.expected, generator or secret_generator())
        return Combined(delta, dict.fromkeys(factors, 1 / self.expected), {name: factor for name, factor in factors.items() if factor < 1})
