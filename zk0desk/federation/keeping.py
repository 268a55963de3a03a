"""After a round: its checkpoint on disk, and its loss on the held-out recordings."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import CheckpointSaved, Evaluated, Notice, ServerStateChanged
from zk0desk.federation import run_checkpoint
from zk0desk.federation.run_record import RunRecord
from zk0desk.federation.run_state import RunState
from zk0desk.training import policy_files

if TYPE_CHECKING:
    from zk0desk.federation.evaluator import Evaluator, HeldOut

EVALUATOR_TRIES = 3
"""How often a round's evaluation is begun when its process ends before it answered."""


class CheckpointsLost(OperatorError):
    """A run was further than its first round, and none of its checkpoints can be read."""

    code = "checkpoints-lost"
    exit_status = ExitStatus.UNUSABLE


class Keeping:
    """Keeps and evaluates the rounds of a run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._evaluator: Evaluator | None = None
        self._baseline_due = False

    def restored(self) -> np.ndarray:
        """The weights of the last round that is whole, or the base policy's; record and what the parts kept become that round's.

        A damaged checkpoint is told, set aside and passed over for the one before. `CheckpointsLost` when that leaves none.
        """
        state, record = self._state, self._state.record
        run = record.folder(state.folder)
        run_checkpoint.sweep(run)
        found = run_checkpoint.newest(run, self._set_aside)
        state.first = 1
        if found is None:
            if record.done and not run_checkpoint.aside(record.checkpoint(state.folder, 1)).exists():
                raise CheckpointsLost(
                    f"None of this run's checkpoints in {run} is whole.",
                    f"It was at round {record.done}.",
                    "Bring them back from a backup, or begin a new run: zk0desk server run --new",
                )
            record.go_back(RunRecord(record.uid, record.rounds, record.policy_id, record.seed, record.number))
            state.kept, state.kept_arrays = {}, {}
            return policy_files.trainable_weights(state.base)
        record.go_back(RunRecord.from_json(found.record))
        state.kept = json.loads(json.dumps(record.kept)) if record.settled == record.done else found.kept
        state.kept_arrays, state.first = found.kept_arrays, record.done + 1
        return found.weights

    def _set_aside(self, folder: Path, why: str) -> None:
        aside = run_checkpoint.aside(folder)
        run_checkpoint.remove(aside)
        folder.replace(aside)
        self._state.emit(
            Notice(
                severity="warning", code="checkpoint-damaged", what=f"The checkpoint {folder} is damaged: {why}.",
                why="The disk may be failing, or the files were changed.",
                remedy=f"It is now {aside.name}, and the run goes on from the round before; nodes train the rounds since again.",
            )
        )  # fmt: skip

    def start_evaluator(self) -> None:
        """Start the process that evaluates, if there are held-out recordings; in a new run it begins with the base policy."""
        state = self._state
        if not state.settings.policy.held_out:
            return
        self._evaluator = self._another()
        if not state.record.done and "0" not in state.record.eval_losses:
            self._begin()
            self._baseline_due = True

    def _another(self) -> Evaluator:
        from zk0desk.federation.evaluator import Evaluator

        state, policy = self._state, self._state.settings.policy
        held_out, retention = (
            tuple(each.model_copy(update={"path": (state.folder.path / each.path).resolve()}) for each in every)
            for every in (policy.held_out, policy.retention)
        )
        with (state.folder.state / "evaluator.log").open("ab") as log:
            return Evaluator(
                state.base,
                held_out,
                retention,
                batch=policy.evaluation_batch,
                cache_gb=policy.evaluation_cache_gb,
                processors=self._processors,
                scratch=state.folder.state / "evaluate.npy",
                control=state.control,
                log=log,
            )

    def baseline(self) -> None:
        """Wait for the base policy's loss, once; nodes train meanwhile."""
        if self._baseline_due:
            self._evaluate(0)
            self.save()

    def keep(self, number: int) -> None:
        """Put the round on disk before it is evaluated: what nodes worked for survives whatever happens then."""
        state, record = self._state, self._state.record
        # The evaluator writes the processors before its first answer, which was awaited in this process's first round.
        processors = self._processors if (self._processors / "config.json").is_file() else None
        state.disk.insist(state.journal.sync)
        done = {**asdict(record), "done": number, "kept": {}, "entries": state.journal.length, "head": state.journal.head}
        state.disk.insist(
            lambda: run_checkpoint.write(
                record.checkpoint(state.folder, number), state.base, state.weights, record=done, kept=state.kept,
                kept_arrays=state.kept_arrays, processors=processors,
            )
        )  # fmt: skip
        record.done = number

    def evaluate(self, number: int) -> float | None:
        """The held-out loss of round `number`: what is known of it, else it is measured. None without held-out recordings."""
        known = self._state.record.eval_losses.get(str(number))
        return self._evaluate(number) if known is None else known

    def settle(self, number: int, loss: float | None) -> None:
        """Round `number` was measured, and what follows was decided: all of it outlasts this process from now on."""
        state, record = self._state, self._state.record
        before = record.eval_losses.get(str(record.best), math.inf) if record.best else math.inf
        best = loss < before if loss is not None else self._evaluator is None
        if best:
            record.best = number
        # A copy: what the parts note in a round that is never finished is not kept.
        record.settled, record.kept = number, json.loads(json.dumps(state.kept))
        self.save()
        record.prune(state.folder, state.rules.keep_checkpoints)
        state.emit(CheckpointSaved(run=record.uid, round=number, folder=str(record.checkpoint(state.folder, number)), best=best))

    def save(self) -> None:
        """Write run.json."""
        state, record = self._state, self._state.record
        record.entries, record.head = state.journal.length, state.journal.head
        state.disk.insist(lambda: record.save(state.folder))

    def close(self) -> None:
        """End the process that evaluates."""
        if self._evaluator is not None:
            self._evaluator.close()

    @property
    def _processors(self) -> Path:
        return self._state.record.folder(self._state.folder) / "processors"

    def _evaluate(self, number: int) -> float | None:
        """The held-out loss after round `number`; None where there are no held-out recordings, or it is not this round's turn."""
        state = self._state
        if self._evaluator is None or (number % state.settings.policy.evaluate_every and number != state.record.rounds):
            return None
        begun = self._baseline_due and not number
        if not begun:
            state.emit(ServerStateChanged(state="evaluating", what=f"Held-out loss after round {number}."))
        found = self._found(begun)
        self._baseline_due = False
        state.record.eval_losses[str(number)] = found.loss
        state.emit(Evaluated(run=state.record.uid, round=number, **asdict(found)))
        return found.loss

    def _begin(self) -> None:
        assert self._evaluator is not None
        evaluator, weights = self._evaluator, self._state.weights
        self._state.disk.insist(lambda: evaluator.begin(weights))

    def _found(self, begun: bool) -> HeldOut:
        """The evaluation, after it was begun unless it is. When its process ends meanwhile, another one does it."""
        from zk0desk.federation.evaluator import EvaluatorEnded

        left = EVALUATOR_TRIES
        while True:
            assert self._evaluator is not None
            try:
                if not begun:
                    self._begin()
                return self._evaluator.result()
            except EvaluatorEnded as error:
                begun, left = False, left - 1
                if not left:
                    raise
                what = f"{error.what} It is started again."
                self._state.emit(Notice(severity="warning", code=error.code, what=what, why=error.why, remedy=error.remedy))
                self._evaluator.close()
                self._evaluator = self._another()
