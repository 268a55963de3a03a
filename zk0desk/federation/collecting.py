"""Waiting for nodes, and for their answers: who is there, what came until the deadline, and what of it is valid."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zk0desk.events import NodeQuarantined, Notice, ReplyAccepted, ReplyRefused, ServerStateChanged
from zk0desk.federation import messages, robust, strategy
from zk0desk.federation.allocator import return_large_blocks
from zk0desk.federation.intake import Intake
from zk0desk.federation.messages import MessageRefused, TrainRequest
from zk0desk.federation.quarantine import Quarantine
from zk0desk.federation.run_state import RunState
from zk0desk.federation.server_folder import fingerprint_of
from zk0desk.federation.spool import Spool, Spooled, SpoolTrouble

if TYPE_CHECKING:
    from zk0desk.federation.grid import OnlineNode, Reply

RESENDS = 3
"""How often a round is sent again to a node whose instruction was lost on the way, or that needs the whole weights."""
TELL_TTL_S = 86_400.0
"""How long a node that comes back is told that it is in quarantine."""
ONLINE_S = 1.0
"""How often it is asked who is online. Heartbeats are half a minute apart, and the question costs the SuperLink as much as one for
replies."""
LATE_ROUNDS = 3
"""For so many rounds a reply that comes after its deadline is still recognised, and its bytes freed."""


def grace(deadline_s: float) -> float:
    """Seconds past a node's deadline that its reply may still be on the way: 5%, at least 1, at most 10."""
    return min(10.0, max(1.0, 0.05 * deadline_s))


def poll_interval(elapsed: float) -> float:
    """Seconds between two polls: a hundredth of what has passed, between 0.03 and 1."""
    return min(1.0, max(0.03, elapsed / 100))


@dataclass(frozen=True)
class Accepted:
    """A valid reply; its update is on disk until the round is over."""

    update: Spooled
    metrics: dict[str, float]


@dataclass(frozen=True)
class Refused:
    """A reply that is not used, or a node's own refusal: its code and why. `bad`: the reply itself is against the contract."""

    code: str
    why: str
    bad: bool = False


REVOKED = Refused("revoked", "The coordinator revoked this node's key.")

Answers = dict[bytes, Accepted | Refused]
"""What came, by public key. Nodes that did not answer in time are not in it."""


class Send(Protocol):
    """Sends a round to nodes: `Broadcast.send`."""

    def __call__(self, request: TrainRequest, nodes: Sequence[OnlineNode], *, whole: bool = False) -> dict[int, str]:
        """The message's id by node id."""


@dataclass(frozen=True)
class _Late:
    """A node that had not answered when its round ended."""

    node: OnlineNode
    round: int
    since: float


