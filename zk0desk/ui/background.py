"""Work that would hold the window: done in a thread, its result handed to the window's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable

import shiboken6
from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal

from zk0desk.errors import OperatorError

log = logging.getLogger(__name__)


class _Answer(QObject):
    done = Signal(object)
    failed = Signal(object)


class _Job(QRunnable):
    def __init__(self, work: Callable[[], object], answer: _Answer) -> None:
        super().__init__()
        self._work, self._answer = work, answer

    def run(self) -> None:
        """Called by Qt in a thread of the pool."""
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
    QThreadPool.globalInstance().start(_Job(work, answer))
