"""The nodes' keys and the invitations that are limited, in one SQLite file that several processes may use at once.

A key is waiting, admitted or revoked. An invitation that is limited has a code of its own, kept as its SHA-256, with the time when it
ends and the number of nodes that may use it: a node's first call with the code is a use, its later ones are not.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zk0desk.errors import ExitStatus, OperatorError

PENDING_LIMIT = 256
"""Most keys that wait for admission; the oldest are forgotten first."""
RACE_S = 0.1
"""A file that was written less than this ago is read again: its time may not tell the next change."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS nodes (public_key BLOB PRIMARY KEY, fingerprint TEXT, status TEXT,"
    " first_seen REAL, last_seen REAL, address TEXT)",
    "CREATE TABLE IF NOT EXISTS invitations (code_sha256 TEXT PRIMARY KEY, made REAL, ends REAL, uses INTEGER)",
    "CREATE TABLE IF NOT EXISTS invited (code_sha256 TEXT, public_key BLOB, at REAL, PRIMARY KEY (code_sha256, public_key))",
)


class NodeUnknownError(OperatorError):
    """No node has that key or fingerprint."""

    code = "node-unknown"
    exit_status = ExitStatus.USAGE


class InvitationUnknownError(OperatorError):
    """No limited invitation has that name."""

    code = "invitation-unknown"
    exit_status = ExitStatus.USAGE


class RegistryError(OperatorError):
    """The file of the nodes' keys is missing, empty or damaged. Nobody is admitted, and no round is conducted, until it can be read."""

    code = "nodes-unreadable"
    exit_status = ExitStatus.FAILED


def fingerprint_of(public_key: bytes) -> str:
    """What people compare: the first 64 bits of the SHA-256 of a public key's PEM bytes, as `7c1e 09af 55d2 8b40`."""
    digest = hashlib.sha256(public_key).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, 16, 4))


def read_public_key(text: str) -> bytes:
    """The PEM bytes of a node's public key in `text`: `zk0-node:BASE64`, PEM or an OpenSSH line. ValueError when it is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    text = text.strip()
    if len(text) > 4096:
        raise ValueError("a public key is shorter")
    data = (
        base64.b64decode("".join(text.removeprefix("zk0-node:").split()), validate=True) if text.startswith("zk0-node:") else text.encode()
    )
    try:
        key = serialization.load_ssh_public_key(data) if data.startswith(b"ecdsa-") else serialization.load_pem_public_key(data)
    except UnsupportedAlgorithm as error:
        raise ValueError("this kind of key is not used") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a node's key is an elliptic curve key")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


Status = Literal["waiting", "admitted", "revoked"]
CodeVerdict = Literal["", "wrong-code", "invitation-ended", "invitation-used-up"]
"""What is said of a limited invitation's code; empty when it is right."""


