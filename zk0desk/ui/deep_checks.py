"""Deep checks that run in the background, one a recording: how far each is, and its answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QCoreApplication, QObject, Signal

from zk0desk.errors import OperatorError
from zk0desk.ui.background import in_background

if TYPE_CHECKING:
    from zk0desk.control import NodeControl
    from zk0desk.training.recordings import CheckResult, PolicyNeeds, Progress


class DeepCheck(QObject):
    """The deep check of one recording. `changed` fires when there is more to show; `done` carries the answer, or None after a cancel."""

    changed = Signal()
    _moved = Signal(int, str)
    done = Signal(object)

    def __init__(self, path: Path, parent: QObject) -> None:
        super().__init__(parent)
        self.path = path
        self.percent, self.what = 0, ""
        self._control: NodeControl | None = None
        self._moved.connect(self._on_moved)
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self.cancel)

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self._control is not None

    def start(self, needs: PolicyNeeds, *, again: bool = False) -> None:
        """Begin, unless it runs."""
        if self._control is not None:
            return
        from zk0desk.control import NodeControl, Stopped

        control = self._control = NodeControl()
        self.destroyed.connect(control.stop_now)
        path, moved = self.path, self._moved
        last = -1

        def progress(step: Progress) -> None:
            nonlocal last
            percent = 100 * step.done // max(1, step.total)
            if percent != last:
                last = percent
                moved.emit(percent, step.what)

        def look() -> CheckResult | None:
            from zk0desk.training.recordings import deep_check

            try:
                return deep_check(path, needs, control=control, progress=progress, again=again)
            except Stopped:
                return None

        in_background(self, look, self._ended, self._failed)

    def cancel(self) -> None:
        """Stop at the next file or batch of rows."""
        if self._control is not None:
            self._control.stop_now()

    def _on_moved(self, percent: int, what: str) -> None:
        self.percent, self.what = percent, what
        self.changed.emit()

    def _ended(self, result: CheckResult | None) -> None:
        self._control = None
        self.done.emit(result)

    def _failed(self, _error: OperatorError) -> None:
        self._ended(None)
