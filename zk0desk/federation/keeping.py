"""After a round: its checkpoint on disk, and its loss on the held-out recordings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.events import CheckpointSaved, Evaluated, ServerStateChanged
from zk0desk.federation import updates
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
        source = record.checkpoint(state.folder, record.done) if record.done else state.base
        weights = policy_files.trainable_weights(source)
        if record.done and updates.weights_sha256(weights) != record.weights_sha256:
            raise ServerFolderError(
                f"{source} is not what this run wrote.", "Its weights were changed.", "Restore it, or start a new run with --new."
            )
        return weights

    def start_evaluator(self) -> None:
        """Start the process that evaluates, if there are held-out recordings; in a new run it begins with the base policy."""
        from zk0desk.federation.evaluator import Evaluator

        state, policy = self._state, self._state.settings.policy
        if not policy.held_out:
            return
        absolute = tuple(each.model_copy(update={"path": (state.folder.path / each.path).resolve()}) for each in policy.held_out)
        with (state.folder.state / "evaluator.log").open("ab") as log:
            self._evaluator = Evaluator(
                state.base,
                absolute,
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
        policy_files.write_policy(folder, state.base, state.weights, processors_from=processors)
        record.done = number
        record.save(state.folder)
        loss = self._evaluate(number)
        before = record.eval_losses.get(str(record.best), math.inf) if record.best else math.inf
        best = loss is None or loss < before
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
        state = self._state
        if self._evaluator is None:
            return None
        if number or not self._baseline_due:
            state.emit(ServerStateChanged(state="evaluating", what=f"Held-out loss after round {number}."))
            self._evaluator.begin(state.weights)
        found = self._evaluator.result()
        self._baseline_due = False
        state.record.eval_losses[str(number)] = found.loss
        state.emit(Evaluated(run=state.record.uid, round=number, loss=found.loss, frames=found.frames, recordings=found.recordings))
        return found.loss
