"""The row under the search: by what the recordings are sorted, and which of them are shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from PySide6.QtCore import Signal
from PySide6.QtGui import QAction, QActionGroup
from PySide6.QtWidgets import QHBoxLayout, QMenu, QWidget

from zk0desk.ui import theme
from zk0desk.ui.widgets import LinkButton

if TYPE_CHECKING:
    from zk0desk.training.library import Entry, View

HEALTH_WORDS = {"ok": "Ready", "repairable": "To be repaired", "unusable": "Cannot be used"}
PARTS = (("healths", "Health"), ("robots", "Robot"), ("cameras", "Camera"))


class LibraryView(QWidget):
    """Sort and filter, each a menu. `changed` fires when a person chose something else."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        from zk0desk.training.library import ORDERS

        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(theme.SPACE_1)
        self.sort_button = LinkButton("Sort &by name", "sort", self._open_sort)
        self.filter_button = LinkButton("Filter", "filter-variant", self._open_filter)
        self.last = self.filter_button
        row.addWidget(self.sort_button)
        row.addWidget(self.filter_button)
        row.addStretch(1)
        self.sort_menu, self.filter_menu = QMenu(self), QMenu(self)
        group = QActionGroup(self)
        for order in ORDERS:
            action = self.sort_menu.addAction(order.capitalize())
            action.setCheckable(True)
            action.setData(order)
            group.addAction(action)
        group.actions()[0].setChecked(True)
        group.triggered.connect(self._say)
        self._orders = group
        self.sort_menu.addSeparator()
        self.reverse = self.sort_menu.addAction("The other way round")
        self.reverse.setCheckable(True)
        self.reverse.triggered.connect(self._say)
        self._filters: dict[str, dict[str, QAction]] = {part: {} for part, _ in PARTS}
        self._shown: object = None

    def view(self, search: str) -> View:
        """What is to be shown, with `search`."""
        from zk0desk.training.library import View

        chosen = self._orders.checkedAction()
        sets = {part: frozenset(value for value, action in self._filters[part].items() if action.isChecked()) for part, _ in PARTS}
        return View(search, chosen.data() if chosen else "name", self.reverse.isChecked(), **sets)

    def show_choices(self, entries: Iterable[Entry]) -> None:
        """Offer what `entries` can be filtered by; what is filtered by stays so while a recording has it."""
        from zk0desk.training.library import choices

        found = choices(entries)
        if found == self._shown:
            return
        self._shown = found
        on = {part: {value for value, action in self._filters[part].items() if action.isChecked()} for part, _ in PARTS}
        self.filter_menu.clear()
        for part, title in PARTS:
            counts: dict[str, int] = getattr(found, part)
            self._filters[part] = {}
            if not counts:
                continue
            heading = self.filter_menu.addAction(title)
            heading.setEnabled(False)
            for value, count in counts.items():
                words = HEALTH_WORDS.get(value, value).replace("&", "&&")
                action = self.filter_menu.addAction(f"{words} ({count})")
                action.setCheckable(True)
                action.setChecked(value in on[part])
                action.triggered.connect(self._say)
                self._filters[part][value] = action
        self.filter_menu.addSeparator()
        self.filter_menu.addAction("Show all", self.show_all)
        self._name()

    def show_all(self) -> None:
        """Filter by nothing."""
        for actions in self._filters.values():
            for action in actions.values():
                action.setChecked(False)
        self._say()

    def _say(self, *_: object) -> None:
        self._name()
        self.changed.emit()

    def _name(self) -> None:
        view = self.view("")
        self.sort_button.set_text(f"Sort &by {view.order}{', reversed' if view.reverse else ''}")
        count = len(view.healths) + len(view.robots) + len(view.cameras)
        self.filter_button.set_text(f"Filter: {count}" if count else "Filter")

    def _open_sort(self) -> None:
        self.sort_menu.popup(self.sort_button.mapToGlobal(self.sort_button.rect().bottomLeft()))

    def _open_filter(self) -> None:
        self.filter_menu.popup(self.filter_button.mapToGlobal(self.filter_button.rect().bottomLeft()))
