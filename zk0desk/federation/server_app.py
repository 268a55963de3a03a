"""The rounds: send the global weights, collect updates until the deadline, aggregate, evaluate, keep a checkpoint.

This process holds numpy and no torch. Polling is its own: thirty times a second while a round is young, once a second in
a long one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from zk0desk import process_lock
from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import Notice, RoundOpened, RunFinished, RunStarted, ServerStateChanged, Sink
from zk0desk.federation import disk
from zk0desk.federation.aggregation import Aggregation
from zk0desk.federation.broadcast import Broadcast
from zk0desk.federation.collecting import Collector
from zk0desk.federation.deciding import Deciding
from zk0desk.federation.keeping import Keeping
from zk0desk.federation.provenance import provenance
from zk0desk.federation.run_state import RunState, names
from zk0desk.federation.server_folder import ServerFolder, ServerNotRunningError

LOST_LIMIT_S = 600.0
"""How long a SuperLink may be away before the run gives up; it goes on from its checkpoint when started again."""


TAKE_OVER_S = 10.0
"""How long a run waits for one that ends: the processes of a server that was killed need a moment to notice."""


class AlreadyConducted(OperatorError):
    """Another process conducts the rounds of this server."""

    code = "already-conducted"
    exit_status = ExitStatus.USAGE


def run_rounds(
    folder: Path | str, emit: Sink, *, control: NodeControl | None = None, rounds: int | None = None, fresh: bool = False
) -> Path:
    """Conduct the rounds of the server that runs in `folder`; the last global policy's folder.

    Goes on with the last run where it stopped, unless `fresh`. `rounds` replaces the settings' number. Raises
    `OperatorError` after `RunFinished(reason="failed")`, and `Stopped` after `reason="stopped"`.
    """
    server = ServerFolder(folder)
    server.settings()
    server.running()  # before anything is written
    other = AlreadyConducted(
        "The rounds of this server are conducted already.", "Another process does it.", "Watch it: zk0desk server status"
    )
    with disk.told(server.path), process_lock.held(server.state / "rounds.lock", other, wait_s=TAKE_OVER_S):
        state = RunState(server, emit, control or NodeControl(), rounds, fresh)
        try:
            return _Conductor(state).run()
        finally:
            state.journal.close()


class _Conductor:
    def __init__(self, state: RunState) -> None:
        self._state = state
        self._keeping = Keeping(state)
        # Before the parts are made: they find what they kept.
        state.take(self._keeping.restored())
        self._broadcast, self._collector, self._deciding = Broadcast(state), Collector(state), Deciding(state)
        self._aggregation = Aggregation(state, self._collector.spool)

    def run(self) -> Path:
        state, record, began = self._state, self._state.record, self._state.record.done
        settings = state.rules.model_dump(mode="json", by_alias=True)
        reason = "failed"
        try:
            state.disk.insist(lambda: state.journal.append(provenance(state)))
            state.emit(RunStarted(run=record.uid, round=began + 1, rounds=record.rounds, policy=state.files.policy_id, settings=settings))
            self._keeping.save()
            self._keeping.start_evaluator()
            self._reconnect()
            while record.settled < record.rounds and self._may_go_on(began):
                self._persist(self._step)
            if record.done:
                self._broadcast.tell_the_end(self._collector.verdicts())
            reason = "complete" if record.done >= record.rounds else "stopped"
            record.finished = reason == "complete"
            self._keeping.save()
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

    def _may_go_on(self, began: int) -> bool:
        state, record = self._state, self._state.record
        if state.control.finishing and record.settled > began:
            return False
        # What is aggregated already has been counted.
        if state.private is None or record.settled < record.done or state.private.left():
            return True
        what = f"The run ends after round {record.done}: its privacy budget allows no further one."
        why = f"The budget is epsilon {state.settings.privacy.epsilon:g} at delta {state.settings.privacy.delta:g}, over all runs here."
        remedy = "More noise (privacy.noise-multiplier) allows more rounds; a larger budget protects less."
        state.emit(Notice(severity="warning", code="privacy-budget", what=what, why=why, remedy=remedy))
        return False

    def _persist(self, act: Callable[[], None]) -> None:
        """Do `act`, which does what is not finished yet. A SuperLink that is lost and a disk that refuses are waited for."""
        from zk0desk.federation.grid import SuperLinkLost

        try:
            act()
        except OSError as error:
            if not disk.refused(error):
                raise
            what = "Something of this round could not be written; the round starts again."
            self._state.emit(ServerStateChanged(state="waiting-for-disk", what=what, why=f"{error.strerror}."))
            self._state.disk.wait_for(self._state.weights.nbytes)
            self._state.take(self._keeping.restored())
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

    def _step(self) -> None:
        record = self._state.record
        if record.settled < record.done:
            self._settle(record.done)
        else:
            self._round()

    def _round(self) -> None:
        state, number = self._state, self._state.record.done + 1
        nodes = self._collector.gather(number)
        request = self._broadcast.request(number, self._deciding.decision(number))
        sent = self._broadcast.send(request, nodes, self._collector.verdicts())
        asked = [node for node in nodes if node.node_id in sent]
        state.emit(
            RoundOpened(
                run=request.run_uid, round=number, nodes=names(node.public_key for node in asked), lr=request.lr, mu=request.proximal_mu,
                weights_sha256=state.sha256, bytes=self._broadcast.bytes_sent,
            )
        )  # fmt: skip
        self._keeping.baseline()
        answers = self._collector.collect(request, {sent[node.node_id]: node for node in asked}, self._broadcast.send)
        if self._aggregation.aggregate(request, asked, answers):
            self._keeping.keep(number)

    def _settle(self, number: int) -> None:
        """What follows a round that is kept: its loss, and how to go on."""
        loss = self._keeping.evaluate(number)
        if number < self._state.record.rounds:
            self._deciding.decision(number + 1)
        self._keeping.settle(number, loss)
