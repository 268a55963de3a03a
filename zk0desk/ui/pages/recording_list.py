"""The recordings that were found, as a list with a search: which are chosen, and which one is shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QKeyEvent, QMouseEvent
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.pages.camera_table import CameraPicture
from zk0desk.ui.pages.recording_words import duration, verdict
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import Badge, Card, ElidedLabel, LinkButton, SecondaryButton, scrolled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zk0desk.training.recordings import CheckResult

THUMBNAIL = QSize(76, 57)
WIDTH = 330


class RecordingCard(Card):
    """A recording in the list: chosen or not, picture, name, badge. Click or Enter shows it, Space chooses it."""

    def __init__(self, result: CheckResult, chosen: bool, on_show: Callable[[], None], on_choose: Callable[[bool], None]) -> None:
        super().__init__()
        self.result = result
        self._on_show = on_show
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        recording = result.recording
        name = recording.name if recording else result.path.name
        self.words = f"{name} {recording.robot if recording else ''} {' '.join(recording.tasks) if recording else ''}".lower()
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_3)
        self.box = TickBox()
        self.box.setAccessibleName(f"Train on {name}")
        self.box.setChecked(chosen)
        self.box.setEnabled(result.status == "ok" or chosen)
        if not self.box.isEnabled():
            self.box.setToolTip("It cannot be trained on as it is. The check at the right says why.")
        self.box.toggled.connect(on_choose)
        row.addWidget(self.box)
        self.picture = CameraPicture(THUMBNAIL, f"Picture of {name}", fill=True)
        row.addWidget(self.picture)
        texts = QVBoxLayout()
        texts.setSpacing(2)
        texts.addWidget(ElidedLabel(name, "bold"))
        if recording:
            facts = [recording.robot or "robot not named", f"{recording.episodes} episodes", duration(recording.duration)]
            if result.status == "repairable" and recording.version != "v3.0":
                facts[2] = f"format {recording.version}"
            texts.addWidget(ElidedLabel(" · ".join(facts), "caption"))
        else:
            texts.addWidget(ElidedLabel(str(result.path.parent), "caption"))
        kind, words = verdict(result)
        self.badge = Badge(kind, words)
        texts.addWidget(self.badge, 0, Qt.AlignmentFlag.AlignLeft)  # else the badge's own width would limit the column's
        row.addLayout(texts, 1)
        self.body.addLayout(row)
        self.setAccessibleName(f"{name}: {words}")

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.setFocus()
        self._on_show()
        super().mousePressEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self._on_show()
        elif event.key() == Qt.Key.Key_Space and self.box.isEnabled():
            self.box.toggle()
        elif event.key() in (Qt.Key.Key_Down, Qt.Key.Key_Up):
            self.focusNextPrevChild(event.key() == Qt.Key.Key_Down)
        else:
            super().keyPressEvent(event)


class RecordingList(QWidget):
    """The left side of the page. `show_results` brings it to what was found.

    `asked` carries the path of a recording that is to be shown, `ticked` a path and whether it is chosen now.
    """

    asked = Signal(Path)
    ticked = Signal(Path, bool)

    def __init__(self, add_folder: Callable[[], None], look_again: Callable[[], None]) -> None:
        super().__init__()
        self.cards: dict[Path, RecordingCard] = {}
        self.setFixedWidth(WIDTH)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_2)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search recordings")
        self.search.setAccessibleName("Search recordings")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._filter)
        above = QHBoxLayout()
        above.setContentsMargins(0, 0, theme.SPACE_2, 0)  # as wide as the cards under it
        above.addWidget(self.search)
        column.addLayout(above)
        content = QWidget()
        self._cards = QVBoxLayout(content)
        self._cards.setContentsMargins(0, 0, theme.SPACE_2, 0)
        self._cards.setSpacing(theme.SPACE_2)
        self._cards.addStretch(1)
        column.addWidget(scrolled(content), 1)
        buttons = QHBoxLayout()
        self.add, self.again = (
            SecondaryButton("Add f&older", "folder-plus-outline", add_folder),
            LinkButton("&Look again", "refresh", look_again),
        )
        buttons.addWidget(self.add)
        buttons.addWidget(self.again)
        buttons.addStretch(1)
        column.addLayout(buttons)

    def show_results(self, results: Mapping[Path, CheckResult], chosen: set[Path]) -> None:
        """A card for each of `results`; those of `chosen` are ticked."""
        # What is gone, or is found to be different now, gets another card.
        for path in [path for path in self.cards if path not in results or self.cards[path].result != results[path]]:
            self.cards.pop(path).deleteLater()
        for path, result in results.items():
            if path not in self.cards:
                card = RecordingCard(result, path in chosen, partial(self.asked.emit, path), partial(self.ticked.emit, path))
                self.cards[path] = card
                self._cards.insertWidget(self._cards.count() - 1, card)
                card.picture.fetch(result, 0, 160)
        before: QWidget = self.search
        for card in self.cards.values():  # they came later than the buttons below them
            for each in (card, card.box):
                QWidget.setTabOrder(before, each)
                before = each
        QWidget.setTabOrder(before, self.add)
        QWidget.setTabOrder(self.add, self.again)
        self._filter(self.search.text())

    def mark_shown(self, path: Path) -> None:
        """Show which recording the details are of."""
        for each, card in self.cards.items():
            card.set_chosen(each == path)

    def tick(self, chosen: set[Path]) -> None:
        """Tick those of `chosen` and no other, without telling."""
        for path, card in self.cards.items():
            if card.box.isChecked() != (path in chosen):
                card.box.blockSignals(True)
                card.box.setChecked(path in chosen)
                card.box.blockSignals(False)

    def _filter(self, text: str) -> None:
        for card in self.cards.values():
            card.setVisible(text.lower() in card.words)
