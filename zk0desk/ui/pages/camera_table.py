"""The policy's camera slots: the camera of the recording that fills each, and what the policy sees of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QPoint, QRect, QSize, Qt, QTimer
from PySide6.QtGui import QColor, QHideEvent, QImage, QPainter, QPaintEvent, QPixmap, QShowEvent
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QLabel, QVBoxLayout

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.icons import icon
from zk0desk.ui.widgets import Caption, Card, FindingRow, IconLabel, Text

if TYPE_CHECKING:
    from zk0desk.settings import ChosenRecording
    from zk0desk.training.recordings import Camera, CheckResult, PolicyNeeds

PICTURE, SQUARE, SMALL = QSize(100, 75), QSize(75, 75), QSize(80, 60)
"""A row of a camera's and a slot's picture, with words, fits the smallest window."""
MOMENTS, MOMENT_MS = 12, 500
"""How many moments of a recording are shown in turn, and how long each."""


class CameraPicture(QLabel):
    """A camera's picture, or a plain surface until it is there. It is shown whole, or cut to fill its place (`fill`)."""

    def __init__(self, size: QSize, name: str, *, fill: bool = False) -> None:
        super().__init__()
        self._size, self._fill = size, fill
        self._later: Callable[[], None] | None = None
        self._moments: list[Any] = []
        self._moment = 0
        self._turn = QTimer(self)
        self._turn.setInterval(MOMENT_MS)
        self._turn.timeout.connect(self._next)
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

    def fetch(self, result: CheckResult, camera: int, width: int, count: int = 1) -> None:
        """Read pictures of camera number `camera` in the background, `width` pixels wide; nothing where there is none.

        The first, or `count` moments of the recording, which are shown in turn while they are visible.
        """
        recording = result.recording
        if recording is None or len(recording.cameras) <= camera or result.status == "unusable":
            return
        path, key = result.path, recording.cameras[camera].key

        def read() -> Any:
            from zk0desk.training.thumbnails import moments

            return moments(path, key, width, count)

        import shiboken6

        in_background(self, read, lambda frames: self.play(frames) if shiboken6.isValid(self) else None)

    def play(self, frames: list[Any]) -> None:
        """Show `frames` (each H x W x 3, uint8) in turn, over and over."""
        self._moments, self._moment = frames, 0
        self.show_frame(frames[0])
        self._play_if(self.isVisible())

    def _play_if(self, seen: bool) -> None:
        if seen and len(self._moments) > 1:
            self._turn.start()
        else:
            self._turn.stop()

    def _next(self) -> None:
        self._moment = (self._moment + 1) % len(self._moments)
        self.show_frame(self._moments[self._moment])

    def showEvent(self, event: QShowEvent) -> None:
        """Play."""
        super().showEvent(event)
        self._play_if(True)

    def hideEvent(self, event: QHideEvent) -> None:
        """Rest."""
        super().hideEvent(event)
        self._play_if(False)

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


