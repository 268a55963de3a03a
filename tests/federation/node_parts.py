"""What the node's tests are made of: invitations, an operator's settings, and an engine that trains without torch.

Run as a program (`python node_parts.py SETTINGS STEP_SECONDS [stay]`) it is a node with that engine in a process of its own, for one
round unless it is to stay; with `real` for the seconds, with the real one.
"""

from __future__ import annotations

import functools
import json
import socket
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk import settings as settings_file
from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import OperatorError
from zk0desk.events import RoundStarted, RoundTrained, Sink, StepDone
from zk0desk.federation import node as node_module
from zk0desk.federation import node_checks
from zk0desk.federation.consent import consent_digest
from zk0desk.federation.credentials import NodeKey, load_or_make_key
from zk0desk.federation.invitation import Invitation, certificate_sha256
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.node import Node
from zk0desk.federation.server_folder import ServerFolder, make_certificate
from zk0desk.federation.updates import weights_sha256
from zk0desk.journal import Journal
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings
from zk0desk.training.checkpoint import RoundCheckpoint
from zk0desk.training.policy_files import PolicyFiles, read_policy, trainable_weights
from zk0desk.training.rounds import RoundPlan, RoundResult

HEX = "ab" * 32
CHANGE = 0.001
"""What the stand-in's training adds to every weight."""


@functools.cache
def certificate(name: str) -> tuple[str, str]:
    """A certificate and its key, made once."""
    return make_certificate(name)


def invitation(**changes: Any) -> Invitation:
    """An invitation to nowhere in particular."""
    pem = changes.pop("certificate", certificate("localhost")[0])
    values: dict[str, Any] = {
        "federation": "Test arms", "host": "127.0.0.1", "port": 9, "certificate": pem, "certificate_sha256": certificate_sha256(pem),
        "policy_id": "tiny", "backbone_sha256": HEX, "layout_sha256": HEX, "parameters": 100, "trainable_parameters": 50, "rounds": 2,
        "local_epochs": 1.0, "batch_size": 8, "deadline_s": 60.0, **changes,
    }  # fmt: skip
    return Invitation(**values)


def operator_settings(invited: Invitation, policy: Path, recording: Path | None = None) -> Settings:
    """Settings of an operator who chose everything and agreed."""
    return Settings(
        recordings=Recordings(chosen=(ChosenRecording(path=recording or policy),)),
        policy=Policy(folder=policy),
        federation=Federation(invitation=invited.to_line(), consent=consent_digest(invited), key_storage="file"),
    )


class StandInEngine:
    """Trains without torch: each step waits for `step`, and the update is `CHANGE` everywhere."""

    hold_loading: threading.Event | None = None
    step_seconds = 0.0

    def __init__(self, settings: Settings, files: PolicyFiles, *, emit: Sink, control: NodeControl) -> None:
        if self.hold_loading is not None:
            self.hold_loading.wait(20)
        self.emit, self.control = emit, control
        self.trainer = self
        self.frames = 40

    def paused(self) -> nullcontext[None]:
        return nullcontext()

    def close(self) -> None:
        return None

    def loss(self, _weights: np.ndarray, _batch: int, control: NodeControl) -> tuple[float, int]:
        control.check()
        return 0.75, self.frames

    def train(self, plan: RoundPlan, global_weights: np.ndarray, kept: RoundCheckpoint | None = None) -> RoundResult:
        steps = plan.local_steps or 3
        self.emit(
            RoundStarted(
                run=plan.run, round=plan.round, rounds=plan.rounds, lr=plan.lr, mu=plan.mu, steps=steps, epochs=1.0,
                batch_size=plan.batch_size, frames=self.frames, deadline=plan.deadline,
            )
        )  # fmt: skip
        done = 0
        for step in range(1, steps + 1):
            self.control.hold(plan.deadline)
            ends = time.monotonic() + self.step_seconds
            while time.monotonic() < ends:
                self.control.check()
                time.sleep(0.005)
            if plan.deadline and time.time() >= plan.deadline:
                break
            done += 1
            self.emit(
                StepDone(
                    run=plan.run, round=plan.round, step=step, steps=steps, epoch=1, loss=1.0, proximal=0.0, grad_norm=1.0, lr=plan.lr,
                    mu=plan.mu, frames=plan.batch_size, seconds=0.0,
                )
            )  # fmt: skip
        if not done:
            raise OperatorError("The round gave no update.", "No step was finished before the deadline.")
        metrics = {"num-examples": 40.0, "frames-seen": 40.0, "steps-done": float(done), "loss-mean": 1.0, "loss-last": 1.0}
        self.emit(RoundTrained(run=plan.run, round=plan.round, metrics=metrics, partial="deadline" if done < steps else ""))
        return RoundResult(delta=np.full_like(global_weights, CHANGE), metrics=metrics, partial="deadline" if done < steps else "")


