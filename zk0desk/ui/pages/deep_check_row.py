"""The line under a recording's findings: check every frame, how far that is, cancel."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QWidget

from zk0desk.ui import theme
from zk0desk.ui.deep_checks import DeepCheck
from zk0desk.ui.widgets import Caption, LinkButton


class DeepCheckRow(QWidget):
    """Shows `check`; `start` begins it. `was_deep`: the findings above are a deep check's."""

    def __init__(self, check: DeepCheck, start: Callable[[], object], *, was_deep: bool) -> None:
        super().__init__()
        self._check = check
        row = QHBoxLayout(self)
        row.setContentsMargins(0, theme.SPACE_1, 0, 0)
        row.setSpacing(theme.SPACE_3)
        self.button = LinkButton("Check e&very frame again" if was_deep else "Check e&very frame", "magnify-scan", start)
        self.words = Caption("")
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("How much is checked")
        self.cancel = LinkButton("Ca&ncel", "", check.cancel)
        row.addWidget(self.button)
        row.addWidget(self.words, 1)
        row.addWidget(self.progress, 1)
        row.addWidget(self.cancel)
        self._was_deep = was_deep
        # Methods, not functions: these connections end with this widget.
        check.changed.connect(self.refresh)
        check.done.connect(self._on_done)
        self.refresh()

    def _on_done(self, _result: object) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Show how it is now."""
        running = self._check.running
        self.button.setVisible(not running)
        self.progress.setVisible(running)
        self.cancel.setVisible(running)
        self.progress.setValue(self._check.percent)
        if running:
            self.words.setText(f"{self._check.percent} %  {self._check.what}")
        else:
            self.words.setText("Every row was read, and every episode's video looked into." if self._was_deep else "")
