"""A coordinator's rounds and its nodes in one process: every part is the product's, but for the line between them and the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from tests.federation.coordinator_parts import Events
from tests.federation.node_parts import invitation
from zk0desk.control import NodeControl
from zk0desk.errors import OperatorError
from zk0desk.federation import local_round, messages
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.grid import OnlineNode, Receiver, Reply
from zk0desk.federation.messages import MessageRefused, TrainRequest
from zk0desk.federation.run_state import RunState
from zk0desk.federation.run_store import RunStore
from zk0desk.federation.server_app import _Conductor
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.training.checkpoint import RoundCheckpoint
from zk0desk.training.policy_files import read_policy
from zk0desk.training.rounds import RoundPlan, RoundResult

Trained = Callable[[int, np.ndarray], np.ndarray]
"""From the round and its weights to what training changed."""


class CodecNode:
    """A node whose training gives what `trained` says, with files of its own below `home`; it notes what came and what went."""

    frames = 100

    def __init__(self, home: Path, server: ServerFolder, trained: Trained) -> None:
        self.home, self._trained = home, trained
        self._files = read_policy(server.policy(server.settings()))
        self.key, self.online, self.lies = NodeKey.make(), True, False
        self.weights = np.empty(0, np.float32)
        self.requests: list[TrainRequest] = []
        self.came: list[tuple[str, int, int]] = []
        """Of each message: its kind of arrays, their bytes, and how many vectors they make."""
        self.sent: dict[int, list[np.ndarray]] = {}
        self.changes: dict[int, np.ndarray] = {}
        self.errors: list[str] = []

    def train(self, plan: RoundPlan, global_weights: np.ndarray, kept: RoundCheckpoint | None = None) -> RoundResult:
        self.weights = global_weights
        self.changes[plan.round] = self._trained(plan.round, global_weights)
        return RoundResult(delta=self.changes[plan.round], metrics={"num-examples": 100.0, "steps-done": 1.0, "frames-seen": 100.0})

    def take(self, kind: str, content: RecordDict) -> tuple[local_round.Answer | None, str]:
        """The answer to a message, and the error where there is none."""
        arrays = [array.numpy() for array in content.array_records["arrays"].values()]
        told = str(content.config_records["config"]["arrays-kind"])
        per = local_round.pieces(self._files.layout.size)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZK0DESK_HOME", str(self.home))
            try:
                answer = self._train(content) if kind == messages.TRAIN else self._end(content)
            except OperatorError as error:
                self.errors.append(error.reason if isinstance(error, MessageRefused) else f"{error.code}: {error}")
                return None, self.errors[-1]
        self.came.append((told, sum(array.nbytes for array in arrays), len(arrays) // per))
        return answer, ""

    def _train(self, content: RecordDict) -> local_round.Answer:
        self.requests.append(local_round.read_request(content, self._files))
        answer = local_round.answer_train(content, self._files, self, invitation())
        self.sent[self.requests[-1].server_round] = answer.arrays
        return replace(answer, metrics={**answer.metrics, "num-examples": 1e12}) if self.lies else answer

    def _end(self, content: RecordDict) -> None:
        found = local_round.read_query(content, self._files)
        assert found is not None
        final, self.weights = found
        RunStore(final.run_uid).keep_weights(final, self.weights, invitation(), self._files)


class Line:
    """What is sent is with the node at once, and its reply there when it is asked for. Stands for the grid, the SuperLink and the net."""

    def __init__(self, nodes: Sequence[CodecNode]) -> None:
        self._nodes = dict(enumerate(nodes, 1))
        self._answers: dict[str, tuple[local_round.Answer | None, str]] = {}

    def nodes(self) -> list[OnlineNode]:
        found = [OnlineNode(number, node.key.public_key_bytes, node.online) for number, node in self._nodes.items()]
        return sorted(found, key=lambda node: node.public_key)

    def send(
        self, node_ids: Sequence[int], kind: str, *, arrays: Iterable[np.ndarray], config: Mapping[str, Any],
        own: Mapping[int, Mapping[str, Any]], ttl: float,
    ) -> dict[int, str]:  # fmt: skip
        assert ttl > 0
        record, sent = ArrayRecord({f"{i:06d}": Array(piece) for i, piece in enumerate(arrays)}), {}
        for node_id in node_ids:
            sent[node_id] = f"{len(self._answers)}"
            content = RecordDict({"arrays": record, "config": ConfigRecord({**config, **own[node_id]})})
            self._answers[sent[node_id]] = self._nodes[node_id].take(kind, content)
        return sent

    def replies(self, ids: Iterable[str], receiver: Callable[[str], Receiver] | None = None) -> list[Reply]:
        return [self._reply(each, receiver) for each in ids]

    def _reply(self, to: str, receiver: Callable[[str], Receiver] | None) -> Reply:
        answer, error = self._answers[to]
        if answer is None:
            return Reply(to, {}, {}, error=error)
        assert receiver is not None
        takes = receiver(to)
        try:
            takes.begin(dict(answer.config), dict(answer.metrics), [local_round.piece_name(n) for n in range(len(answer.arrays))])
            for array in answer.arrays:
                takes.piece(array)
            return Reply(to, dict(answer.config), dict(answer.metrics), received=takes.end())
        except OperatorError as refused:
            takes.drop()
            return Reply(to, {}, {}, refused=refused)

    def abandon(self, ids: Iterable[str]) -> list[str]:
        return []


class Rounds:
    """A coordinator's run of `server`; a new one goes on from the last round's checkpoint, as after a `kill -9`."""

    def __init__(self, server: ServerFolder, nodes: Sequence[CodecNode]) -> None:
        self.events = Events()
        self.state = RunState(server, self.events, NodeControl(), None, False)
        self._conductor = _Conductor(self.state)
        self.state.grid = Line(nodes)  # type: ignore[assignment]

    def conduct(self) -> None:
        """One round."""
        self._conductor._round()

    def end(self) -> None:
        """What nodes are told at the run's end."""
        self._conductor._broadcast.tell_the_end(self._conductor._collector.verdicts())

    def close(self) -> None:
        self.state.journal.close()