@dataclass(frozen=True)
class NodeRecord:
    """A node's key, as the coordinator knows it. Times are Unix seconds; `address` is where it last called from."""

    public_key: bytes
    fingerprint: str
    status: Status
    first_seen: float
    last_seen: float
    address: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with the key as a line to copy."""
        line = "zk0-node:" + base64.b64encode(self.public_key).decode()
        return {
            "fingerprint": self.fingerprint, "status": self.status, "first-seen": self.first_seen,
            "last-seen": self.last_seen, "address": self.address, "key": line,
        }  # fmt: skip


@dataclass(frozen=True)
class LimitedInvitation:
    """An invitation with limits: `name` tells it apart, `ends` is Unix seconds or 0, `uses` the nodes that may use it or 0, `used` those
    that did."""

    name: str
    made: float
    ends: float
    uses: int
    used: int

    def state(self, now: float) -> str:
        """`open`, `ended` or `used up`."""
        if self.ends and now >= self.ends:
            return "ended"
        return "used up" if self.uses and self.used >= self.uses else "open"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        state = self.state(time.time())
        return {"name": self.name, "state": state, "made": self.made, "ends": self.ends, "uses": self.uses, "used": self.used}


class NodeRegistry:
    """The registry in the file `path`, which has to be there (`make` makes it). Methods raise `RegistryError` when it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen = (-1, -1)
        self._known: dict[bytes, Status] = {}
        self.nodes()
        with self._open() as connection:
            old = connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('invitations', 'invited')").fetchone()[0] < 2
        if old:
            with self._open(write=True) as connection:
                for table in _TABLES:
                    connection.execute(table)

    @classmethod
    def make(cls, path: Path) -> NodeRegistry:
        """An empty registry in a new file, mode 0600. FileExistsError when there is a file."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            for table in _TABLES:
                connection.execute(table)
        return cls(path)

    @contextlib.contextmanager
    def _open(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            # mode=rw makes no file where there is none: an empty registry would look like one without nodes.
            source = f"{self._path.absolute().as_uri()}?mode=rw"
            with contextlib.closing(sqlite3.connect(source, uri=True, timeout=10, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> RegistryError:
        if not self._path.exists():
            what, why = f"{self._path} is missing.", "It holds the keys of the nodes; without it nobody is admitted."
        elif isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            what, why = f"{self._path} cannot be used.", f"SQLite says: {error}."
        else:
            what, why = f"{self._path} is empty or damaged.", "It holds the keys of the nodes; until it is mended nobody is admitted."
        return RegistryError(what, why, "Put it back from a copy, or begin a new list with `zk0desk server nodes FOLDER --new`.")

    # --- keys

    def nodes(self) -> list[NodeRecord]:
        """All keys, those waiting first, then by time."""
        with self._open() as connection:
            rows = connection.execute("SELECT * FROM nodes ORDER BY status != 'waiting', first_seen, fingerprint").fetchall()
        return [NodeRecord(**dict(row)) for row in rows]

    def status(self, public_key: bytes) -> Status | None:
        """What is known of a key. Cheap: read again only when the file changed."""
        with self._lock:
            try:
                found = self._path.stat()
            except OSError as error:
                raise self._unreadable(error) from error
            seen = (found.st_mtime_ns, found.st_ino)
            if seen != self._seen:
                self._known = {record.public_key: record.status for record in self.nodes()}
                self._seen = seen if abs(time.time() - found.st_mtime) > RACE_S else (-1, -1)
            return self._known.get(public_key)

    def knock(self, public_key: bytes, address: str) -> NodeRecord:
        """A key that is not known asked to be admitted."""
        now = time.time()
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT INTO nodes VALUES (?, ?, 'waiting', ?, ?, ?) ON CONFLICT (public_key) DO UPDATE SET last_seen = ?, address = ?",
                (public_key, fingerprint_of(public_key), now, now, address, now, address),
            )
            connection.execute(
                "DELETE FROM nodes WHERE status = 'waiting' AND public_key NOT IN"
                " (SELECT public_key FROM nodes WHERE status = 'waiting' ORDER BY last_seen DESC LIMIT ?)",
                (PENDING_LIMIT,),
            )
        return self._get(public_key)

    def admit(self, who: str) -> NodeRecord:
        """Admit a key, named by fingerprint or given whole. `NodeUnknownError` when it is neither."""
        return self._set(who, "admitted")

    def revoke(self, who: str) -> NodeRecord:
        """Refuse a key from now on."""
        return self._set(who, "revoked")

    def _set(self, who: str, status: Status) -> NodeRecord:
        key, now = self._find(who), time.time()
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT INTO nodes VALUES (?, ?, ?, ?, 0, '') ON CONFLICT (public_key) DO UPDATE SET status = ?",
                (key, fingerprint_of(key), status, now, status),
            )
        return self._get(key)

    def _get(self, public_key: bytes) -> NodeRecord:
        with self._open() as connection:
            return NodeRecord(**dict(connection.execute("SELECT * FROM nodes WHERE public_key = ?", (public_key,)).fetchone()))

    def _find(self, who: str) -> bytes:
        wanted = "".join(who.lower().replace(":", "").split())
        matches = [node.public_key for node in self.nodes() if len(wanted) >= 4 and node.fingerprint.replace(" ", "").startswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        if len(matches) > 1:
            raise NodeUnknownError(f"Several nodes have a fingerprint that begins with {who}.", "", "Give the whole fingerprint.")
        try:
            return read_public_key(who)
        except ValueError as error:
            raise NodeUnknownError(
                f"No node is known as {who:.80}.",
                "It is neither a fingerprint that asked to be admitted nor a node's public key.",
                "See `zk0desk server nodes`, or ask the operator for the line that begins with zk0-node:",
            ) from error

    # --- limited invitations

    def invite(self, *, ends: float = 0.0, uses: int = 0) -> str:
        """The code of a new invitation that ends at `ends` (Unix seconds; 0: never) and serves `uses` nodes (0: any number)."""
        code = secrets.token_urlsafe(12)
        with self._open(write=True) as connection:
            connection.execute("INSERT INTO invitations VALUES (?, ?, ?, ?)", (_hashed(code), time.time(), ends, uses))
        return code

    def invitations(self) -> list[LimitedInvitation]:
        """The limited invitations, the oldest first."""
        with self._open() as connection:
            return self._invitations(connection)

    def _invitations(self, connection: sqlite3.Connection) -> list[LimitedInvitation]:
        rows = connection.execute(
            "SELECT substr(code_sha256, 1, 8) AS name, made, ends, uses,"
            " (SELECT count(*) FROM invited WHERE invited.code_sha256 = invitations.code_sha256) AS used FROM invitations ORDER BY made"
        ).fetchall()
        return [LimitedInvitation(**dict(row)) for row in rows]

    def withdraw(self, name: str) -> None:
        """End the limited invitation of that name now. Nodes that used it stay. `InvitationUnknownError` when there is none."""
        with self._open(write=True) as connection:
            found = connection.execute(
                "UPDATE invitations SET ends = ? WHERE substr(code_sha256, 1, 8) = ? AND (ends = 0 OR ends > ?)",
                ((now := time.time()), name, now),
            )
            if not found.rowcount and all(each.name != name for each in self._invitations(connection)):
                raise InvitationUnknownError(
                    f"No limited invitation is called {name:.40}.",
                    "It was made in another folder, or is the one without limits, whose code is in the file `admission-code`.",
                    "See `zk0desk server invite FOLDER --list`.",
                )

    def judge_code(self, code: str, public_key: bytes) -> CodeVerdict:
        """What a node with this key may expect of `code`. Nothing is written."""
        with self._open() as connection:
            return self._judge(connection, _hashed(code), public_key)

    def use_code(self, code: str, public_key: bytes) -> CodeVerdict:
        """As `judge_code`; a right code is used, once a key."""
        hashed = _hashed(code)
        with self._open(write=True) as connection:
            verdict = self._judge(connection, hashed, public_key)
            if not verdict:
                connection.execute("INSERT OR IGNORE INTO invited VALUES (?, ?, ?)", (hashed, public_key, time.time()))
        return verdict

    def _judge(self, connection: sqlite3.Connection, hashed: str, public_key: bytes) -> CodeVerdict:
        found = connection.execute("SELECT ends, uses FROM invitations WHERE code_sha256 = ?", (hashed,)).fetchone()
        if found is None:
            return "wrong-code"
        keys = {row["public_key"] for row in connection.execute("SELECT public_key FROM invited WHERE code_sha256 = ?", (hashed,))}
        if public_key in keys:
            return ""
        if found["ends"] and time.time() >= found["ends"]:
            return "invitation-ended"
        return "invitation-used-up" if found["uses"] and len(keys) >= found["uses"] else ""


def _hashed(code: str) -> str:
    # A code is 96 random bits: nothing is gained by hashing it slowly.
    return hashlib.sha256(code.encode()).hexdigest()
