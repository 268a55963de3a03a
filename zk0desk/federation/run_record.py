"""What is kept of a run, so that it can go on after anything: `runs/RUN/run.json`, and a policy folder for each round.

A round counts when run.json names it, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from zk0desk.federation.server_folder import ServerFolder, ServerFolderError, write_atomically


@dataclass
class RunRecord:
    """A run: its id, how far it is, and the losses of its rounds by round (0: the base policy)."""

    uid: str
    rounds: int
    policy_id: str
    seed: int
    done: int = 0
    best: int = 0
    finished: bool = False
    weights_sha256: str = ""
    nodes: int = 0
    train_losses: dict[str, float] = field(default_factory=dict)
    eval_losses: dict[str, float] = field(default_factory=dict)

    def folder(self, server: ServerFolder) -> Path:
        """`runs/RUN`."""
        return server.runs / self.uid

    def checkpoint(self, server: ServerFolder, number: int) -> Path:
        """The policy folder of round `number`."""
        return self.folder(server) / f"round-{number:04d}"

    def save(self, server: ServerFolder) -> None:
        """Write run.json atomically."""
        self.folder(server).mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self.folder(server) / "run.json", json.dumps(asdict(self), indent=1))

    def prune(self, server: ServerFolder, keep: int) -> None:
        """Remove all checkpoints but the last `keep` and the best; 0 keeps all."""
        if not keep:
            return
        for number in range(1, self.done - keep + 1):
            if number != self.best:
                shutil.rmtree(self.checkpoint(server, number), ignore_errors=True)


def records(server: ServerFolder) -> list[RunRecord]:
    """All runs of a server, oldest first. `ServerFolderError` when a record cannot be read."""
    found = []
    for path in sorted(server.runs.glob("*/run.json"), key=lambda path: (path.parent.stat().st_ctime_ns, path)):
        try:
            found.append(RunRecord(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise ServerFolderError(f"{path} cannot be read.", f"{error}.", "Move the run's folder away to start a new run.") from error
    return found


def run_uid(federation: str, seed: int, count: int) -> str:
    """A run's id: the same for the same federation, seed and number of runs before it."""
    return hashlib.sha256(f"{federation}\n{seed}\n{count}".encode()).hexdigest()[:16]


def open_record(server: ServerFolder, *, federation: str, seed: int, rounds: int, policy_id: str, fresh: bool = False) -> RunRecord:
    """The last run when it is not finished and trains this policy, else a new one. `fresh`: always a new one."""
    known = records(server)
    if known and not fresh:
        last = known[-1]
        if last.policy_id == policy_id and (not last.finished or last.rounds < rounds) and last.seed == seed:
            last.rounds, last.finished = rounds, False
            return last
    return RunRecord(run_uid(federation, seed, len(known)), rounds, policy_id, seed)
