"""Render resources/icons/org.zk0.Desk.svg into the sizes of the hicolor icon theme: `python packaging/icons.py`."""

from __future__ import annotations

import os
from pathlib import Path

SIZES = (16, 24, 32, 48, 64, 128, 256, 512)
ICONS = Path(__file__).resolve().parent.parent / "resources" / "icons"


def render(source: Path, size: int, target: Path) -> None:
    """Draw `source` (SVG) as a PNG of `size` x `size` pixels."""
    from PySide6.QtCore import Qt
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    picture = QImage(size, size, QImage.Format.Format_ARGB32_Premultiplied)
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    QSvgRenderer(str(source)).render(painter)
    painter.end()
    target.parent.mkdir(parents=True, exist_ok=True)
    if not picture.save(str(target)):
        raise OSError(f"{target} cannot be written")


def main() -> None:
    """Render all sizes."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6.QtGui import QGuiApplication

    application = QGuiApplication([])
    for size in SIZES:
        render(ICONS / "org.zk0.Desk.svg", size, ICONS / "hicolor" / f"{size}x{size}" / "apps" / "org.zk0.Desk.png")
    application.quit()


if __name__ == "__main__":
    main()
