"""Nodes of `fifty_nodes.py`, as threads of one process: `fifty_nodes_process.py INVITATION POLICY FOLDER NODES FIRST LAST`.

Each has the product's connection and a key of its own. What a node does is decided by its number, see `behaviour`.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
from server_round_nodes import FRAMES, BenchNode, Train

from zk0desk.control import NodeControl
from zk0desk.federation import local_round
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.messages import TrainRequest
from zk0desk.quiet import quiet_libraries
from zk0desk.training.policy_files import PolicyFiles, read_policy, trainable_weights
from zk0desk.training.rounds import RoundResult

SLOW_S = 1.5
"""What a slow node's round takes longer."""
DEADLINE_S = 30.0
AWAY_S = {"short": 1.0, "long": DEADLINE_S + 10}
"""How long a node that vanished stays away: it returns before the round's deadline, or after it."""
STEP, APART = 0.1, 1e-3
"""A round moves the weights by this part of the way to the node's optimum; optima lie about this far from the base, in each value."""


def behaviour(number: int, nodes: int) -> str:
    """A tenth `vanishes`, a third is `slow`, and from ten nodes on the last two are `nan` and `scaled`; the others are `plain`."""
    if nodes >= 10 and number >= nodes - 2:
        return ("nan", "scaled")[number - (nodes - 2)]
    if number < nodes // 10:
        return "vanishes"
    return "slow" if number < nodes // 10 + nodes // 3 else "plain"


def vanishes(number: int, server_round: int) -> str:
    """Whether a node that `vanishes` does so in this round: `short`, `long`, or empty. Each does both once, all in different rounds."""
    return {3 * number + 3: "short", 3 * number + 5: "long"}.get(server_round, "")


def optimum(base: np.ndarray, number: int) -> np.ndarray:
    """Where node `number`'s loss is smallest: a common direction, and one of its own."""
    common, own = np.random.default_rng(11), np.random.default_rng(1000 + number)
    away = common.standard_normal(base.size, dtype=np.float32) + 0.3 * own.standard_normal(base.size, dtype=np.float32)
    return base + np.float32(APART) * away


class SmallStep:
    """In place of training: a step to the minimum of a quadratic, with its loss. `seconds` longer than nothing."""

    def __init__(self, goal: np.ndarray, control: NodeControl, seconds: float = 0.0, scale: float = 1.0) -> None:
        self._goal, self._control, self._seconds, self._scale = goal, control, seconds, np.float32(scale)

    def __call__(self, request: TrainRequest, weights: np.ndarray) -> RoundResult:
        """The round's result."""
        self._control.sleep(self._seconds)
        way = self._goal - weights
        loss = float(np.mean(np.square(way))) / APART**2
        metrics = {"num-examples": float(FRAMES), "frames-seen": float(FRAMES), "steps-done": 1.0, "loss-mean": loss, "lr-used": request.lr}
        return RoundResult(delta=np.clip(way * np.float32(STEP) * self._scale, -60, 60), metrics=metrics)


class VanishingNode(BenchNode):
    """Vanishes in the middle of a round without a word, and comes back with the same key and the round's answer."""

    def __init__(self, invitation: Invitation, files: PolicyFiles, train: Train, control: NodeControl, folder: Path) -> None:
        super().__init__(invitation, files, train, control, folder)
        self._number = int(folder.name)

    def deliver(self, fleet: object, message: object, request: TrainRequest, records: object) -> None:
        """Vanish, return, deliver; the coordinator takes it if the round still waits for it."""
        away = vanishes(self._number, request.server_round)
        if not away:
            super().deliver(fleet, message, request, records)
            return
        fleet.close()
        self._control.sleep(AWAY_S[away])
        self.pending = (message, request, records)
        raise ConnectionResetError(f"vanished in round {request.server_round}")


class NanNode(BenchNode):
    """One value of its update is not a number."""

    def reply(self, request: TrainRequest, result: RoundResult) -> object:
        """The records of the reply."""
        answer = self.answer(request, result)
        array = answer.arrays[0] = answer.arrays[0].copy()
        if array.dtype == np.int8:  # the last scale, little-endian fp16
            array[-3:-1] = np.array([np.nan], "<f2").view(np.int8)
        else:
            array[0] = np.nan
        return local_round.to_records(answer)


KINDS = {"vanishes": VanishingNode, "nan": NanNode}


def main(invitation: str, policy: str, folder: str, nodes: str, first: str, last: str) -> None:
    """Nodes `first` to `last`, the last not included, until standard input ends."""
    quiet_libraries()
    import zk0desk.federation.fleet  # noqa: F401 - once, before the threads need it

    invited, files, control = Invitation.parse(Path(invitation).read_text()), read_policy(Path(policy)), NodeControl()
    base, made = trainable_weights(Path(policy)), []
    for number in range(int(first), int(last)):
        kind = behaviour(number, int(nodes))
        step = SmallStep(optimum(base, number), control, SLOW_S if kind == "slow" else 0.0, 1e6 if kind == "scaled" else 1.0)
        made.append(KINDS.get(kind, BenchNode)(invited, files, step, control, Path(folder) / str(number)))
    threads = [threading.Thread(target=node.run, daemon=True) for node in made]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    sys.stdin.read()
    control.stop_now()
    for thread in threads:
        thread.join(5)


if __name__ == "__main__":
    main(*sys.argv[1:])
