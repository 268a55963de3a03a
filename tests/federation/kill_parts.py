"""What the tests of killing are made of: a federation in real processes, nodes that answer the same each time, and a kill at an event."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import load_file, save_file

from tests.federation.coordinator_parts import Events, TestNode, make_server
from zk0desk.errors import OperatorError
from zk0desk.events import Event
from zk0desk.federation import chain, messages, updates
from zk0desk.federation.audit import Audit, audit, counted
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.probe import ServerTrouble
from zk0desk.federation.run_record import RunRecord, records
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.federation.superlink import RunningServer, start_server

KEYS = sorted((NodeKey.make() for _ in range(2)), key=lambda key: key.public_key_bytes)
"""The nodes of all of these tests, in the order in which their answers are told."""
VALUES = 2_000_000
METRICS = {"num-examples": 40.0, "steps-done": 1.0, "loss-mean": 1.0}


def make_federation(tmp_path: Path, rounds: int, state: str = "memory") -> ServerFolder:
    """A server's folder whose policy is large enough that aggregating and writing it take a moment."""
    folder = make_server(tmp_path, rounds=rounds, state=state)
    weights = folder.policy(folder.settings()) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.vlm_with_expert.lm_expert.layers.1.weight"] = np.random.default_rng(8).standard_normal(VALUES, dtype=np.float32)
    save_file(tensors, weights)
    return folder


class SturdyNode(TestNode):
    """A node whose update follows from round, weights and its own `pull` alone, so that the same round is answered the same again.

    It holds the weights of the last message and takes differences to them; `hold` may delay the answer to a round.
    """

    def __init__(self, folder: ServerFolder, key: NodeKey, pull: float, hold: Callable[[TrainRequest], None] = lambda _: None) -> None:
        super().__init__(folder.invitation(), key, lambda request, weights: None)
        self._pull, self._hold = pull, hold
        self._weights: np.ndarray | None = None
        self.trouble: list[str] = []
        """What it was told when the connection failed."""

    def _live(self) -> None:
        try:
            super()._live()
        except OperatorError as error:
            self.trouble.append(str(error))
            raise

    def _handle(self, fleet: object, incoming: object) -> None:
        from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

        from zk0desk.federation.fleet import reply_to

        content = self._received(fleet, incoming)
        config = dict(content["config"])
        if "arrays" not in content:
            return
        pieces = [content["arrays"][key].numpy() for key in sorted(content["arrays"])]
        final = incoming.kind == messages.QUERY
        encoding, whole = config["encoding"], config["arrays-kind"] == messages.WHOLE
        weights = np.concatenate(pieces) if whole else self._added(pieces, encoding)
        if weights is None or updates.weights_sha256(weights) != config["weights-sha256"]:
            error = messages.WholeNeeded("arrays", "This node holds other weights.")
            fleet.send(reply_to(incoming.message, error=error.reason), seconds=0.0, progress=lambda _: None)
            return
        self._weights = weights
        if final:
            self.told.append(config)
            self.final = weights
            fleet.send(reply_to(incoming.message, RecordDict({"config": ConfigRecord({})})), seconds=0.0, progress=lambda _: None)
            return
        request = TrainRequest.from_config(config)
        self.requests.append(request)
        self._hold(request)
        self._control.check()
        delta = np.float32(self._pull) * np.cos(np.arange(weights.size, dtype=np.float32) + weights + np.float32(request.server_round))
        arrays = [(f"{i:06d}", Array(piece)) for i, piece in enumerate(updates.encode(delta.astype(np.float32), request.encoding))]
        record = RecordDict(
            {"arrays": ArrayRecord(dict(arrays)), "config": ConfigRecord(messages.reply_config(request)), "metrics": MetricRecord(METRICS)}
        )
        fleet.send(reply_to(incoming.message, record), seconds=0.1, progress=lambda _: None)

    def _received(self, fleet: object, incoming: object) -> object:
        for _ in range(100):
            try:
                return fleet.receive(incoming, limit=10**9, progress=lambda _: None)
            except ServerTrouble:
                self._control.sleep(0.1)  # a part of it is still on its way to the SuperLink
        raise AssertionError("the message never came whole")

    def _added(self, pieces: list[np.ndarray], encoding: str) -> np.ndarray | None:
        if self._weights is None:
            return None
        weights, count = self._weights.copy(), updates.pieces(self._weights.size)
        for start in range(0, len(pieces), count):
            weights += updates.decode(pieces[start : start + count], encoding, weights.size)
        return weights


def processes(server: RunningServer) -> dict[str, list[psutil.Process]]:
    """The server's processes by what they are."""
    found: dict[str, list[psutil.Process]] = {"supervisor": [psutil.Process(server.pid)]}
    for process in found["supervisor"][0].children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            name = {"_superlink": "superlink", "run": "conductor", "_evaluator": "evaluator"}
            kind = next((name[word] for word in words[3:5] if word in name), "other")
            found.setdefault(kind, []).append(process)
    return found


