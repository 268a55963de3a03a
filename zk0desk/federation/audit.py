"""What a run's files say of each other: its journal's chain, its checkpoints' hashes, and, where updates are kept, the aggregation again.

It finds what was changed, lost or moved. Who can write all of the files can write them anew: it is no proof against the coordinator.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import Event
from zk0desk.federation import chain, kept_updates, run_checkpoint
from zk0desk.federation.aggregation import Aggregation
from zk0desk.federation.chain import Entry
from zk0desk.federation.deliveries import Deliveries
from zk0desk.federation.disk import PatientDisk
from zk0desk.federation.kept_updates import KeptRound
from zk0desk.federation.run_record import RunRecord, records
from zk0desk.federation.run_state import RunState
from zk0desk.federation.server_folder import ServerFolder, fingerprint_of
from zk0desk.federation.spool import Spool
from zk0desk.federation.weights_chain import WeightsChain
from zk0desk.training import policy_files


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written: `code` for machines, `where` it is (a file, a round or an entry), `what` in words."""

    code: str
    where: str
    what: str


@dataclass
class Audit:
    """What was looked at, and what was found. `rounds` are those that count; `recomputed` those whose aggregation gave the same weights."""

    run: str
    entries: int = 0
    rounds: int = 0
    checkpoints: int = 0
    recomputed: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, code: str, where: str, what: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(code, where, what))


@dataclass
class RoundEntries:
    """What the journal has of a round that counts: who contributed what, the result, and its loss."""

    replies: list[dict[str, Any]] = field(default_factory=list)
    aggregated: dict[str, Any] | None = None
    evaluated: dict[str, Any] | None = None


def counted(entries: Iterable[Entry]) -> dict[int, RoundEntries]:
    """The rounds that count, by number. A start that goes on at a round takes back what was noted of that round and those after it."""
    found: dict[int, RoundEntries] = {}
    for entry in entries:
        data, number = entry.data, entry.data.get("round", 0)
        match data.get("event"):
            case "run-started":
                found = {each: known for each, known in found.items() if each < number}
            case "round-opened":
                found[number] = RoundEntries()
            case "reply-accepted" | "reply-refused":
                found.setdefault(number, RoundEntries()).replies.append(data)
            case "round-aggregated":
                found.setdefault(number, RoundEntries()).aggregated = data
            case "evaluated":
                found.setdefault(number, RoundEntries()).evaluated = data
    return found


class RunUnknown(OperatorError):
    """The server has no such run."""

    code = "run-unknown"
    exit_status = ExitStatus.USAGE


def find_run(server: ServerFolder, uid: str = "") -> RunRecord:
    """The run whose id begins with `uid`, or the last one. `RunUnknown` when there is none, or more than one."""
    known = records(server)
    found = [each for each in known if each.uid.startswith(uid)] if uid else known[-1:]
    if len(found) != 1:
        what = f"The server has {len(found) or 'no'} runs {uid}..." if uid else "This server has not conducted a run yet."
        raise RunUnknown(what, f"Its runs: {', '.join(each.uid for each in known) or 'none'}.", "Name one of them, or start one.")
    return found[0]


def audit(server: ServerFolder, record: RunRecord) -> Audit:
    """Look at everything that is kept of a run. Files are only read."""
    found, run = Audit(record.uid), record.folder(server)
    journal = run / chain.NAME
    if not journal.exists():
        found.add("missing", chain.NAME, f"{journal} is missing.")
        return found
    whole = dict(_checkpoints(run, found))
    anchors = {"run.json": (record.entries, record.head)}
    anchors |= {f"round-{number:04d}": (int(each.get("entries", 0)), str(each.get("head", ""))) for number, each in whole.items()}
    for each in chain.breaks(journal, anchors):
        found.add(each.code, f"entry {each.entry}", each.what)
    entries = list(chain.entries(journal))
    rounds = counted(entries)
    found.entries = len(entries)
    _compare(record, rounds, whole, found)
    _recompute(server, record, rounds, found)
    return found


