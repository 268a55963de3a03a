"""A choice of a few values, each with its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QComboBox


class ChoiceBox(QComboBox):
    """`chosen` carries the value that a person chose. Turning the wheel over it scrolls the page, unless the person is at it."""

    chosen = Signal(object)

    def __init__(self, choices: Sequence[tuple[str, Any]] = (), value: Any = None) -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMinimumHeight(30)
        self.set_choices(choices, value)
        self.activated.connect(lambda _index: self.chosen.emit(self.value))

    def set_choices(self, choices: Sequence[tuple[str, Any]], value: Any) -> None:
        """Offer `choices`, words and value of each, and show `value`. Nothing is emitted."""
        if [(self.itemText(n), self.itemData(n)) for n in range(self.count())] != list(choices):
            self.clear()
            for words, each in choices:
                self.addItem(words, each)
        self.setCurrentIndex(next((n for n in range(self.count()) if self.itemData(n) == value), 0))

    @property
    def value(self) -> Any:
        """The value that is shown."""
        return self.currentData()

    def choose(self, value: Any) -> None:
        """Choose `value`, as a person does."""
        self.setCurrentIndex(next(n for n in range(self.count()) if self.itemData(n) == value))
        self.chosen.emit(value)

    def wheelEvent(self, event: QWheelEvent) -> None:
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()
