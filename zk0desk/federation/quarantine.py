"""Nodes that are not asked any more because their replies were refused again and again.

Kept beside the nodes' keys (`nodes.sqlite`), so that it survives everything that they survive, and is gone only with them: a node that is
not known takes no part either. Several processes may use it at once.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zk0desk.federation.node_registry import RegistryError


@dataclass(frozen=True)
class Held:
    """A node in quarantine: since when (Unix seconds), after how many refused replies in a row, and why the last one was refused."""

    since: float
    strikes: int
    why: str


class Quarantine:
    """The quarantine in the registry `path`, which has to be there. Methods raise `RegistryError`, and OSError when the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS strikes (public_key BLOB PRIMARY KEY, count INTEGER NOT NULL, why TEXT NOT NULL, since REAL)"
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A file that is missing is not made: that would let everybody out of quarantine.
        source = f"{self._path.absolute().as_uri()}?mode=rw"
        try:
            with contextlib.closing(sqlite3.connect(source, uri=True, timeout=10)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, "The disk is full") from error
            raise RegistryError(
                f"{self._path} cannot be used.", f"SQLite says: {error}.", "It says who is in quarantine. Put it back from a copy."
            ) from error

    def strike(self, public_key: bytes, why: str, limit: int) -> bool:
        """One more refused reply in a row; whether the node is in quarantine now. It is after `limit` of them; 0: never."""
        with self._open() as connection:
            connection.execute(
                "INSERT INTO strikes VALUES (?, 1, ?, NULL) ON CONFLICT (public_key) DO UPDATE SET count = count + 1, why = excluded.why",
                (public_key, why),
            )
            connection.execute(
                "UPDATE strikes SET since = ? WHERE public_key = ? AND since IS NULL AND ? > 0 AND count >= ?",
                (time.time(), public_key, limit, limit),
            )
            return connection.execute("SELECT since FROM strikes WHERE public_key = ?", (public_key,)).fetchone()[0] is not None

    def clear(self, public_key: bytes) -> None:
        """A reply was accepted, or the coordinator admitted the node again: it starts anew."""
        with self._open() as connection:
            connection.execute("DELETE FROM strikes WHERE public_key = ?", (public_key,))

    def held(self) -> dict[bytes, Held]:
        """Nodes in quarantine, by public key."""
        with self._open() as connection:
            rows = connection.execute("SELECT public_key, since, count, why FROM strikes WHERE since IS NOT NULL").fetchall()
        return {bytes(key): Held(since, count, why) for key, since, count, why in rows}
