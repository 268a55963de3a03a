"""The coordinator's folder: settings, certificate, admission code, the nodes' keys, and where a running server is found.

server.toml            settings, with comments
tls/certificate.pem    what operators' computers check the gateway against (it is part of the invitation)
tls/key.pem            its private key, mode 0600
admission-code         lets a node ask to be admitted (it is part of the invitation)
nodes.sqlite           keys of nodes: waiting, admitted, revoked
server.json            process and ports of the running server, mode 0600
state/                 the SuperLink's database and log
runs/RUN/              checkpoints and events of a run
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import os
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from zk0desk import settings as settings_file
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.invitation import Invitation, certificate_sha256
from zk0desk.folders import private_folder
from zk0desk.settings import ServerSettings

CERTIFICATE_YEARS = 10
PENDING_LIMIT = 256
"""Most keys that wait for admission; the oldest are forgotten first."""


class ServerFolderError(OperatorError):
    """The server's folder is missing something, or holds something already."""

    code = "server-folder"
    exit_status = ExitStatus.USAGE


class ServerNotRunningError(OperatorError):
    """No server runs in this folder."""

    code = "server-not-running"
    exit_status = ExitStatus.UNREACHABLE


class NodeUnknownError(OperatorError):
    """No node has that key or fingerprint."""

    code = "node-unknown"
    exit_status = ExitStatus.USAGE


@dataclass(frozen=True)
class Running:
    """A running server, as `server.json` says: the gateway's address, and the SuperLink's on loopback.

    `secret` opens the SuperLink's Control and Runtime API to this folder's owner.
    """

    pid: int
    host: str
    port: int
    superlink_port: int
    secret: str
    started: float

    @property
    def superlink(self) -> str:
        """host:port of the SuperLink, on loopback."""
        return f"127.0.0.1:{self.superlink_port}"


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write `text` to `path` through a temporary file beside it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class ServerFolder:
    """Reads and writes a coordinator's folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()
        self.settings_path = self.path / "server.toml"
        self.certificate_path = self.path / "tls" / "certificate.pem"
        self.key_path = self.path / "tls" / "key.pem"
        self.code_path = self.path / "admission-code"
        self.running_path = self.path / "server.json"
        self.state = self.path / "state"
        self.runs = self.path / "runs"

    def settings(self) -> ServerSettings:
        """The settings in `server.toml`. `ServerFolderError` when this is no server's folder."""
        if not self.settings_path.is_file():
            raise ServerFolderError(
                f"{self.path} is not a server's folder.", "It holds no server.toml.", f"Make one: zk0desk server init {self.path}"
            )
        return settings_file.load(self.settings_path, ServerSettings)

    def policy(self, settings: ServerSettings) -> Path:
        """The base policy's folder."""
        return (self.path / settings.policy.folder).resolve()

    def nodes(self) -> NodeRegistry:
        """The nodes' keys."""
        return NodeRegistry(self.path / "nodes.sqlite")

    def code(self) -> str:
        """The admission code of the invitation."""
        return self.code_path.read_text(encoding="utf-8").strip()

    def running(self) -> Running:
        """The running server. `ServerNotRunningError` when there is none."""
        import psutil

        try:
            found = Running(**json.loads(self.running_path.read_text(encoding="utf-8")))
            # A process id is given out again: one that began after server.json was written is another program.
            alive = psutil.Process(found.pid).create_time() <= found.started + 1
        except (OSError, ValueError, TypeError, psutil.NoSuchProcess):
            alive = False
        if not alive:
            raise ServerNotRunningError(
                "No server runs in this folder.",
                f"{self.running_path} names no living process.",
                f"Start it: zk0desk server start {self.path}",
            )
        return found

    def invitation(self, port: int = 0) -> Invitation:
        """The invitation to this federation; `port` where the settings leave it to the system."""
        from importlib.metadata import PackageNotFoundError, version

        from zk0desk import __version__
        from zk0desk.training.policy_files import read_policy

        settings = self.settings()
        files = read_policy(self.policy(settings))
        pem = self.certificate_path.read_text(encoding="utf-8")
        rounds, network = settings.rounds, settings.network
        if not (port or network.port):
            with contextlib.suppress(ServerNotRunningError):
                port = self.running().port
        if not (port or network.port):
            raise ServerFolderError(
                "The invitation cannot name a port yet.",
                "`port` is 0: the system chooses one at the start.",
                "Start the server, or set network.port.",
            )
        try:
            flwr_version = version("flwr")
        except PackageNotFoundError:
            flwr_version = ""
        return Invitation(
            federation=settings.federation,
            contact=settings.contact,
            host=network.name,
            port=port or network.port,
            certificate=pem,
            certificate_sha256=certificate_sha256(pem),
            policy_id=files.policy_id,
            policy_name=policy_name(self.policy(settings)),
            backbone_sha256=files.backbone_sha256,
            layout_sha256=files.layout.sha256,
            parameters=files.parameters,
            trainable_parameters=files.trainable_parameters,
            admission=settings.admission,
            code=self.code(),
            rounds=rounds.rounds,
            local_epochs=rounds.local_epochs,
            local_steps=rounds.local_steps,
            batch_size=rounds.batch_size,
            deadline_s=rounds.deadline_s,
            encoding=rounds.encoding,
            flwr_version=flwr_version,
            zk0desk_version=__version__,
        )


