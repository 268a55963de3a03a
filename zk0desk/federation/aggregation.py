"""From a round's answers to the next global weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.errors import OperatorError
from zk0desk.events import Notice, RoundAggregated, ServerStateChanged
from zk0desk.federation import strategy, updates
from zk0desk.federation.collecting import Accepted, Answers
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.run_state import RunState, names
from zk0desk.federation.server_folder import fingerprint_of

if TYPE_CHECKING:
    from zk0desk.federation.grid import OnlineNode

EMPTY_ROUNDS = 3
"""Rounds in a row without one valid reply that end the run."""


class NothingLearned(OperatorError):
    """No node answered with a valid update, several rounds in a row."""

    code = "nothing-learned"


class Aggregation:
    """Aggregates the rounds of a run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._empty = 0

    def aggregate(self, request: TrainRequest, asked: Sequence[OnlineNode], answers: Answers) -> bool:
        """Make the accepted answers the next global weights and note them in the record, which is not saved.

        False when there is none: the round is to be repeated. Raises `NothingLearned` when that happens too often.
        """
        state, record, number = self._state, self._state.record, request.server_round
        accepted = {key: answer for key, answer in sorted(answers.items()) if isinstance(answer, Accepted)}
        state.emit(ServerStateChanged(state="aggregating", what=f"Round {number}: {len(accepted)} updates."))
        if not accepted:
            self._none_came(number)
            return False
        self._empty = 0
        by_name = {fingerprint_of(key): answer for key, answer in accepted.items()}
        p = strategy.shares({name: answer.metrics["num-examples"] for name, answer in by_name.items()}, state.rules.max_share)
        weights = strategy.add_weighted(state.weights, [(p[name], answer.update) for name, answer in by_name.items()])
        if not np.isfinite(weights).all():
            raise NothingLearned(
                "The sum of the updates is not finite.", "Updates grew beyond float32.", "Lower the learning rate and run again."
            )
        step = updates.norm(weights - state.weights)
        state.take(weights)
        loss = strategy.mean_over(p, {name: answer.metrics for name, answer in by_name.items()}, "loss-mean")
        record.nodes, record.weights_sha256 = len(accepted), state.sha256
        if loss is not None:
            record.train_losses[str(number)] = loss
        missing = names(node.public_key for node in asked if node.public_key not in answers)
        state.emit(
            RoundAggregated(
                run=record.uid, round=number, shares=p, missing=missing, train_loss=loss, update_norm=step, weights_sha256=state.sha256
            )
        )
        return True

    def _none_came(self, number: int) -> None:
        self._empty += 1
        what = f"Round {number} brought no valid update and is repeated."
        self._state.emit(Notice(severity="warning", code="round-empty", what=what, why="Every node was late, left or was refused."))
        if self._empty >= EMPTY_ROUNDS:
            raise NothingLearned(
                f"{EMPTY_ROUNDS} rounds in a row brought no valid update.", "See the refusals above.", "Mend the cause and run again."
            )
