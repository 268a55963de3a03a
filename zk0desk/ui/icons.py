"""Icons of one set (Material Design Icons), drawn in the theme's colour of the moment."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QRect, QSize, Qt
from PySide6.QtGui import QIcon, QIconEngine, QPainter, QPixmap

from zk0desk.resources import resource
from zk0desk.ui import theme


class _GlyphEngine(QIconEngine):
    """Paints a glyph when it is asked to, so that a change of the theme needs a repaint only."""

    def __init__(self, name: str, color: str, color_on: str) -> None:
        super().__init__()
        self._name, self._color, self._color_on = name, color, color_on

    def paint(self, painter: QPainter, rect: QRect, mode: QIcon.Mode, state: QIcon.State) -> None:
        import qtawesome

        painter.save()
        name = self._color_on if state == QIcon.State.On else self._color
        if mode == QIcon.Mode.Disabled:
            name = "muted"
        painter.setPen(theme.color(name, 0.6 if mode == QIcon.Mode.Disabled else 1.0))
        font = qtawesome.font("mdi6", max(1, rect.height()))
        font.setPixelSize(max(1, rect.height()))
        painter.setFont(font)
        painter.drawText(rect, int(Qt.AlignmentFlag.AlignCenter), qtawesome.charmap(f"mdi6.{self._name}"))
        painter.restore()

    def pixmap(self, size: QSize, mode: QIcon.Mode, state: QIcon.State) -> QPixmap:
        result = QPixmap(size)
        result.fill(Qt.GlobalColor.transparent)
        painter = QPainter(result)
        self.paint(painter, QRect(QPoint(0, 0), size), mode, state)
        painter.end()
        return result


def window_icon() -> QIcon:
    """zk0desk's own icon, for the window and the tray: a desktop knows it from the menu entry, and there may be none."""
    found = QIcon()
    for size in (16, 24, 32, 48, 64, 128):
        found.addFile(str(resource(f"icons/hicolor/{size}x{size}/apps/org.zk0.Desk.png")), QSize(size, size))
    return found


def icon(name: str, color: str = "text", color_on: str = "") -> QIcon:
    """The icon `name` of Material Design Icons 6 (`chart-line`; a prefix `mdi6.` is accepted) in the token `color`.

    `color_on` is for checked buttons. It follows the theme.
    """
    return QIcon(_GlyphEngine(name.removeprefix("mdi6."), color, color_on or color))
