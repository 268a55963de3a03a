"""The rounds: send the global weights, collect updates until the deadline, aggregate, evaluate, keep a checkpoint.

This process holds numpy and no torch. Polling is its own: ten times a second while a round is young, once a second in
a long one.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import OperatorError
from zk0desk.events import (
    CheckpointSaved,
    Evaluated,
    Notice,
    ReplyAccepted,
    ReplyRefused,
    RoundAggregated,
    RoundOpened,
    RunFinished,
    RunStarted,
    ServerStateChanged,
    Sink,
)
from zk0desk.federation import messages, strategy, updates
from zk0desk.federation.messages import MessageRefused, TrainRequest
from zk0desk.federation.run_record import open_record
from zk0desk.federation.server_folder import ServerFolder, ServerFolderError, ServerNotRunningError, fingerprint_of
from zk0desk.training import policy_files

if TYPE_CHECKING:
    from zk0desk.federation.evaluator import Evaluator
    from zk0desk.federation.grid import Grid, OnlineNode, Reply

TTL_MARGIN_S = 600.0
"""Messages outlive the deadline by this much, so that a late node gets a clear answer instead of none."""
LOST_LIMIT_S = 600.0
"""How long a SuperLink may be away before the run gives up; it goes on from its checkpoint when started again."""
END_S, END_BYTES_PER_S = 5.0, 1e6
"""How long the run's end waits for nodes to take the last weights: seconds, and bytes per second of all lines together."""
RESENDS = 3
EMPTY_ROUNDS = 3
"""Rounds in a row without one valid reply that end the run."""


class NothingLearned(OperatorError):
    """No node answered with a valid update, several rounds in a row."""

    code = "nothing-learned"


def run_rounds(
    folder: Path | str, emit: Sink, *, control: NodeControl | None = None, rounds: int | None = None, fresh: bool = False
) -> Path:
    """Conduct the rounds of the server that runs in `folder`; the last global policy's folder.

    Goes on with the last run where it stopped, unless `fresh`. `rounds` replaces the settings' number. Raises
    `OperatorError` after `RunFinished(reason="failed")`, and `Stopped` after `reason="stopped"`.
    """
    return _Conductor(ServerFolder(folder), emit, control or NodeControl(), rounds, fresh).run()


def grace(deadline_s: float) -> float:
    """Seconds past a node's deadline that its reply may still be on the way: 5%, at least 1, at most 10."""
    return min(10.0, max(1.0, 0.05 * deadline_s))


def poll_interval(elapsed: float) -> float:
    """Seconds between two polls: a hundredth of what has passed, between 0.1 and 1."""
    return min(1.0, max(0.1, elapsed / 100))


@dataclass(frozen=True)
class _Accepted:
    update: strategy.Update
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Refused:
    code: str
    why: str


