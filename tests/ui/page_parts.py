"""What the pages' tests share: waiting for the background, and dropping things on a page."""

from __future__ import annotations

from PySide6.QtCore import QCoreApplication, QMimeData, QPointF, Qt
from PySide6.QtGui import QDropEvent
from PySide6.QtWidgets import QLabel, QWidget

from zk0desk.ui import background


def settle(qtbot) -> None:
    """Let the work in the background end and its answers arrive."""
    assert background.wait(30)
    qtbot.wait(1)


def words(widget: QWidget) -> str:
    """All text that can be seen in `widget`, once what was just put there is shown."""
    QCoreApplication.processEvents()
    return "\n".join(label.text() for label in widget.findChildren(QLabel) if label.isVisible())


def drop(widget: QWidget, data: QMimeData) -> None:
    """Drop `data` on `widget`, as the desktop does."""
    copy, left, none = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    widget.dropEvent(QDropEvent(QPointF(5, 5), copy, data, left, none))
