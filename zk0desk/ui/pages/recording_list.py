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
from zk0desk.ui.pages.library_view import LibraryView
from zk0desk.ui.pages.recording_words import day, duration, megabytes, verdict
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import Badge, Caption, Card, ElidedLabel, LinkButton, SecondaryButton, scrolled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zk0desk.training.library import Entry, View

THUMBNAIL = QSize(72, 54)
WIDTH = 330


class RecordingCard(Card):
    """A recording in the list: chosen or not, picture, name, badge. Click or Enter shows it, Space chooses it."""

    def __init__(self, entry: Entry, chosen: bool, on_show: Callable[[], None], on_choose: Callable[[bool], None]) -> None:
        super().__init__()
        self.entry = entry
        self.result = result = entry.result
        self._on_show = on_show
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        recording = result.recording
        name = entry.name
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
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
        top = QHBoxLayout()
        top.setSpacing(theme.SPACE_2)
        top.addWidget(ElidedLabel(name, "bold"), 1)
        self.aside = Caption("", wrap=False)
        top.addWidget(self.aside)
        self.show_aside("name")
        texts.addLayout(top)
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

    def show_aside(self, order: str) -> None:
        """Beside the name: the day of the last change where the list is in its order, else the size."""
        recording = self.result.recording
        self.aside.setText(day(self.entry.changed) if order == "date" else megabytes(recording.bytes_on_disk) if recording else "")

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
    """The left side of the page. `show_entries` brings it to what was found.

    `asked` carries the path of a recording that is to be shown, `ticked` a path and whether it is chosen now.
    """

    asked = Signal(Path)
    ticked = Signal(Path, bool)

    def __init__(self, add_folder: Callable[[], None], look_again: Callable[[], None]) -> None:
        super().__init__()
        self.cards: dict[Path, RecordingCard] = {}
        self.order: list[Path] = []
        self.setFixedWidth(WIDTH)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_2)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search name, robot, task, camera")
        self.search.setAccessibleName("Search recordings")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._arrange)
        self.view = LibraryView()
        self.view.changed.connect(self._arrange)
        above = QVBoxLayout()
        above.setContentsMargins(0, 0, theme.SPACE_2, 0)  # as wide as the cards under it
        above.addWidget(self.search)
        above.addWidget(self.view)
        column.addLayout(above)
        self.none = Caption("")
        self.none.hide()
        column.addWidget(self.none)
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
        self.away = Caption("")
        self.away.hide()
        column.addWidget(self.away)
        column.addLayout(buttons)

    def show_entries(self, entries: Sequence[Entry], chosen: set[Path], away: Sequence[Path] = (), silent: Sequence[Path] = ()) -> None:
        """A card for each of `entries`; those of `chosen` are ticked. `away` are folders that are not there now, `silent` take long."""
        results = {entry.result.path: entry for entry in entries}
        # What is gone, or is found to be different now, gets another card.
        for path in [path for path in self.cards if path not in results or self.cards[path].entry != results[path]]:
            card = self.cards.pop(path)
            card.hide()
            card.deleteLater()
        for path, entry in results.items():
            if path not in self.cards:
                card = RecordingCard(entry, path in chosen, partial(self.asked.emit, path), partial(self.ticked.emit, path))
                self.cards[path] = card
                card.picture.fetch_when_seen(entry.result, 0, 160)
        self.away.setVisible(bool(away or silent))
        said = [f"{len(away)} folders are not there now." if len(away) > 1 else f"{away[0]} is not there now."] if away else []
        if silent:
            names = silent[0].name if len(silent) == 1 else f"{len(silent)} recordings"
            said.append(
                f"{names} takes long to check: its disk may be slow, or gone."
                if len(silent) == 1
                else f"{names} take long to check: their disk may be slow, or gone."
            )
        self.away.setText(" ".join(said))
        self.away.setToolTip("\n".join(map(str, [*away, *silent])))
        self.view.show_choices(entries)
        self.order = []
        self._arrange()

    def _arrange(self) -> None:
        """Show what the search and the filters let through, in the order that is asked for."""
        from zk0desk.training.library import arrange

        view: View = self.view.view(self.search.text())
        shown = [entry.result.path for entry in arrange((card.entry for card in self.cards.values()), view)]
        there = set(shown)
        for path, card in self.cards.items():
            card.setVisible(path in there)
            card.show_aside(view.order)
        if shown != self.order:
            self.order = shown
            before: QWidget = self.view.last
            for place, path in enumerate(shown):
                card = self.cards[path]
                if self._cards.indexOf(card) != place:
                    self._cards.removeWidget(card)
                    self._cards.insertWidget(place, card)
                for each in (card, card.box):  # they came later than the buttons below them
                    QWidget.setTabOrder(before, each)
                    before = each
            QWidget.setTabOrder(before, self.add)
            QWidget.setTabOrder(self.add, self.again)
        hidden = len(self.cards) - len(shown)
        self.none.setText(f"{hidden} of {len(self.cards)} hidden by the {'filter' if view.filters else 'search'}.")
        self.none.setVisible(bool(hidden))

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
