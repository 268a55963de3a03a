"""The process of `zk0desk server start`: it holds the gateway and guards the SuperLink and, when asked, the rounds."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from dataclasses import asdict

from zk0desk import process_lock
from zk0desk.control import Stopped
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import Event, Notice, ServerStateChanged, Sink
from zk0desk.federation import child, disk
from zk0desk.federation.certificate import CertificateWatch
from zk0desk.federation.disk import PatientDisk
from zk0desk.federation.front import Front
from zk0desk.federation.gateway import Gateway
from zk0desk.federation.server_folder import Running, ServerFolder, ServerFolderError, ServerNotRunningError, write_atomically
from zk0desk.federation.superlink import SuperLink

RESTART_S = (0.2, 1.0, 5.0, 15.0, 60.0)
"""Waits before what ended is started again. What ran for `HEALTHY_S` begins anew with the shortest."""
HEALTHY_S = 10.0
GOES_ON = frozenset({ExitStatus.FAILED, ExitStatus.UNREACHABLE})
"""Exit statuses of the rounds after which another try may do better. One that was killed always gets it."""


MANY_CALLS, CALLS_TOLD_S = 100, 600.0
"""So many connections that the gateway turned away are told, and not again for so many seconds."""


class AddressTaken(OperatorError):
    """The gateway cannot listen on its port."""

    code = "address-taken"
    exit_status = ExitStatus.USAGE


class Backoff:
    """How long to wait before something that ended again is started again."""

    def __init__(self) -> None:
        self._failures = 0
        self._since: float | None = time.monotonic()

    def wait_s(self) -> float:
        """Seconds to wait now, after it ended or did not start."""
        if self._since is not None and time.monotonic() - self._since > HEALTHY_S:
            self._failures = 0
        self._failures, self._since = self._failures + 1, None
        return RESTART_S[min(self._failures, len(RESTART_S)) - 1]

    def started(self) -> None:
        """It runs again: from now on it is healthy until it ends."""
        self._since = time.monotonic()


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
        self._code = folder.code()
        self._certificate = CertificateWatch(folder.certificate(), emit)
        self._turned_away, self._calls_told = 0, -CALLS_TOLD_S
        self._gateway: Front | None = None
        self._conductor: subprocess.Popen[str] | None = None
        self._relaying: threading.Thread | None = None
        self._rounds_due: float | None = None
        self._superlink_backoff, self._rounds_backoff = Backoff(), Backoff()
        self._disk = PatientDisk(folder.path, emit, self._pause)
        self._children, self._last_port = folder.state / "children.json", folder.state / "port"
        self._started = time.time()

    def stop(self) -> None:
        """Ask `serve` to end everything."""
        self._stopping.set()

    def serve(self) -> None:
        """Start everything, guard it, and end it. Raises `SuperLinkFailed`, `AddressTaken`, `ServerFolderError`, `DiskTrouble`."""
        with disk.told(self.folder.path), process_lock.held(self.folder.lock_path, self._second()):
            try:
                self._serve()
            except Stopped:
                pass
            finally:
                self._end()

    def _serve(self) -> None:
        # What a server that was killed left: it says nothing about this one.
        self.folder.running_path.unlink(missing_ok=True)
        child.end_left_behind(self._children)
        self._port()  # one that is taken is told before anything is started
        for path in self.folder.make_private():
            what = f"Other users of this computer could open {path.name}; now they cannot."
            self._emit(Notice(severity="warning", code="secret-was-open", what=what, remedy="If one may have, make a new folder."))
        self._emit(ServerStateChanged(state="starting", what="The SuperLink is being started."))
        self._launch()
        # Importing flwr takes seconds here too; both processes do it at once.
        import zk0desk.federation.grid  # noqa: F401

        self._superlink.wait_ready()
        self._tell_keys()
        self._open_gateway()
        self._announce()
        if self._run:
            self._start_rounds()
        while not self._stopping.wait(0.2):
            self._guard_superlink()
            self._guard_rounds()
            self._guard_gateway()

    def _guard_gateway(self) -> None:
        """Renew its certificate when that is due, and tell of computers that call too often."""
        gateway = self._gateway
        assert gateway is not None
        if self._certificate.look_now_and_then():
            gateway.renew(self.folder.certificate_path, self.folder.key_path)
        turned_away = gateway.doors.refused + gateway.doors.sent_away
        if turned_away - self._turned_away >= MANY_CALLS and time.monotonic() >= self._calls_told + CALLS_TOLD_S:
            what = f"The gateway turned away {turned_away - self._turned_away} connections; the last was from {gateway.doors.last}."
            why = "An address called too often, or held too many connections without an admitted key. Nodes have their own."
            self._emit(Notice(severity="warning", code="many-calls", what=what, why=why, remedy="A firewall can keep that address away."))
            self._turned_away, self._calls_told = turned_away, time.monotonic()

    def _second(self) -> ServerFolderError:
        try:
            other = self.folder.running()
            why = f"Process {other.pid}, port {other.port}."
        except ServerNotRunningError:
            why = "It is starting."
        return ServerFolderError("This folder's server runs already.", why, "Stop it first, or use that one.")

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopped

    def _launch(self) -> None:
        self._disk.insist(self._superlink.launch)
        self._remember_children()

    def _remember_children(self) -> None:
        pids = [self._superlink.pid, self._conductor.pid if self._conductor else 0]
        self._disk.insist(lambda: child.remember(self._children, [pid for pid in pids if pid]))

    def _open_gateway(self) -> None:
        from zk0desk.training.policy_files import read_policy

        network = self.settings.network
        self._certificate.look_now_and_then()
        app = Gateway(
            self._registry,
            upstream=lambda: f"http://{self._superlink.address}",
            secret=self._superlink.secret,
            code=self._code,
            values=read_policy(self.folder.policy(self.settings)).trainable_parameters,
            admit=self._admit if self.settings.admission == "open" else None,
            knocked=self._knocked,
            troubled=self._troubled,
        )
        certificate, key = self.folder.certificate_path, self.folder.key_path
        try:
            self._gateway = Front(app, host=network.host, port=self._port(), certificate=certificate, key=key, closing=app.close)
        except OSError as error:
            raise self._taken(error) from error
        self._gateway.start()

    def _port(self) -> int:
        """The settings' port. Where they leave it to the system, the one of the last time if it is free: nodes know that one.

        `AddressTaken` when the settings' port is not free.
        """
        network = self.settings.network
        port = network.port
        with contextlib.suppress(OSError, ValueError):
            port = port or int(self._last_port.read_text(encoding="ascii"))
        try:
            socket.create_server((network.host, port), family=socket.AF_INET6 if ":" in network.host else socket.AF_INET).close()
        except OSError as error:
            if network.port:
                raise self._taken(error) from error
            return 0
        return port

    def _taken(self, error: OSError) -> AddressTaken:
        network = self.settings.network
        what = f"The gateway cannot listen on {network.host}:{network.port}."
        return AddressTaken(what, f"{error.strerror}.", "Choose another network.port in server.toml.")

    def _announce(self) -> None:
        import os

        assert self._gateway is not None
        network = self.settings.network
        running = Running(os.getpid(), network.host, self._gateway.port, self._superlink.port, self._superlink.secret, self._started)
        self._disk.insist(lambda: write_atomically(self._last_port, str(running.port)))
        self._disk.insist(lambda: write_atomically(self.folder.running_path, json.dumps(asdict(running))))
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

    def _troubled(self, error: OperatorError) -> None:
        self._emit(Notice(severity="error", code=error.code, what=error.what, why=error.why, remedy=error.remedy))

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

        def spawn() -> subprocess.Popen[str]:
            with (self.folder.state / "server.log").open("ab") as log:
                return child.spawn(arguments, stderr=log)

        self._conductor, self._rounds_due = self._disk.insist(spawn), None
        self._rounds_backoff.started()
        self._relaying = threading.Thread(target=self._relay, args=(self._conductor,), name="rounds", daemon=True)
        self._relaying.start()
        self._remember_children()

    def _relay(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                self._relayed(Event.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                self._emit(Notice(severity="error", code="run-said", what=line.strip()[:500]))

    def _guard_rounds(self) -> None:
        """Start the rounds again when their process ended before its time. They go on from the last complete round."""
        if self._rounds_due is not None:
            if time.monotonic() >= self._rounds_due:
                self._start_rounds()
            return
        if self._conductor is None or (status := self._conductor.poll()) is None:
            return
        process, self._conductor = self._conductor, None
        if self._relaying is not None:
            self._relaying.join(2)
        child.end(process)
        if status == ExitStatus.OK:
            return
        why = (
            f"It was ended by signal {-status}." if status < 0 else f"Its exit status was {status}; see {self.folder.state / 'server.log'}."
        )
        if status < 0 or status in GOES_ON:
            self._rounds_due = time.monotonic() + self._rounds_backoff.wait_s()
            what = "The rounds' process ended and is started again from the last complete round."
            self._emit(ServerStateChanged(state="restarting", what=what, why=why))
        else:
            remedy = f"Mend what it says, then: zk0desk server run {self.folder.path}"
            self._emit(Notice(severity="error", code="rounds-ended", what="The rounds have ended.", why=why, remedy=remedy))

    def _guard_superlink(self) -> None:
        """Start the SuperLink again when it ended. Nodes and rounds wait for it."""
        if self._superlink.alive:
            return
        what, why = "The SuperLink ended and is started again.", "Nodes come back by themselves."
        self._emit(ServerStateChanged(state="restarting", what=what, why=why))
        self._pause(self._superlink_backoff.wait_s())
        try:
            self._launch()
            self._superlink.wait_ready()
            self._tell_keys()
        except OperatorError as error:
            self._emit(Notice(severity="error", code=error.code, what=error.what, why=error.why, remedy=error.remedy))
            return
        self._superlink_backoff.started()
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
