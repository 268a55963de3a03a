"""The few widgets that all pages are made of."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QLabel, QVBoxLayout, QWidget

from zk0desk.ui.widgets import KeyValueGrid, SecondaryButton, scrolled


def test_names_and_values_stand_in_two_columns_where_there_is_room(qtbot) -> None:
    grid = KeyValueGrid([("Robot", "so101"), ("Format", "v3.0"), ("Rate", "30 fps")], columns=2, fold_below=400)
    qtbot.addWidget(grid)

    def top(name: str) -> int:
        QApplication.processEvents()
        return next(label for label in grid.findChildren(QLabel) if label.text() == name and label.isVisible()).y()

    grid.resize(600, 100)
    grid.show()
    assert top("Robot") == top("Format") < top("Rate")
    grid.resize(300, 100)
    assert top("Robot") < top("Format") < top("Rate")
    grid.resize(600, 100)
    assert top("Robot") == top("Format") < top("Rate")


def test_return_and_space_press_a_button(qtbot) -> None:
    pressed: list[int] = []
    button = SecondaryButton("&Do it", on_click=lambda: pressed.append(1))
    qtbot.addWidget(button)
    button.show()
    for key in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space):
        qtbot.keyClick(button, key)
    assert len(pressed) == 3
    button.setEnabled(False)
    qtbot.keyClick(button, Qt.Key.Key_Return)
    assert len(pressed) == 3


def test_what_scrolls_shows_where_the_keyboard_is_and_does_not_move(qtbot) -> None:
    content = QWidget()
    column = QVBoxLayout(content)
    for number in range(60):
        column.addWidget(QLabel(f"line {number}"))
    area = scrolled(content)
    qtbot.addWidget(area)
    area.resize(200, 200)
    area.show()
    area.activateWindow()
    qtbot.waitUntil(area.isActiveWindow)
    ring = area._ring  # type: ignore[attr-defined]
    area.clearFocus()
    place = content.geometry()
    assert not ring.isVisible()
    area.setFocus()
    assert ring.isVisible() and content.geometry() == place
    qtbot.keyClick(area, Qt.Key.Key_PageDown)
    assert area.verticalScrollBar().value() > 0