class SlotPicture(CameraPicture):
    """What the policy sees of a camera: the picture shrunk into a square, the rest black at the left and the top, as SmolVLA pads it."""

    def show_frame(self, frame: Any) -> None:
        """`frame`: H x W x 3, uint8."""
        height, width, _ = frame.shape
        image = QImage(frame.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
        ratio = self.devicePixelRatioF()
        size = self._size * ratio
        square = QPixmap(size)
        square.fill(QColor("black"))
        shown = QPixmap.fromImage(image).scaled(size, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation)
        painter = QPainter(square)
        painter.drawPixmap(size.width() - shown.width(), size.height() - shown.height(), shown)
        painter.end()
        square.setDevicePixelRatio(ratio)
        self.setPixmap(square)


class CameraTable(Card):
    """The policy's camera slots: at the left the recording's camera that fills each, at the right what the policy sees of it.

    `on_slots` is given the slots, name of a slot to key of a camera, after a person changed one. They can be changed
    only where the recording is `chosen`.
    """

    def __init__(
        self, result: CheckResult, needs: PolicyNeeds, chosen: ChosenRecording | None, on_slots: Callable[[dict[str, str]], None]
    ) -> None:
        from zk0desk.training.recordings import map_cameras

        super().__init__("Cameras in the policy's slots")
        recording = result.recording
        assert recording is not None
        self._on_slots, self._result = on_slots, result
        self._keys = [camera.key for camera in recording.cameras]
        try:
            mapping = map_cameras(recording, needs, chosen.cameras if chosen else {})
        except OperatorError as error:
            self.body.addWidget(FindingRow(_Trouble(error)))
            mapping = map_cameras(recording, needs)
        self._slots = mapping.slots
        usable = [camera for camera in recording.cameras if not camera.depth]
        for slot in needs.camera_slots:
            self.body.addLayout(self._row(slot, usable, chosen is not None))
        if mapping.unused:
            row = QHBoxLayout()
            for key in mapping.unused:
                cell = QVBoxLayout()
                cell.addWidget(self._picture(key, SMALL))
                cell.addWidget(Caption(f"{_last(key)}: not used", wrap=False))
                row.addLayout(cell)
            row.addStretch(1)
            self.body.addLayout(row)
        self.problem = Text("One slot needs a camera.", "error")
        self.problem.hide()
        self.body.addWidget(self.problem)
        if mapping.ambiguous:
            self.body.addWidget(Caption("The names do not say which camera is which: please look at the slots."))

    def _row(self, slot: str, cameras: Sequence[Camera], can_change: bool) -> QHBoxLayout:
        name, key = _last(slot), self._slots.get(slot, "")
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        row.addWidget(self._picture(key, PICTURE))
        row.addWidget(IconLabel("arrow-right"))
        seen = SlotPicture(SQUARE, f"What slot {name} sees")
        if key:
            seen.fetch(self._result, self._keys.index(key), 2 * SQUARE.width(), MOMENTS)
        row.addWidget(seen)
        words = QVBoxLayout()
        words.setSpacing(4)
        words.addStretch(1)
        words.addWidget(Text(f"Slot {name}", "bold", wrap=False))
        choice = QComboBox()
        choice.setAccessibleName(f"Camera for slot {name}")
        choice.setMinimumContentsLength(5)
        choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        choice.addItem("no camera", "")
        for camera in cameras:
            choice.addItem(camera.name, camera.key)
        choice.setCurrentIndex(max(0, choice.findData(key)))
        choice.setEnabled(can_change)
        choice.setToolTip("" if can_change else "Choose the recording first.")
        choice.activated.connect(lambda _n: self._fill(slot, choice))
        words.addWidget(choice)
        size = next((f"{camera.width}x{camera.height}" for camera in cameras if camera.key == key and camera.width), "")
        words.addWidget(Caption(size if key else "masked", wrap=False))
        words.addStretch(1)
        row.addLayout(words, 1)
        return row

    def _picture(self, key: str, size: QSize) -> CameraPicture:
        picture = CameraPicture(size, f"Picture of camera {_last(key)}" if key else "No camera")
        if key:
            picture.fetch(self._result, self._keys.index(key), 2 * size.width(), MOMENTS)
        return picture

    def _fill(self, slot: str, choice: QComboBox) -> None:
        camera: str = choice.currentData()
        slots = {each: key for each, key in self._slots.items() if key != camera and each != slot}
        if camera:
            slots[slot] = camera
        if not slots:  # an empty choice would mean: by name
            self.problem.show()
            choice.setCurrentIndex(choice.findData(self._slots[slot]) if slot in self._slots else 0)
            return
        self._on_slots({_last(each): key for each, key in slots.items()})


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


class _Trouble:
    severity = "warning"

    def __init__(self, error: OperatorError) -> None:
        self.what, self.why, self.remedy = error.what, error.why, error.remedy
