"""Nodes for benchmarks of the coordinator: the product's connection and its form of messages, and a stand-in for training.

    server_round_nodes.py INVITATION POLICY FOLDER NUMBER      one node, until standard input ends or the process is ended

The stand-in gives at once an update of the right size, another one on each node and in each round. Work is asked for as often as the
product's node does.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import OperatorError
from zk0desk.federation import local_round
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.messages import TRAIN, MessageRefused, TrainRequest
from zk0desk.federation.node import poll_pause
from zk0desk.federation.probe import ConnectionTrouble
from zk0desk.federation.run_store import RunStore
from zk0desk.quiet import quiet_libraries
from zk0desk.training.policy_files import PolicyFiles, read_policy
from zk0desk.training.rounds import RoundResult

FRAMES = 64
"""Frames that the stand-in says it has trained on."""

Train = Callable[[TrainRequest, np.ndarray], RoundResult]


class StandIn:
    """Trains nothing: noise of the learning rate's size, computed once; each round changes some of it, so that no two updates are equal."""

    def __init__(self, size: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._noise = self._rng.standard_normal(size, dtype=np.float32) * np.float32(1e-4)

    def __call__(self, request: TrainRequest, weights: np.ndarray) -> RoundResult:
        """The round's result."""
        self._noise[::4096] = self._rng.standard_normal(len(self._noise[::4096]), dtype=np.float32) * np.float32(request.lr)
        metrics = {"num-examples": float(FRAMES), "frames-seen": float(FRAMES), "steps-done": 1.0, "loss-mean": 1.0, "lr-used": request.lr}
        return RoundResult(delta=self._noise, metrics=metrics)


class BenchNode:
    """A node on the wire; `run` blocks until `control` stops it. Trouble with the connection is met by joining again.

    As the product's node, it keeps the global weights on disk, and what its encoding left out; both in `folder`.
    """

    def __init__(self, invitation: Invitation, files: PolicyFiles, train: Train, control: NodeControl, folder: Path) -> None:
        self._invitation, self._files, self._train, self._control, self._folder = invitation, files, train, control, folder
        self._key = NodeKey.make()
        self._id = 0
        self._lively = 0.0
        self.pending: tuple[object, TrainRequest, object] | None = None
        """A round's message, request and reply that could not be delivered before the connection was lost."""

    def run(self) -> None:
        """Take part until stopped."""
        while not self._control.stopping:
            try:
                self._live()
            except Stopped:
                return
            except (OperatorError, ConnectionResetError) as error:
                print(f"{self._key.fingerprint}: {error}", file=sys.stderr, flush=True)
                try:
                    self._control.sleep(0.5)
                except Stopped:
                    return

    def _live(self) -> None:
        from zk0desk.federation.fleet import Fleet, reply_to

        fleet = Fleet(self._invitation, self._key, self._control)
        try:
            self._id = fleet.join(self._id)
            self._lively = time.monotonic()
            if self.pending is not None:
                (message, _, records), self.pending = self.pending, None
                fleet.send(reply_to(message, records), seconds=0.0, progress=lambda _: None)
            while True:
                self._control.check()
                if (incoming := fleet.poll()) is None:
                    self._control.sleep(poll_pause(time.monotonic() - self._lively, fleet.poll_s))
                    continue
                self._answer(fleet, incoming)
                self._lively = time.monotonic()
        finally:
            if self._control.stopping:
                fleet.leave()
            fleet.close()

    def _answer(self, fleet: object, incoming: object) -> None:
        from flwr.app import ConfigRecord, RecordDict

        from zk0desk.federation.fleet import reply_to

        size = self._files.layout.size
        content = self._receive(fleet, incoming)
        if incoming.kind != TRAIN:
            told = RecordDict({"config": ConfigRecord(local_round.capability(self._files, FRAMES))})
            fleet.send(reply_to(incoming.message, told), seconds=0.0, progress=lambda _: None)
            return
        try:
            request = local_round.read_request(content, self._files)
            weights = local_round.read_weights(content, request, size, RunStore.existing(request.run_uid, self._folder))
        except MessageRefused as error:  # the whole weights may be needed
            fleet.send(reply_to(incoming.message, error=error.reason), seconds=0.0, progress=lambda _: None)
            return
        del content
        RunStore(request.run_uid, self._folder).keep_weights(request, weights, self._invitation, self._files)
        self.deliver(fleet, incoming.message, request, self.reply(request, self._train(request, weights)))

    def _receive(self, fleet: object, incoming: object) -> object:
        """What was offered, however often the line is lost meanwhile: it is not offered again."""
        while True:
            try:
                return fleet.receive(incoming, limit=local_round.message_limit(self._files.layout.size), progress=lambda _: None)
            except ConnectionTrouble:
                self._control.sleep(0.5)

    def deliver(self, fleet: object, message: object, request: TrainRequest, records: object) -> None:
        """Send the reply."""
        from zk0desk.federation.fleet import reply_to

        fleet.send(reply_to(message, records), seconds=0.1, progress=lambda _: None)

    def reply(self, request: TrainRequest, result: RoundResult) -> object:
        """The records of the reply."""
        return local_round.to_records(self.answer(request, result))

    def answer(self, request: TrainRequest, result: RoundResult) -> local_round.Answer:
        """The reply before it becomes records."""
        return local_round.answer(request, result, RunStore(request.run_uid, self._folder).feedback())


def main(invitation: str, policy: str, folder: str, number: str) -> None:
    """One node."""
    quiet_libraries()
    files, control = read_policy(Path(policy)), NodeControl()
    invited, train = Invitation.parse(Path(invitation).read_text()), StandIn(files.layout.size, int(number))
    node = BenchNode(invited, files, train, control, Path(folder) / number)
    threading.Thread(target=lambda: (sys.stdin.read(), control.stop_now()), daemon=True).start()
    node.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