def _checkpoints(run: Path, found: Audit) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of the checkpoints that are whole."""
    for number, folder in run_checkpoint.rounds(run):
        try:
            run_checkpoint.verify(folder)
            record = json.loads((folder / run_checkpoint.STATE / "record.json").read_text(encoding="utf-8"))
        except (run_checkpoint.CheckpointDamaged, OSError, ValueError) as error:
            found.add("checkpoint-damaged", folder.name, f"{folder.name} is damaged: {error}.")
            continue
        found.checkpoints += 1
        yield number, record


def _compare(record: RunRecord, rounds: dict[int, RoundEntries], whole: dict[int, dict[str, Any]], found: Audit) -> None:
    """Journal, run.json and checkpoints have to tell the same."""
    for number in range(1, record.done + 1):
        aggregated = rounds[number].aggregated if number in rounds else None
        if aggregated is None:
            found.add("round-missing", f"round {number}", f"The journal does not say how round {number} was aggregated.")
            continue
        found.rounds += 1
        kept = whole.get(number)
        if kept is not None and kept.get("weights_sha256") != aggregated.get("weights-sha256"):
            found.add(
                "weights-differ", f"round-{number:04d}", f"The checkpoint of round {number} holds other weights than the journal says."
            )
    for name, loss in record.eval_losses.items():
        evaluated = rounds[int(name)].evaluated if int(name) in rounds else None
        if evaluated is None or evaluated.get("loss") != loss:
            found.add("loss-differs", f"round {name}", f"run.json has another held-out loss of round {name} than the journal.")


# --- the aggregation again ------------------------------------------------------------------------------------------


class _Again(RunState):
    """A run's state without a server: what aggregation needs, in a folder of its own."""

    def __init__(self, scratch: Path, record: RunRecord) -> None:
        self.folder, self.record = ServerFolder(scratch), RunRecord(record.uid, record.rounds, record.policy_id, record.seed)
        self.kept, self.kept_arrays = {}, {}
        self.disk = PatientDisk(scratch, self.emit, self.wait)
        self.codec, self.deliveries, self.private = WeightsChain(self), Deliveries(self), None

    def emit(self, event: Event) -> None:
        """Nobody is told."""

    def wait(self, seconds: float) -> None:
        """A disk that refuses the scratch is waited for; nothing else is."""
        time.sleep(seconds)

    def begin(self, weights: np.ndarray, checkpoint: run_checkpoint.Checkpoint | None) -> None:
        """Be as before the round after `checkpoint`, or the first."""
        self.take(weights)
        self.record.done = checkpoint.record["done"] if checkpoint else 0
        self.kept = checkpoint.kept if checkpoint else {}
        self.kept_arrays = checkpoint.kept_arrays if checkpoint else {}

    def aggregate(self, kept: KeptRound, spool: Spool) -> bool:
        """Do a round's aggregation with the part that did it then."""
        self.settings, self.rules = kept.settings, kept.settings.rounds.model_copy(update={"keep_updates": False})
        return Aggregation(self, spool).aggregate(kept.request, [], dict(kept.answers))


def _recompute(server: ServerFolder, record: RunRecord, rounds: dict[int, RoundEntries], found: Audit) -> None:
    """Do again what can be done again: every round whose updates, and whose state before it, are kept."""
    run = record.folder(server)
    kept_rounds = kept_updates.rounds(run)
    if not kept_rounds:
        return
    with tempfile.TemporaryDirectory(prefix="audit") as scratch:
        state = _Again(Path(scratch), record)
        at: int | None = None
        for number in kept_rounds:
            if number > record.done or number not in rounds:
                continue
            try:
                kept = kept_updates.read(run, number)
            except (OSError, ValueError, KeyError, TypeError) as error:
                found.add(
                    "updates-unreadable", f"updates of round {number}", f"The kept updates of round {number} cannot be read: {error}."
                )
                continue
            if at != number - 1 and not _go_to(state, server, record, number - 1):
                continue
            at = None
            updates = {fingerprint_of(key): answer.update for key, answer in kept.answers.items()}
            wrong = {node for node, update in updates.items() if _sha256(update.path) != update.sha256}
            told = {each["node"]: each.get("sha256") for each in rounds[number].replies if each["event"] == "reply-accepted"}
            wrong |= {node for node in {*told, *updates} if node not in updates or told.get(node) != updates[node].sha256}
            for node in sorted(wrong):
                found.add("update-changed", f"updates of round {number}", f"The kept update of node {node} is not the one of the journal.")
            if wrong or not state.aggregate(kept, Spool(Path(scratch) / "spool")):
                continue
            expected = (rounds[number].aggregated or {}).get("weights-sha256")
            if state.sha256 != expected:
                found.add(
                    "aggregation-differs", f"round {number}", f"The updates of round {number} give other weights than the journal says."
                )
                continue
            state.record.done = at = number
            found.recomputed += 1


def _go_to(state: _Again, server: ServerFolder, record: RunRecord, number: int) -> bool:
    """Bring the state to the end of round `number`, if its checkpoint is there; 0: the base policy."""
    if not number:
        with suppress(policy_files.PolicyError):
            state.begin(policy_files.trainable_weights(server.policy(server.settings())), None)
            return True
        return False
    try:
        checkpoint = run_checkpoint.read(record.checkpoint(server, number))
    except run_checkpoint.CheckpointDamaged:
        return False
    state.begin(checkpoint.weights, checkpoint)
    return True


def _sha256(path: Path) -> str:
    """Empty when the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
