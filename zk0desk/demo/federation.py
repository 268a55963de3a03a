"""The demo's federation: data, coordinator and nodes under one guard, and the events of all of them in one stream."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zk0desk import folders
from zk0desk import settings as settings_file
from zk0desk.demo.guarded import Guard
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import DemoFinished, Evaluated, Event, Notice, RunFinished, ServerStateChanged
from zk0desk.settings import (
    ChosenRecording,
    Federation,
    Policy,
    Recordings,
    ServerNetwork,
    ServerPolicy,
    ServerRounds,
    ServerSchedule,
    ServerSettings,
    Settings,
    Training,
)

ALIKE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ZK0DESK_DECODER": "pyav"}
"""The order of a sum decides its last bit: with one thread, and one decoder, a seed gives one curve."""


class DemoFailed(OperatorError):
    """A part of the demo ended before its time."""

    code = "demo-failed"
    exit_status = ExitStatus.FAILED


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demo does. `recordings` replaces the generated ones: one a node in turn, the last held out when there are several."""

    rounds: int = 8
    nodes: int = 3
    seed: int = 0
    recordings: tuple[Path, ...] = ()
    keep: Path | None = None
    lr: float = 3e-3
    steps: int = 30
    batch_size: int = 16


class DemoFederation:
    """Runs a demo. `emit(source, event)` gets every event: `source` is `server`, `node-1`, ... or `demo`.

    `start` brings the federation up and returns when the operator's node may join; `wait` returns when the run is over;
    `close`, from any thread and at any time, takes everything away. Where the window is the operator's node, `own_node`
    is False and `operator_home` is its ZK0DESK_HOME.
    """

    def __init__(self, plan: DemoPlan, emit: Callable[[str, Event], None], *, own_node: bool) -> None:
        self.plan = plan
        self._emit = emit
        self._own_node = own_node
        self._changed = threading.Condition()
        self._lines: dict[str, list[str]] = {}
        self._serving = False
        self._finished: RunFinished | None = None
        self._failure: OperatorError | None = None
        self._closing = False
        self._losses: dict[int, float] = {}
        # The operator's own folders: the window and the nodes get homes inside the demo's folder, and share the engine that is there.
        self.environment = {**ALIKE, "ZK0DESK_ENGINES": str(folders.engines_folder())}
        self._result = folders.policies_folder() / f"demo-seed-{plan.seed}"
        self._guard = Guard(self._on_line, self._on_end, keep=plan.keep)
        self.folder = self._guard.folder

    @property
    def operator_home(self) -> Path:
        """ZK0DESK_HOME of the operator's node, the last one."""
        return self._home(self.plan.nodes)

    def _home(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    # --- the course of it

    def start(self) -> None:
        """Make the data, start the coordinator, admit the nodes, start all but the operator's. Raises `OperatorError`."""
        from zk0desk.federation.credentials import NodeKey
        from zk0desk.federation.server_folder import ServerFolder, init_server

        plan = self.plan
        self._tell("making", "The demo makes its policy and its recordings.", "A small simulated arm, filmed; another task for each node.")
        numbers = [] if plan.recordings else [str(number) for number in range(1, plan.nodes + 1)]
        shared = ["policy"] if plan.recordings else ["policy", "held-out"]
        self._guard.warm_up(self.environment)
        self._prepare("prepare", shared)
        self._prepare("recordings", numbers)
        # Updates are added in the order of the public keys: handed out in that order, node 1 is always the first.
        keys = sorted((NodeKey.make() for _ in range(plan.nodes)), key=lambda key: key.public_key_bytes)
        trained, held_out = self._recordings()
        server = init_server(self.folder / "server", self._server_settings(held_out))
        for number, key in enumerate(keys, 1):
            server.nodes().admit(key.public_line)
            _write_private(self._home(number) / "node.key", key.to_pem())
        # The gateway bounds what it takes by the policy's size.
        self._until(lambda: self._made("prepare", ["policy"]))
        self._guard.start("server", ["-m", "zk0desk", "server", "start", str(server.path), "--with-parent"], self.environment)
        self._until(lambda: self._serving and self._made("prepare", shared))
        here = {**self.environment, "ZK0DESK_HOME": str(self.folder / "server-home")}
        self._guard.start("rounds", ["-m", "zk0desk", "server", "run", str(server.path), "--with-parent"], here)
        invitation = ServerFolder(server.path).invitation()
        from zk0desk.federation.consent import consent_digest

        for number in range(1, plan.nodes + 1):
            self._until(lambda needed=numbers[:number]: self._made("recordings", needed))  # type: ignore[misc]
            chosen = trained[(number - 1) % len(trained)]
            home = self._home(number)
            settings = Settings(
                recordings=Recordings(folders=(self.folder / "recordings",), chosen=(ChosenRecording(path=chosen),)),
                policy=Policy(folder=self.folder / "policy"),
                federation=Federation(
                    invitation=invitation.to_line(),
                    consent=consent_digest(invitation),
                    key_storage="file",
                    key_file=home / "node.key",
                ),
                training=Training(device="cpu", precision="fp32", threads=1),
            )
            settings_file.save(settings, home / "config" / "settings.toml")
            if number < plan.nodes or self._own_node:
                self._guard.call(f"node-{number}", "zk0desk.cli", ["node"], {**self.environment, "ZK0DESK_HOME": str(home)})
        self._tell("joining", "The federation is up; its nodes join.", f"{plan.nodes} nodes, {plan.rounds} rounds.")

    def wait(self) -> DemoFinished:
        """Wait for the end of the run; its policy is copied to the operator's policies. Raises `OperatorError`."""
        self._until(lambda: self._finished is not None)
        assert self._finished is not None
        if self._finished.reason != "complete":
            raise DemoFailed("The demo's run did not complete.", f"It ended as {self._finished.reason}.", self._said("rounds"))
        from zk0desk.training.policy_files import copy_policy

        policy = self._finished.policy
        if self.plan.keep is None:
            folders.private_folder(self._result.parent)
            policy = str(copy_policy(self._result, Path(policy)))
        rounds = sorted(self._losses)
        done = DemoFinished(
            rounds=self._finished.rounds,
            eval_loss_first=self._losses[rounds[0]] if rounds else None,
            eval_loss_last=self._losses[rounds[-1]] if rounds else None,
            policy=policy,
        )
        self._emit("demo", done)
        return done

    def close(self) -> None:
        """End every process and remove the folder (unless it is kept)."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._guard.close()

    def interrupt(self) -> None:
        """Make `start` and `wait` return soon, with an error that nobody needs to see. Safe in a signal handler."""
        self._closing = True

    # --- its parts

    def _prepare(self, name: str, parts: list[str]) -> None:
        if parts:
            self._guard.call(name, "zk0desk.demo.prepare", [str(self.folder), str(self.plan.seed), *parts], self.environment)

    def _made(self, name: str, parts: list[str]) -> bool:
        return set(parts) <= set(self._lines.get(name, ()))

    def _recordings(self) -> tuple[list[Path], Path]:
        given = [path.expanduser().absolute() for path in self.plan.recordings]
        if not given:
            made = self.folder / "recordings"
            return [made / f"node-{number}" for number in range(1, self.plan.nodes + 1)], made / "held-out"
        from zk0desk.training.recordings import quick_check

        for path in given:
            found = quick_check(path)
            if found.status != "ok":
                first = found.findings[0]
                raise DemoFailed(f"{path} cannot be used in the demo: {first.what}", first.why, first.remedy)
        return (given[:-1], given[-1]) if len(given) > 1 else (given, given[0])

    def _server_settings(self, held_out: Path) -> ServerSettings:
        plan = self.plan
        return ServerSettings(
            federation="zk0desk demo",
            contact="this computer",
            network=ServerNetwork(host="127.0.0.1", port=0, name="127.0.0.1"),
            policy=ServerPolicy(folder=self.folder / "policy", held_out=(ChosenRecording(path=held_out),), evaluation_batch=16),
            rounds=ServerRounds(
                rounds=plan.rounds,
                min_nodes=plan.nodes,
                # A step budget, not a deadline: what is computed must not depend on how fast this computer is.
                local_steps=plan.steps,
                batch_size=plan.batch_size,
                deadline_s=1800,
                lr=plan.lr,
                proximal_mu=0.01,
                seed=plan.seed,
            ),
            # A few rounds are too short for a schedule to decide anything.
            schedule=ServerSchedule(strategy="fedprox"),
        )

    # --- what comes from the guard

    def _on_line(self, name: str, text: str) -> None:
        try:
            event = Event.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError):
            with self._changed:
                self._lines.setdefault(name, []).append(text)
                self._changed.notify_all()
            return
        with self._changed:
            if isinstance(event, ServerStateChanged) and event.state == "serving":
                self._serving = True
            elif isinstance(event, Evaluated):
                self._losses[event.round] = event.loss
            elif isinstance(event, RunFinished):
                self._finished = event
            self._changed.notify_all()
        self._emit("server" if name == "rounds" else name, event)

    def _on_end(self, name: str, status: int) -> None:
        with self._changed:
            over = self._finished is not None or self._closing
            if not over and not (name in ("prepare", "recordings", "rounds") and status == 0):
                part = {
                    "": "The guard",
                    "engine": "Loading the engine",
                    "prepare": "Making the policy",
                    "recordings": "Making the recordings",
                    "server": "The SuperLink",
                    "rounds": "The coordinator",
                }
                self._failure = DemoFailed(
                    f"{part.get(name, name)} ended too early.", self._said(name) or f"Exit status {status}.", "Start the demo again."
                )
            self._changed.notify_all()

    def _said(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " ".join((lines or self._lines.get(name, []))[-3:])[-500:]

    def _until(self, holds: Callable[[], bool]) -> None:
        with self._changed:
            while not holds():
                if self._closing:
                    raise DemoFailed("The demo was ended.")
                if self._failure is not None:
                    raise self._failure
                self._changed.wait(0.2)

    def _tell(self, state: str, what: str, why: str) -> None:
        self._emit("demo", ServerStateChanged(state=state, what=what, why=why))


def failure(error: OperatorError) -> Notice:
    """The error as an event, for those who read events."""
    return Notice(severity="error", code=error.code, what=error.what, why=error.why, remedy=error.remedy)


def _write_private(path: Path, data: bytes) -> None:
    folders.private_folder(path.parent)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
