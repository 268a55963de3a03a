"""One window a person: a second start raises the first and hands over what it was given."""

from __future__ import annotations

import contextlib
import hashlib
import json

from PySide6.QtCore import QObject, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from zk0desk import folders

_LIMIT = 32768
_WAIT_MS = 1500


def socket_name() -> str:
    """The socket's name: one for each state folder, so that portable installations stand beside each other."""
    digest = hashlib.sha256(str(folders.state_folder()).encode()).hexdigest()[:16]
    return f"zk0desk-{digest}"


class _Guest(QObject):
    """A later start that has connected; `said` carries what it hands over, once."""

    said = Signal(str)

    def __init__(self, socket: QLocalSocket, parent: QObject) -> None:
        super().__init__(parent)
        self._socket = socket
        self._data = b""
        socket.setParent(self)
        socket.readyRead.connect(self._ready)
        socket.disconnected.connect(self.deleteLater)

    def _ready(self) -> None:
        self._data += bytes(self._socket.readAll().data())
        if len(self._data) > _LIMIT:
            self._socket.disconnectFromServer()
            return
        line, newline, self._data = self._data.partition(b"\n")
        if not newline:
            self._data = line
            return
        argument = ""
        with contextlib.suppress(ValueError, AttributeError):
            argument = str(json.loads(line).get("open", ""))
        self._socket.write(b"ok\n")
        self._socket.flush()
        self.said.emit(argument)


class SingleInstance(QObject):
    """`claim` says whether this start is the first; `raised` carries what later starts hand over ("" for nothing)."""

    raised = Signal(str)

    def __init__(self, name: str = "", parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._name = name or socket_name()
        self._server: QLocalServer | None = None

    def claim(self, argument: str = "") -> bool:
        """True when no other window lives; otherwise hands `argument` to it and returns False."""
        socket = QLocalSocket()
        socket.connectToServer(self._name)
        if socket.waitForConnected(_WAIT_MS):
            socket.write(json.dumps({"open": argument}).encode() + b"\n")
            socket.waitForBytesWritten(_WAIT_MS)
            answered = socket.waitForReadyRead(_WAIT_MS)
            socket.disconnectFromServer()
            if answered:
                return False
            # it took the connection but says nothing: it hangs or dies, so this start goes on by itself
        server = QLocalServer(self)
        server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        if not server.listen(self._name):
            QLocalServer.removeServer(self._name)  # the socket file of a window that was killed
            server.listen(self._name)
        server.newConnection.connect(self._connected)
        self._server = server
        return True

    def _connected(self) -> None:
        while self._server is not None and (socket := self._server.nextPendingConnection()) is not None:
            guest = _Guest(socket, self)
            guest.said.connect(self.raised)

    def close(self) -> None:
        """Let the next start be the first."""
        if self._server is not None:
            self._server.close()
            self._server.deleteLater()
            self._server = None