@dataclass
class Federation:
    """A server that is started, killed and started again, its events, and its nodes."""

    folder: ServerFolder
    rounds: int
    events: Events = field(default_factory=Events)
    server: RunningServer | None = None

    def start(self, watch: Callable[[Event], None] = lambda _: None) -> None:
        """Start it, or start it again. `watch` sees each event before all others, in the thread that reads them."""

        def sink(event: Event) -> None:
            watch(event)
            self.events(event)

        self.server = start_server(self.folder.path, sink, run=True, rounds=self.rounds)

    def end(self) -> None:
        """End what is left of it."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def signal(self, what: str, number: signal.Signals) -> None:
        """Send a signal to `conductor`, `superlink`, `supervisor`, or `all` of its processes at once."""
        assert self.server is not None
        found = processes(self.server)
        # The supervisor first, so that it starts none of them again.
        wanted = [each for kind in ("supervisor", "superlink", "conductor", "evaluator", "other") for each in found.get(kind, [])]
        for process in wanted if what == "all" else found.get(what, []):
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, number)

    @property
    def record(self) -> RunRecord:
        """The record of its only run."""
        (record,) = records(self.folder)
        return record

    @property
    def run(self) -> Path:
        """The folder of its only run."""
        return self.record.folder(self.folder)

    def audit(self) -> Audit:
        """Everything that is kept of the run, compared."""
        return audit(self.folder, self.record)

    def hashes(self) -> dict[int, str]:
        """The SHA-256 of the weights by round, of the rounds that count."""
        found = counted(chain.entries(self.run / chain.NAME))
        return {number: each.aggregated["weights-sha256"] for number, each in sorted(found.items()) if each.aggregated}

    def losses(self) -> dict[int, float]:
        """The held-out losses by round, of the rounds that count."""
        found = counted(chain.entries(self.run / chain.NAME))
        return {number: each.evaluated["loss"] for number, each in sorted(found.items()) if each.evaluated}


@contextlib.contextmanager
def federation(folder: ServerFolder, rounds: int) -> Iterator[Federation]:
    """A federation that is not started yet, whose two nodes are admitted. All of it ends with the block."""
    for key in KEYS:
        folder.nodes().admit(key.public_line)
    made = Federation(folder, rounds)
    try:
        yield made
    finally:
        made.end()


class Kill:
    """Kills one of a federation's processes in a phase of a round. The conductor stands still meanwhile, so that the phase is that one."""

    def __init__(self, of: Federation, what: str, phase: str, number: int) -> None:
        self._of, self._what, self._phase, self._round = of, what, phase, number
        self.done = threading.Event()
        self.seen = ""
        """What was seen on disk while the conductor stood still."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._polling = threading.Thread(target=self._poll, name="kill", daemon=True)

    def __enter__(self) -> Kill:
        if self._phase == "checkpoint":
            self._polling.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._polling.ident:
            self._polling.join(10)

    def watch(self, event: Event) -> None:
        """The sink: kills when the phase's event comes."""
        state, words = getattr(event, "state", ""), getattr(event, "what", "")
        number = str(self._round)
        match self._phase:
            case "sending":
                hit = state == "training" and words.startswith(f"Round {number} ")
            case "half":
                hit = event.name == "reply-accepted" and event.round == self._round
            case "aggregating":
                hit = state == "aggregating" and words.startswith(f"Round {number}:")
            case "evaluating":
                hit = state == "evaluating" and words.endswith(f"round {number}.")
            case _:
                hit = False
        if hit:
            self._strike()

    def hold(self, request: TrainRequest) -> None:
        """A node's delay: in the phase `half` it answers that round only when the kill is done."""
        if self._phase == "half" and request.server_round == self._round:
            self.done.wait(60)

    def _poll(self) -> None:
        partial = f".round-{self._round:04d}."
        while not self._over.is_set() and not self.done.is_set():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if any(name.startswith(partial) for run in os.scandir(self._of.folder.runs) for name in os.listdir(run.path)):
                    self._strike()
            time.sleep(0.0005)

    def _strike(self) -> None:
        with self._lock:
            if self.done.is_set():
                return
            try:
                self._of.signal("conductor", signal.SIGSTOP)
                self.seen = self._look()
                self._of.signal(self._what, signal.SIGKILL)
                if self._what in ("superlink", "supervisor", "evaluator"):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        self._of.signal("conductor", signal.SIGCONT)
            finally:
                self.done.set()

    def _look(self) -> str:
        """How far the round is: what is on disk of it."""
        run = self._of.run
        names = os.listdir(run)
        if any(name.startswith(f".round-{self._round:04d}.") for name in names):
            return "checkpoint half written"
        if f"round-{self._round:04d}" in names:
            done = self._of.record.settled >= self._round
            return "round settled" if done else "checkpoint whole, not evaluated"
        entry = counted(chain.entries(run / chain.NAME)).get(self._round)
        if entry is None:
            return "not sent"
        if entry.aggregated:
            return "aggregated, no checkpoint"
        return f"{len(entry.replies)} replies in"
