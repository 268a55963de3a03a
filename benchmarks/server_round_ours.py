"""Our side of `server_round.py`: a server as `zk0desk server start` runs it, the rounds in their own process, nodes on real connections.

TLS, node keys and the gateway are always there; a case says only where the SuperLink keeps messages.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from server_round_parts import Case, Cpu, Measured, Memory, make_policy, python, quiet_environment, started

from zk0desk.federation import child
from zk0desk.federation.server_folder import ServerFolder, init_server
from zk0desk.federation.superlink import start_server
from zk0desk.settings import ServerNetwork, ServerPolicy, ServerRounds, ServerSettings

DEADLINE_S = 900.0


def make_server(folder: Path, case: Case, **rounds: Any) -> ServerFolder:
    """A server's folder for `case`, on loopback and with a free port. Whoever has the invitation is admitted."""
    policy = make_policy(folder / "policy", case.values)
    asked = {"rounds": case.rounds + 1, "min_nodes": case.nodes, "deadline_s": DEADLINE_S, "keep_checkpoints": 2, "local_steps": 1}
    rules = ServerRounds.model_validate(asked | ({"encoding": case.encoding} if case.encoding else {}) | rounds)
    network = ServerNetwork(host="127.0.0.1", port=0, superlink_state="disk" if case.on_disk else "memory")
    settings = ServerSettings(federation="Benchmark", admission="open", network=network, policy=ServerPolicy(folder=policy), rounds=rules)
    return init_server(folder / "server", settings)


class Rounds:
    """The rounds of a running server, in a process of their own: `events` as it told them, and its peak memory. A context manager."""

    def __init__(self, folder: ServerFolder, log: Path, environment: dict[str, str]) -> None:
        self._log = log.open("ab")
        self.process = child.spawn(["server", "run", str(folder.path), "--with-parent"], stderr=self._log, env=environment)
        self.memory = Memory(self.process.pid)
        self.events: list[dict[str, Any]] = []
        self._changed, self._ended = threading.Condition(), False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            event = json.loads(line)
            with self._changed:
                self.events.append(event)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def named(self, name: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in self.events if event["event"] == name]

    def wait_for(self, there: Callable[[], bool], seconds: float) -> None:
        """Wait until `there()`, asked after each event, or the process has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or there(), seconds)

    def finish(self, seconds: float) -> None:
        """Wait for the run's end; ends the program when it is not complete."""
        self.wait_for(lambda: bool(self.named("run-finished")), seconds)
        if not self.named("run-finished") or self.named("run-finished")[0]["reason"] != "complete":
            told = "\n".join(json.dumps(event)[:500] for event in self.events[-20:])
            raise SystemExit(f"Our rounds did not end as they should.\n{told}\n{Path(self._log.name).read_text(errors='replace')[-3000:]}")
        self.memory.stop()

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.stop()
        child.end(self.process, 2.0)
        self._reader.join(2)
        self._log.close()


def measure(case: Case, folder: Path) -> Measured:
    """Run `case`."""
    folder.mkdir()
    environment, log = quiet_environment(folder), folder / "log"
    server = make_server(folder, case)
    with ExitStack() as stack:
        running = stack.enter_context(start_server(server.path, lambda _event: None))
        invitation, nodes = folder / "invitation", []
        invitation.write_text(server.invitation(running.port).to_line())
        for number in range(case.nodes):
            command = python("server_round_nodes.py", invitation, folder / "policy", folder / "nodes", number)
            nodes.append(stack.enter_context(started(command, log, environment)).pid)
        rounds = stack.enter_context(Rounds(server, log, environment))
        superlink = [each.pid for each in psutil.Process(running.pid).children() if "_superlink" in each.cmdline()]
        cpu = Cpu()
        cpu.parts = {"gateway": [running.pid], "superlink": superlink, "rounds": [rounds.process.pid], "nodes": nodes}
        rounds.wait_for(lambda: bool(rounds.named("checkpoint-saved")), DEADLINE_S)
        cpu.begin()
        rounds.wait_for(lambda: len(rounds.named("checkpoint-saved")) == case.rounds + 1, DEADLINE_S * case.rounds)
        used = cpu.of_a_round(case.rounds)
        rounds.finish(DEADLINE_S)
    return _measured(rounds, case, used)


def _measured(rounds: Rounds, case: Case, cpu: dict[str, float]) -> Measured:
    ends = {event["round"]: event["time"] for event in rounds.named("checkpoint-saved")}
    timed = range(2, case.rounds + 2)
    accepted = [event for event in rounds.named("reply-accepted") if event["round"] in timed]
    if len(accepted) != case.nodes * case.rounds or rounds.named("reply-refused"):
        raise SystemExit(f"Not every update was accepted: {rounds.named('reply-refused')[:3]}")
    opened = {event["round"]: event["time"] for event in rounds.named("round-opened")}
    came = {number: max(event["time"] for event in accepted if event["round"] == number) for number in timed}
    formed = {event["round"]: event["time"] for event in rounds.named("round-aggregated")}
    parts = {
        "send": median(opened[number] - ends[number - 1] for number in timed),
        "nodes and replies": median(came[number] - opened[number] for number in timed),
        "aggregate": median(formed[number] - came[number] for number in timed),
        "keep": median(ends[number] - formed[number] for number in timed),
    }
    seconds = [ends[number] - ends[number - 1] for number in timed]
    return Measured(seconds, cpu, dict(rounds.memory.peak), parts, int(accepted[0]["bytes"]))
