"""What a federation asks of a round: the plan and the time that it allows, against which an estimate is judged. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from zk0desk.settings import ServerRounds
from zk0desk.training.estimate import Estimate, duration
from zk0desk.training.recording_types import Finding, Severity
from zk0desk.training.rounds import RoundPlan


@dataclass(frozen=True)
class AskedRound:
    """A round as it is asked for: by a federation's last round, by its invitation, or, without one, as the paper has it (`usual`).

    `deadline_s` are the seconds from receiving a round to having sent it back, 0: no limit. `transfer_s` are those of the upload, 0: not
    known.
    """

    plan: RoundPlan
    deadline_s: float
    asked_by: Literal["usual", "invitation", "last round"] = "usual"
    transfer_s: float = 0.0

    def seconds(self, estimate: Estimate) -> float:
        """Seconds that a round takes: training, and sending the update where it is known how long that takes."""
        return estimate.round_seconds(self.plan) + self.transfer_s

    def fits(self, estimate: Estimate) -> bool:
        """Whether a round is done in the time that is allowed."""
        return not self.deadline_s or self.seconds(estimate) <= self.deadline_s

    def sentence(self, estimate: Estimate) -> str:
        """A round's and a run's time against what is allowed."""
        run = f"{self.plan.rounds} rounds take about {duration(estimate.run_seconds(self.plan.rounds, self.plan))} of training."
        said = self._said(estimate)
        if self.fits(estimate):
            return f"{said}. {run}"
        return f"{said}: {self._share(estimate)} {run}"

    def finding(self, estimate: Estimate) -> Finding | None:
        """What is to be known where a round does not fit into the time, or None."""
        if self.fits(estimate):
            return None
        remedy = "Choose fewer recordings or a faster computer, or ask the coordinator for a longer time."
        share = self._share(estimate)
        return Finding("round-too-long", Severity.REPAIRABLE, f"{self._said(estimate)}.", share[0].upper() + share[1:], remedy)

    def to_json(self) -> dict[str, Any]:
        """What is asked as a JSON object, keys in kebab-case."""
        plan = self.plan
        return {
            "asked-by": self.asked_by,
            "rounds": plan.rounds,
            "local-epochs": plan.local_epochs,
            "local-steps": plan.local_steps,
            "batch-size": plan.batch_size,
            "deadline-s": self.deadline_s,
            "transfer-s": self.transfer_s,
        }

    def _said(self, estimate: Estimate) -> str:
        takes = f"A round takes about {duration(self.seconds(estimate))}"
        if self.transfer_s:
            takes += f", {duration(self.transfer_s)} of it to send the update"
        allowed = f"the federation allows {duration(self.deadline_s)}" if self.deadline_s else "the federation sets no limit"
        return f"{takes}; {allowed}"

    def _share(self, estimate: Estimate) -> str:
        training = max(0.0, self.deadline_s - self.transfer_s)
        return f"about {max(1, round(100 * training / estimate.round_seconds(self.plan)))}% of it will be done, which counts."


def usual_round() -> AskedRound:
    """A round as the paper has it, which is what a federation asks for unless its coordinator chose otherwise."""
    usual = ServerRounds()
    plan = RoundPlan(
        run="", round=1, rounds=usual.rounds, seed=0, lr=usual.lr, mu=usual.proximal_mu, batch_size=usual.batch_size,
        local_epochs=usual.local_epochs,
    )  # fmt: skip
    return AskedRound(plan, usual.deadline_s)
