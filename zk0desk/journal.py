"""The journal: runs, rounds, steps, and the ledger of every message, in SQLite (WAL).

A `Journal` is an event sink: what `record` is given goes into tables that the window and the command line read back.
It survives `kill -9`: every ledger entry and round is committed at once, steps in batches of at most a second.
Connections are one per thread; a `Journal` may be shared by threads.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0desk import events, folders
from zk0desk.errors import OperatorError

_SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE runs (
    run TEXT PRIMARY KEY, federation TEXT NOT NULL DEFAULT '', address TEXT NOT NULL DEFAULT '',
    policy TEXT NOT NULL DEFAULT '', rounds INTEGER NOT NULL DEFAULT 0, began REAL NOT NULL, ended REAL);
CREATE TABLE steps (
    run TEXT NOT NULL, round INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL, epoch INTEGER NOT NULL,
    loss REAL, proximal REAL, grad_norm REAL, lr REAL, mu REAL, frames INTEGER, seconds REAL,
    PRIMARY KEY (run, round, step)) WITHOUT ROWID;
CREATE TABLE rounds (
    run TEXT NOT NULL, round INTEGER NOT NULL, began REAL, trained REAL, sent REAL,
    metrics TEXT NOT NULL DEFAULT '{}', partial TEXT NOT NULL DEFAULT '',
    nodes INTEGER, train_loss REAL, eval_loss REAL, PRIMARY KEY (run, round)) WITHOUT ROWID;
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, direction TEXT NOT NULL, kind TEXT NOT NULL, peer TEXT NOT NULL,
    run TEXT NOT NULL DEFAULT '', flwr_run TEXT NOT NULL DEFAULT '', round INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL, sha256 TEXT NOT NULL DEFAULT '', contents TEXT NOT NULL DEFAULT '{}',
    outcome TEXT NOT NULL DEFAULT 'ok');
CREATE TABLE log (id INTEGER PRIMARY KEY, time REAL NOT NULL, event TEXT NOT NULL, text TEXT NOT NULL, json TEXT NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class LedgerEntry:
    """One message over the wire.

    `direction` is `sent` or `received`; `kind` names it (`activate`, `train`, `train-reply`, ...); `contents` tells
    tensors (name, shape, dtype) and metric names with values; `sha256` is that of the bytes.
    """

    direction: str
    kind: str
    peer: str
    bytes: int
    sha256: str = ""
    run: str = ""
    flwr_run: str = ""
    round: int = 0
    contents: dict[str, Any] | None = None
    outcome: str = "ok"
    time: float = 0.0
    id: int = 0


class JournalError(OperatorError):
    """The journal cannot be opened or written."""

    code = "journal-unusable"


class Journal:
    """The journal in `path` (default: the operator's). Close it when done; it is a context manager."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or folders.journal_file()
        folders.private_folder(self.path.parent)
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._steps: list[tuple[Any, ...]] = []
        self._flushed = time.monotonic()
        try:
            with self._write() as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                elif version > _SCHEMA_VERSION:
                    raise JournalError(
                        f"The journal {self.path} is from a newer zk0desk.",
                        f"It has format {version}; this version knows {_SCHEMA_VERSION}.",
                        "Update zk0desk, or move the file away to begin a new journal.",
                    )
        except sqlite3.DatabaseError as error:
            self.close()
            raise JournalError(
                f"The journal {self.path} cannot be used.", f"{error}.", "Move the file away; zk0desk begins a new one."
            ) from error
        except BaseException:
            self.close()
            raise
        self.path.chmod(0o600)

    def _connection(self) -> sqlite3.Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    # --- writing

    def record(self, event: events.Event) -> None:
        """The sink: keep what `event` tells."""
        match event:
            case events.StepDone():
                with self._lock:
                    self._steps.append((
                        event.run, event.round, event.step, event.time, event.epoch, event.loss, event.proximal,
                        event.grad_norm, event.lr, event.mu, event.frames, event.seconds,
                    ))  # fmt: skip
                    due = time.monotonic() - self._flushed > 1.0
                if due:
                    self.flush()
            case events.RoundStarted():
                self._round(event.run, event.round, began=event.time)
                with self._write() as connection:
                    # Steps after the one that the round goes on from are made again.
                    connection.execute("DELETE FROM steps WHERE run = ? AND round = ? AND step > ?", (event.run, event.round, event.done))
                    connection.execute(
                        "INSERT INTO runs (run, rounds, began) VALUES (?, ?, ?) ON CONFLICT (run) DO UPDATE SET rounds = excluded.rounds",
                        (event.run, event.rounds, event.time),
                    )
            case events.RoundTrained():
                self.flush()
                self._round(event.run, event.round, trained=event.time, metrics=json.dumps(event.metrics), partial=event.partial)
            case events.UpdateSent():
                self._round(event.run, event.round, sent=event.time)
            case events.FederationMetrics():
                self._round(event.run, event.round, nodes=event.nodes, train_loss=event.train_loss, eval_loss=event.eval_loss)
            case events.RoundKept():
                self.flush()  # steps up to this one will not be made again
            case events.MessageLogged() | events.Transfer():
                pass
            case _:
                self._log(event)

    def _round(self, run: str, number: int, **values: Any) -> None:
        names = ", ".join(values)
        updates = ", ".join(f"{name} = excluded.{name}" for name in values)
        marks = ", ".join("?" for _ in values)
        with self._write() as connection:
            connection.execute(
                f"INSERT INTO rounds (run, round, {names}) VALUES (?, ?, {marks}) ON CONFLICT (run, round) DO UPDATE SET {updates}",
                (run, number, *values.values()),
            )

    def _log(self, event: events.Event) -> None:
        data = event.to_json()
        text = " ".join(str(data[key]) for key in ("what", "why", "remedy", "then") if data.get(key))
        with self._write() as connection:
            connection.execute(
                "INSERT INTO log (time, event, text, json) VALUES (?, ?, ?, ?)", (event.time, event.name, text, json.dumps(data))
            )

    def flush(self) -> None:
        """Write the steps that are still in memory."""
        with self._lock:
            rows, self._steps = self._steps, []
            self._flushed = time.monotonic()
        if rows:
            with self._write() as connection:
                connection.executemany(f"INSERT OR REPLACE INTO steps VALUES ({', '.join('?' * 12)})", rows)

    def enter(self, entry: LedgerEntry) -> int:
        """Write a message into the ledger, durably; its number."""
        with self._write() as connection:
            cursor = connection.execute(
                "INSERT INTO ledger (time, direction, kind, peer, run, flwr_run, round, bytes, sha256, contents, outcome)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.time or time.time(), entry.direction, entry.kind, entry.peer, entry.run, entry.flwr_run, entry.round,
                    entry.bytes, entry.sha256, json.dumps(entry.contents or {}), entry.outcome,
                ),
            )  # fmt: skip
            return int(cursor.lastrowid or 0)

    def settle(self, number: int, outcome: str) -> None:
        """Say how the message `number` ended (`ok`, `refused: ...`, `failed: ...`)."""
        with self._write() as connection:
            connection.execute("UPDATE ledger SET outcome = ? WHERE id = ?", (outcome, number))

    def describe_run(self, run: str, *, federation: str = "", address: str = "", policy: str = "", rounds: int = 0) -> None:
        """Keep what a run is called and where it runs."""
        with self._write() as connection:
            connection.execute(
                "INSERT INTO runs (run, federation, address, policy, rounds, began) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (run) DO UPDATE SET federation = excluded.federation, address = excluded.address,"
                " policy = excluded.policy, rounds = excluded.rounds",
                (run, federation, address, policy, rounds, time.time()),
            )

    def remember(self, name: str, value: Any) -> None:
        """Keep a small JSON value under `name` (the node's id, a pending message's metadata)."""
        with self._write() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def forget(self, name: str) -> None:
        """Drop what `remember` kept."""
        with self._write() as connection:
            connection.execute("DELETE FROM facts WHERE name = ?", (name,))

    # --- reading

    def recall(self, name: str, default: Any = None) -> Any:
        """What `remember` kept under `name`."""
        row = self._connection().execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row["value"])

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first: the columns of the table and `steps`, the number of steps kept."""
        self.flush()
        rows = self._connection().execute(
            "SELECT runs.*, (SELECT COUNT(*) FROM steps WHERE steps.run = runs.run) AS steps FROM runs ORDER BY began DESC"
        )
        return [dict(row) for row in rows]

    def steps(self, run: str) -> list[dict[str, Any]]:
        """The steps of a run, in order."""
        self.flush()
        return [dict(row) for row in self._connection().execute("SELECT * FROM steps WHERE run = ? ORDER BY round, step", (run,))]

    def rounds(self, run: str) -> list[dict[str, Any]]:
        """The rounds of a run, in order; `metrics` as a dictionary."""
        rows = [dict(row) for row in self._connection().execute("SELECT * FROM rounds WHERE run = ? ORDER BY round", (run,))]
        return [{**row, "metrics": json.loads(row["metrics"])} for row in rows]

    def mu_changes(self, run: str) -> list[events.MuChanged]:
        """When the node's own rule changed mu in a run, and why, in order. Of a round that was made again, the last time counts."""
        found: dict[tuple[int, int], events.MuChanged] = {}
        for event in self.told("mu-changed"):
            if isinstance(event, events.MuChanged) and event.run == run:
                found[event.round, event.step] = event
        return [found[key] for key in sorted(found)]

    def told(self, *names: str, since: float = 0.0, newest: int = 0) -> list[events.Event]:
        """Events of these names that came since the Unix time `since`, in their order; of more than `newest` the last ones (0: all)."""
        marks = ", ".join("?" for _ in names)
        rows = self._connection().execute(
            f"SELECT json FROM log WHERE event IN ({marks}) AND time >= ? ORDER BY id DESC LIMIT ?", (*names, since, newest or -1)
        )
        return [events.Event.from_json(json.loads(row["json"])) for row in rows.fetchall()[::-1]]

    def ledger(self, search: str = "", limit: int = 1000) -> list[LedgerEntry]:
        """The newest messages first; `search` looks in kind, peer, run, contents and outcome."""
        text = " || ' ' || ".join(("direction", "kind", "peer", "run", "contents", "outcome", "sha256"))
        rows = self._connection().execute(
            f"SELECT * FROM ledger WHERE {text} LIKE ? ESCAPE '\\' ORDER BY id DESC LIMIT ?", (_like(search), limit)
        )
        return [LedgerEntry(**{**dict(row), "contents": json.loads(row["contents"])}) for row in rows]

    def log(self, search: str = "", limit: int = 1000) -> list[dict[str, Any]]:
        """The newest lines first: time, event, text, json."""
        rows = self._connection().execute(
            "SELECT time, event, text, json FROM log WHERE event || ' ' || text LIKE ? ESCAPE '\\' ORDER BY id DESC LIMIT ?",
            (_like(search), limit),
        )
        return [dict(row) for row in rows]

    def close(self) -> None:
        """Write what is in memory and close all connections."""
        if self._steps:
            self.flush()
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()
        self._local = threading.local()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _like(search: str) -> str:
    """A pattern of SQL's LIKE that finds `search` as it stands, anywhere."""
    for special in "\\%_":
        search = search.replace(special, "\\" + special)
    return f"%{search}%"
