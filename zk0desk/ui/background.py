"""Work that would hold the window: done in a thread, its result handed to the window's thread."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

import shiboken6
from PySide6.QtCore import QCoreApplication, QObject, Signal

from zk0desk.errors import OperatorError

log = logging.getLogger(__name__)

AT_ONCE = max(2, os.cpu_count() or 2)
"""Pieces of work that are done at once."""
HANGS_S = 5.0
"""What takes longer does not hold up what waits: it may never answer, as a disk in a network that is gone."""
REST_S = 0.3
"""A thread with nothing to do ends after so long."""
LEAVE_S = 2.0
"""How long the end of the application waits for what is under way."""


class _Answer(QObject):
    done = Signal(object)
    failed = Signal(object)


class _Job:
    def __init__(self, work: Callable[[], object], answer: _Answer) -> None:
        self._work, self._answer = work, answer

    def run(self) -> None:
        """Called in a thread of the pool."""
        try:
            result = self._work()
        except OperatorError as error:
            self._tell(self._answer.failed, error)
        except Exception as error:  # whatever goes wrong there must be told here
            log.exception("work in the background failed")
            wrapped = OperatorError("That did not work.", f"{type(error).__name__}: {error}"[:500], "The log file has the details.")
            self._tell(self._answer.failed, wrapped)
        else:
            self._tell(self._answer.done, result)

    def _tell(self, signal: object, value: object) -> None:
        if not shiboken6.isValid(self._answer):
            return
        try:
            signal.emit(value)  # type: ignore[attr-defined]
        except RuntimeError:
            log.debug("the widget that asked was closed meanwhile")


class _Pool:
    """Threads that take work in its order. None of them keeps the process, which Qt's own pool does: one that hangs would for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._began: dict[int, float] = {}
        self._threads = 0

    def start(self, job: _Job) -> None:
        """Do `job` as soon as there is room."""
        with self._changed:
            self._waiting.append(job)
            if self._threads == len(self._began):  # none is free, so that one can look for room
                self._threads += 1
                threading.Thread(target=self._work, name="background", daemon=True).start()
            self._changed.notify()

    def wait(self, seconds: float) -> bool:
        """Whether all is done within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._began, seconds)

    def _work(self) -> None:
        me = threading.get_ident()
        while (job := self._next(me)) is not None:
            job.run()
            del job  # what it holds belongs to the window's thread
            with self._changed:
                del self._began[me]
                self._changed.notify_all()

    def _next(self, me: int) -> _Job | None:
        with self._changed:
            while True:
                now = time.monotonic()
                recent = [began for began in self._began.values() if now - began < HANGS_S]
                if self._waiting and len(recent) < AT_ONCE:
                    self._began[me] = now
                    job = self._waiting.popleft()
                    if self._waiting and self._threads == len(self._began):
                        self._threads += 1
                        threading.Thread(target=self._work, name="background", daemon=True).start()
                    return job
                rested = not self._changed.wait(min(recent) + HANGS_S - now if self._waiting else REST_S)
                if rested and not self._waiting:
                    self._threads -= 1
                    return None


_pool = _Pool()


def wait(seconds: float) -> bool:
    """Whether all work in the background is done within `seconds`."""
    return _pool.wait(seconds)


def in_background[T](
    owner: QObject, work: Callable[[], T], done: Callable[[T], object], failed: Callable[[OperatorError], object] | None = None
) -> None:
    """Run `work` in a thread; then `done(result)` or `failed(error)` in the thread of `owner`, if `owner` still lives.

    Without `failed`, an error is only written to the log.
    """
    answer = _Answer(owner)

    def finish(call: Callable[[], object]) -> None:
        answer.deleteLater()
        call()

    answer.done.connect(lambda result: finish(lambda: done(result)))
    answer.failed.connect(lambda error: finish(lambda: failed(error) if failed is not None else log.warning("%s", error)))
    app = QCoreApplication.instance()
    if app is not None and not app.property("waits-for-background"):
        app.setProperty("waits-for-background", True)
        app.aboutToQuit.connect(lambda: wait(LEAVE_S))
    _pool.start(_Job(work, answer))
