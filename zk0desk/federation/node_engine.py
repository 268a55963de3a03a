"""What trains in a node: the loaded policy and its trainer. torch and LeRobot load when an `Engine` is made, not before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from zk0desk.control import NodeControl
from zk0desk.events import Sink
from zk0desk.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from zk0desk.federation.local_round import Trains
    from zk0desk.training.policy_files import PolicyFiles


class Engine:
    """What trains on this computer: the loaded policy and its trainer. Loading takes seconds to minutes."""

    def __init__(self, settings: Settings, files: PolicyFiles, *, emit: Sink, control: NodeControl) -> None:
        from zk0desk.training.loading import load_engine

        load_engine()
        from zk0desk.training.kept_estimates import Learning, key_of
        from zk0desk.training.policy import TrainablePolicy
        from zk0desk.training.trainer import LocalTrainer

        training, learning = settings.training, Learning(emit)
        self._settings = settings
        self._policy = TrainablePolicy.load(files.folder)
        trainer = LocalTrainer(
            self._policy,
            settings.recordings.chosen,
            node=data_name(settings),
            device=training.device,
            precision=training.precision,
            micro_batch=training.micro_batch,
            memory_free=training.memory_free,
            threads=training.threads,
            keep_optimiser=training.keep_optimiser,
            pause_frees_memory=training.pause_frees_memory,
            cache=settings.cache,
            emit=learning,
            control=control,
        )
        learning.watch(key_of(self._policy, trainer, settings.recordings.chosen))
        self.trainer: Trains = trainer
        self._trainer = trainer

    def paused(self) -> AbstractContextManager[None]:
        """What surrounds a pause between rounds: the GPU's memory is given back within it, if the operator wants that."""
        return self._trainer.memory_freed()

    def close(self) -> None:
        """Let go of the prefix cache; this cannot train any more."""
        self._trainer.close(restore=False)

    def loss(self, weights: np.ndarray, batch: int, control: NodeControl) -> tuple[float, int]:
        """The loss of `weights` on this node's own frames, and their number."""
        from zk0desk.training.evaluation import evaluate

        self._policy.set_weights(weights)
        chosen = self._settings.recordings.chosen
        found = evaluate(self._policy, chosen, batch=batch, control=control, forward=self._trainer.forward)
        return found.loss, found.frames


def data_name(settings: Settings) -> str:
    """What this node's random draws are named after: its chosen recordings. The same on every start, whatever its key."""
    chosen = sorted((recording.path.name, recording.leave_out) for recording in settings.recordings.chosen)
    return hashlib.sha256(repr(chosen).encode()).hexdigest()[:16]


class TrainingControl(NodeControl):
    """The node's control as the trainer sees it: a pause shows as the node's state while it lasts."""

    def __init__(self, control: NodeControl, shown: Callable[[bool], None]) -> None:
        super().__init__()
        self._inner, self._shown = control, shown

    def check(self) -> None:
        self._inner.check()

    @property
    def paused(self) -> bool:
        return self._inner.paused

    @property
    def finishing(self) -> bool:
        return self._inner.finishing

    @property
    def stopping(self) -> bool:
        return self._inner.stopping

    def hold(self, until: float = 0.0) -> float:
        if not self._inner.paused:
            return self._inner.hold(until)
        self._shown(True)
        try:
            return self._inner.hold(until)
        finally:
            if not self._inner.stopping:
                self._shown(False)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)
