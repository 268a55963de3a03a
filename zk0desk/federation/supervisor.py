"""The process of `zk0desk server start`: it holds the gateway and guards the SuperLink and, when asked, the rounds."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import asdict

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import Event, Notice, ServerStateChanged, Sink
from zk0desk.federation import child
from zk0desk.federation.gateway import Gateway, GatewayServer
from zk0desk.federation.server_folder import Running, ServerFolder, ServerFolderError, ServerNotRunningError, write_atomically
from zk0desk.federation.superlink import SuperLink
from zk0desk.folders import private_folder

RESTART_S = (0.2, 1.0, 5.0, 15.0, 60.0)
"""Waits before a SuperLink that ended is started again; a minute of health starts over."""


class AddressTaken(OperatorError):
    """The gateway cannot listen on its port."""

    code = "address-taken"
    exit_status = ExitStatus.USAGE


class Server:
    """A coordinator's server. `serve` blocks until `stop`, which any thread or signal handler may call.

    `relay` (default: `emit`) is given the events of the rounds' process, which writes them to the folder itself.
    """

    def __init__(
        self, folder: ServerFolder, emit: Sink, *, relay: Sink | None = None, run: bool = False, rounds: int | None = None
    ) -> None:
        self.folder = folder
        self.settings = folder.settings()
        self._emit, self._relayed = emit, relay or emit
        self._run, self._rounds = run, rounds
        self._stopping = threading.Event()
        self._superlink = SuperLink(folder, on_disk=self.settings.network.superlink_state == "disk")
        self._registry = folder.nodes()
        self._gateway: GatewayServer | None = None
        self._conductor: subprocess.Popen[str] | None = None
        self._started = time.time()

    def stop(self) -> None:
        """Ask `serve` to end everything."""
        self._stopping.set()

    def serve(self) -> None:
        """Start everything, guard it, and end it. Raises `SuperLinkFailed`, `AddressTaken`, `ServerFolderError`."""
        self._refuse_second()
        private_folder(self.folder.state)
        self._emit(ServerStateChanged(state="starting", what="The SuperLink is being started."))
        try:
            self._superlink.launch()
            # Importing flwr takes seconds here too; both processes do it at once.
            import zk0desk.federation.grid  # noqa: F401

            self._superlink.wait_ready()
            self._tell_keys()
            self._open_gateway()
            self._announce()
            if self._run:
                self._start_rounds()
            self._guard()
        finally:
            self._end()

    def _refuse_second(self) -> None:
        try:
            other = self.folder.running()
        except ServerNotRunningError:
            return
        raise ServerFolderError(
            "This folder's server runs already.", f"Process {other.pid}, port {other.port}.", "Stop it first, or use that one."
        )

    def _open_gateway(self) -> None:
        network = self.settings.network
        app = Gateway(
            self._registry,
            upstream=lambda: f"http://{self._superlink.address}",
            secret=self._superlink.secret,
            code=self.folder.code(),
            admit=self._admit if self.settings.admission == "open" else None,
            knocked=self._knocked,
        )
        try:
            self._gateway = GatewayServer(
                app, host=network.host, port=network.port, certificate=self.folder.certificate_path, key=self.folder.key_path
            )
        except OSError as error:
            raise AddressTaken(
                f"The gateway cannot listen on {network.host}:{network.port}.",
                f"{error.strerror}.",
                "Choose another network.port in server.toml.",
            ) from error
        self._gateway.start()

    def _announce(self) -> None:
        import os

        assert self._gateway is not None
        network = self.settings.network
        running = Running(os.getpid(), network.host, self._gateway.port, self._superlink.port, self._superlink.secret, self._started)
        write_atomically(self.folder.running_path, json.dumps(asdict(running)))
        self._emit(ServerStateChanged(state="serving", what=f"Nodes can call {network.name}:{running.port}."))

    def _admit(self, public_key: bytes) -> None:
        record = self._registry.admit(public_key.decode("ascii"))
        with self._superlink.control() as control:
            control.register(public_key)
        self._emit(ServerStateChanged(state="serving", what=f"Node {record.fingerprint} was admitted."))

    def _knocked(self, public_key: bytes, fingerprint: str) -> None:
        self._emit(
            Notice(
                severity="note",
                code="node-waits",
                what=f"Node {fingerprint} asks to be admitted.",
                remedy=f'zk0desk server admit {self.folder.path} "{fingerprint}"',
            )  # fmt: skip
        )

    def _tell_keys(self) -> None:
        """Make the SuperLink's registrations those of the registry; in memory it starts with none."""
        admitted = {node.public_key for node in self._registry.nodes() if node.status == "admitted"}
        with self._superlink.control() as control:
            registered = {node.public_key for node in control.nodes()}
            for key in sorted(admitted - registered):
                control.register(key)
            for key in sorted(registered - admitted):
                control.unregister(key)

    def _start_rounds(self) -> None:
        arguments = ["server", "run", str(self.folder.path), "--with-parent"] + (["--rounds", str(self._rounds)] if self._rounds else [])
        with (self.folder.state / "server.log").open("ab") as log:
            self._conductor = child.spawn(arguments, stderr=log)
        threading.Thread(target=self._relay, args=(self._conductor,), name="rounds", daemon=True).start()

    def _relay(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                self._relayed(Event.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                self._emit(Notice(severity="error", code="run-said", what=line.strip()[:500]))

    def _guard(self) -> None:
        failures, healthy_since = 0, time.monotonic()
        while not self._stopping.wait(0.2):
            if self._superlink.alive:
                continue
            failures = 0 if time.monotonic() - healthy_since > 60 else failures
            what, why = "The SuperLink ended and is started again.", "Nodes come back by themselves."
            self._emit(ServerStateChanged(state="restarting", what=what, why=why))
            if self._stopping.wait(RESTART_S[min(failures, len(RESTART_S) - 1)]):
                return
            failures += 1
            try:
                self._superlink.launch()
                self._superlink.wait_ready()
                self._tell_keys()
            except OperatorError as error:
                self._emit(Notice(severity="error", code=error.code, what=error.what, why=error.why, remedy=error.remedy))
                continue
            healthy_since = time.monotonic()
            self._announce()

    def _end(self) -> None:
        # All are asked at once, so that the waits overlap; the rounds' last words may need the SuperLink for a moment.
        if self._conductor is not None:
            child.end(self._conductor, 0.5)
        self._superlink.ask_to_end()
        if self._gateway is not None:
            self._gateway.stop()
        self._superlink.stop()
        self.folder.running_path.unlink(missing_ok=True)
        self._emit(ServerStateChanged(state="stopped", what="The server has stopped."))