class Collector:
    """Waits for the nodes of a run and collects what they answer."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        return_large_blocks()
        self.spool = Spool(state.folder.state / "spool")
        self._quarantine = Quarantine(state.folder.nodes_path)
        self._registry = state.folder.nodes()
        self._first_asked: dict[int, tuple[float, float]] = {}
        self._late: dict[str, _Late] = {}
        self._late_of: object = None

    def gather(self, number: int) -> list[OnlineNode]:
        """Wait until enough nodes are online that are not in quarantine; those that this round asks, in the order of their public keys."""
        state = self._state
        enough_since, told = 0.0, False
        while True:
            state.control.check()
            state.live.take(number)
            rules = state.rules
            held = self._quarantine.held()
            online = [node for node in state.online() if node.public_key not in held]
            needed = max(rules.min_nodes, robust.least_nodes(state.settings.aggregation.method, state.settings.aggregation.hostile_nodes))
            enough = len(online) >= needed
            if not told and (number == state.first or not enough):
                # In a run's first round always, and without a count, so that events do not depend on who came when.
                what = f"Round {number} waits for {needed} nodes to be online."
                aside = f" In quarantine and not asked: {len(held)}." if held else ""
                state.emit(ServerStateChanged(state="waiting-for-nodes", what=what, why=f"See `zk0desk server nodes`.{aside}"))
                told = True
            enough_since = (enough_since or time.monotonic()) if enough else 0.0
            if enough and time.monotonic() - enough_since >= rules.wait_s:
                state.emit(ServerStateChanged(state="training", what=f"Round {number} of {state.record.rounds}."))
                drawn = strategy.drawn(
                    [node.public_key for node in online], rules.fraction, needed, seed=rules.seed, run=state.record.uid, number=number
                )
                return [node for node in online if node.public_key in drawn]
            state.wait(0.1 if number == state.first else 0.5)

    def collect(self, request: TrainRequest, waiting: dict[str, OnlineNode], send: Send) -> Answers:
        """Answers to `request` until all of `waiting` (nodes by message id) have come or the deadline passed.

        They are told as events in the order of the keys, each as soon as that allows. `send` sends the round again to a node whose
        instruction was lost, or that needs the whole weights.
        """
        try:
            return self._collect(request, waiting, send)
        except BaseException:
            self.spool.clear()
            raise

    def _collect(self, request: TrainRequest, waiting: dict[str, OnlineNode], send: Send) -> Answers:
        state = self._state
        began = time.monotonic()
        self._first_asked.setdefault(request.server_round, (began, time.time()))
        ends = began + request.deadline_s + grace(request.deadline_s)
        order = [node.public_key for node in waiting.values()]
        asked = dict(waiting)
        answers: Answers = {}
        resent: Counter[int] = Counter()
        online: set[int] = set()
        looked = -math.inf

        def receiver(to: str) -> Intake:
            return self._intake(request, asked[to])

        while waiting:
            state.control.check()
            self._turn_out(request, waiting, answers, order)
            over = time.monotonic() >= ends
            if time.monotonic() - looked >= ONLINE_S:
                online, looked = {node.node_id for node in state.online()}, time.monotonic()
            for reply in state.connected.replies(self._due(waiting, online), receiver):
                if reply.to in self._late:
                    self._tell_late(reply)
                    continue
                if (node := waiting.pop(reply.to, None)) is None:
                    continue  # of a node that was turned out meanwhile
                whole = messages.asks_for_whole(reply.error)
                if (reply.gone or whole) and resent[node.node_id] < RESENDS and not over:
                    resent[node.node_id] += 1
                    again = dict.fromkeys(send(request, [node], whole=whole).values(), node)
                    waiting |= again
                    asked |= again
                else:
                    answers[node.public_key] = _judge(reply)
            while order and order[0] in answers:
                self._tell(request, order[0], answers[order.pop(0)])
            if over:
                break
            if waiting:
                state.wait(poll_interval(time.monotonic() - began))
        self._turn_out(request, waiting, answers, order)
        self._end(request, waiting)
        for key in order:
            if key in answers:
                self._tell(request, key, answers[key])
        self._note_copies(request, answers)
        return answers

    def _turn_out(self, request: TrainRequest, waiting: dict[str, OnlineNode], answers: Answers, order: list[bytes]) -> None:
        """Nodes whose keys were revoked meanwhile are waited for no longer, and what they sent does not count. `order`: who is still to
        be told of."""
        out = [to for to, node in waiting.items() if self._registry.status(node.public_key) == "revoked"]
        self._state.connected.abandon(out)
        for to in out:
            answers[waiting.pop(to).public_key] = REVOKED
        for key, answer in answers.items():
            if isinstance(answer, Accepted) and self._registry.status(key) == "revoked":
                answers[key] = REVOKED
                if key not in order:
                    self._tell(request, key, REVOKED)

    def verdicts(self) -> dict[bytes, str]:
        """What became of each node's last reply, by public key; for the next message to it."""
        kept: dict[str, str] = self._state.kept.get("verdicts", {})
        return {key.encode(): verdict for key, verdict in kept.items()}

    def _intake(self, request: TrainRequest, node: OnlineNode) -> Intake:
        declared = self._state.kept.get("declared-frames", {}).get(node.public_key.decode(), 0.0)
        return Intake(request, self.spool, self._state.weights.size, declared, lambda: self._elapsed(request.server_round))

    def _elapsed(self, number: int) -> float | None:
        """Seconds since the round was first asked; a node may go on with one that was asked before this process was."""
        if number == self._state.first:
            return None
        steady, wall = self._first_asked[number]
        # The one stands still while the computer sleeps, the other may be set.
        return max(time.monotonic() - steady, time.time() - wall)

    # --- late replies

    def _due(self, waiting: dict[str, OnlineNode], online: set[int]) -> list[str]:
        if self._late_of is not self._state.grid:
            self._late, self._late_of = {}, self._state.grid  # another Flower run knows nothing of them
        late = [each for each, one in self._late.items() if one.node.node_id in online]
        return [each for each, node in waiting.items() if node.node_id in online] + late

    def _end(self, request: TrainRequest, waiting: dict[str, OnlineNode]) -> None:
        """The round's time is over: those who did not answer are late."""
        number = request.server_round
        started = set(self._state.connected.abandon(waiting))
        self._late = {each: one for each, one in self._late.items() if one.round > number - LATE_ROUNDS}
        for to, node in waiting.items():
            if to in started:
                why = "Its update was still arriving when the round ended."
                self._state.emit(
                    ReplyRefused(run=request.run_uid, round=number, node=fingerprint_of(node.public_key), code="late", why=why)
                )
            else:
                self._late[to] = _Late(node, number, time.monotonic())
            self._verdict(node.public_key, "late: the round ended before this node's update had come.")
        self._first_asked = {each: since for each, since in self._first_asked.items() if each >= number}

    def _tell_late(self, reply: Reply) -> None:
        one = self._late.pop(reply.to)
        if not reply.late:
            return  # the SuperLink forgot the message: nothing came
        run, node = self._state.record.uid, fingerprint_of(one.node.public_key)
        why = f"It came {time.monotonic() - one.since:.0f} s after round {one.round} had ended."
        self._state.emit(ReplyRefused(run=run, round=one.round, node=node, code="late", why=why))

    # --- what becomes of a reply

    def _tell(self, request: TrainRequest, public_key: bytes, answer: Accepted | Refused) -> None:
        node, run, number = fingerprint_of(public_key), request.run_uid, request.server_round
        if isinstance(answer, Refused):
            self._state.emit(ReplyRefused(run=run, round=number, node=node, code=answer.code, why=answer.why))
            verdict = f"{answer.code}: {answer.why}"
            if answer.bad:
                verdict = self._strike(request, public_key, verdict)
            self._verdict(public_key, verdict)
            return
        update = answer.update
        self._state.emit(
            ReplyAccepted(
                run=run, round=number, node=node, bytes=update.bytes, sha256=update.sha256, metrics=answer.metrics, norm=update.norm
            )
        )
        self._quarantine.clear(public_key)
        self._verdict(public_key, messages.ACCEPTED)
        declared = self._state.kept.setdefault("declared-frames", {})
        declared[public_key.decode()] = max(declared.get(public_key.decode(), 0.0), answer.metrics.get("num-examples", 0.0))

    def _strike(self, request: TrainRequest, public_key: bytes, verdict: str) -> str:
        limit = self._state.settings.aggregation.quarantine_after
        if not self._quarantine.strike(public_key, verdict, limit):
            return verdict
        node = fingerprint_of(public_key)
        self._state.emit(NodeQuarantined(run=request.run_uid, round=request.server_round, node=node, strikes=limit, why=verdict))
        verdict = f"quarantine: {limit} replies in a row were refused; the coordinator has to admit this node again. The last: {verdict}"
        # No round will tell it.
        config = {"run-uid": request.run_uid, **messages.own_config(last_verdict=verdict)}
        asked = [each.node_id for each in self._state.online() if each.public_key == public_key]
        self._state.connected.send(asked, messages.QUERY, arrays=(), config=config, ttl=TELL_TTL_S)
        return verdict

    def _verdict(self, public_key: bytes, verdict: str) -> None:
        self._state.kept.setdefault("verdicts", {})[public_key.decode()] = verdict[: messages.VERDICT_LIMIT]

    def _note_copies(self, request: TrainRequest, answers: Answers) -> None:
        """Tell of updates that are the same to the bit: two nodes with one recording, or one hand."""
        by_hash: dict[str, list[str]] = {}
        for key, answer in sorted(answers.items()):
            if isinstance(answer, Accepted) and answer.update.norm > 0:
                by_hash.setdefault(answer.update.sha256, []).append(fingerprint_of(key))
        before: dict[str, str] = self._state.kept.get("last-updates", {})
        for sha256, nodes in by_hash.items():
            again = [each for each in nodes if before.get(each) == sha256]
            if len(nodes) > 1 or again:
                what = f"Round {request.server_round}: the same update, to the bit, came from {', '.join(nodes)}."
                why = "It is the one of the round before." if again else "Nodes with recordings of their own do not agree so."
                self._state.emit(Notice(severity="warning", code="update-repeated", what=what, why=why))
        self._state.kept["last-updates"] = {node: sha256 for sha256, nodes in by_hash.items() for node in nodes}


def _judge(reply: Reply) -> Accepted | Refused:
    if isinstance(reply.refused, SpoolTrouble) and isinstance(reply.refused.__cause__, OSError):
        raise reply.refused.__cause__  # the round waits for the disk, and is sent again
    if reply.refused is not None:
        bad = isinstance(reply.refused, MessageRefused)
        return Refused(reply.refused.code, reply.refused.why, bad)
    if reply.error:
        text = "".join(c if c.isprintable() else " " for c in reply.error)[:500]
        return Refused("reply-lost" if reply.gone else "node-refused", text)
    return Accepted(*reply.received)
