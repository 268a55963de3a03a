"""One window a person: a second start raises the first and hands over what it was given."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time

from PySide6.QtCore import QObject, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from zk0desk import folders

_LIMIT = 65536
"""Bytes that a later start may say: the longest link, escaped, and what raises the window."""
_WAIT_MS = 1500
_ANSWER_MS = 5000
"""How long a window may be busy before a later start takes it for dead."""
_LEAVING_S = 120.0
"""How long a later start waits for a window that closes: the node in it may be in the middle of a step."""
_OK, _WAIT = b"ok\n", b"wait\n"
QUIETLY = "--background"
"""Handed over by a start that shows no window: the first one stays as it is."""
_TOKEN = "XDG_ACTIVATION_TOKEN"
"""With what a Wayland desktop gave the later start, the first window may come to the front."""


def socket_name() -> str:
    """The socket's name: one for each state folder, so that portable installations stand beside each other."""
    digest = hashlib.sha256(str(folders.state_folder()).encode()).hexdigest()[:16]
    return f"zk0desk-{digest}"


class _Guest(QObject):
    """A later start that has connected; `said` carries what it hands over, once."""

    said = Signal(str)

    def __init__(self, socket: QLocalSocket, parent: SingleInstance) -> None:
        super().__init__(parent)
        self._socket = socket
        self._data = b""
        self.told_to_wait = False
        socket.setParent(self)
        socket.readyRead.connect(self._ready)
        socket.disconnected.connect(self.deleteLater)

    def part(self) -> None:
        """End the connection; who waits at the other end sees that."""
        if self._socket.state() == QLocalSocket.LocalSocketState.ConnectedState:
            self._socket.disconnectFromServer()

    def _ready(self) -> None:
        self._data += bytes(self._socket.readAll().data())
        if len(self._data) > _LIMIT:
            self._socket.disconnectFromServer()
            return
        line, newline, self._data = self._data.partition(b"\n")
        if not newline:
            self._data = line
            return
        host = self.parent()  # not kept: a guest that holds its host would take it along when it goes
        if isinstance(host, SingleInstance) and host.leaving:
            self.told_to_wait = True
            self._socket.write(_WAIT)
            self._socket.flush()
            return
        argument = ""
        with contextlib.suppress(ValueError, AttributeError):
            said = json.loads(line)
            argument = str(said.get("open", ""))
            if token := str(said.get("token", "")):
                os.environ[_TOKEN] = token  # Qt takes it when the window asks to be raised
        self._socket.write(_OK)
        self._socket.flush()
        self.said.emit(argument)


def _may_raise() -> None:
    """Let the first window come to the front: Windows gives that right to the process that a person started, and it may pass it on."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.user32.AllowSetForegroundWindow(-1)


class SingleInstance(QObject):
    """`claim` says whether this start is the first; `raised` carries what later starts hand over ("" for nothing).

    A window that closes says so by `leave`: a later start then keeps what it has to hand over, waits until the window is
    gone, and is the first itself.
    """

    raised = Signal(str)

    def __init__(self, name: str = "", parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._name = name or socket_name()
        self._server: QLocalServer | None = None
        self.leaving = False

    def claim(self, argument: str = "") -> bool:
        """True when no other window lives; otherwise hands `argument` to it and returns False."""
        until = time.monotonic() + _LEAVING_S
        while time.monotonic() < until:
            answer = self._ask(argument, until)
            if answer == _OK:
                return False
            if answer == b"":
                break  # nobody is there, or it takes the connection and says nothing: it hangs or dies
            time.sleep(0.05)  # it closes; a moment later it does not listen any more
        server = QLocalServer(self)
        server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        if not server.listen(self._name):
            QLocalServer.removeServer(self._name)  # the socket file of a window that was killed
            server.listen(self._name)
        server.newConnection.connect(self._connected)
        self._server = server
        return True

    def _ask(self, argument: str, until: float) -> bytes:
        """What the first window answers: `_OK`, `_WAIT` after it was seen to go, or nothing."""
        socket = QLocalSocket()
        socket.connectToServer(self._name)
        if not socket.waitForConnected(_WAIT_MS):
            return b""
        _may_raise()
        socket.write(json.dumps({"open": argument, "token": os.environ.get(_TOKEN, "")}).encode() + b"\n")
        socket.waitForBytesWritten(_WAIT_MS)
        if not socket.waitForReadyRead(_ANSWER_MS):
            gone = socket.state() != QLocalSocket.LocalSocketState.ConnectedState
            return _WAIT if gone else b""  # a window that ended before it read what it was told is asked once more
        answer = bytes(socket.readAll().data())
        if answer == _WAIT:
            socket.waitForDisconnected(max(1, int((until - time.monotonic()) * 1000)))
            return _WAIT
        socket.disconnectFromServer()
        return _OK

    def leave(self) -> None:
        """From now on later starts are told to wait until this one is gone."""
        self.leaving = True

    def _connected(self) -> None:
        while self._server is not None and (socket := self._server.nextPendingConnection()) is not None:
            guest = _Guest(socket, self)
            guest.said.connect(self.raised)

    def close(self) -> None:
        """Let the next start be the first."""
        self.leaving = True
        for guest in self.findChildren(_Guest):
            guest.part()
        if self._server is not None:
            self._server.close()
            self._server.deleteLater()
            self._server = None
