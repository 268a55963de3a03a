"""The sidebar: the pages, and the promise at the bottom."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import QButtonGroup, QHBoxLayout, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.pages import PAGES, PageSpec
from zk0desk.ui.widgets import Caption, IconLabel, PressButton, Text, icon

WIDTH = 196


class Sidebar(QWidget):
    """Buttons for the pages; `chosen` carries a page's id."""

    chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("zk", "side")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setFixedWidth(WIDTH)
        column = QVBoxLayout(self)
        column.setContentsMargins(theme.SPACE_3, theme.SPACE_4, theme.SPACE_3, theme.SPACE_3)
        column.setSpacing(theme.SPACE_1)
        brand = QHBoxLayout()
        brand.setContentsMargins(10, 0, 0, theme.SPACE_3)
        brand.setSpacing(10)
        brand.addWidget(IconLabel("robot-industrial", "accent", 24))
        brand.addWidget(Text("zk0desk", "brand", wrap=False), 1)
        column.addLayout(brand)
        self._group = QButtonGroup(self)
        self.buttons: dict[str, PressButton] = {}
        for number, spec in enumerate(PAGES[:-1], start=1):
            column.addWidget(self._button(spec, number))
        column.addStretch(1)
        promise = QHBoxLayout()
        promise.setContentsMargins(10, 0, 0, theme.SPACE_2)
        promise.setSpacing(theme.SPACE_2)
        promise.addWidget(IconLabel("shield-check-outline", "ok", 16))
        promise.addWidget(Caption("Recordings stay here", wrap=False), 1)
        column.addLayout(promise)
        column.addWidget(self._button(PAGES[-1], len(PAGES)))

    def _button(self, spec: PageSpec, number: int) -> PressButton:
        button = PressButton(icon(spec.icon_name, "muted", "accent"), "  " + spec.label)
        button.setProperty("zk", "nav")
        button.setCheckable(True)
        button.setIconSize(QSize(18, 18))
        button.setAccessibleName(spec.title)
        button.setToolTip(f"{spec.title} (Ctrl+{number})")
        button.clicked.connect(lambda: self.chosen.emit(spec.page_id))
        self._group.addButton(button)
        self.buttons[spec.page_id] = button
        return button

    def mark(self, page_id: str) -> None:
        """Show which page is open."""
        self.buttons[page_id].setChecked(True)
