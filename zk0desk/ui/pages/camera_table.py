"""The cameras of a recording: a picture of each, and the slot of the policy that it fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QPoint, QRect, QSize, Qt
from PySide6.QtGui import QColor, QImage, QPainter, QPaintEvent, QPixmap
from PySide6.QtWidgets import QComboBox, QGridLayout, QLabel, QVBoxLayout

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.icons import icon
from zk0desk.ui.widgets import Caption, Card, FindingRow

if TYPE_CHECKING:
    from zk0desk.settings import ChosenRecording
    from zk0desk.training.recordings import CheckResult, PolicyNeeds

PICTURE = QSize(172, 129)
"""Two beside each other fit the smallest window."""


class CameraPicture(QLabel):
    """A camera's picture, or a plain surface until it is there. It is shown whole, or cut to fill its place (`fill`)."""

    def __init__(self, size: QSize, name: str, *, fill: bool = False) -> None:
        super().__init__()
        self._size, self._fill = size, fill
        self._later: Callable[[], None] | None = None
        self.setFixedSize(size)
        self.setAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.setAccessibleName(name)

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._later is not None:
            later, self._later = self._later, None
            later()
        if self.pixmap().isNull():
            painter = QPainter(self)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(theme.color("border")))
            painter.drawRoundedRect(self.rect(), 4, 4)
            side = min(24, self.height() // 2)
            where = QRect(0, 0, side, side)
            where.moveCenter(self.rect().center())
            icon("image-off-outline", "muted").paint(painter, where)
            painter.end()
        super().paintEvent(event)

    def fetch_when_seen(self, result: CheckResult, camera: int, width: int) -> None:
        """`fetch`, but not before the picture is painted: a long list reads only what is looked at."""
        self._later = lambda: self.fetch(result, camera, width)

    def fetch(self, result: CheckResult, camera: int, width: int) -> None:
        """Read the picture of camera number `camera` in the background, `width` pixels wide; nothing where there is none."""
        recording = result.recording
        if recording is None or len(recording.cameras) <= camera or result.status == "unusable":
            return
        path, key = result.path, recording.cameras[camera].key

        def read() -> Any:
            from zk0desk.training.recordings import thumbnail

            return thumbnail(path, key, width)

        import shiboken6

        in_background(self, read, lambda frame: self.show_frame(frame) if shiboken6.isValid(self) else None)

    def show_frame(self, frame: Any) -> None:
        """`frame`: H x W x 3, uint8."""
        height, width, _ = frame.shape
        image = QImage(frame.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
        ratio = self.devicePixelRatioF()
        size = self._size * ratio
        way = Qt.AspectRatioMode.KeepAspectRatioByExpanding if self._fill else Qt.AspectRatioMode.KeepAspectRatio
        pixmap = QPixmap.fromImage(image).scaled(size, way, Qt.TransformationMode.SmoothTransformation)
        if self._fill:
            shown = QRect(QPoint(0, 0), size)
            shown.moveCenter(pixmap.rect().center())
            pixmap = pixmap.copy(shown)
        pixmap.setDevicePixelRatio(ratio)
        self.setPixmap(pixmap)


class CameraTable(Card):
    """The cameras of a checked recording, each with the slot of the policy that it fills.

    `on_slots` is given the slots, name of a slot to key of a camera, after a person changed one. They can be changed
    only where the recording is `chosen`.
    """

    def __init__(
        self, result: CheckResult, needs: PolicyNeeds, chosen: ChosenRecording | None, on_slots: Callable[[dict[str, str]], None]
    ) -> None:
        from zk0desk.training.recordings import map_cameras

        super().__init__("Cameras")
        recording = result.recording
        assert recording is not None
        self._on_slots = on_slots
        try:
            mapping = map_cameras(recording, needs, chosen.cameras if chosen else {})
        except OperatorError as error:
            self.body.addWidget(FindingRow(_Trouble(error)))
            mapping = map_cameras(recording, needs)
        self._slots = mapping.slots
        slot_of = {camera: slot for slot, camera in mapping.slots.items()}
        grid = QGridLayout()
        grid.setSpacing(theme.SPACE_3)
        self.body.addLayout(grid)
        for number, camera in enumerate(recording.cameras):
            cell = QVBoxLayout()
            cell.setSpacing(4)
            picture = CameraPicture(PICTURE, f"Picture of camera {camera.name}")
            picture.fetch(result, number, 2 * PICTURE.width())
            cell.addWidget(picture)
            size = f"{camera.width}x{camera.height}" if camera.width else "size not said"
            cell.addWidget(Caption(f"{camera.name}, {size}", wrap=False))
            choice = QComboBox()
            choice.setAccessibleName(f"Slot of the policy for camera {camera.name}")
            choice.addItem("not used", "")
            for slot in needs.camera_slots:
                choice.addItem(f"slot {slot.rsplit('.', 1)[-1]}", slot)
            choice.setCurrentIndex(max(0, choice.findData(slot_of.get(camera.key, ""))))
            choice.setEnabled(chosen is not None)
            choice.setToolTip("" if chosen is not None else "Choose the recording first.")
            choice.activated.connect(lambda _n, key=camera.key, box=choice: self._map(key, box.currentData()))
            cell.addWidget(choice)
            grid.addLayout(cell, number // 2, number % 2, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
        grid.setColumnStretch(2, 1)
        if mapping.ambiguous:
            self.body.addWidget(Caption("The names do not say which camera is which: please look at the slots."))
        if mapping.missing:
            empty = ", ".join(slot.rsplit(".", 1)[-1] for slot in mapping.missing)
            self.body.addWidget(Caption(f"The policy's slots without a camera ({empty}) are masked."))

    def _map(self, camera: str, slot: str) -> None:
        slots = {each: key for each, key in self._slots.items() if key != camera and each != slot}
        if slot:
            slots[slot] = camera
        self._on_slots({each.rsplit(".", 1)[-1]: key for each, key in slots.items()})


class _Trouble:
    severity = "warning"

    def __init__(self, error: OperatorError) -> None:
        self.what, self.why, self.remedy = error.what, error.why, error.remedy
