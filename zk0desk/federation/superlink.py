"""The SuperLink, as a child process on loopback, and a whole server as seen from a program that starts one.

The SuperLink's one port carries the Fleet API, which nodes use through the gateway, and the Control and Runtime API,
which ask for no credential of their own. So it listens on 127.0.0.1 alone, and every request has to carry a secret
that only this folder's owner can read.
"""

from __future__ import annotations

import gc
import hmac
import json
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import Event, Sink
from zk0desk.federation import child
from zk0desk.federation.gateway import SECRET_HEADER
from zk0desk.federation.quarantine import Quarantine
from zk0desk.federation.server_folder import NodeRecord, ServerFolder, ServerNotRunningError, read_public_key

if TYPE_CHECKING:
    from zk0desk.federation.grid import Control

START_LIMIT_S = 120.0
"""How long a SuperLink may take to start; importing flwr takes seconds, on a loaded computer many."""
STOP_LIMIT_S = 1.0
PAGE_BYTES = 65536
"""Of the SuperLink's database: SQLite's largest."""


class SuperLinkFailed(OperatorError):
    """The SuperLink did not start."""

    code = "superlink-failed"
    exit_status = ExitStatus.FAILED


class SuperLink:
    """A SuperLink in a child process. `port` 0 takes a free one; a restart keeps it."""

    def __init__(self, folder: ServerFolder, *, on_disk: bool) -> None:
        self._folder = folder
        self._database = str(folder.state / "superlink.sqlite") if on_disk else ":flwr-in-memory:"
        self._process: subprocess.Popen[str] | None = None
        self.secret = secrets.token_urlsafe(32)
        self.port = 0

    @property
    def address(self) -> str:
        """host:port on loopback."""
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id, or 0."""
        return self._process.pid if self._process else 0

    def launch(self) -> None:
        """Start the process without waiting for it."""
        with (self._folder.state / "superlink.log").open("ab") as log:
            self._process = child.spawn(["server", "_superlink"], stderr=log)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"database": self._database, "secret": self.secret, "port": self.port}) + "\n")
        self._process.stdin.flush()

    def wait_ready(self) -> None:
        """Wait until it serves. `SuperLinkFailed` when it ends instead, with the end of its log."""
        process = self._process
        assert process is not None and process.stdout is not None
        watchdog = threading.Timer(START_LIMIT_S, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline()
            self.port = int(json.loads(line)["port"])
        except (ValueError, KeyError) as error:
            log = self._folder.state / "superlink.log"
            said = " ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]) or "It said nothing."
            raise SuperLinkFailed("The SuperLink did not start.", said[-400:], f"See {log}.") from error
        finally:
            watchdog.cancel()

    def control(self) -> Control:
        """A connection to its Control API."""
        from zk0desk.federation.grid import Control

        return Control(self.address, self.secret)

    def ask_to_end(self) -> None:
        """Have it end, without waiting."""
        if self._process is not None:
            child.ask_to_end(self._process)

    def stop(self) -> None:
        """End it within two seconds."""
        if self._process is not None:
            child.end(self._process, STOP_LIMIT_S)
            self._process = None


# --- the child's side -------------------------------------------------------------------------------------------

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class OwnersOnly:
    """ASGI middleware: requests without the secret get 404, whatever they ask for."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], secret: str) -> None:
        self._app = app
        self._secret = secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "lifespan":
            given = next((value for name, value in scope["headers"] if name == SECRET_HEADER.encode()), b"")
            if not hmac.compare_digest(given, self._secret):
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            receive = _at_once(receive)
        await self._app(scope, receive, send)


def _at_once(receive: Receive) -> Receive:
    """`receive` with the body in one part. flwr reads all of it before it looks at it, and hands each part through seven layers."""
    whole = False

    async def received() -> MutableMapping[str, Any]:
        nonlocal whole
        if whole:
            return await receive()
        parts = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message  # the caller left
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                whole = True
                return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    return received


def make_database(path: Path) -> None:
    """Make the file of the SuperLink's database, if there is none. Objects of megabytes need large pages: with SQLite's own 4 kB each of
    them is a thousand, and flushed alone.
    """
    if not path.exists():
        with closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            database.execute("VACUUM")
        path.chmod(0o600)


