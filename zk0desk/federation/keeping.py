"""After a round: its checkpoint on disk, and its loss on the held-out recordings."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.events import CheckpointSaved, Evaluated, ServerStateChanged
from zk0desk.federation import run_checkpoint
from zk0desk.federation.run_state import RunState
from zk0desk.federation.server_folder import ServerFolderError
from zk0desk.training import policy_files

if TYPE_CHECKING:
    from zk0desk.federation.evaluator import Evaluator


class Keeping:
    """Keeps and evaluates the rounds of a run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._evaluator: Evaluator | None = None
        self._baseline_due = False

    def restored(self) -> np.ndarray:
        """The weights of the last round that is kept, or the base policy's. `ServerFolderError` when they were changed."""
        state, record = self._state, self._state.record
        if not record.done:
            return policy_files.trainable_weights(state.base)
        source = record.checkpoint(state.folder, record.done)
        try:
            found = run_checkpoint.read(source)
        except run_checkpoint.CheckpointDamaged as error:
            raise ServerFolderError(
                f"{source} is not what this run wrote.", f"It is damaged: {error}.", "Restore it, or start a new run with --new."
            ) from error
        state.kept, state.kept_arrays = found.kept, found.kept_arrays
        return found.weights

    def start_evaluator(self) -> None:
        """Start the process that evaluates, if there are held-out recordings; in a new run it begins with the base policy."""
        from zk0desk.federation.evaluator import Evaluator

        state, policy = self._state, self._state.settings.policy
        if not policy.held_out:
            return
        held_out, retention = (
            tuple(each.model_copy(update={"path": (state.folder.path / each.path).resolve()}) for each in every)
            for every in (policy.held_out, policy.retention)
        )
        with (state.folder.state / "evaluator.log").open("ab") as log:
            self._evaluator = Evaluator(
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
        if not state.record.done:
            self._evaluator.begin(state.weights)
            self._baseline_due = True

    def baseline(self) -> None:
        """Wait for the base policy's loss, once; nodes train meanwhile."""
        if self._baseline_due:
            self._evaluate(0)

    def keep(self, number: int) -> None:
        """Keep the round on disk before it is evaluated: what nodes worked for survives whatever happens then."""
        state, record = self._state, self._state.record
        folder = record.checkpoint(state.folder, number)
        # The evaluator writes the processors before its first answer, which was awaited in this process's first round.
        processors = self._processors if (self._processors / "config.json").is_file() else None
        record.done = number
        run_checkpoint.write(
            folder, state.base, state.weights, record=asdict(record), kept=state.kept, kept_arrays=state.kept_arrays, processors=processors
        )
        record.save(state.folder)
        loss = self._evaluate(number)
        before = record.eval_losses.get(str(record.best), math.inf) if record.best else math.inf
        best = loss < before if loss is not None else self._evaluator is None
        if best:
            record.best = number
        record.save(state.folder)
        record.prune(state.folder, state.rules.keep_checkpoints)
        state.emit(CheckpointSaved(run=record.uid, round=number, folder=str(folder), best=best))

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
        if number or not self._baseline_due:
            state.emit(ServerStateChanged(state="evaluating", what=f"Held-out loss after round {number}."))
            self._evaluator.begin(state.weights)
        found = self._evaluator.result()
        self._baseline_due = False
        state.record.eval_losses[str(number)] = found.loss
        state.emit(Evaluated(run=state.record.uid, round=number, **asdict(found)))
        return found.loss
