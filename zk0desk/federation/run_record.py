"""What is kept of a run, so that it can go on after anything: `runs/RUN/run.json`, and a folder for each round (`run_checkpoint`).

A round counts when its folder is there. run.json says what was found out since: how the round was measured and what was decided.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zk0desk.federation import run_checkpoint
from zk0desk.federation.server_folder import ServerFolder, ServerFolderError, write_atomically


@dataclass
class RunRecord:
    """A run: its id, how far it is, and the losses of its rounds by round (0: the base policy).

    `number` counts a server's runs from 0. `done` is the last complete round, `settled` the last one that was also measured and after
    which was decided how to go on; `kept` is what the parts kept then. `entries` and `head` are the journal's length and last hash.
    """

    uid: str
    rounds: int
    policy_id: str
    seed: int
    number: int = 0
    done: int = 0
    settled: int = 0
    best: int = 0
    finished: bool = False
    weights_sha256: str = ""
    nodes: int = 0
    train_losses: dict[str, float] = field(default_factory=dict)
    eval_losses: dict[str, float] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    entries: int = 0
    head: str = ""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """The record in `data`. TypeError when something is missing; what this version does not know is left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})

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

    def go_back(self, found: RunRecord) -> None:
        """Be as after the round of `found`, a checkpoint's record. What was found out about that round and those before it stays."""
        losses = {number: loss for number, loss in self.eval_losses.items() if int(number) <= found.done}
        same = (self.done, self.weights_sha256) == (found.done, found.weights_sha256)
        self.done, self.weights_sha256, self.nodes, self.train_losses = found.done, found.weights_sha256, found.nodes, found.train_losses
        self.eval_losses = {**found.eval_losses, **losses}
        if not (same and self.settled == found.done):
            self.settled, self.kept, self.best = found.settled, {}, found.best

    def prune(self, server: ServerFolder, keep: int) -> None:
        """Remove all checkpoints but the last `keep` and the best, damaged ones with them; 0 keeps all."""
        if not keep:
            return
        for number, folder in run_checkpoint.rounds(self.folder(server)):
            if number <= self.done - keep:
                run_checkpoint.remove(run_checkpoint.aside(folder))
                if number != self.best:
                    run_checkpoint.remove(folder)


def records(server: ServerFolder) -> list[RunRecord]:
    """All runs of a server, oldest first. `ServerFolderError` when one can be read neither from run.json nor from a checkpoint."""
    found = [_read(path) for path in server.runs.glob("*") if path.is_dir()]
    return sorted((each for each in found if each is not None), key=lambda each: each.number)


def _read(folder: Path) -> RunRecord | None:
    checkpoints = [path for _, path in reversed(run_checkpoint.rounds(folder))]
    sources = [folder / "run.json", *(path / run_checkpoint.STATE / "record.json" for path in checkpoints)]
    trouble: Exception | None = None
    for source in sources:
        try:
            return RunRecord.from_json(json.loads(source.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, AttributeError) as error:
            trouble = trouble or error
    if trouble is None:
        return None  # a folder that was begun, and nothing was written yet
    raise ServerFolderError(
        f"{folder / 'run.json'} cannot be read.", f"{trouble}.", "Move the run's folder away to start a new run."
    ) from trouble


def run_uid(federation: str, seed: int, count: int) -> str:
    """A run's id: the same for the same federation, seed and place among the server's runs."""
    return hashlib.sha256(f"{federation}\n{seed}\n{count}".encode()).hexdigest()[:16]


def open_record(server: ServerFolder, *, federation: str, seed: int, rounds: int, policy_id: str, fresh: bool = False) -> RunRecord:
    """The last run when it is not finished and trains this policy, else a new one. `fresh`: always a new one."""
    known = records(server)
    if known and not fresh:
        last = known[-1]
        if last.policy_id == policy_id and (not last.finished or last.rounds < rounds) and last.seed == seed:
            last.rounds, last.finished = rounds, False
            return last
    number = known[-1].number + 1 if known else 0
    return RunRecord(run_uid(federation, seed, number), rounds, policy_id, seed, number)
