"""A run without a wire: the conductor's own parts, and replies that are laid into the spool."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.federation.coordinator_parts import Events
from tests.federation.kill_parts import KEYS, METRICS
from tests.federation.reply_parts import spooled
from zk0desk.control import NodeControl
from zk0desk.events import Evaluated, Event, ReplyAccepted, RoundOpened, RunStarted
from zk0desk.federation.aggregation import Aggregation
from zk0desk.federation.broadcast import Broadcast
from zk0desk.federation.collecting import Accepted
from zk0desk.federation.deciding import Deciding
from zk0desk.federation.keeping import Keeping
from zk0desk.federation.provenance import provenance
from zk0desk.federation.run_state import RunState
from zk0desk.federation.server_folder import ServerFolder, fingerprint_of
from zk0desk.federation.spool import Spool


class OfflineRun:
    """A run in this process, of the server in `folder`, as far as its checkpoints say; `close` is all that a kill leaves out.

    `watch` sees each event in the midst of what the run does.
    """

    def __init__(self, folder: ServerFolder, rounds: int, watch: Callable[[Event], None] = lambda _: None) -> None:
        self.events, self._watch = Events(), watch
        self.control = NodeControl()
        self.state = RunState(folder, self._sink, self.control, rounds, False)
        self.keeping = Keeping(self.state)
        self.state.take(self.keeping.restored())
        self.spool = Spool(folder.state / "spool")
        self._broadcast, self._deciding = Broadcast(self.state), Deciding(self.state)
        self._aggregation = Aggregation(self.state, self.spool)
        record = self.state.record
        self.state.journal.append(provenance(self.state))
        self.state.emit(RunStarted(run=record.uid, round=record.done + 1, rounds=rounds, policy=record.policy_id, settings={}))
        self.keeping.save()

    def _sink(self, event: Event) -> None:
        self._watch(event)
        self.events(event)

    def update(self, key: bytes, number: int, lr: float) -> np.ndarray:
        """A node's update: it follows from the node, the round, the weights and the learning rate, and grows from round to round."""
        pull = np.float32((0.2 if key == KEYS[0].public_key_bytes else -0.3) * lr * number)
        weights = self.state.weights
        return (pull * np.cos(np.arange(weights.size, dtype=np.float32) + weights + np.float32(number))).astype(np.float32)

    def round(self, loss: Callable[[int], float] | None = None) -> str:
        """Conduct the next round, with both nodes; the hash of its weights. `loss` gives the held-out loss."""
        state, number = self.state, self.state.record.done + 1
        request = self._broadcast.request(number, self._deciding.decision(number))
        state.emit(RoundOpened(run=request.run_uid, round=number, nodes=[], lr=request.lr, mu=0.0, weights_sha256=state.sha256))
        answers = {}
        for key in (each.public_key_bytes for each in KEYS):
            update = spooled(self.spool, self.update(key, number, request.lr), request.encoding)
            answers[key] = Accepted(update, METRICS)
            state.emit(
                ReplyAccepted(
                    run=request.run_uid, round=number, node=fingerprint_of(key), bytes=update.bytes, sha256=update.sha256, metrics=METRICS,
                    norm=update.norm,
                )
            )  # fmt: skip
        assert self._aggregation.aggregate(request, [], answers)
        self.keeping.keep(number)
        self.settle(loss)
        return state.sha256

    def settle(self, loss: Callable[[int], float] | None = None) -> None:
        """What follows a round that is kept."""
        number = self.state.record.done
        if loss is not None:
            self.state.record.eval_losses[str(number)] = loss(number)
            self.state.emit(Evaluated(run=self.state.record.uid, round=number, loss=loss(number), frames=1, recordings={}))
        self._deciding.decision(number + 1)
        self.keeping.settle(number, self.keeping.evaluate(number))

    def close(self) -> None:
        """Let go of the files."""
        self.state.journal.close()


def conduct(folder: ServerFolder, rounds: int, *, until: int | None = None) -> list[str]:
    """Conduct a run's rounds from where it is, up to `until`; the hashes of the weights."""
    run = OfflineRun(folder, rounds)
    try:
        return [run.round(lambda number: 1.0 / number) for _ in range(run.state.record.done, until or rounds)]
    finally:
        run.close()
