"""The rounds: send the global weights, collect updates until the deadline, aggregate, evaluate, keep a checkpoint.

This process holds numpy and no torch. Polling is its own: ten times a second while a round is young, once a second in
a long one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from zk0desk.control import NodeControl, Stopped
from zk0desk.events import RoundOpened, RunFinished, RunStarted, ServerStateChanged, Sink
from zk0desk.federation.aggregation import Aggregation
from zk0desk.federation.broadcast import Broadcast
from zk0desk.federation.collecting import Collector
from zk0desk.federation.keeping import Keeping
from zk0desk.federation.run_state import RunState, names
from zk0desk.federation.server_folder import ServerFolder, ServerNotRunningError

LOST_LIMIT_S = 600.0
"""How long a SuperLink may be away before the run gives up; it goes on from its checkpoint when started again."""


def run_rounds(
    folder: Path | str, emit: Sink, *, control: NodeControl | None = None, rounds: int | None = None, fresh: bool = False
) -> Path:
    """Conduct the rounds of the server that runs in `folder`; the last global policy's folder.

    Goes on with the last run where it stopped, unless `fresh`. `rounds` replaces the settings' number. Raises
    `OperatorError` after `RunFinished(reason="failed")`, and `Stopped` after `reason="stopped"`.
    """
    return _Conductor(RunState(ServerFolder(folder), emit, control or NodeControl(), rounds, fresh)).run()


class _Conductor:
    def __init__(self, state: RunState) -> None:
        self._state = state
        self._broadcast, self._collector = Broadcast(state), Collector(state)
        self._aggregation, self._keeping = Aggregation(state), Keeping(state)
        state.take(self._keeping.restored())

    def run(self) -> Path:
        state, record, began = self._state, self._state.record, self._state.record.done
        settings = state.rules.model_dump(mode="json", by_alias=True)
        state.emit(RunStarted(run=record.uid, round=began + 1, rounds=record.rounds, policy=state.files.policy_id, settings=settings))
        reason = "failed"
        try:
            record.save(state.folder)
            self._keeping.start_evaluator()
            self._reconnect()
            while record.done < record.rounds and not (state.control.finishing and record.done > began):
                self._persist(self._round)
            if record.done:
                self._broadcast.tell_the_end()
            reason = "complete" if record.done >= record.rounds else "stopped"
            record.finished = reason == "complete"
            record.save(state.folder)
        except Stopped:
            reason = "stopped"
            raise
        finally:
            self._keeping.close()
            if state.grid is not None:
                state.grid.close(failed=reason == "failed")
            last = str(record.checkpoint(state.folder, record.done)) if record.done else str(state.base)
            state.emit(RunFinished(run=record.uid, rounds=record.done, reason=reason, policy=last))
        return Path(last)

    def _persist(self, act: Callable[[], None]) -> None:
        """Do `act`; when the SuperLink is lost meanwhile, wait for it and do it again."""
        from zk0desk.federation.grid import SuperLinkLost

        try:
            act()
        except SuperLinkLost as error:
            what = "The SuperLink was lost; this round starts again."
            self._state.emit(ServerStateChanged(state="reconnecting", what=what, why=error.why))
            self._reconnect()

    def _reconnect(self) -> None:
        from zk0desk.federation.grid import Grid, SuperLinkLost

        state = self._state
        if state.grid is not None:
            state.grid.close(failed=True)
            state.grid = None
        gives_up, lost = time.monotonic() + LOST_LIMIT_S, None
        while time.monotonic() < gives_up:
            state.control.check()
            try:
                running = state.folder.running()
                state.grid = Grid(running.superlink, running.secret)
                return
            except (SuperLinkLost, ServerNotRunningError) as error:
                lost = error
                state.wait(0.5)
        raise lost or ServerNotRunningError("The SuperLink does not come back.")

    def _round(self) -> None:
        state, number = self._state, self._state.record.done + 1
        nodes = self._collector.gather(number)
        request = self._broadcast.request(number, state.rules.lr, state.rules.proximal_mu)
        sent = self._broadcast.send(request, nodes)
        asked = [node for node in nodes if node.node_id in sent]
        state.emit(
            RoundOpened(
                run=request.run_uid, round=number, nodes=names(node.public_key for node in asked), lr=request.lr, mu=request.proximal_mu,
                weights_sha256=state.sha256,
            )
        )  # fmt: skip
        self._keeping.baseline()
        answers = self._collector.collect(request, {sent[node.node_id]: node for node in asked}, self._broadcast.send)
        if self._aggregation.aggregate(request, asked, answers):
            self._keeping.keep(number)
