"""Three days of a federation in minutes: many short rounds over real processes, of which one is killed with `kill -9` again and again.

    python benchmarks/soak.py [--minutes N] [--hours 72] [--seed 0]

A round stands for twenty minutes, so 72 hours are 216 rounds; `--minutes` ends it earlier. Server, SuperLink and rounds are the product's
processes, with TLS; three nodes are connections of this process, which train nothing. Each kill hits the rounds, the SuperLink, the
server or all of them, at a random moment: in the midst of a round, or while the last kill is still being recovered from. Twenty rounds
without kills follow, over which memory and open files are looked at. At the end every round has to be there once, the journal's chain and
every aggregation have to be right (`zk0desk server audit`), and no process or half-written file may be left.

The last line is JSON: `{"benchmark": "soak", "simulated-hours", "rounds", "kills", "rounds-lost", "ok", ...}`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from server_round_nodes import BenchNode, StandIn
from server_round_parts import make_policy, quiet_environment

from zk0desk.control import NodeControl
from zk0desk.events import Event
from zk0desk.federation import local_round
from zk0desk.federation.audit import Audit, audit
from zk0desk.federation.probe import ConnectionTrouble
from zk0desk.federation.run_record import records
from zk0desk.federation.server_folder import ServerFolder, init_server
from zk0desk.federation.superlink import RunningServer, start_server
from zk0desk.settings import ServerNetwork, ServerPolicy, ServerRounds, ServerSettings
from zk0desk.training.policy_files import read_policy

NODES, VALUES = 3, 20_000
ROUNDS_AN_HOUR = 3
QUIET_ROUNDS = 20
STALL_S = 600.0
"""A federation that conducts no round for so long has not recovered."""
GIVES_UP_S = 5.0
GROWTH_KB = 64.0
"""What a process may grow by in each undisturbed round: Python's allocator is not exact."""
TARGETS = ("rounds", "superlink", "server", "all")


class StalledError(Exception):
    """No round was conducted for too long."""


@dataclass
class Seen:
    """What the server told, over all of its lives."""

    opened: int = 0
    done: int = 0
    trouble: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: Event) -> None:
        """The sink of the server's events."""
        with self.changed:
            self.opened += event.name == "round-opened"
            if event.name == "checkpoint-saved":
                self.done = max(self.done, getattr(event, "round", 0))
            if event.name == "notice" and getattr(event, "severity", "") == "error":
                self.trouble.append(f"{getattr(event, 'what', '')} {getattr(event, 'why', '')}")
            self.changed.notify_all()

    def wait_opened(self, more: int = 1) -> None:
        """Until so many further rounds were opened. `StalledError`."""
        wanted = self.opened + more
        with self.changed:
            if not self.changed.wait_for(lambda: self.opened >= wanted, STALL_S):
                raise StalledError(f"no round in {STALL_S:.0f} s; the last trouble: {self.trouble[-1:]}")

    def wait_done(self, number: int) -> None:
        """Until that round is complete. `StalledError`."""
        with self.changed:
            while self.done < number:
                before = self.done
                if not self.changed.wait_for(lambda last=before: self.done > last, STALL_S):
                    raise StalledError(f"round {before + 1} did not come in {STALL_S:.0f} s")


class SoakNode(BenchNode):
    """A node that gives up on a message after a while: a SuperLink that was killed has forgotten it, and another one comes."""

    def _receive(self, fleet: object, incoming: object) -> object:
        ends = time.monotonic() + GIVES_UP_S
        while True:
            try:
                return fleet.receive(incoming, limit=local_round.message_limit(VALUES), progress=lambda _: None)
            except ConnectionTrouble:
                if time.monotonic() > ends:
                    raise
                self._control.sleep(0.5)


class Federation:
    """The server, which is started again after it was killed."""

    def __init__(self, folder: ServerFolder) -> None:
        self.folder, self.seen = folder, Seen()
        self.server: RunningServer = start_server(folder.path, self.seen, run=True)
        self.lived: set[psutil.Process] = set()
        """Told apart by their start too: on a busy computer numbers come again within the hour."""

    def processes(self) -> dict[str, psutil.Process]:
        """Its processes by what they are, and note them."""
        found = {"server": psutil.Process(self.server.pid)}
        for process in found["server"].children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                found["superlink" if "_superlink" in words else "rounds"] = process
        self.lived |= set(found.values())
        return found

    def kill(self, what: str) -> bool:
        """`kill -9` what is named; whether it was there."""
        found = self.processes()
        hit = [found[name] for name in ("server", "superlink", "rounds") if name in found and what in (name, "all")]
        for process in hit:
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        if what in ("server", "all"):
            self.server.close()
            self.server = start_server(self.folder.path, self.seen, run=True)
        return bool(hit)


