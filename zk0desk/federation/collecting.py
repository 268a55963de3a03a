"""Waiting for nodes, and for their answers: who is there, what came until the deadline, and what of it is valid."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zk0desk.events import ReplyAccepted, ReplyRefused, ServerStateChanged
from zk0desk.federation import messages, strategy
from zk0desk.federation.messages import MessageRefused, TrainRequest
from zk0desk.federation.run_state import RunState
from zk0desk.federation.server_folder import fingerprint_of

if TYPE_CHECKING:
    from zk0desk.federation.grid import OnlineNode, Reply

RESENDS = 3
"""How often a round is sent to a node again whose instruction was lost on the way."""


def grace(deadline_s: float) -> float:
    """Seconds past a node's deadline that its reply may still be on the way: 5%, at least 1, at most 10."""
    return min(10.0, max(1.0, 0.05 * deadline_s))


def poll_interval(elapsed: float) -> float:
    """Seconds between two polls: a hundredth of what has passed, between 0.1 and 1."""
    return min(1.0, max(0.1, elapsed / 100))


@dataclass(frozen=True)
class Accepted:
    """A valid reply."""

    update: strategy.Update
    metrics: dict[str, float]


@dataclass(frozen=True)
class Refused:
    """A reply that is not used, or a node's own refusal: its code and why."""

    code: str
    why: str


Answers = dict[bytes, Accepted | Refused]
"""What came, by public key. Nodes that did not answer in time are not in it."""


class Collector:
    """Waits for the nodes of a run and collects what they answer."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def gather(self, number: int) -> list[OnlineNode]:
        """Wait until enough nodes are online; all that are, in the order of their public keys."""
        state, rules = self._state, self._state.rules
        enough_since, told = 0.0, False
        while True:
            state.control.check()
            online = state.online()
            enough = len(online) >= rules.min_nodes
            if not told and (number == state.first or not enough):
                # In a run's first round always, and without a count, so that events do not depend on who came when.
                what = f"Round {number} waits for {rules.min_nodes} nodes to be online."
                state.emit(ServerStateChanged(state="waiting-for-nodes", what=what, why="See `zk0desk server nodes`."))
                told = True
            enough_since = (enough_since or time.monotonic()) if enough else 0.0
            if enough and time.monotonic() - enough_since >= rules.wait_s:
                state.emit(ServerStateChanged(state="training", what=f"Round {number} of {state.record.rounds}."))
                return online
            state.wait(0.1 if number == state.first else 0.5)

    def collect(
        self, request: TrainRequest, waiting: dict[str, OnlineNode], send: Callable[[TrainRequest, Sequence[OnlineNode]], dict[int, str]]
    ) -> Answers:
        """Answers to `request` until all of `waiting` (nodes by message id) have come or the deadline passed.

        They are told as events in the order of the keys, each as soon as that allows. `send` sends the round again to a node whose
        instruction was lost.
        """
        state = self._state
        began = time.monotonic()
        ends = began + request.deadline_s + grace(request.deadline_s)
        order = [node.public_key for node in waiting.values()]
        answers: Answers = {}
        resent: Counter[int] = Counter()
        while waiting:
            state.control.check()
            late = time.monotonic() >= ends
            online = {node.node_id for node in state.online()}
            for reply in state.connected.replies([each for each, node in waiting.items() if node.node_id in online]):
                if (node := waiting.pop(reply.to, None)) is None:
                    continue
                if reply.gone and resent[node.node_id] < RESENDS and not late:
                    resent[node.node_id] += 1
                    waiting |= dict.fromkeys(send(request, [node]).values(), node)
                else:
                    answers[node.public_key] = self._judge(reply, request)
            while order and order[0] in answers:
                self._tell(request, order[0], answers[order.pop(0)])
            if late:
                break
            if waiting:
                state.wait(poll_interval(time.monotonic() - began))
        state.connected.abandon(waiting)
        for key in order:
            if key in answers:
                self._tell(request, key, answers[key])
        return answers

    def _judge(self, reply: Reply, request: TrainRequest) -> Accepted | Refused:
        if reply.error:
            text = "".join(c if c.isprintable() else " " for c in reply.error)[:500]
            return Refused("reply-lost" if reply.gone else "node-refused", text)
        try:
            messages.check_reply(reply.config, request)
            metrics = messages.check_metrics(reply.metrics)
            update = strategy.check_update(reply.arrays, request.encoding, self._state.weights.size)
        except MessageRefused as error:
            return Refused(error.code, error.why)
        return Accepted(update, metrics)

    def _tell(self, request: TrainRequest, public_key: bytes, answer: Accepted | Refused) -> None:
        node, run, number = fingerprint_of(public_key), request.run_uid, request.server_round
        if isinstance(answer, Refused):
            self._state.emit(ReplyRefused(run=run, round=number, node=node, code=answer.code, why=answer.why))
            return
        update = answer.update
        self._state.emit(ReplyAccepted(run=run, round=number, node=node, bytes=update.bytes, sha256=update.sha256, metrics=answer.metrics))
