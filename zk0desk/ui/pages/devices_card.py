"""What each device is doing now: load, temperature, free memory. Looked at every few seconds while it is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QGridLayout, QProgressBar

from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.widgets import Card, ElidedLabel, Text

if TYPE_CHECKING:
    from zk0desk.training.load_look import DeviceLoad

EVERY_MS = 2000


class DevicesCard(Card):
    """A row a device. Nothing is asked while the card is hidden, and nothing on the window's thread."""

    def __init__(self) -> None:
        super().__init__("Right now")
        self.rows: list[_Row] = []
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(theme.SPACE_4)
        self._grid.setVerticalSpacing(theme.SPACE_2)
        self._grid.setColumnStretch(0, 1)
        self.body.addLayout(self._grid)
        self._asking = False
        self._timer = QTimer(self)
        self._timer.setInterval(EVERY_MS)
        self._timer.timeout.connect(self.look)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self._timer.start()
        QTimer.singleShot(0, self, self.look)

    def hideEvent(self, event: QHideEvent) -> None:
        self._timer.stop()
        super().hideEvent(event)

    def look(self) -> None:
        """Look once, in the background; a look that is still under way is waited for."""
        if self._asking or not self.isVisible():
            return
        self._asking = True

        def ask() -> list[DeviceLoad]:
            from zk0desk.training.load_look import look_at_load

            return look_at_load()

        in_background(self, ask, self.show_loads, lambda _error: self._answered())

    def _answered(self) -> None:
        self._asking = False

    def show_loads(self, loads: list[DeviceLoad]) -> None:
        """Show `loads`, each in its row."""
        self._answered()
        while len(self.rows) < len(loads):
            self.rows.append(_Row(self._grid, len(self.rows)))
        for row, load in zip(self.rows, loads, strict=False):
            row.show_load(load)
        for row in self.rows[len(loads) :]:
            row.hide()


class _Row:
    """A device's name, its load as a bar and in words, its temperature, and what is free of its memory."""

    def __init__(self, grid: QGridLayout, number: int) -> None:
        self.name = ElidedLabel()
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setRange(0, 100)
        self.bar.setFixedWidth(90)
        self.busy, self.temperature, self.memory = (Text("", "muted", wrap=False) for _ in range(3))
        for column, widget in enumerate((self.name, self.bar, self.busy, self.temperature, self.memory)):
            grid.addWidget(widget, number, column, Qt.AlignmentFlag.AlignVCenter if column else Qt.AlignmentFlag(0))

    def hide(self) -> None:
        for widget in (self.name, self.bar, self.busy, self.temperature, self.memory):
            widget.hide()

    def show_load(self, load: DeviceLoad) -> None:
        from zk0desk.amounts import gigabytes

        self.name.setText(load.name)
        self.bar.setVisible(load.busy is not None)
        self.bar.setValue(load.busy or 0)
        self.bar.setAccessibleName(f"Load of {load.name}")
        self.busy.setText("load not told" if load.busy is None else f"{load.busy}% busy")
        self.temperature.setText("" if load.temperature is None else f"{load.temperature} °C")
        self.memory.setText(f"{gigabytes(load.memory_free)} of {gigabytes(load.memory)} free" if load.memory else "memory not told")
        for widget in (self.name, self.busy, self.temperature, self.memory):
            widget.show()