def policy_name(folder: Path) -> str:
    """How operators find the policy: its name and commit on the Hub where it was fetched from there, else its folder's name."""
    from zk0desk.federation.hub_places import origin

    known = origin(folder)
    return f"{known.repo_id}@{known.commit}"[:128] if known is not None and known.kind == "policy" else folder.name[:128]


def init_server(folder: Path | str, settings: ServerSettings) -> ServerFolder:
    """Make a server's folder: settings with comments, certificate with its key, admission code.

    Raises `ServerFolderError` when the folder is one already: a new certificate would invalidate all invitations.
    """
    server = ServerFolder(folder)
    if server.settings_path.exists():
        raise ServerFolderError(
            f"{server.path} is a server's folder already.",
            "A new certificate would make its invitations invalid.",
            "Choose another folder.",
        )
    for path in (server.path, server.certificate_path.parent, server.state, server.runs):
        private_folder(path)
    certificate, key = make_certificate(settings.network.name)
    write_atomically(server.key_path, key)
    write_atomically(server.certificate_path, certificate, 0o644)
    write_atomically(server.code_path, secrets.token_urlsafe(12) + "\n")
    settings_file.save(settings, server.settings_path)
    return server


def make_certificate(name: str) -> tuple[str, str]:
    """A self-signed certificate for `name`, localhost and loopback (EC P-256), and its private key, both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = []
    for each in dict.fromkeys([name, "localhost", "127.0.0.1", "::1"]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(each)))
        except ValueError:
            names.append(x509.DNSName(each.encode("idna").decode()))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Nodes' clocks may be behind.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * CERTIFICATE_YEARS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


# --- the nodes' keys --------------------------------------------------------------------------------------------


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


class NodeRegistry:
    """Keys of nodes and whether they are admitted. Several processes may use it at once (SQLite)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._open() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS nodes (public_key BLOB PRIMARY KEY, fingerprint TEXT, status TEXT,"
                " first_seen REAL, last_seen REAL, address TEXT)"
            )
        os.chmod(path, 0o600)
        self._seen_change = -1.0
        self._known: dict[bytes, Status] = {}

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.row_factory = sqlite3.Row
            yield connection

    def nodes(self) -> list[NodeRecord]:
        """All keys, those waiting first, then by time."""
        with self._open() as connection:
            rows = connection.execute("SELECT * FROM nodes ORDER BY status != 'waiting', first_seen, fingerprint").fetchall()
        return [NodeRecord(**dict(row)) for row in rows]

    def status(self, public_key: bytes) -> Status | None:
        """What is known of a key. Cheap: read again only when the file changed."""
        with self._lock:
            change = self._path.stat().st_mtime_ns
            if change != self._seen_change:
                self._known = {record.public_key: record.status for record in self.nodes()}
                self._seen_change = change
            return self._known.get(public_key)

    def knock(self, public_key: bytes, address: str) -> NodeRecord:
        """A key that is not known asked to be admitted."""
        now = time.time()
        with self._open() as connection:
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
        with self._open() as connection:
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
