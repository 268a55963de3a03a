"""Deep checks that run in the background, one a recording: how far each is, and its answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QCoreApplication, QObject, QTimer, Signal

from zk0desk.ui.background import in_background

if TYPE_CHECKING:
    from zk0desk.control import NodeControl
    from zk0desk.training.recordings import CheckResult, PolicyNeeds, Progress


CANCEL_MS = 2000
"""How long a check that was cancelled is waited for."""


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
            control.check()  # one that was left behind tells nothing more
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

        in_background(self, look, lambda result: self._ended(control, result), lambda _error: self._ended(control, None))

    def cancel(self) -> None:
        """Stop at the next file or batch of rows; where that does not come, as on a disk that does not answer, it is left behind."""
        if (control := self._control) is not None:
            control.stop_now()
            QTimer.singleShot(CANCEL_MS, self, lambda: self._ended(control, None))

    def _on_moved(self, percent: int, what: str) -> None:
        self.percent, self.what = percent, what
        self.changed.emit()

    def _ended(self, control: NodeControl, result: CheckResult | None) -> None:
        if control is self._control:
            self._control = None
            self.done.emit(result)
