"""The node: joins a federation, trains when a round comes, sends the update, and says all the while what happens and why.

One object for the window's thread and for the command line. It is told things through `NodeControl`, and tells through
events; every message goes into the journal's ledger. Code from the server is never run: a message is data, and the two
types `train` and `query` are all that is answered.
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from zk0desk import __version__
from zk0desk.control import NodeControl, Stopped
from zk0desk.engine.missing import missing
from zk0desk.errors import OperatorError
from zk0desk.events import Connected, Event, MessageLogged, NodeStateChanged, Notice, Sink, Transfer, UpdateSent
from zk0desk.federation import local_round
from zk0desk.federation.interruptible import Behind, interruptible
from zk0desk.federation.messages import (
    ACCEPTED,
    EVALUATE,
    LAST_VERDICT,
    QUERY,
    TRAIN,
    MessageRefused,
    TrainRequest,
    WholeNeeded,
    check_query,
)
from zk0desk.federation.node_checks import prepare
from zk0desk.federation.node_engine import Engine, TrainingControl
from zk0desk.federation.node_privacy import NodePrivacy
from zk0desk.federation.node_state import SENTENCES, NodeState, check_transition
from zk0desk.federation.probe import ClockOff, ConnectionTrouble, NotAdmitted, WrongCertificate
from zk0desk.federation.run_store import RunStore
from zk0desk.federation.transfer_speed import keep_transfer
from zk0desk.federation.updates import encoded_bytes
from zk0desk.journal import Journal, LedgerEntry
from zk0desk.quiet import quiet_libraries
from zk0desk.settings import Settings
from zk0desk.training.loading import gentle_imports
from zk0desk.training.privacy_account import BudgetSpent

if TYPE_CHECKING:
    import numpy as np
    from flwr.app import Message, RecordDict

    from zk0desk.federation.fleet import Fleet, Incoming

FIRST_POLL_S, POLL_S, IDLE_POLL_S = 0.05, 0.2, 2.0
"""How often the SuperLink is asked for a message: right after an answer, while rounds come, and when none has come for long."""
LIVELY_S = 30.0
BUSY = 8.0
"""A SuperLink that takes long to answer is asked less often: the pause is at least so many times what its last answer took."""
APPROVAL_S, APPROVAL_LIMIT_S = 1.0, 15.0
RETRY_S, RETRY_LIMIT_S = 0.5, 30.0
ONCE_LIMIT_S = 8.0
"""With `once`, how long a server that was never reached is called."""
SMALL_MESSAGE = 2**20
PENDING = "pending-round"

S = NodeState


class _Finished(Exception):
    """Asked to finish while no round is under way."""


def poll_pause(quiet_s: float, took_s: float) -> float:
    """Seconds to the next poll, `quiet_s` after the last message was answered, when the last poll took `took_s`.

    Short rounds are not held up by it; and fifty nodes that poll five times a second would keep a SuperLink busy with that alone.
    """
    usual = min(POLL_S, max(FIRST_POLL_S, quiet_s / 10)) + max(0.0, quiet_s - LIVELY_S) / 60
    return min(IDLE_POLL_S, max(usual, BUSY * took_s)) * random.uniform(0.9, 1.1)


class Node:
    """One node of a federation. `run` blocks until it is stopped (or, with `once`, after one delivered update or a server never reached).

    `emit` gets the events, from the thread that calls `run`. After an error `run` raises it, when the state is `failed`.
    """

    def __init__(self, settings: Settings, *, emit: Sink, control: NodeControl, journal: Journal, once: bool = False) -> None:
        self._settings = settings
        self._emit = emit
        self._control = control
        self._journal = journal
        self._once = once
        self._state = S.IDLE
        self._fleet: Fleet | None = None
        self._engine: Behind[Engine] | None = None
        self._connected = False
        self._approving = False
        self._delivered = 0
        self._frames = 0
        self._lively = 0.0
        self._rate = 0.0
        self._said: tuple[str, str, str] = SENTENCES[S.IDLE]
        self._since = time.time()
        self._knocks = 0
        self._knock_entry = 0
        self._base_told = ""
        self._verdict_told = ("", 0, "")
        self._signs = 0
        self._privacy = NodePrivacy(settings.privacy, emit)

    @property
    def state(self) -> NodeState:
        """What the node is doing."""
        return self._state

    def run(self) -> None:
        """Take part until stopped. Raises `OperatorError` when it cannot go on."""
        try:
            self._go(S.CHECKING)
            self._privacy.check()
            ready = prepare(self._settings, self._control)
            self._invitation, self._files, self._key, self._frames = ready.invitation, ready.files, ready.key, ready.frames
            self._take_part()
            self._go(S.FINISHING, why="The round is done." if self._once else "")
        except _Finished:
            self._go(S.FINISHING)
        except Stopped:
            self._go(S.FINISHING)
        except OperatorError as error:
            self._leave()
            self._notice("error", error)
            self._go(S.FAILED, error.what, error.why, error.remedy)
            raise
        except BaseException as error:
            self._leave()
            self._go(S.FAILED, "The node met an error that it did not expect.", f"{type(error).__name__}: {error!s:.300}", "Join again.")
            raise
        self._leave()
        self._go(S.STOPPED)

    # --- connected

    def _take_part(self) -> None:
        self._go(S.CONNECTING, why=f"{self._invitation.federation} at {self._invitation.address} is being called.")
        fleet = interruptible(self._control, self._open, name="load-flwr")
        self._fleet = fleet
        try:
            self._join()
        except ConnectionTrouble as trouble:
            self._reconnect(trouble)
        shown = TrainingControl(self._control, lambda paused: self._go(S.PAUSED if paused else S.TRAINING))
        self._engine = Behind(lambda: Engine(self._settings, self._files, emit=self._emit, control=shown), name="load-engine")
        self._go(S.WAITING_FOR_ROUND)
        self._resume()
        while not self._done():
            if self._control.paused:
                self._go(S.PAUSED, then="Resume takes the next round.")
                with self._engine.wait(self._control).paused() if self._engine.ended else nullcontext():
                    self._control.hold()
                self._go(S.WAITING_FOR_ROUND)
                continue
            if self._engine.ended:
                self._engine.wait(self._control)  # an engine that cannot be loaded ends the node, with its reason
            try:
                incoming = fleet.poll()
            except MessageRefused as error:
                self._notice("warning", error)
                incoming = None
            except ConnectionTrouble as trouble:
                self._reconnect(trouble)
                self._go(S.WAITING_FOR_ROUND)
                continue
            if incoming is None:
                self._control.sleep(self._pause())
                continue
            self._lively = time.monotonic()
            self._answer(incoming)
            self._lively = time.monotonic()
            if not self._done():
                self._go(S.WAITING_FOR_ROUND)

    def _done(self) -> bool:
        self._control.check()
        return self._control.finishing or (self._once and self._delivered > 0)

    def _pause(self) -> float:
        """Seconds to the next poll."""
        return poll_pause(time.monotonic() - self._lively, self._link.poll_s)

    def _open(self) -> Fleet:
        quiet_libraries()
        try:
            with gentle_imports():
                from zk0desk.federation.fleet import Fleet
        except ImportError as error:
            raise missing("The connection to federations cannot be loaded.", f"{error}.") from error

        return Fleet(self._invitation, self._key, self._control)

    @property
    def _link(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    def _fact(self, name: str) -> str:
        return f"{name} {self._invitation.certificate_sha256[:16]} {self._key.fingerprint}"

    def _join(self) -> None:
        """Join once. Attempts in a row are one entry of the ledger, which counts them."""
        link, key, address = self._link, self._key, self._invitation.address
        if not self._knocks:
            contents = {"public-key": key.fingerprint, "zk0desk": __version__}
            self._knock_entry = self._ledger("sent", "activate", contents=contents, size=len(key.public_key_bytes))
        self._knocks += 1
        try:
            node_id = link.join(int(self._journal.recall(self._fact("node-id"), 0)))
        except (OperatorError, Stopped) as error:
            kind = "refused" if isinstance(error, NotAdmitted) else "failed"
            self._journal.settle(self._knock_entry, f"{kind}, attempts: {self._knocks}. {error!s:.200}".strip())
            raise
        self._journal.settle(self._knock_entry, "ok")
        self._knocks = 0
        self._journal.remember(self._fact("node-id"), node_id)
        if not self._signs:  # heartbeats and questions for work are one entry, which counts them in the end
            self._signs = self._ledger("sent", "signs-of-life", contents={"node-id": node_id})
        self._connected = True
        self._lively = time.monotonic()
        self._emit(Connected(address=address, node_id=node_id, fingerprint=key.fingerprint))

    def _reconnect(self, trouble: OperatorError) -> None:
        """Try until joined again. Raises what a person has to mend."""
        wait, gives_up = RETRY_S, time.monotonic() + ONCE_LIMIT_S
        while True:
            lasting = isinstance(trouble, ConnectionTrouble) and trouble.lasting
            # A certificate or a clock that was right before may be right again: a captive portal, a computer that just woke.
            if lasting and not (self._connected and isinstance(trouble, (WrongCertificate, ClockOff))):
                raise trouble
            if isinstance(trouble, NotAdmitted):
                self._approving = True
                pause = min(APPROVAL_LIMIT_S, APPROVAL_S * 1.1**self._knocks) * random.uniform(0.9, 1.1)
                self._go(S.WAITING_FOR_APPROVAL, why=trouble.why, then=trouble.remedy)
            else:
                if self._once and not self._connected and not self._approving and time.monotonic() >= gives_up:
                    raise trouble
                pause, wait = wait, min(RETRY_LIMIT_S, random.uniform(RETRY_S, wait * 3))
                self._go(S.RECONNECTING, why=f"{trouble.what} {trouble.why}", then="Tried again by itself; training done so far is kept.")
            self._control.sleep(pause)
            if self._control.finishing:
                if self._journal.recall(self._fact(PENDING)) is None:
                    raise _Finished
                interruptible(self._control, lambda seconds=pause: time.sleep(seconds), name="node-wait")  # type: ignore[misc]
            try:
                self._join()
                return
            except ConnectionTrouble as error:
                trouble = error

    def _persist[T](self, state: NodeState, action: Callable[[], T]) -> T:
        """`action()` in `state`, again after every lost connection. `InstructionGone` when the SuperLink has forgotten this node's id."""
        from zk0desk.federation.fleet import InstructionGone

        while True:
            self._go(state)
            node_id = self._link.node_id
            try:
                return action()
            except ConnectionTrouble as trouble:
                self._reconnect(trouble)
            if self._link.node_id != node_id:
                raise InstructionGone("The SuperLink was started anew.", "It has forgotten this round.", "The next round comes by itself.")

    def _leave(self) -> None:
        """Tell the SuperLink, within a second, and close. Nothing else is sent after a stop."""
        if self._engine is not None and (engine := self._engine.result) is not None:
            engine.close()
        fleet, self._fleet = self._fleet, None
        if fleet is None:
            return
        try:
            if self._signs:
                self._journal.settle(self._signs, f"{fleet.heartbeats} heartbeats, asked {fleet.polls} times for work")
            if fleet.node_id:
                number = self._ledger("sent", "deactivate")
                self._journal.settle(number, "ok" if fleet.leave() else "failed: no answer")
        finally:
            fleet.close()
        if self._control.stopping:
            self._journal.forget(self._fact(PENDING))

    # --- messages

    def _answer(self, incoming: Incoming) -> None:
        """Answer one message; a refusal and a round that is no longer wanted do not end the node."""
        from zk0desk.federation.fleet import InstructionGone, reply_to

        kind = incoming.kind
        try:
            try:
                if kind == TRAIN:
                    self._train(incoming)
                elif kind == QUERY:
                    self._query(incoming)
                elif kind == EVALUATE:
                    self._evaluate(incoming)
                else:
                    raise MessageRefused("message-type", f"{kind!r:.40} is not one that this node answers.")
            except InstructionGone:
                raise
            except (MessageRefused, OperatorError) as error:
                if isinstance(error, ConnectionTrouble):
                    raise
                self._notice("note" if isinstance(error, WholeNeeded) else "warning", error)
                reason = error.reason if isinstance(error, MessageRefused) else f"{error.code}: {error.what} {error.why}"
                number = self._ledger("sent", f"{kind}-error", contents={"error": reason[:500]}, size=len(reason[:500]))
                reply = reply_to(incoming.message, error=reason)
                self._send(reply, number, 0.0, lambda _done: None)
                if isinstance(error, BudgetSpent):
                    raise
        except InstructionGone as gone:
            self._notice("note", gone)
        self._journal.forget(self._fact(PENDING))

    def _receive(self, incoming: Incoming, limit: int) -> tuple[RecordDict, int]:
        """The content of a message and its ledger number; `Transfer` events go out when it is large."""
        began, total = time.monotonic(), [0]
        expected = max(limit - local_round.OVERHEAD, 1)

        def progress(done: int) -> None:
            total[0] = done
            if limit > SMALL_MESSAGE:
                self._emit(Transfer(direction="down", run="", round=0, bytes_done=done, bytes_total=max(done, expected)))

        state = S.DOWNLOADING if limit > SMALL_MESSAGE else self._state
        flwr_run = str(incoming.message.metadata.run_id)
        try:
            content = self._persist(state, lambda: self._link.receive(incoming, limit=limit, progress=progress))
        except (OperatorError, Stopped) as error:
            outcome = f"refused: {error.why}" if isinstance(error, MessageRefused) else f"failed: {error!s:.200}"
            self._ledger("received", incoming.kind, size=total[0], sha256=incoming.message_id, flwr_run=flwr_run, outcome=outcome)
            raise
        seconds = time.monotonic() - began
        self._rate = total[0] / max(1e-3, seconds)
        if incoming.kind == TRAIN:
            keep_transfer(self._journal, self._invitation, "down", total[0], seconds)
        return content, total[0]

    def _train(self, incoming: Incoming) -> None:
        from zk0desk.federation.fleet import message_as_bytes

        received = time.time()
        size = self._files.layout.size
        content, total = self._receive(incoming, local_round.message_limit(size))
        config = dict(content.config_records.get("config", {}))
        run, number = local_round.run_of(config)
        flwr_run = str(incoming.message.metadata.run_id)
        entry = self._ledger(
            "received",
            TRAIN,
            size=total,
            sha256=incoming.message_id,
            run=run,
            round=number,
            flwr_run=flwr_run,
            contents=local_round.contents_of(content),
        )
        try:
            request = local_round.read_request(content, self._files)
            weights = local_round.read_weights(content, request, size, RunStore.existing(request.run_uid))
        except MessageRefused as error:
            self._journal.settle(entry, f"refused: {error.why}")
            raise
        del content
        self._logged("received", TRAIN, total, incoming.message_id, request)
        invitation = self._invitation
        self._journal.describe_run(
            request.run_uid,
            federation=invitation.federation,
            address=invitation.address,
            policy=request.policy_id,
            rounds=request.num_rounds,
        )
        self._tell_federation(request.run_uid, request.last)
        if decided := local_round.schedule_decided(request):
            self._emit(decided)
        if spent := local_round.federation_privacy(request):
            self._emit(spent)
        self._tell_verdict(request.run_uid, request.formed_by, request.last_verdict)
        store = RunStore(request.run_uid)
        store.keep_weights(request, weights, invitation, self._files)
        message = base64.b64encode(message_as_bytes(incoming.message)).decode()
        self._journal.remember(self._fact(PENDING), {"message": message, "config": request.to_config(), "received": received})
        self._round(incoming.message, request, weights, received, store)

    def _round(self, message: Message, request: TrainRequest, weights: np.ndarray, received: float, store: RunStore) -> None:
        result = store.update(request, weights.size)
        if result is None:
            self._privacy.check()
            self._go(S.TRAINING, why=f"Round {request.server_round} of {request.num_rounds}.")
            assert self._engine is not None
            trainer = self._engine.wait(self._control).trainer
            self._frames = trainer.frames
            training = self._settings.training
            kept = store.checkpoint(training.checkpoint_s, memory_free=training.memory_free)
            result = trainer.train(request.plan(self._training_deadline(request, received)), weights, kept)
            self._control.check()
            store.keep_update(request, result)
            kept.clear()
        self._deliver(message, request, local_round.answer(request, result, store.feedback(), self._privacy), received)

    def _training_deadline(self, request: TrainRequest, received: float) -> float:
        """When training has to end so that the upload does too; the upload is taken to run at half the download's rate."""
        if not request.deadline_s:
            return 0.0
        upload = 1.0 + 2 * encoded_bytes(self._files.layout.size, request.encoding) / max(self._rate, 1e5)
        return received + request.deadline_s - min(upload, request.deadline_s / 4)

    def _deliver(self, message: Message, request: TrainRequest, answer: local_round.Answer, received: float) -> None:
        from zk0desk.federation.fleet import reply_to

        sha256, size, began = answer.sha256, answer.bytes, time.monotonic()
        contents = {"tensors": answer.tensors(), "metrics": answer.metrics, "config": answer.config}
        run, number = request.run_uid, request.server_round
        entry = self._ledger(
            "sent", "train-reply", contents=contents, size=size, sha256=sha256, run=run, round=number, flwr_run=str(message.metadata.run_id)
        )

        def progress(done: int) -> None:
            self._emit(Transfer(direction="up", run=run, round=number, bytes_done=min(done, size), bytes_total=size))

        self._send(reply_to(message, local_round.to_records(answer)), entry, time.time() - received, progress, S.UPLOADING)
        keep_transfer(self._journal, self._invitation, "up", size, time.monotonic() - began)
        self._logged("sent", "train-reply", size, sha256, request)
        self._emit(UpdateSent(run=run, round=number, bytes=size, sha256=sha256, seconds=time.monotonic() - began))
        self._delivered += 1

    def _send(self, reply: Message, entry: int, seconds: float, progress: Callable[[int], None], state: NodeState | None = None) -> None:
        try:
            self._persist(state or self._state, lambda: self._link.send(reply, seconds=seconds, progress=progress))
        except BaseException as error:
            self._journal.settle(entry, f"failed: {error!s:.200}" if not isinstance(error, Stopped) else "failed: stopped")
            raise
        self._journal.settle(entry, "ok")

    def _query(self, incoming: Incoming) -> None:
        from flwr.app import ConfigRecord, RecordDict

        from zk0desk.federation.fleet import reply_to

        self._go(
            S.DOWNLOADING, "Receiving a message", "The coordinator asks for versions, or gives a run's last weights.", "Nothing is trained."
        )
        content, total = self._receive(incoming, local_round.message_limit(self._files.layout.size))
        config = dict(content.config_records.get("config", {}))
        run, number = local_round.run_of(config)
        flwr_run = str(incoming.message.metadata.run_id)
        entry = self._ledger(
            "received",
            QUERY,
            size=total,
            sha256=incoming.message_id,
            run=run,
            round=number,
            flwr_run=flwr_run,
            contents=local_round.contents_of(content),
        )
        try:
            last = check_query(config)
            carried = local_round.read_query(content, self._files)
        except MessageRefused as error:
            self._journal.settle(entry, f"refused: {error.why}")
            raise
        del content
        if carried is not None:
            final, weights = carried
            store = RunStore(final.run_uid)
            store.keep_weights(final, weights, self._invitation, self._files)
            if final.server_round == final.num_rounds:
                store.feedback().forget()
        elif why := str(config.get(LAST_VERDICT, "")):
            what = "The federation does not ask this node any more."
            remedy = "Ask the coordinator to admit this computer again once the cause is found."
            self._emit(Notice(severity="error", code="quarantined", what=what, why=why, remedy=remedy))
        self._go(S.WAITING_FOR_ROUND)
        self._tell_federation(run, last)
        self._tell_verdict(run, number, str(config.get(LAST_VERDICT, "")))
        told = local_round.capability(self._files, 0 if self._privacy.on else self._frames)
        entry = self._ledger("sent", "query-reply", contents={"config": told}, size=len(repr(told)), run=run, flwr_run=flwr_run)
        self._send(reply_to(incoming.message, RecordDict({"config": ConfigRecord(told)})), entry, 0.0, lambda _done: None)

    def _tell_federation(self, run: str, last: dict[str, float]) -> None:
        for event in local_round.federation_metrics(run, last, base=run != self._base_told):
            self._emit(event)
            if event.round == 0:
                self._base_told = run

    def _tell_verdict(self, run: str, number: int, verdict: str) -> None:
        """Say that this node's last update was not used, and why; that one was used is in the ledger, with the message.

        `number` is the last complete round, 0 where the message names none.
        """
        about = (run, number, verdict)
        if verdict in ("", ACCEPTED) or about == self._verdict_told:
            return
        self._verdict_told = about
        self._emit(
            Notice(
                severity="warning", code="update-not-used", what="The federation did not use this node's last update.", why=verdict,
                remedy="No round comes until the coordinator admits this node again."
                if verdict.startswith("quarantine:")
                else "Training goes on. If it comes again, tell the coordinator.",
            )
        )  # fmt: skip

    def _evaluate(self, incoming: Incoming) -> None:
        if not self._settings.federation.allow_evaluation:
            raise MessageRefused("evaluate", "the operator does not allow evaluation on this node's own frames.")
        from flwr.app import MetricRecord, RecordDict

        from zk0desk.federation.fleet import reply_to

        size = self._files.layout.size
        content, total = self._receive(incoming, local_round.message_limit(size))
        request = local_round.read_request(content, self._files)
        flwr_run, run, number = str(incoming.message.metadata.run_id), request.run_uid, request.server_round
        self._ledger(
            "received",
            EVALUATE,
            size=total,
            sha256=incoming.message_id,
            run=run,
            round=number,
            flwr_run=flwr_run,
            contents=local_round.contents_of(content),
        )
        weights = local_round.read_weights(content, request, size)
        self._go(
            S.TRAINING, "Measuring the loss on your frames", "The coordinator asked for it, and the settings allow it.", "Then it is sent."
        )
        assert self._engine is not None
        loss, frames = self._engine.wait(self._control).loss(weights, request.batch_size, self._control)
        metrics: dict[str, Any] = {"loss": loss, "num-examples": frames}
        entry = self._ledger("sent", "evaluate-reply", contents={"metrics": metrics}, size=32, run=run, round=number, flwr_run=flwr_run)
        self._send(reply_to(incoming.message, RecordDict({"metrics": MetricRecord(metrics)})), entry, 0.0, lambda _done: None, S.UPLOADING)

    def _resume(self) -> None:
        """Go on with a round that an unclean end cut off, unless the SuperLink offers it anew or its deadline has passed."""
        from zk0desk.federation.fleet import InstructionGone, message_from_bytes

        pending = self._journal.recall(self._fact(PENDING))
        if pending is None:
            return
        try:
            request = TrainRequest.from_config(pending["config"])
            message, received = message_from_bytes(base64.b64decode(pending["message"])), float(pending["received"])
            store = RunStore(request.run_uid)
            weights = store.weights(self._files.layout.size, request.weights_sha256)
        except (MessageRefused, KeyError, ValueError, TypeError):
            weights = None
        if weights is None or message.metadata.dst_node_id != self._link.node_id or self._missed(request, received):
            self._journal.forget(self._fact(PENDING))
            return
        offered = self._persist(S.WAITING_FOR_ROUND, self._link.poll)
        if offered is not None:
            self._answer(offered)
            self._go(S.WAITING_FOR_ROUND)
            return
        note = Notice(
            severity="note", code="round-resumed", what=f"Round {request.server_round} goes on.", why="It was cut off the last time."
        )
        self._emit(note)
        try:
            self._round(message, request, weights, received, store)
        except InstructionGone as gone:
            self._notice("note", gone)
        except ConnectionTrouble:
            raise
        except OperatorError as error:
            self._notice("warning", error)
        self._journal.forget(self._fact(PENDING))
        self._go(S.WAITING_FOR_ROUND)

    def _missed(self, request: TrainRequest, received: float) -> bool:
        return bool(request.deadline_s) and time.time() >= self._training_deadline(request, received)

    # --- telling

    def _go(self, state: NodeState, what: str = "", why: str = "", then: str = "") -> None:
        check_transition(self._state, state)
        usual = SENTENCES[state]
        said = (what or usual[0], why or usual[1], then or usual[2])
        if state is self._state and (said == self._said or not (what or why or then)):
            return
        self._since = time.time() if state is not self._state else self._since
        self._state, self._said = state, said
        self._emit(NodeStateChanged(state=state, what=said[0], why=said[1], then=said[2], since=self._since))

    def _notice(self, severity: str, error: OperatorError) -> None:
        self._emit(Notice(severity=severity, code=error.code, what=error.what, why=error.why, remedy=error.remedy))

    def _ledger(self, direction: str, kind: str, *, size: int = 0, outcome: str = "", **more: Any) -> int:
        outcome = outcome or ("under way" if direction == "sent" else "ok")
        return self._journal.enter(LedgerEntry(direction, kind, self._invitation.address, size, outcome=outcome, **more))

    def _logged(self, direction: str, kind: str, size: int, sha256: str, request: TrainRequest) -> None:
        event: Event = MessageLogged(
            direction=direction,
            kind=kind,
            peer=self._invitation.address,
            run=request.run_uid,
            round=request.server_round,
            bytes=size,
            sha256=sha256,
        )
        self._emit(event)
