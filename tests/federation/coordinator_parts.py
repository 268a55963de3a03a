"""What the coordinator's tests are made of: a policy without torch, a server's folder, and a node that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import OperatorError
from zk0desk.events import Event
from zk0desk.federation import messages, updates
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.server_folder import ServerFolder, init_server
from zk0desk.settings import ServerPolicy, ServerRounds, ServerSettings

MODULES = ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")


def make_policy(folder: Path) -> Path:
    """Files that read as a SmolVLA policy, of a few hundred parameters."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    tensors = {f"model.{name}.weight": rng.standard_normal((6, 5), dtype=np.float32) for name in MODULES}
    tensors["model.vlm_with_expert.lm_expert.layers.0.weight"] = rng.standard_normal((20, 9), dtype=np.float32)
    tensors["model.vlm_with_expert.vlm.weight"] = rng.standard_normal((30, 4), dtype=np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": "smolvla"}))
    return folder


def make_server(
    tmp_path: Path, *, admission: str = "approved", name: str = "localhost", state: str = "memory", **rounds: object
) -> ServerFolder:
    """A server's folder on loopback with a free port; `state` is where the SuperLink keeps messages, `rounds` are settings of the rounds.

    Test nodes are not clipped, nor quarantined.
    """
    policy = make_policy(tmp_path / "policy")
    rules = ServerRounds.model_validate(
        {"rounds": 2, "min_nodes": 2, "local_steps": 1, "batch_size": 512, "deadline_s": 20.0, "seed": 5, "encoding": "fp16", **rounds}
    )
    settings = ServerSettings.model_validate(
        {"federation": "Test arms", "admission": admission,
         "network": {"host": "127.0.0.1", "port": 0, "name": name, "superlink-state": state},
         "policy": ServerPolicy(folder=policy), "rounds": rules, "aggregation": {"clip": 1e6, "quarantine-after": 0}},
    )  # fmt: skip
    return init_server(tmp_path / "server", settings)


class Events(list[Event]):
    """A sink that can be waited on."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._came:
            self.append(event)
            self._came.notify_all()

    def named(self, name: str) -> list[Event]:
        return [event for event in self if event.name == name]

    def wait_for(self, wanted: Callable[[Event], bool], seconds: float = 60.0) -> Event:
        with self._came:
            assert self._came.wait_for(lambda: any(map(wanted, self)), seconds), [event.to_json() for event in self]
            return next(event for event in self if wanted(event))


Answer = Callable[[TrainRequest, np.ndarray], tuple[np.ndarray, dict[str, float]] | None]


def steady(change: float, frames: int = 100) -> Answer:
    """A node whose update is `change` everywhere."""
    return lambda request, weights: (np.full_like(weights, change), {"num-examples": float(frames), "steps-done": 1.0, "loss-mean": 1.0})


class TestNode:
    """A node on the real wire, in a thread; `answer` gives the update and metrics, or None for no answer at all.

    One that `stalls` begins to send its update and does not go on.
    """

    __test__ = False

    def __init__(
        self, invitation: Invitation, key: NodeKey, answer: Answer, *, config: dict[str, object] | None = None, stalls: bool = False
    ) -> None:
        self._invitation, self._key, self._answer, self._change = invitation, key, answer, config or {}
        self._control, self._stalls = NodeControl(), stalls
        self.requests: list[TrainRequest] = []
        self.told: list[dict[str, object]] = []
        self.final: np.ndarray | None = None
        self._weights = np.empty(0, np.float32)
        self.id = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> TestNode:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._control.stop_now()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                self._live()
            except Stopped:
                return
            except OperatorError:
                if self._control.stopping:
                    return
                self._nap()

    def _nap(self, seconds: float = 0.1) -> None:
        try:
            self._control.sleep(seconds)
        except Stopped:
            return

    def _live(self) -> None:
        from zk0desk.federation.fleet import Fleet

        fleet = Fleet(self._invitation, self._key, self._control)
        try:
            self.id = fleet.join(self.id)
            while True:
                self._control.check()
                if (incoming := fleet.poll()) is None:
                    self._control.sleep(0.05)
                    continue
                self._handle(fleet, incoming)
        finally:
            if self._control.stopping:
                fleet.leave()
            fleet.close()

    def _take(self, told: TrainRequest | messages.FinalWeights, pieces: list[np.ndarray]) -> bool:
        """Hold the weights that came, whole or as differences (the policy is so small that each is one piece); whether they are right."""
        found = self._weights
        if told.arrays_kind == messages.WHOLE:
            found = np.concatenate(pieces)
        else:
            for known in range(len(pieces) + 1):  # so many of the differences may have come before
                found = self._weights
                for piece in pieces[known:]:
                    found = found + updates.decode([piece], told.encoding, found.size) if found.size else found
                if updates.weights_sha256(found) == told.weights_sha256:
                    break
        self._weights = found
        return updates.weights_sha256(found) == told.weights_sha256

    def _handle(self, fleet: object, incoming: object) -> None:
        from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

        from zk0desk.federation.fleet import reply_to

        content = fleet.receive(incoming, limit=10**7, progress=lambda _: None)
        config = dict(content["config"])
        if incoming.kind == messages.QUERY:
            self.told.append(config)
            if "arrays" not in content:
                return
            told = messages.FinalWeights.from_config(config)
        else:
            told = TrainRequest.from_config(config)
        if not self._take(told, [content["arrays"][key].numpy() for key in sorted(content["arrays"])]):
            reason = messages.WholeNeeded("weights-sha256", "lost.").reason
            fleet.send(reply_to(incoming.message, error=reason), seconds=0.0, progress=lambda _: None)
            return
        if incoming.kind == messages.QUERY:
            self.final = self._weights
            fleet.send(reply_to(incoming.message, RecordDict({"config": ConfigRecord({})})), seconds=0.0, progress=lambda _: None)
            return
        request = told
        self.requests.append(request)
        if (answered := self._answer(request, self._weights)) is None:
            return
        delta, metrics = answered
        # As fp16 it may also be what no node would send.
        form = (delta * updates.SCALE).astype(np.float16) if request.encoding == "fp16" else updates.encode_piece(delta, request.encoding)
        arrays = [("000000", Array(form))]
        record = RecordDict(
            {"arrays": ArrayRecord(dict(arrays)), "config": ConfigRecord({**messages.reply_config(request), **self._change}),
             "metrics": MetricRecord(metrics)}
        )  # fmt: skip
        fleet.send(reply_to(incoming.message, record), seconds=0.1, progress=lambda _: self._nap(60.0 if self._stalls else 0.0))
