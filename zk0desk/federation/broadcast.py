"""What the coordinator sends: a round's request with the global weights, and at a run's end the last weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zk0desk.events import Notice
from zk0desk.federation import messages, updates
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.run_state import RunState

if TYPE_CHECKING:
    from zk0desk.federation.grid import OnlineNode

TTL_MARGIN_S = 600.0
"""Messages outlive the deadline by this much, so that a late node gets a clear answer instead of none."""
END_S, END_BYTES_PER_S = 5.0, 1e6
"""How long the run's end waits for nodes to take the last weights: seconds, and bytes per second of all lines together."""


class Broadcast:
    """Builds and sends the messages of a run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._verdicts: dict[bytes, str] = {}

    def request(self, number: int, lr: float, mu: float) -> TrainRequest:
        """What round `number` asks of every node, with this learning rate and proximal coefficient."""
        state, rules, record, files = self._state, self._state.rules, self._state.record, self._state.files
        return TrainRequest(
            run_uid=record.uid, server_round=number, num_rounds=record.rounds, seed=rules.seed, lr=lr, proximal_mu=mu,
            mu_max=max(0.02, mu), batch_size=rules.batch_size, policy_id=files.policy_id,
            backbone_sha256=files.backbone_sha256, layout_sha256=files.layout.sha256, weights_sha256=state.sha256,
            base_sha256=state.sha256, local_epochs=rules.local_epochs, local_steps=rules.local_steps, deadline_s=rules.deadline_s,
            encoding=rules.encoding, accepted_round=number - 1, last=self._last(),
        )  # fmt: skip

    def send(self, request: TrainRequest, nodes: Sequence[OnlineNode], verdicts: Mapping[bytes, str] | None = None) -> dict[int, str]:
        """Send `request` with the weights to `nodes`; the message's id for each node id that it could be given to.

        `verdicts` says, by public key, what became of the nodes' replies of the round before; they are kept for sending a round again.
        """
        if verdicts is not None:
            self._verdicts = dict(verdicts)
        return self._state.connected.send(
            [node.node_id for node in nodes], messages.TRAIN, arrays=updates.encode(self._state.weights, "fp32"),
            config=request.to_config(), own=self._own(nodes), ttl=request.deadline_s + TTL_MARGIN_S,
        )  # fmt: skip

    def _own(self, nodes: Sequence[OnlineNode]) -> dict[int, messages.Config]:
        return {node.node_id: messages.own_config(last_verdict=self._verdicts.get(node.public_key, "")) for node in nodes}

    def _last(self) -> dict[str, float]:
        record, key = self._state.record, str(self._state.record.done)
        last: dict[str, float] = {"last-round": record.done, "last-nodes": record.nodes} if record.done else {}
        if key in record.train_losses:
            last["last-train-loss"] = record.train_losses[key]
        if record.done and key in record.eval_losses:
            last["last-eval-loss"] = record.eval_losses[key]
        if "0" in record.eval_losses:
            last["base-eval-loss"] = record.eval_losses["0"]
        return last

    def tell_the_end(self, verdicts: Mapping[bytes, str] | None = None) -> None:
        """Give the nodes the last weights and losses; one that left, or is slower than its line's allowance, is not waited for.

        `verdicts` as for `send`.
        """
        from zk0desk.federation.grid import SuperLinkLost

        state, record = self._state, self._state.record
        final = messages.FinalWeights(
            run_uid=record.uid, server_round=record.done, num_rounds=record.rounds, backbone_sha256=state.files.backbone_sha256,
            layout_sha256=state.files.layout.sha256, weights_sha256=state.sha256, last=self._last(),
        )  # fmt: skip
        if verdicts is not None:
            self._verdicts = dict(verdicts)
        try:
            nodes = state.online()
            online = {node.node_id for node in nodes}
            allowed = END_S + state.weights.nbytes * len(online) / END_BYTES_PER_S
            if state.rules.deadline_s:
                allowed = min(allowed, max(END_S, state.rules.deadline_s))
            waiting = state.connected.send(
                sorted(online), messages.QUERY, arrays=updates.encode(state.weights, "fp32"), config=final.to_config(),
                own=self._own(nodes), ttl=allowed + TTL_MARGIN_S,
            )  # fmt: skip
            ends = time.monotonic() + allowed
            while waiting and time.monotonic() < ends:
                online = {node.node_id for node in state.online()}
                waiting = {node: each for node, each in waiting.items() if node in online}
                answered = {reply.to for reply in state.connected.replies(list(waiting.values()))}
                waiting = {node: each for node, each in waiting.items() if each not in answered}
                if waiting:
                    state.wait(0.1)
            state.connected.abandon(waiting.values())
        except SuperLinkLost as error:
            state.emit(Notice(severity="note", code=error.code, what="Nodes were not given the last round's policy.", why=error.why))
