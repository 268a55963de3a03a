"""Asking the Hub and fetching from it in a thread of its own: a download takes long, and the window's threads are few."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Signal

from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    from zk0desk.federation.hub import Kind

log = logging.getLogger(__name__)

RATE_OVER_S = 5.0
"""The rate is that of the last seconds, so that time left follows a line that slows down."""


class HubFetch(QObject):
    """One thing at a time: `look` or `fetch`, then one of `looked`, `fetched`, `stopped`, `failed`. `moved` tells bytes, of how many."""

    looked = Signal(object)
    fetched = Signal(object)
    stopped = Signal()
    failed = Signal(object)
    moved = Signal(object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._thread: threading.Thread | None = None
        self._control = NodeControl()

    @property
    def busy(self) -> bool:
        """Whether it works."""
        return self._thread is not None and self._thread.is_alive()

    def look(self, kind: Kind, repo_id: str, revision: str) -> None:
        """Ask what a fetch would bring."""
        from zk0desk.federation.hub import look

        self._start(lambda control: self.looked.emit(look(kind, repo_id, revision, control=control)))

    def fetch(self, kind: Kind, repo_id: str, revision: str) -> None:
        """Fetch it; what had arrived before is gone on from."""
        from zk0desk.federation.hub import fetch

        self._start(lambda control: self.fetched.emit(fetch(kind, repo_id, revision, control=control, progress=self.moved.emit)))

    def stop(self) -> None:
        """Ask it to stop; `stopped` follows. What has arrived is kept."""
        self._control.stop_now()

    def end(self) -> None:
        """Stop, and wait until it did. No signal follows."""
        self.blockSignals(True)
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _start(self, work: Callable[[NodeControl], None]) -> None:
        self._control = control = NodeControl()

        def run() -> None:
            try:
                work(control)
            except Stopped:
                self.stopped.emit()
            except OperatorError as error:
                self.failed.emit(error)
            except Exception as error:  # whatever goes wrong there must be told here
                log.exception("the Hub's thread failed")
                why = f"{type(error).__name__}: {error}"[:500]
                self.failed.emit(OperatorError("That did not work.", why, "The log file has the details."))

        self._thread = threading.Thread(target=run, name="zk0desk-hub")
        self._thread.start()


class Rate:
    """Bytes a second over the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> float:
        """Take in how many bytes are there now; the rate, 0 while it is not known."""
        now = self._clock()
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_OVER_S and len(self._seen) > 2:
            self._seen.popleft()
        began, before = self._seen[0]
        return max(0.0, (done - before) / (now - began)) if now - began >= 0.5 else 0.0
