"""What the client-side mu rule remembers of a run: its epochs, earlier rounds included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zk0desk.training.fedprox import MuVerdict, client_mu, raised_mu
from zk0desk.training.progress import Progress
from zk0desk.training.rounds import RoundPlan


class RunHistory:
    """The mean loss of each epoch of a run, and whether mu stood raised at each round's end."""

    def __init__(self) -> None:
        self.run = ""
        self._epochs: list[tuple[int, float]] = []
        """(round, mean loss) of each epoch."""
        self._raised: dict[int, bool] = {}

    def begin(self, plan: RoundPlan) -> None:
        """A round begins. One that is asked for again starts from where it started before; another run from nothing."""
        if plan.run != self.run:
            self.run, self._epochs, self._raised = plan.run, [], {}
        self._epochs = [entry for entry in self._epochs if entry[0] < plan.round]
        self._raised = {number: raised for number, raised in self._raised.items() if number < plan.round}

    def first(self, plan: RoundPlan) -> Progress:
        """A round's begin: mu is raised until the first epoch's end when it stood raised at the end of the round before."""
        raised = bool(self._raised) and self._raised[max(self._raised)]
        return Progress(mu=raised_mu(plan.mu, mu_max=plan.mu_max, alpha=plan.mu_alpha) if raised else plan.mu, raised=raised)

    def end_epoch(self, plan: RoundPlan, progress: Progress) -> MuVerdict | None:
        """Settle `progress.mu` until the next epoch's end; None when no step of the epoch was made."""
        part = slice(progress.epoch_began, len(progress.losses))
        progress.epoch_began = len(progress.losses)
        if not progress.losses[part]:
            return None
        progress.epochs.append(float(np.average(progress.losses[part], weights=progress.sizes[part])))
        verdict = client_mu(
            plan.mu,
            [*self.losses, *progress.epochs],
            float(np.mean(progress.norms[part])),
            mu_max=plan.mu_max,
            alpha=plan.mu_alpha,
            loss_std=plan.mu_loss_std,
            norm_limit=plan.mu_grad_norm,
        )
        progress.mu, progress.raised = verdict.mu, verdict.raised
        return verdict

    def finish(self, plan: RoundPlan, progress: Progress) -> None:
        """The round ended as `progress` says."""
        self._epochs += [(plan.round, loss) for loss in progress.epochs]
        self._raised[plan.round] = progress.raised

    @property
    def losses(self) -> list[float]:
        """Mean losses of the epochs of all finished rounds, in order."""
        return [loss for _, loss in self._epochs]

    def to_json(self) -> dict[str, Any]:
        """What is kept with a round's middle."""
        return {"epochs": self._epochs, "raised": list(self._raised.items())}

    def read(self, data: Mapping[str, Any]) -> None:
        """Take what `to_json` gave, of the same run."""
        self._epochs = [(int(number), float(loss)) for number, loss in data["epochs"]]
        self._raised = {int(number): bool(raised) for number, raised in data["raised"]}
