"""How far the work on the engine is: bytes and time left in words, a bar, pause and cancel."""

from __future__ import annotations

from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.engine_work import GOES_ON, EngineWork
from zk0desk.ui.pages.engine_words import DOING
from zk0desk.ui.widgets import Caption, SecondaryButton, Text

PAUSABLE = (*GOES_ON, "repair", "verify", "export")
ABOUT = "You can close zk0desk at any time: what has arrived is kept, and the next start goes on."


class EngineProgress(QWidget):
    """Seen while there is work. `refresh` shows how far it is."""

    def __init__(self, work: EngineWork) -> None:
        super().__init__()
        self._work = work
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_2)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress of the engine")
        column.addWidget(self.bar)
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        self.words = Text("")
        self.pause = SecondaryButton("Pause", "pause", lambda: work.pause(not work.paused))
        self.cancel = SecondaryButton("Cancel", "", work.cancel)
        row.addWidget(self.words, 1)
        row.addWidget(self.pause)
        row.addWidget(self.cancel)
        column.addLayout(row)
        self.about = Caption(ABOUT)
        column.addWidget(self.about)

    def refresh(self) -> None:
        """Show how far it is."""
        work, step = self._work, self._work.step
        self.setVisible(work.busy)
        if not work.busy:
            return
        self.bar.setRange(0, 1000 if step.total > 0 else 0)
        if step.total > 0:
            self.bar.setValue(min(1000, 1000 * step.done // step.total))
        self.words.setText(words_of(work))
        self.pause.set_text("Resume" if work.paused else "Pause")
        self.pause.set_icon("play" if work.paused else "pause")
        self.pause.setAccessibleName("Resume the work on the engine" if work.paused else "Pause the work on the engine")
        self.pause.setVisible(work.action in PAUSABLE and step.phase not in ("testing", "compiling") and not work.stopping)
        self.cancel.setVisible(not work.in_use)
        self.cancel.setEnabled(not work.stopping)
        self.about.setVisible(work.action in GOES_ON and not work.in_use)


def words_of(work: EngineWork) -> str:
    """What is done and how far it is, in one sentence."""
    if work.stopping:
        return "Stopping; what has arrived is kept."
    words = work.step.words or DOING[work.action][1]
    return f"Paused. {words}" if work.paused else words
