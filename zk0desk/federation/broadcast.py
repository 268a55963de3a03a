"""What the coordinator sends: a round's request with the global weights, and at a run's end the last weights."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zk0desk.events import Notice
from zk0desk.federation import messages, updates
from zk0desk.federation.messages import DIFFERENCE, FinalWeights, TrainRequest, asks_for_whole
from zk0desk.federation.run_state import RunState
from zk0desk.federation.schedule import Decision
from zk0desk.federation.server_folder import fingerprint_of

if TYPE_CHECKING:
    import numpy as np

    from zk0desk.federation.grid import OnlineNode

TTL_MARGIN_S = 600.0
"""Messages outlive the deadline by this much, so that a late node gets a clear answer instead of none."""
END_S, END_BYTES_PER_S = 5.0, 1e6
"""How long the run's end waits for nodes to take the last weights: seconds, and bytes per second of all lines together."""


class Broadcast:
    """Builds and sends the messages of a run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._verdicts: Mapping[bytes, str] = {}
        self.bytes_sent = 0
        """Bytes of weights that the nodes of the last `send` will fetch, all together."""

    def request(self, number: int, decision: Decision) -> TrainRequest:
        """What round `number` asks of every node, with the learning rate and mu of `decision`."""
        state, rules, record, files = self._state, self._state.rules, self._state.record, self._state.files
        return TrainRequest(
            run_uid=record.uid, server_round=number, num_rounds=record.rounds, seed=rules.seed, lr=decision.lr, proximal_mu=decision.mu,
            last_signal=decision.told, mu_max=max(0.02, decision.mu), batch_size=rules.batch_size, policy_id=files.policy_id,
            backbone_sha256=files.backbone_sha256, layout_sha256=files.layout.sha256, weights_sha256=state.sha256,
            base_sha256=state.sha256, local_epochs=rules.local_epochs, local_steps=rules.local_steps, deadline_s=rules.deadline_s,
            encoding=rules.encoding, metrics=messages.SENT if state.private is None else messages.NONE,
            last=self._last(),
        )  # fmt: skip

    def send(
        self, request: TrainRequest, nodes: Sequence[OnlineNode], verdicts: Mapping[bytes, str] | None = None, *, whole: bool = False
    ) -> dict[int, str]:
        """Send `request` with the weights to `nodes`; the message's id for each node id that it could be given to.

        A node that holds the weights of a round not long ago gets the differences, unless `whole`. `verdicts` says, by public key, what
        became of the nodes' replies of the round before; they are kept for sending a round again.
        """
        if verdicts is not None:
            self._verdicts = verdicts
        return self._carry(messages.TRAIN, request, nodes, request.deadline_s + TTL_MARGIN_S, whole)

    def _carry(self, kind: str, what: TrainRequest | FinalWeights, nodes: Sequence[OnlineNode], ttl: float, whole: bool) -> dict[int, str]:
        """Send `what` with the weights, each node's as it needs them; arrays are handed over once to all nodes that need the same."""
        state, codec = self._state, self._state.codec
        groups: defaultdict[int, list[OnlineNode]] = defaultdict(list)
        sent: dict[int, str] = {}
        self.bytes_sent = 0
        for node in nodes:
            held = None if whole else state.deliveries.holds(fingerprint_of(node.public_key))
            groups[codec.behind(held, what.encoding)].append(node)
        for count, group in sorted(groups.items(), key=lambda item: item[0] or math.inf):  # the whole, which takes longest, last
            arrays = codec.pieces(count, what.encoding) if count else updates.encode_pieces(state.weights, "fp32")
            told = replace(what, arrays_kind=DIFFERENCE, base_sha256=codec.base_sha256(count, what.encoding)) if count else what
            arrays = self._counted(arrays, len(group))
            own = {node.node_id: self._own(kind, node.public_key) for node in group}
            sent |= state.connected.send(list(own), kind, arrays=arrays, config=told.to_config(), own=own, ttl=ttl)
        return sent

    def _counted(self, arrays: Iterable[np.ndarray], nodes: int) -> Iterator[np.ndarray]:
        for piece in arrays:
            self.bytes_sent += piece.nbytes * nodes
            yield piece

    def _own(self, kind: str, key: bytes) -> messages.Config:
        """What is said to one node alone."""
        own = messages.own_config(last_verdict=self._verdicts.get(key, ""))
        accepted = self._state.deliveries.accepted(fingerprint_of(key))
        return {**own, "accepted-round": accepted} if kind == messages.TRAIN else own

    def _last(self) -> dict[str, float]:
        record, key = self._state.record, str(self._state.record.done)
        nodes = record.nodes if self._state.private is None else self._state.private.expected  # how many took part is private, too
        last: dict[str, float] = {"last-round": record.done, "last-nodes": nodes} if record.done else {}
        if key in record.train_losses:
            last["last-train-loss"] = record.train_losses[key]
        if record.done and key in record.eval_losses:
            last["last-eval-loss"] = record.eval_losses[key]
        if "0" in record.eval_losses:
            last["base-eval-loss"] = record.eval_losses["0"]
        return last if self._state.private is None else {**last, **self._state.private.told()}

    def tell_the_end(self, verdicts: Mapping[bytes, str] | None = None) -> None:
        """Give the nodes the last weights and losses; one that left, or is slower than its line's allowance, is not waited for.

        `verdicts` as for `send`.
        """
        from zk0desk.federation.grid import SuperLinkLost

        state, record = self._state, self._state.record
        if verdicts is not None:
            self._verdicts = verdicts
        final = FinalWeights(
            run_uid=record.uid, server_round=record.done, num_rounds=record.rounds, backbone_sha256=state.files.backbone_sha256,
            layout_sha256=state.files.layout.sha256, weights_sha256=state.sha256, base_sha256=state.sha256,
            encoding=state.rules.encoding, last=self._last(),
        )  # fmt: skip
        try:
            nodes = {node.node_id: node for node in state.online()}
            allowed = END_S + state.weights.nbytes * len(nodes) / END_BYTES_PER_S
            if state.rules.deadline_s:
                allowed = min(allowed, max(END_S, state.rules.deadline_s))
            ends, ttl = time.monotonic() + allowed, allowed + TTL_MARGIN_S
            waiting = self._carry(messages.QUERY, final, list(nodes.values()), ttl, whole=False)
            asked_whole: set[int] = set()
            while waiting and time.monotonic() < ends:
                online = {node.node_id for node in state.online()}
                waiting = {node: each for node, each in waiting.items() if node in online}
                answered = {reply.to: reply.error for reply in state.connected.replies(list(waiting.values()))}
                for node_id in [node for node, each in waiting.items() if each in answered]:
                    error = answered[waiting.pop(node_id)]
                    if not error:
                        state.deliveries.took(fingerprint_of(nodes[node_id].public_key), record.done)
                    elif asks_for_whole(error) and node_id not in asked_whole:
                        asked_whole.add(node_id)
                        waiting |= self._carry(messages.QUERY, final, [nodes[node_id]], ttl, whole=True)
                if waiting:
                    state.wait(0.1)
            state.connected.abandon(waiting.values())
        except SuperLinkLost as error:
            state.emit(Notice(severity="note", code=error.code, what="Nodes were not given the last round's policy.", why=error.why))
