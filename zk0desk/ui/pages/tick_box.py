"""A check box whose frame can be seen on a dark surface too."""

from __future__ import annotations

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QCheckBox, QStyle, QStyleOptionButton

from zk0desk.ui import theme
from zk0desk.ui.icons import icon


class TickBox(QCheckBox):
    """Fusion draws the frame darker than its surroundings, which is invisible in the dark; here it has the theme's control border."""

    def paintEvent(self, _event: QPaintEvent) -> None:
        option, words = QStyleOptionButton(), QStyleOptionButton()
        self.initStyleOption(option)
        self.initStyleOption(words)
        box = self.style().subElementRect(QStyle.SubElement.SE_CheckBoxIndicator, option, self)
        painter = QPainter(self)
        words.rect = self.style().subElementRect(QStyle.SubElement.SE_CheckBoxContents, option, self)  # type: ignore[attr-defined]
        self.style().drawControl(QStyle.ControlElement.CE_CheckBoxLabel, words, painter, self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if not self.isEnabled():
            painter.setOpacity(0.45)
        on = self.isChecked()
        over = bool(option.state & QStyle.StateFlag.State_MouseOver)  # type: ignore[attr-defined]
        frame = "accent" if on or self.hasFocus() else "text" if over and self.isEnabled() else "control"
        painter.setPen(QPen(QColor(theme.color(frame)), 2.0 if self.hasFocus() else 1.2))
        painter.setBrush(QColor(theme.color("accent" if on else "surface")))
        painter.drawRoundedRect(QRectF(box).adjusted(0.5, 0.5, -0.5, -0.5), 3, 3)
        if on:
            icon("check-bold", "on-accent").paint(painter, box.adjusted(1, 1, -1, -1), Qt.AlignmentFlag.AlignCenter)
