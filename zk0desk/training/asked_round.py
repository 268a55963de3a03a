"""What a federation asks of a round: the plan and the time that it allows, against which an estimate is judged. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from zk0desk.amounts import duration
from zk0desk.settings import ServerRounds
from zk0desk.training.estimate import KEEPING, Estimate
from zk0desk.training.recording_types import Finding, Severity
from zk0desk.training.rounds import RoundPlan

LEVELS = {
    "off": "Level off: LeRobot's own step, no frame is prepared.",
    "N": "Level N: no prepared frame is kept.",
    "V": "Level V: the embeddings of pictures are kept.",
    "P": "Level P: all that follows from pictures is kept.",
}
TOLD_S = 1.0
"""What a first round takes for its own and is shorter is not told."""


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
        """Seconds that the first round takes: training, and sending the update where it is known how long that takes."""
        return estimate.round_seconds(self.plan) + self.transfer_s

    def later_seconds(self, estimate: Estimate) -> float:
        """Seconds that a later round takes, in the mean."""
        return estimate.later_seconds(self.plan.rounds, self.plan) + self.transfer_s

    def fits(self, estimate: Estimate) -> bool:
        """Whether every round is done in the time that is allowed: the first takes longest."""
        return not self.deadline_s or self.seconds(estimate) <= self.deadline_s

    def sentence(self, estimate: Estimate) -> str:
        """The first round's, later rounds' and a run's time against what is allowed, and the level that they have."""
        run = f"{self.plan.rounds} rounds take about {duration(estimate.run_seconds(self.plan.rounds, self.plan))} of training."
        said, level = self._said(estimate), _level(estimate)
        if self.fits(estimate):
            return f"{said}. {run} {level}"
        return f"{said}: {self._share(estimate)} {run} {level}"

    def finding(self, estimate: Estimate) -> Finding | None:
        """What is to be known where a round does not fit into the time, or None."""
        if self.fits(estimate):
            return None
        remedy = "Choose fewer recordings or a faster computer, or ask the coordinator for a longer time."
        if estimate.new_frames(self.plan) and self.later_seconds(estimate) <= self.deadline_s:
            remedy = (
                f"Prepare the frames before you join (This computer, or zk0desk cache prepare). {remedy.replace('Choose', 'Or choose')}"
            )
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
        own = self._own(estimate)
        parts = own + ([f"{duration(self.transfer_s)} to send the update"] if self.transfer_s else [])
        takes = f"{'The first' if own else 'A'} round takes about {duration(self.seconds(estimate))}"
        if parts:
            first, *rest = parts
            takes += f", {first.replace(' to ', ' of it to ', 1)}" + "".join(f", {part}" for part in rest)
        if own and self.plan.rounds > 1:
            takes += f"; later rounds take about {duration(self.later_seconds(estimate))}"
        allowed = f"the federation allows {duration(self.deadline_s)}" if self.deadline_s else "the federation sets no limit"
        return f"{takes}; {allowed}"

    def _own(self, estimate: Estimate) -> list[str]:
        """What the first round does that later ones need not, where it takes long."""
        preparing, frames = estimate.preparing_seconds(self.plan), estimate.new_frames(self.plan)
        own = [f"{duration(preparing)} to prepare {frames:,} frames"] if frames and preparing >= TOLD_S else []
        return own + ([f"{duration(estimate.start_s)} to begin and check the step"] if estimate.start_s >= TOLD_S else [])

    def _share(self, estimate: Estimate) -> str:
        share = estimate.share_done(self.plan, self.deadline_s - self.transfer_s)
        it = "the first" if self._own(estimate) else "it"
        return f"about {max(1, round(100 * share))}% of {it} will be done, which counts."


def _level(estimate: Estimate) -> str:
    words = LEVELS[estimate.level]
    if estimate.level in KEEPING and estimate.share < 1:
        return words.replace(":", f", for {estimate.share:.0%} of the frames:")
    return words


def usual_round() -> AskedRound:
    """A round as the paper has it, which is what a federation asks for unless its coordinator chose otherwise."""
    usual = ServerRounds()
    plan = RoundPlan(
        run="", round=1, rounds=usual.rounds, seed=0, lr=usual.lr, mu=usual.proximal_mu, batch_size=usual.batch_size,
        local_epochs=usual.local_epochs,
    )  # fmt: skip
    return AskedRound(plan, usual.deadline_s)