@contextlib.contextmanager
def nodes(folder: ServerFolder, home: Path) -> Iterator[None]:
    """The nodes, in threads."""
    invitation, files, control = folder.invitation(), read_policy(folder.policy(folder.settings())), NodeControl()
    threads = [
        threading.Thread(target=SoakNode(invitation, files, StandIn(VALUES, number), control, home / str(number)).run, daemon=True)
        for number in range(NODES)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        control.stop_now()
        for thread in threads:
            thread.join(10)


def disturb(run: Federation, rounds: int, ends: float, chance: random.Random) -> Counter[str]:
    """Kill at random until `rounds` are complete or the time is over; how often what was killed."""
    kills: Counter[str] = Counter()
    while run.seen.done < rounds and time.monotonic() < ends:
        if chance.random() < 0.8:  # else while the last one is still being recovered from
            run.seen.wait_opened()
        time.sleep(chance.uniform(0.0, 4.0))
        what = chance.choice(TARGETS)
        kills[what] += run.kill(what)
        print(f"round {run.seen.done}: {what} killed", file=sys.stderr, flush=True)
    return kills


def growth(run: Federation) -> dict[str, float]:
    """Anonymous memory in KB, and open files, by which each process grew in each of the quiet rounds."""
    first = run.seen.done + 5  # what a process loads at first is not growth
    run.seen.wait_done(first)
    before = {name: _size(process) for name, process in run.processes().items()}
    run.seen.wait_done(first + QUIET_ROUNDS)
    after = {name: _size(process) for name, process in run.processes().items()}
    grown = {name: (after[name][0] - before[name][0]) / QUIET_ROUNDS for name in before if name in after}
    files = {f"{name}-files": float(after[name][1] - before[name][1]) for name in before if name in after}
    return {**{f"{name}-kb": round(each, 1) for name, each in grown.items()}, **files}


def _size(process: psutil.Process) -> tuple[float, int]:
    """Anonymous memory in KB and open files, each the least of some moments: connections come and go with every request."""
    memory, files = [], []
    for _ in range(20):
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory.append(float(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))))
        files.append(process.num_fds())
        time.sleep(0.05)
    return min(memory), min(files)


def left_over(folder: ServerFolder) -> list[str]:
    """Half-written files, and what should have been removed."""
    found = [path for path in folder.path.rglob("*") if ".partial" in path.name or path.name.startswith(".round-")]
    return [str(path.relative_to(folder.path)) for path in [*found, *(folder.state / "spool").iterdir()]]


def soak(base: Path, hours: float, minutes: float, seed: int) -> dict[str, object]:
    """Run it; what was found."""
    settings = ServerSettings(
        admission="open", network=ServerNetwork(host="127.0.0.1", port=0), policy=ServerPolicy(folder=make_policy(base / "policy", VALUES)),
        rounds=ServerRounds(rounds=100_000, min_nodes=2, local_steps=1, deadline_s=30.0, keep_checkpoints=3, keep_updates=True),
    )  # fmt: skip
    folder = init_server(base / "server", settings)
    began, chance = time.monotonic(), random.Random(seed)
    run = Federation(folder)
    try:
        with nodes(folder, base / "nodes"):
            kills = disturb(run, round(hours * ROUNDS_AN_HOUR), began + 60 * minutes if minutes else float("inf"), chance)
            run.seen.wait_opened()
            disturbed = time.monotonic() - began
            grown = growth(run)
    finally:
        run.server.close()
    (record,) = records(folder)
    found = audit(folder, record)
    alive = [process for process in run.lived if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    return _result(run, record.settled, found, kills, disturbed, grown, alive, left_over(folder))


def _result(
    run: Federation,
    done: int,
    found: Audit,
    kills: Counter[str],
    seconds: float,
    grown: dict[str, float],
    alive: list[psutil.Process],
    left: list[str],
) -> dict[str, object]:
    lost = done - found.rounds
    steady = all(value <= (GROWTH_KB if name.endswith("-kb") else 2) for name, value in grown.items())
    whole = not found.findings and not lost and found.recomputed >= done
    return {
        "benchmark": "soak", "simulated-hours": round(done / ROUNDS_AN_HOUR, 1), "rounds": done, "kills": dict(kills),
        "seconds": round(seconds),
        "rounds-lost": lost, "rounds-repeated": run.seen.opened - done, "journal-entries": found.entries, "recomputed": found.recomputed,
        "findings": [each.what for each in found.findings], "growth-a-round": grown, "processes-left": len(alive), "files-left": left,
        "ok": whole and steady and not alive and not left,
    }  # fmt: skip


def main() -> int:
    """Measure and print; 0 when nothing was lost, nothing grew and nothing was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="end the kills after so many minutes")
    parser.add_argument("--hours", type=float, default=72.0, help="hours that are simulated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and targets of the kills")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zk0desk-soak") as base:
        os.environ.update(quiet_environment(Path(base)))
        result = soak(Path(base), given.hours, given.minutes, given.seed)
    for name, value in result.items():
        print(f"{name:18} {value}")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
