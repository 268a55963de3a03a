"""From a round's answers to the next global weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zk0desk.events import Notice, RoundAggregated, ServerStateChanged
from zk0desk.federation import combining, kept_updates, robust, server_optimiser, strategy, updates
from zk0desk.federation.collecting import Accepted, Answers
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.norm_bound import NormHistory, bound_for
from zk0desk.federation.run_state import RunState, names
from zk0desk.federation.server_folder import fingerprint_of
from zk0desk.federation.spool import Spool
from zk0desk.federation.weights_chain import StepUnfit

if TYPE_CHECKING:
    from zk0desk.federation.grid import OnlineNode

PAUSE_S, LONGEST_PAUSE_S = 2.0, 600.0
"""How long a run pauses after a round that brought nothing: doubling with each such round in a row, up to ten minutes."""


class Aggregation:
    """Aggregates the rounds of a run. Raises `robust.TooFewForMethod` when the settings' method cannot do with the settings' nodes."""

    def __init__(self, state: RunState, spool: Spool) -> None:
        self._state, self._spool = state, spool
        self._empty = 0
        rules = state.settings.aggregation
        robust.check_method(rules.method, rules.hostile_nodes, state.rules.min_nodes)

    def aggregate(self, request: TrainRequest, asked: Sequence[OnlineNode], answers: Answers) -> bool:
        """Make the accepted answers the next global weights and note them in the record, which is not saved. The spool is then empty.

        False when there are too few: the round is to be repeated, and this has paused.
        """
        state, number = self._state, request.server_round
        accepted = {fingerprint_of(key): answer for key, answer in sorted(answers.items()) if isinstance(answer, Accepted)}
        state.emit(ServerStateChanged(state="aggregating", what=f"Round {number}: {len(accepted)} updates."))
        rules = state.settings.aggregation
        needed = robust.least_nodes(rules.method, rules.hostile_nodes)
        try:
            if len(accepted) < needed:
                self._repeat(number, len(accepted), needed)
                return False
            missing = names(node.public_key for node in asked if node.public_key not in answers)
            if state.rules.keep_updates:
                kept_updates.keep(state.record.folder(state.folder), request, state.settings, answers)
            return self._take(request, accepted, missing)
        finally:
            self._spool.clear()

    def _take(self, request: TrainRequest, accepted: Mapping[str, Accepted], missing: list[str]) -> bool:
        state, record, number, rules = self._state, self._state.record, request.server_round, self._state.settings.aggregation
        metrics = {name: answer.metrics for name, answer in accepted.items()}
        came = [(name, answer.update) for name, answer in accepted.items()]
        if state.private is not None:
            bound, history = state.settings.privacy.clip, NormHistory()
            combined = state.private.combine(self._spool, came, record.uid, number)
        else:
            bound, history = self._bound(request, accepted)
            examples = strategy.examples(metrics)
            combined = combining.combine(self._spool, came, examples, rules, bound=bound, max_share=state.rules.max_share)
        step = combined.delta
        beyond = "The sum of the updates is beyond float32. A lower learning rate may help."
        if not strategy.is_finite(step):  # before the optimiser's moments take it in
            self._repeat(number, 0, 1, beyond)
            return False
        server_optimiser.to_step(state.settings.schedule, step, number, state.kept_arrays, state.folder.state / "moments")
        if not strategy.is_finite(step):
            self._repeat(number, 0, 1, beyond)
            return False
        try:
            weights = state.codec.advance(state.weights, step)
        except StepUnfit as error:
            self._repeat(number, 0, 1, f"{error.why} {error.remedy}")
            return False
        self._empty = 0
        state.kept["norm-bound"] = history.to_json()
        state.take(weights)
        state.deliveries.used(number, accepted)
        loss = strategy.mean_over(combined.shares, metrics, "loss-mean")
        record.nodes, record.weights_sha256 = len(accepted), state.sha256
        if loss is not None:
            record.train_losses[str(number)] = loss
        state.emit(
            RoundAggregated(
                run=record.uid, round=number, shares=combined.shares, missing=missing, train_loss=loss,
                update_norm=updates.norm(step), weights_sha256=state.sha256, method=rules.method, bound=bound,
                clipped=combined.clipped,
            )
        )  # fmt: skip
        return True

    def _bound(self, request: TrainRequest, accepted: Mapping[str, Accepted]) -> tuple[float, NormHistory]:
        state, rules = self._state, self._state.settings.aggregation
        kept = state.kept.get("norm-bound")
        steps = sorted(answer.metrics["steps-done"] for answer in accepted.values() if answer.metrics) or [math.inf]
        return bound_for(
            NormHistory.from_json(kept) if kept else NormHistory(),
            [answer.update.norm for answer in accepted.values()],
            lr=request.lr,
            steps=request.local_steps or steps[(len(steps) - 1) // 2],
            parameters=state.weights.size,
            factor=rules.clip,
            rounds=rules.clip_rounds,
        )

    def _repeat(self, number: int, came: int, needed: int, why: str = "") -> None:
        """Say that the round is repeated, and pause: longer each time, so that a night without nodes costs little."""
        pause = min(LONGEST_PAUSE_S, PAUSE_S * 2**self._empty)
        self._empty += 1
        what = f"Round {number} brought {came} valid updates where {needed} are needed. It is repeated in {pause:.0f} s."
        why = why or "The others were late, left or were refused; see the refusals above."
        self._state.emit(Notice(severity="warning", code="round-repeated", what=what, why=why))
        self._state.wait(pause)
