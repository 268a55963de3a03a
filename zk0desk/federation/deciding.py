"""What the coming round is asked with: the schedule over the run's own held-out losses, and the events that say why."""

from __future__ import annotations

import math

from zk0desk.events import Notice, ScheduleDecided
from zk0desk.federation import schedule
from zk0desk.federation.evaluator import NOT_FINITE
from zk0desk.federation.run_state import RunState
from zk0desk.federation.schedule import Decision, ScheduleState

KEPT = "schedule"
"""The schedule's name among what is kept with a round."""


class Deciding:
    """Decides learning rate and mu of the rounds of a run. What it remembers is kept with each round."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._told = False

    def decision(self, number: int) -> Decision:
        """What round `number` is asked with, from the losses of the rounds before it. Asked again, the answer is the same.

        Call it when round `number - 1` was evaluated, and before that round's state is saved for the last time.
        """
        state, settings = self._state, self._state.settings
        measured = bool(settings.policy.held_out)
        self._say_when_fixed(measured)
        held, before = self._held(number, measured), None
        while held.round < number - 1:
            before = held.decision
            held, _ = schedule.after(settings.schedule, held, self._loss(held.round + 1), held.round + 1)
        if before is None and state.kept.get(KEPT) == held.to_json():
            return held.decision
        state.kept[KEPT] = held.to_json()
        decided = held.decision
        if before is None or (before.lr, before.mu) != (decided.lr, decided.mu):
            state.emit(ScheduleDecided(
                run=state.record.uid, round=number, lr=decided.lr, mu=decided.mu, signal=decided.signal, why=decided.why
            ))  # fmt: skip
        return decided

    def _held(self, number: int, measured: bool) -> ScheduleState:
        """What was kept, or a new beginning: of the run, or of this round when the settings were changed since."""
        settings, rounds, known = self._state.settings.schedule, self._state.rules, self._state.kept.get(KEPT)
        begun = schedule.start(settings, rounds, measured=measured)
        if known is None:
            return begun
        held = ScheduleState.from_json(known)
        if schedule.still_holds(held, begun):
            return held if held.round < number else begun
        return schedule.start(settings, rounds, measured=measured, done=number - 1)

    def _loss(self, number: int) -> float | None:
        loss = self._state.record.eval_losses.get(str(number))
        return math.inf if loss is not None and loss >= NOT_FINITE else loss

    def _say_when_fixed(self, measured: bool) -> None:
        wanted = self._state.settings.schedule.strategy
        if self._told or schedule.effective(wanted, measured) == wanted:
            return
        self._told = True
        self._state.emit(
            Notice(
                severity="note", code="schedule-fixed", what=f"Learning rate and mu stay as they are: the strategy {wanted} needs a loss.",
                why="The settings name no held-out recordings (policy.held-out).",
                remedy="Name some, or choose the strategy fedprox to say that this is meant.",
            )
        )  # fmt: skip