def without_torch(patch: Any) -> None:
    """Let nodes train with the stand-in, on recordings that are not looked at."""
    patch.setattr(node_module, "Engine", StandInEngine)
    patch.setattr(node_checks, "check_recordings", lambda _settings, _files: 40)


class Desk:
    """An operator's node in a thread, with its events, control and journal. A context manager."""

    def __init__(self, settings: Settings, *, once: bool = False) -> None:
        from tests.federation.coordinator_parts import Events

        self.settings, self.events, self.control = settings, Events(), NodeControl()
        self.journal = Journal()
        self.error: OperatorError | None = None
        self.node = Node(settings, emit=self._emit, control=self.control, journal=self.journal, once=once)
        self.thread = threading.Thread(target=self._run, name="node")

    def _emit(self, event: Any) -> None:
        self.journal.record(event)
        self.events(event)

    def _run(self) -> None:
        try:
            self.node.run()
        except OperatorError as error:
            self.error = error

    @property
    def key(self) -> NodeKey:
        return load_or_make_key(self.settings.federation)

    def states(self) -> list[str]:
        return [event.state for event in self.events.named("node-state-changed")]  # type: ignore[attr-defined]

    def until(self, state: str, seconds: float = 30.0) -> Any:
        return self.events.wait_for(lambda event: getattr(event, "state", "") == state, seconds)

    def until_event(self, name: str, seconds: float = 30.0, **values: Any) -> Any:
        return self.events.wait_for(lambda event: event.name == name and all(getattr(event, k) == v for k, v in values.items()), seconds)

    def stop(self) -> float:
        """Ask to stop now; the seconds until the state said so."""
        began = time.time()
        self.control.stop_now()
        self.thread.join(20)
        return float(self.until("stopped").time) - began

    def __enter__(self) -> Desk:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.control.stop_now()
        self.thread.join(20)
        self.journal.close()
        assert not self.thread.is_alive()


class Round:
    """What a coordinator asks of the policy in `policy`: a request and its weights."""

    def __init__(self, policy: Path, **changes: Any) -> None:
        files = read_policy(policy)
        self.weights = trainable_weights(policy)
        sha256 = weights_sha256(self.weights)
        values: dict[str, Any] = {
            "run_uid": "run-1", "server_round": 1, "num_rounds": 3, "seed": 1, "lr": 1e-4, "proximal_mu": 0.01, "batch_size": 8,
            "policy_id": files.policy_id, "backbone_sha256": files.backbone_sha256, "layout_sha256": files.layout.sha256,
            "weights_sha256": sha256, "base_sha256": sha256, "local_steps": 3, "deadline_s": 60.0, **changes,
        }  # fmt: skip
        self.request = TrainRequest(**values)


def wait_until(holds: Any, seconds: float = 30.0) -> Any:
    """The first true value of `holds()`, looked at often."""
    ends, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < ends:
        if found := holds():
            return found
        pause.wait(0.02)
    raise AssertionError("it did not come")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def admitted(server: ServerFolder, key: NodeKey) -> None:
    """Let the key take part, before or while the server runs."""
    from zk0desk.federation.superlink import admit

    admit(server, key.public_line)


def main(path: str, step_seconds: str, stay: str = "") -> None:
    """A node with the stand-in, or with the real engine, which keeps the round's middle after every step (`real`)."""
    import pytest

    with pytest.MonkeyPatch.context() as patch, Journal() as journal:
        if step_seconds == "real":
            patch.setattr(RoundCheckpoint, "due", True)
        else:
            StandInEngine.step_seconds = float(step_seconds)
            without_torch(patch)

        def emit(event: Any) -> None:
            journal.record(event)
            print(json.dumps(event.to_json()), flush=True)

        try:
            Node(settings_file.load(Path(path)), emit=emit, control=NodeControl(), journal=journal, once=not stay).run()
        except Stopped:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
