"""The picture of one camera in the episode viewer."""

from __future__ import annotations

from PySide6.QtCore import QRect, Qt
from PySide6.QtGui import QImage, QPainter, QPaintEvent
from PySide6.QtWidgets import QWidget

from zk0desk.ui import theme


class CameraView(QWidget):
    """The picture of one camera, as large as fits; words where there is none."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.image: QImage | None = None
        self.words = "Decoding…"
        self.setMinimumSize(120, 90)
        self.setAccessibleName(f"Camera {name}")

    def show_picture(self, picture: QImage | str, frame: int) -> None:
        """Show a picture, or why there is none."""
        self.image, self.words = (picture, "") if isinstance(picture, QImage) else (None, picture)
        self.setAccessibleDescription(self.words or f"Frame {frame}")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw it."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), theme.color("side"))
        if self.image is None:
            painter.setPen(theme.color("muted"))
            flags = Qt.AlignmentFlag.AlignCenter.value | Qt.TextFlag.TextWordWrap.value
            painter.drawText(self.rect().adjusted(12, 12, -12, -12), flags, self.words)
            return
        size = self.image.size().scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio)
        place = QRect((self.width() - size.width()) // 2, (self.height() - size.height()) // 2, size.width(), size.height())
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.drawImage(place, self.image)