def serve_superlink() -> None:
    """Serve a SuperLink until standard input ends; its first line is what `SuperLink.launch` wrote.

    Prints one line, `{"port": N}`, once it answers.
    """
    import signal

    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wanted = json.loads(sys.stdin.buffer.readline())
    if not wanted["database"].startswith(":"):
        make_database(Path(wanted["database"]))

    import uvicorn
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    listener = socket.create_server(("127.0.0.1", wanted["port"]))
    port = listener.getsockname()[1]
    # TLS ends at the gateway; flwr's own command would insist on it here too before it checks nodes' keys.
    config = SuperLinkLifespanConfig(
        control_address=f"127.0.0.1:{port}", health_server_address=None, host="127.0.0.1", port=port, insecure=True, certificates=None,
        superexec_auth_secret=None, authn_plugin=load_control_authn_plugin(), event_log_plugin=None, fleet_event_log_plugin=None,
        enable_event_log=False, artifact_provider=None, enable_supernode_auth=True, fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None, simulation=False, ssl_ca_certfile=None, ssl_certfile=None, ssl_keyfile=None, database=wanted["database"],
        isolation=ISOLATION_MODE_PROCESS, runtime_dependency_install=False,
    )  # fmt: skip
    app = OwnersOnly(create_app(config, SuperLinkLifespan), wanted["secret"])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none", timeout_graceful_shutdown=1))
    # Not in the main thread, so that uvicorn leaves the signals alone.
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="superlink", daemon=True)

    def stop() -> None:
        server.should_exit = True
        serving.join()
        os._exit(0)

    child.when_parent_ends(stop)
    gc.collect()
    gc.freeze()  # a hundred thousand objects of libraries, which every full collection would walk again
    serving.start()
    while not server.started and serving.is_alive():
        time.sleep(0.01)
    if server.started:
        print(json.dumps({"port": port}), flush=True)
    serving.join()


# --- a whole server, from outside -------------------------------------------------------------------------------


class RunningServer:
    """A server (SuperLink, gateway and, when asked, the rounds) that runs in processes of its own. A context manager."""

    def __init__(self, folder: ServerFolder, process: subprocess.Popen[str], emit: Sink) -> None:
        self.folder = folder
        self._process = process
        self._emit = emit
        self._said: deque[str] = deque(maxlen=20)
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name="server-events", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = Event.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError):
                self._said.append(line.strip())
                continue
            if getattr(event, "state", "") == "serving":
                self._ready.set()
            self._emit(event)
        self._ready.set()

    def wait_ready(self) -> None:
        """Wait until nodes can call. `SuperLinkFailed` when the server ended instead."""
        self._ready.wait(START_LIMIT_S)
        try:
            self._running = self.folder.running()
            if self._running.pid != self.pid:
                raise ServerNotRunningError("Another server runs in this folder.")
        except ServerNotRunningError as error:
            log = self.folder.state / "server.log"
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:] if log.exists() else []
            why = " ".join([*self._said, *said]) or "It ended before it answered."
            raise SuperLinkFailed("The server did not start.", why[-400:], f"See {self.folder.state}.") from error

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def host(self) -> str:
        """The name in the certificate."""
        return self.folder.settings().network.name

    @property
    def port(self) -> int:
        """The gateway's port."""
        return self._running.port

    @property
    def address(self) -> str:
        """host:port that nodes call."""
        return f"{self.host}:{self.port}"

    def admit(self, who: str) -> NodeRecord:
        """Admit a node by its public line, its PEM or its fingerprint."""
        return admit(self.folder, who)

    def close(self) -> None:
        """End it and all its processes within two seconds."""
        child.end(self._process, 2 * STOP_LIMIT_S - 0.2)
        self._reader.join(2)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_server(folder: Path | str, emit: Sink, *, run: bool = False, rounds: int | None = None) -> RunningServer:
    """Start the server of `folder` in processes of its own and wait until nodes can call it.

    Its events go to `emit`, from another thread. With `run` it also conducts the rounds. Everything ends with `close`,
    and when the calling process ends. Raises `SuperLinkFailed`, `ServerFolderError`.
    """
    server = ServerFolder(folder)
    server.settings()
    arguments = ["server", "start", str(server.path), "--with-parent"]
    if run:
        arguments += ["--run"] + (["--rounds", str(rounds)] if rounds else [])
    with (server.state / "server.log").open("ab") as log:
        running = RunningServer(server, child.spawn(arguments, stderr=log), emit)
    try:
        running.wait_ready()
    except BaseException:
        running.close()
        raise
    return running


def admit(folder: ServerFolder, who: str) -> NodeRecord:
    """Admit a node's key (`who`: fingerprint, public line, PEM), at once when the server runs; one in quarantine is asked again.

    `NodeUnknownError` when nobody is meant.
    """
    record = folder.nodes().admit(who)
    Quarantine(folder.nodes_path).clear(record.public_key)
    _tell(folder, lambda control: control.register(record.public_key))
    return record


def revoke(folder: ServerFolder, who: str) -> NodeRecord:
    """Refuse a node's key from now on, at once when the server runs."""
    record = folder.nodes().revoke(who)
    _tell(folder, lambda control: control.unregister(record.public_key))
    return record


def _tell(folder: ServerFolder, do: Callable[[Control], None]) -> None:
    try:
        running = folder.running()
    except ServerNotRunningError:
        return  # told when it starts: the registry is what counts
    from zk0desk.federation.grid import Control

    with Control(running.superlink, running.secret) as control:
        do(control)


__all__ = ["RunningServer", "SuperLink", "SuperLinkFailed", "admit", "read_public_key", "revoke", "serve_superlink", "start_server"]
