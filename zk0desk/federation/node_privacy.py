"""Differential privacy on the node, by its operator's choice: every update is clipped and gets noise before it is encoded."""

from __future__ import annotations

import numpy as np

from zk0desk import folders
from zk0desk.events import PrivacySpent, Sink
from zk0desk.settings import Privacy
from zk0desk.training.privacy import add_noise, clipped, secret_generator
from zk0desk.training.privacy_account import BudgetSpent, PrivacyAccount


class NodePrivacy:
    """What the operator chose. Counted for this computer, over all federations and policies together."""

    def __init__(self, chosen: Privacy, emit: Sink) -> None:
        self._chosen, self._emit = chosen, emit
        self._path = folders.state_folder() / "privacy.json"

    @property
    def on(self) -> bool:
        """Whether noise is added. No metrics are sent then, and not the number of frames."""
        return self._chosen.noise_multiplier > 0

    def check(self) -> None:
        """Raise `BudgetSpent` when the budget allows no further update, `AccountUnreadable` when it is not known."""
        chosen = self._chosen
        if self.on and not PrivacyAccount(self._path).left(chosen.noise_multiplier, chosen.epsilon, chosen.delta):
            raise BudgetSpent(
                "The privacy budget of this computer is spent.",
                f"One more update would exceed epsilon {chosen.epsilon:g} at delta {chosen.delta:g}.",
                "It takes part no more. A larger budget (Settings, privacy.epsilon) protects less.",
            )

    def protect(self, change: np.ndarray, run: str, number: int) -> np.ndarray:
        """`change` (flat float32) as it may leave: clipped, with noise. It is counted first, so a crash counts one too many at most."""
        chosen = self._chosen
        spent = PrivacyAccount(self._path).count(chosen.noise_multiplier, chosen.epsilon, chosen.delta)
        self._emit(PrivacySpent(run=run, round=number, of="node", epsilon=spent, delta=chosen.delta, budget=chosen.epsilon))
        protected = clipped(change, chosen.clip)
        add_noise(protected, chosen.noise_multiplier * chosen.clip, secret_generator())
        return protected
