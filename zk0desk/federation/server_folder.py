"""The coordinator's folder: settings, certificate, admission code, the nodes' keys, and where a running server is found.

server.toml            settings, with comments
tls/certificate.pem    what operators' computers check the gateway against (it is part of the invitation)
tls/key.pem            its private key, mode 0600
admission-code         lets a node ask to be admitted (it is part of the invitation)
nodes.sqlite           keys of nodes: waiting, admitted, revoked; and invitations that are limited
server.json            process and ports of the running server, mode 0600
state/                 the SuperLink's database and log
runs/RUN/              checkpoints and events of a run
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from zk0desk import process_lock
from zk0desk import settings as settings_file
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.certificate import ServerCertificate, make_certificate
from zk0desk.federation.invitation import Invitation, certificate_sha256
from zk0desk.federation.node_registry import NodeRecord, NodeRegistry, NodeUnknownError, Status, fingerprint_of, read_public_key
from zk0desk.folders import private_folder, write_atomically
from zk0desk.settings import ServerSettings

_CODE = re.compile(r"[A-Za-z0-9_\-]{8,128}")


class ServerFolderError(OperatorError):
    """The server's folder is missing something, or holds something already."""

    code = "server-folder"
    exit_status = ExitStatus.USAGE


class ServerNotRunningError(OperatorError):
    """No server runs in this folder."""

    code = "server-not-running"
    exit_status = ExitStatus.UNREACHABLE


@dataclass(frozen=True)
class Running:
    """A running server, as `server.json` says: the gateway's address, and the SuperLink's on loopback.

    `secret` opens the SuperLink's Control and Runtime API to this folder's owner.
    """

    pid: int
    host: str
    port: int
    superlink_port: int
    secret: str = field(repr=False)
    started: float

    @property
    def superlink(self) -> str:
        """host:port of the SuperLink, on loopback."""
        return f"127.0.0.1:{self.superlink_port}"


class ServerFolder:
    """Reads and writes a coordinator's folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()
        self.settings_path = self.path / "server.toml"
        self.certificate_path = self.path / "tls" / "certificate.pem"
        self.key_path = self.path / "tls" / "key.pem"
        self.code_path = self.path / "admission-code"
        self.nodes_path = self.path / "nodes.sqlite"
        self.running_path = self.path / "server.json"
        self.state = self.path / "state"
        self.lock_path = self.state / "server.lock"
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
        """The nodes' keys. `RegistryError` when their file is missing, empty or damaged."""
        return NodeRegistry(self.nodes_path)

    def new_nodes(self) -> NodeRegistry:
        """Begin a new list of keys; what is there is kept as `nodes.sqlite.old` (or `.old1` and so on)."""
        names = (self.nodes_path.with_name(f"nodes.sqlite.old{i or ''}") for i in range(1000))
        with contextlib.suppress(FileNotFoundError):
            self.nodes_path.rename(next(name for name in names if not name.exists()))
        return NodeRegistry.make(self.nodes_path)

    def certificate(self) -> ServerCertificate:
        """The gateway's certificate and key."""
        return ServerCertificate(self.certificate_path, self.key_path, self.settings().network.name)

    def code(self) -> str:
        """The admission code of the invitation. `ServerFolderError` when its file is missing, empty or damaged."""
        try:
            code = self.code_path.read_text(encoding="ascii").strip()
            why = "It is empty or damaged."
        except OSError as error:
            code, why = "", f"{error.strerror}."
        except UnicodeDecodeError:
            code, why = "", "It is damaged."
        if not _CODE.fullmatch(code):
            raise ServerFolderError(
                f"{self.code_path} holds no admission code.",
                f"{why} Without one nobody new can be let in.",
                "Put it back from a copy, or write a new one of at least 8 letters and digits into it and invite again.",
            )
        return code

    def make_private(self) -> list[Path]:
        """Take the rights of others from the files that hold secrets; those files that others could open."""
        secret = (self.key_path, self.code_path, self.nodes_path, self.running_path, self.settings_path)
        found = [path for path in secret if path.is_file() and path.stat().st_mode & 0o077]
        if os.name != "posix":
            return []
        for path in found:
            path.chmod(0o600)
        return found

    def running(self) -> Running:
        """The running server. `ServerNotRunningError` when there is none."""
        try:
            found = Running(**json.loads(self.running_path.read_text(encoding="utf-8")))
            # A process id is given out again, and clocks are set: a lock is what tells.
            alive = process_lock.is_held(self.lock_path)
        except (OSError, ValueError, TypeError):
            alive = False
        if not alive:
            raise ServerNotRunningError(
                "No server runs in this folder.",
                "No process serves it.",
                f"Start it: zk0desk server start {self.path}",
            )
        return found

    def invitation(self, port: int = 0, *, ends: float = 0.0, uses: int = 0) -> Invitation:
        """The invitation to this federation; `port` where the settings leave it to the system.

        With `ends` (Unix seconds) or `uses` (nodes) it has a code of its own, which is limited to that.
        """
        from importlib.metadata import PackageNotFoundError, version

        from zk0desk import __version__
        from zk0desk.training.policy_files import read_policy

        settings = self.settings()
        files = read_policy(self.policy(settings))
        self.certificate().check()
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
            code=self.nodes().invite(ends=ends, uses=uses) if ends or uses else self.code(),
            valid_until=ends,
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
    NodeRegistry.make(server.nodes_path)
    settings_file.save(settings, server.settings_path)
    return server


__all__ = [
    "NodeRecord", "NodeRegistry", "NodeUnknownError", "Running", "ServerFolder", "ServerFolderError", "ServerNotRunningError", "Status",
    "fingerprint_of", "init_server", "make_certificate", "policy_name", "read_public_key", "write_atomically",
]  # fmt: skip