class _Conductor:
    def __init__(self, folder: ServerFolder, emit: Sink, control: NodeControl, rounds: int | None, fresh: bool) -> None:
        self._folder, self._emit, self._control = folder, emit, control
        self._settings = folder.settings()
        self._rules = self._settings.rounds
        self._base = folder.policy(self._settings)
        self._files = policy_files.read_policy(self._base)
        folder.running()  # before anything is written
        self._record = open_record(
            folder, federation=self._settings.federation, seed=self._rules.seed, rounds=rounds or self._rules.rounds,
            policy_id=self._files.policy_id, fresh=fresh,
        )  # fmt: skip
        self._weights = self._restored()
        self._sha256 = updates.weights_sha256(self._weights)
        self._grid: Grid | None = None
        self._evaluator: Evaluator | None = None
        self._baseline_due = False
        self._first = self._record.done + 1
        self._empty = 0

    # --- the run

    def run(self) -> Path:
        record, began = self._record, self._record.done
        self._emit(
            RunStarted(
                run=record.uid,
                round=began + 1,
                rounds=record.rounds,
                policy=self._files.policy_id,
                settings=self._rules.model_dump(mode="json", by_alias=True),
            )  # fmt: skip
        )
        reason = "failed"
        try:
            record.save(self._folder)
            self._start_evaluator()
            self._reconnect()
            while record.done < record.rounds and not (self._control.finishing and record.done > began):
                self._persist(self._round)
            if record.done:
                self._tell_the_end()
            reason = "complete" if record.done >= record.rounds else "stopped"
            record.finished = reason == "complete"
            record.save(self._folder)
        except Stopped:
            reason = "stopped"
            raise
        finally:
            self._close(failed=reason == "failed")
            last = str(record.checkpoint(self._folder, record.done)) if record.done else str(self._base)
            self._emit(RunFinished(run=record.uid, rounds=record.done, reason=reason, policy=last))
        return Path(last)

    def _restored(self) -> np.ndarray:
        record = self._record
        source = record.checkpoint(self._folder, record.done) if record.done else self._base
        weights = policy_files.trainable_weights(source)
        if record.done and updates.weights_sha256(weights) != record.weights_sha256:
            raise ServerFolderError(
                f"{source} is not what this run wrote.", "Its weights were changed.", "Restore it, or start a new run with --new."
            )
        return weights

    def _persist(self, act: Callable[[], None]) -> None:
        """Do `act`; when the SuperLink is lost meanwhile, wait for it and do it again."""
        from zk0desk.federation.grid import SuperLinkLost

        try:
            act()
        except SuperLinkLost as error:
            self._emit(ServerStateChanged(state="reconnecting", what="The SuperLink was lost; this round starts again.", why=error.why))
            self._reconnect()

    def _reconnect(self) -> None:
        from zk0desk.federation.grid import Grid, SuperLinkLost

        if self._grid is not None:
            self._grid.close(failed=True)
            self._grid = None
        gives_up, lost = time.monotonic() + LOST_LIMIT_S, None
        while time.monotonic() < gives_up:
            self._control.check()
            try:
                running = self._folder.running()
                self._grid = Grid(running.superlink, running.secret)
                return
            except (SuperLinkLost, ServerNotRunningError) as error:
                lost = error
                self._wait(0.5)
        raise lost or ServerNotRunningError("The SuperLink does not come back.")

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._control.check()
            time.sleep(min(left, 0.1))

    def _close(self, *, failed: bool) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
        if self._grid is not None:
            self._grid.close(failed=failed)

    # --- a round

    def _round(self) -> None:
        number = self._record.done + 1
        nodes = self._gather(number)
        request = self._request(number)
        grid = self._connected
        sent = grid.send(
            [node.node_id for node in nodes], messages.TRAIN, arrays=updates.encode(self._weights, "fp32"), config=request.to_config(),
            ttl=self._rules.deadline_s + TTL_MARGIN_S,
        )  # fmt: skip
        asked = [node for node in nodes if node.node_id in sent]
        self._emit(
            RoundOpened(
                run=request.run_uid,
                round=number,
                nodes=[fingerprint_of(node.public_key) for node in asked],
                lr=request.lr,
                mu=request.proximal_mu,
                weights_sha256=self._sha256,
            )  # fmt: skip
        )
        if self._baseline_due:
            self._evaluate(0)
        answers = self._collect(request, {sent[node.node_id]: node for node in asked})
        self._aggregate(request, asked, answers)

    @property
    def _connected(self) -> Grid:
        if self._grid is None:
            raise RuntimeError("not connected")
        return self._grid

    def _request(self, number: int) -> TrainRequest:
        rules, record = self._rules, self._record
        return TrainRequest(
            run_uid=record.uid, server_round=number, num_rounds=record.rounds, seed=rules.seed, lr=rules.lr, proximal_mu=rules.proximal_mu,
            mu_max=max(0.02, rules.proximal_mu), batch_size=rules.batch_size, policy_id=self._files.policy_id,
            backbone_sha256=self._files.backbone_sha256, layout_sha256=self._files.layout.sha256, weights_sha256=self._sha256,
            base_sha256=self._sha256, local_epochs=rules.local_epochs, local_steps=rules.local_steps, deadline_s=rules.deadline_s,
            encoding=rules.encoding, accepted_round=number - 1, last=self._last(),
        )  # fmt: skip

    def _last(self) -> dict[str, float]:
        record, key = self._record, str(self._record.done)
        last: dict[str, float] = {"last-round": record.done, "last-nodes": record.nodes} if record.done else {}
        if key in record.train_losses:
            last["last-train-loss"] = record.train_losses[key]
        if record.done and key in record.eval_losses:
            last["last-eval-loss"] = record.eval_losses[key]
        if "0" in record.eval_losses:
            last["base-eval-loss"] = record.eval_losses["0"]
        return last

    def _gather(self, number: int) -> list[OnlineNode]:
        """Wait until enough nodes are online; all that are, in the order of their public keys."""
        enough_since, told = 0.0, False
        while True:
            self._control.check()
            online = [node for node in self._connected.nodes() if node.online]
            enough = len(online) >= self._rules.min_nodes
            if not told and (number == self._first or not enough):
                # In a run's first round always, and without a count, so that events do not depend on who came when.
                what = f"Round {number} waits for {self._rules.min_nodes} nodes to be online."
                self._emit(ServerStateChanged(state="waiting-for-nodes", what=what, why="See `zk0desk server nodes`."))
                told = True
            enough_since = (enough_since or time.monotonic()) if enough else 0.0
            if enough and time.monotonic() - enough_since >= self._rules.wait_s:
                self._emit(ServerStateChanged(state="training", what=f"Round {number} of {self._record.rounds}."))
                return online
            self._wait(0.1 if number == self._first else 0.5)

    def _collect(self, request: TrainRequest, waiting: dict[str, OnlineNode]) -> dict[bytes, _Accepted | _Refused]:
        """Answers by public key, until all have come or the deadline passed. Told in the order of the keys, each as soon as that allows."""
        began = time.monotonic()
        ends = began + request.deadline_s + grace(request.deadline_s)
        order = [node.public_key for node in waiting.values()]
        answers: dict[bytes, _Accepted | _Refused] = {}
        resent: Counter[int] = Counter()
        while waiting:
            self._control.check()
            late = time.monotonic() >= ends
            online = {node.node_id for node in self._connected.nodes() if node.online}
            for reply in self._connected.replies([each for each, node in waiting.items() if node.node_id in online]):
                if (node := waiting.pop(reply.to, None)) is None:
                    continue
                if reply.gone and resent[node.node_id] < RESENDS and not late:
                    resent[node.node_id] += 1
                    waiting |= self._send_again(request, node)
                else:
                    answers[node.public_key] = self._judge(reply, request)
            while order and order[0] in answers:
                self._tell(request, order[0], answers[order.pop(0)])
            if late:
                break
            if waiting:
                self._wait(poll_interval(time.monotonic() - began))
        self._connected.abandon(waiting)
        for key in order:
            if key in answers:
                self._tell(request, key, answers[key])
        return answers

    def _send_again(self, request: TrainRequest, node: OnlineNode) -> dict[str, OnlineNode]:
        sent = self._connected.send(
            [node.node_id], messages.TRAIN, arrays=updates.encode(self._weights, "fp32"), config=request.to_config(),
            ttl=request.deadline_s + TTL_MARGIN_S,
        )  # fmt: skip
        return {sent[node.node_id]: node} if node.node_id in sent else {}

    def _judge(self, reply: Reply, request: TrainRequest) -> _Accepted | _Refused:
        if reply.error:
            text = "".join(c if c.isprintable() else " " for c in reply.error)[:500]
            return _Refused("reply-lost" if reply.gone else "node-refused", text)
        try:
            messages.check_reply(reply.config, request)
            metrics = messages.check_metrics(reply.metrics)
            update = strategy.check_update(reply.arrays, request.encoding, self._weights.size)
        except MessageRefused as error:
            return _Refused(error.code, error.why)
        return _Accepted(update, metrics)

    def _tell(self, request: TrainRequest, public_key: bytes, answer: _Accepted | _Refused) -> None:
        node, run, number = fingerprint_of(public_key), request.run_uid, request.server_round
        if isinstance(answer, _Refused):
            self._emit(ReplyRefused(run=run, round=number, node=node, code=answer.code, why=answer.why))
            return
        update = answer.update
        self._emit(ReplyAccepted(run=run, round=number, node=node, bytes=update.bytes, sha256=update.sha256, metrics=answer.metrics))

    def _aggregate(self, request: TrainRequest, asked: list[OnlineNode], answers: dict[bytes, _Accepted | _Refused]) -> None:
        accepted = {key: answer for key, answer in sorted(answers.items()) if isinstance(answer, _Accepted)}
        names = {key: fingerprint_of(key) for key in accepted}
        self._emit(ServerStateChanged(state="aggregating", what=f"Round {request.server_round}: {len(accepted)} updates."))
        if not accepted:
            self._none_came(request)
            return
        self._empty = 0
        p = strategy.shares({names[key]: answer.metrics["num-examples"] for key, answer in accepted.items()}, self._rules.max_share)
        weights = strategy.add_weighted(self._weights, [(p[names[key]], answer.update) for key, answer in accepted.items()])
        if not np.isfinite(weights).all():
            raise NothingLearned(
                "The sum of the updates is not finite.", "Updates grew beyond float32.", "Lower the learning rate and run again."
            )
        step = updates.norm(weights - self._weights)
        self._weights, self._sha256 = weights, updates.weights_sha256(weights)
        loss = strategy.mean_over(p, {names[key]: answer.metrics for key, answer in accepted.items()}, "loss-mean")
        record, number = self._record, request.server_round
        record.nodes, record.weights_sha256 = len(accepted), self._sha256
        if loss is not None:
            record.train_losses[str(number)] = loss
        missing = [fingerprint_of(node.public_key) for node in asked if node.public_key not in answers]
        self._emit(
            RoundAggregated(
                run=record.uid, round=number, shares=p, missing=missing, train_loss=loss, update_norm=step, weights_sha256=self._sha256
            )
        )
        self._keep(number)

    def _none_came(self, request: TrainRequest) -> None:
        self._empty += 1
        what = f"Round {request.server_round} brought no valid update and is repeated."
        self._emit(Notice(severity="warning", code="round-empty", what=what, why="Every node was late, left or was refused."))
        if self._empty >= EMPTY_ROUNDS:
            raise NothingLearned(
                f"{EMPTY_ROUNDS} rounds in a row brought no valid update.", "See the refusals above.", "Mend the cause and run again."
            )

    # --- after a round

    def _start_evaluator(self) -> None:
        from zk0desk.federation.evaluator import Evaluator

        chosen = self._settings.policy.held_out
        if not chosen:
            return
        absolute = tuple(each.model_copy(update={"path": (self._folder.path / each.path).resolve()}) for each in chosen)
        with (self._folder.state / "evaluator.log").open("ab") as log:
            self._evaluator = Evaluator(
                self._base,
                absolute,
                batch=self._settings.policy.evaluation_batch,
                cache_gb=self._settings.policy.evaluation_cache_gb,
                processors=self._processors,
                scratch=self._folder.state / "evaluate.npy",
                control=self._control,
                log=log,
            )
        if not self._record.done:
            self._evaluator.begin(self._weights)
            self._baseline_due = True

    @property
    def _processors(self) -> Path:
        return self._record.folder(self._folder) / "processors"

    def _evaluate(self, number: int) -> float | None:
        if self._evaluator is None:
            return None
        if number or not self._baseline_due:
            self._emit(ServerStateChanged(state="evaluating", what=f"Held-out loss after round {number}."))
            self._evaluator.begin(self._weights)
        found = self._evaluator.result()
        self._baseline_due = False
        self._record.eval_losses[str(number)] = found.loss
        self._emit(Evaluated(run=self._record.uid, round=number, loss=found.loss, frames=found.frames, recordings=found.recordings))
        return found.loss

    def _keep(self, number: int) -> None:
        """Keep the round on disk before it is evaluated: what nodes worked for survives whatever happens then."""
        record, folder = self._record, self._record.checkpoint(self._folder, number)
        # The evaluator writes the processors before its first answer, which was awaited in this process's first round.
        processors = self._processors if (self._processors / "config.json").is_file() else None
        policy_files.write_policy(folder, self._base, self._weights, processors_from=processors)
        record.done = number
        record.save(self._folder)
        loss = self._evaluate(number)
        before = record.eval_losses.get(str(record.best), math.inf) if record.best else math.inf
        best = loss is None or loss < before
        if best:
            record.best = number
        record.save(self._folder)
        record.prune(self._folder, self._rules.keep_checkpoints)
        self._emit(CheckpointSaved(run=record.uid, round=number, folder=str(folder), best=best))

    def _tell_the_end(self) -> None:
        """Give the nodes the last weights and losses; one that left, or is slower than its line's allowance, is not waited for."""
        from zk0desk.federation.grid import SuperLinkLost

        record = self._record
        final = messages.FinalWeights(
            run_uid=record.uid, server_round=record.done, num_rounds=record.rounds, backbone_sha256=self._files.backbone_sha256,
            layout_sha256=self._files.layout.sha256, weights_sha256=self._sha256, last=self._last_config(),
        )  # fmt: skip
        try:
            online = {node.node_id for node in self._connected.nodes() if node.online}
            allowed = END_S + self._weights.nbytes * len(online) / END_BYTES_PER_S
            if self._rules.deadline_s:
                allowed = min(allowed, max(END_S, self._rules.deadline_s))
            waiting = self._connected.send(
                sorted(online), messages.QUERY, arrays=updates.encode(self._weights, "fp32"), config=final.to_config(),
                ttl=allowed + TTL_MARGIN_S,
            )  # fmt: skip
            ends = time.monotonic() + allowed
            while waiting and time.monotonic() < ends:
                online = {node.node_id for node in self._connected.nodes() if node.online}
                waiting = {node: each for node, each in waiting.items() if node in online}
                answered = {reply.to for reply in self._connected.replies(list(waiting.values()))}
                waiting = {node: each for node, each in waiting.items() if each not in answered}
                if waiting:
                    self._wait(0.1)
            self._connected.abandon(waiting.values())
        except SuperLinkLost as error:
            self._emit(Notice(severity="note", code=error.code, what="Nodes were not given the last round's policy.", why=error.why))

    def _last_config(self) -> dict[str, float]:
        whole = ("last-round", "last-nodes")
        return {key: int(value) if key in whole else float(value) for key, value in self._last().items()}
