"""The thread that runs the node: the same object as headless. Its events reach the window in batches."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, QThread, QTimer, Signal

from zk0desk import events
from zk0desk.errors import OperatorError
from zk0desk.federation.node_state import NodeState

if TYPE_CHECKING:
    from zk0desk.control import NodeControl
    from zk0desk.journal import Journal
    from zk0desk.settings import Settings

DRAIN_MS = 40
"""Events are shown 25 times a second, however many there are."""

log = logging.getLogger(__name__)


class NodeThread(QThread):
    """Runs `federation.node.Node` with `settings`.

    `batch` carries events in order, and is emitted in the thread that made this object; `ended` fires once, after the
    last batch. Whatever the node raises becomes a sentence and the state `failed`.
    """

    batch = Signal(list)
    ended = Signal()

    def __init__(self, settings: Settings, journal: Journal, control: NodeControl, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._settings, self._journal, self._control = settings, journal, control
        self._events: deque[events.Event] = deque()
        self._failed = False
        self._timer = QTimer(self)
        self._timer.setInterval(DRAIN_MS)
        self._timer.timeout.connect(self.drain)
        self._timer.start()
        self.finished.connect(self._on_finished)

    def emit_event(self, event: events.Event) -> None:
        """The node's sink: into the journal, and to the window. Any thread may call it."""
        if isinstance(event, events.NodeStateChanged):
            self._failed = event.state == NodeState.FAILED
        try:
            self._journal.record(event)
        except sqlite3.Error:
            log.exception("the journal could not be written")  # a full disk does not end a round
        self._events.append(event)

    def run(self) -> None:
        """Build and run the node; called by Qt in the new thread."""
        threading.current_thread().name = "node"
        try:
            self._run_node()
        except OperatorError as error:
            if not self._failed:
                self._fail(error.code, error.what, error.why, error.remedy)
        except MemoryError:
            log.exception("the node ran out of memory")
            self._fail(
                "out-of-memory",
                "This computer ran out of memory.",
                "Training needs more than is free.",
                "Close other programs and join again.",
            )
        except Exception as error:  # the window has to live, whatever the engine raises
            log.exception("the node's thread failed")
            self._fail(
                "node-failed",
                "Training stopped by an error inside zk0desk.",
                f"{type(error).__name__}: {error}"[:500],
                "Nothing on this computer is lost. Join again; if it comes back, report it with the log file.",
            )

    def _run_node(self) -> None:
        from zk0desk.quiet import quiet_libraries

        quiet_libraries()
        from zk0desk.federation.node import Node

        Node(self._settings, emit=self.emit_event, control=self._control, journal=self._journal).run()

    def _fail(self, code: str, what: str, why: str, remedy: str) -> None:
        self.emit_event(events.Notice(severity="error", code=code, what=what, why=why, remedy=remedy))
        self.emit_event(events.NodeStateChanged(state=NodeState.FAILED, what=what, why=why, then=remedy, since=time.time()))

    def drain(self) -> None:
        """Emit what has gathered."""
        batch: list[Any] = []
        while self._events and len(batch) < 2000:
            batch.append(self._events.popleft())
        if batch:
            self.batch.emit(batch)

    def _on_finished(self) -> None:
        self._timer.stop()
        while self._events:
            self.drain()
        self.ended.emit()
