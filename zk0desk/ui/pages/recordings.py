"""Recordings: what is on this computer, what is wrong with it, and which of it this node trains on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QRect, QSize, Qt, QTimer, QUrl
from PySide6.QtGui import (
    QColor,
    QDesktopServices,
    QDragEnterEvent,
    QDropEvent,
    QImage,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPixmap,
    QShowEvent,
)
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QStackedLayout,
    QVBoxLayout,
    QWidget,
)

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.icons import icon
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import (
    Badge,
    Banner,
    Caption,
    Card,
    ElidedLabel,
    EmptyState,
    FindingRow,
    Heading,
    KeyValueGrid,
    LinkButton,
    PageHeader,
    PrimaryButton,
    SecondaryButton,
    Text,
    scrolled,
)  # fmt: skip

if TYPE_CHECKING:
    from zk0desk.settings import ChosenRecording, Settings
    from zk0desk.training.recordings import CheckResult, PolicyNeeds

THUMBNAIL = QSize(76, 57)


def duration(seconds: float) -> str:
    """`53 s`, `21 min`, `1 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


def thousands(count: int) -> str:
    """38 342 rather than 38342."""
    return f"{count:,}".replace(",", "\u202f")


def verdict(result: CheckResult) -> tuple[str, str]:
    """Kind and words of a recording's badge."""
    if result.status == "unusable":
        return "error", "Cannot be used"
    if result.status == "repairable":
        convert = any("version" in finding.code or "convert" in finding.remedy.lower() for finding in result.findings)
        return "warning", "Can be converted" if convert else "Can be repaired"
    notes = len(result.findings)
    return ("ok", "Ready") if not notes else ("info", f"{notes} note" + ("s" if notes > 1 else ""))


class _Picture(QLabel):
    """A camera's picture, or a plain surface until it is there."""

    def __init__(self, size: QSize, name: str) -> None:
        super().__init__()
        self._size = size
        self.setFixedSize(size)
        self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.setAccessibleName(name)

    def paintEvent(self, event: QPaintEvent) -> None:
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

    def show_frame(self, frame: Any) -> None:
        """`frame`: H x W x 3, uint8."""
        height, width, _ = frame.shape
        image = QImage(frame.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
        ratio = self.devicePixelRatioF()
        pixmap = QPixmap.fromImage(image).scaled(
            self._size * ratio, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
        pixmap.setDevicePixelRatio(ratio)
        self.setPixmap(pixmap)


class RecordingCard(Card):
    """A recording in the list: chosen or not, picture, name, badge. Click or Enter shows it, Space chooses it."""

    def __init__(self, result: CheckResult, chosen: bool, on_show: Callable[[], None], on_choose: Callable[[bool], None]) -> None:
        super().__init__()
        self.result = result
        self._on_show = on_show
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        recording = result.recording
        name = recording.name if recording else result.path.name
        self.words = f"{name} {recording.robot if recording else ''} {' '.join(recording.tasks) if recording else ''}".lower()
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_3)
        self.box = TickBox()
        self.box.setAccessibleName(f"Train on {name}")
        self.box.setChecked(chosen)
        self.box.setEnabled(result.status == "ok" or chosen)
        if not self.box.isEnabled():
            self.box.setToolTip("It cannot be trained on as it is. The check at the right says why.")
        self.box.toggled.connect(on_choose)
        row.addWidget(self.box)
        self.picture = _Picture(THUMBNAIL, f"Picture of {name}")
        row.addWidget(self.picture)
        texts = QVBoxLayout()
        texts.setSpacing(2)
        texts.addWidget(ElidedLabel(name, "bold"))
        if recording:
            facts = [recording.robot or "robot not named", f"{recording.episodes} episodes", duration(recording.duration)]
            if result.status == "repairable" and recording.version != "v3.0":
                facts[2] = f"format {recording.version}"
            texts.addWidget(ElidedLabel(" · ".join(facts), "caption"))
        else:
            texts.addWidget(ElidedLabel(str(result.path.parent), "caption"))
        kind, words = verdict(result)
        self.badge = Badge(kind, words)
        texts.addWidget(self.badge, 0, Qt.AlignmentFlag.AlignLeft)  # else the badge's own width would limit the column's
        row.addLayout(texts, 1)
        self.body.addLayout(row)
        self.setAccessibleName(f"{name}: {words}")

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.setFocus()
        self._on_show()
        super().mousePressEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self._on_show()
        elif event.key() == Qt.Key.Key_Space and self.box.isEnabled():
            self.box.toggle()
        elif event.key() in (Qt.Key.Key_Down, Qt.Key.Key_Up):
            self.focusNextPrevChild(event.key() == Qt.Key.Key_Down)
        else:
            super().keyPressEvent(event)


class RecordingsPage(QWidget):
    """The recordings that are found, and the ones that are chosen."""

    page_id, title, icon_name = "recordings", "Recordings", "video-vintage"

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self.setAcceptDrops(True)
        self.results: dict[Path, CheckResult] = {}
        self.cards: dict[Path, RecordingCard] = {}
        self.shown: Path | None = None
        self._looked = False
        self._round = 0
        self._needs: PolicyNeeds | None = None
        outer = QVBoxLayout(self)
        outer.setContentsMargins(22, theme.SPACE_4, 20, theme.SPACE_4)
        outer.setSpacing(theme.SPACE_3)
        self.header = PageHeader("Recordings", "Looking for recordings…")
        self.go_on = PrimaryButton("&Continue: this computer", "arrow-right", lambda: model.showPage.emit("computer"))
        self.go_on.setEnabled(False)
        self.header.actions.addWidget(self.go_on)
        outer.addWidget(self.header)
        self.banner = Banner("error")
        self.banner.hide()
        outer.addWidget(self.banner)
        holder = QWidget()
        self._layers = QStackedLayout(holder)
        self.empty = EmptyState(
            "video-vintage",
            "No LeRobot recording was found. Add the folder that holds yours, or drop it here; it is only read, and it stays here.",
            "Add folder",
            self._choose_folder,
        )
        self._layers.addWidget(self.empty)
        self._layers.addWidget(self._filled())
        outer.addWidget(holder, 1)
        model.settingsChanged.connect(self._settings_changed)
        self._folders: tuple[Path, ...] | None = None

    def _filled(self) -> QWidget:
        widget = QWidget()
        row = QHBoxLayout(widget)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(theme.SPACE_4)
        left = QVBoxLayout()
        left.setSpacing(theme.SPACE_2)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search recordings")
        self.search.setAccessibleName("Search recordings")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._filter)
        left.addWidget(self.search)
        content = QWidget()
        self._list = QVBoxLayout(content)
        self._list.setContentsMargins(0, 0, theme.SPACE_2, 0)
        self._list.setSpacing(theme.SPACE_2)
        self._list.addStretch(1)
        left.addWidget(scrolled(content), 1)
        buttons = QHBoxLayout()
        buttons.addWidget(SecondaryButton("&Add folder", "folder-plus-outline", self._choose_folder))
        buttons.addWidget(LinkButton("&Look again", "refresh", self.look))
        buttons.addStretch(1)
        left.addLayout(buttons)
        column = QWidget()
        column.setLayout(left)
        column.setFixedWidth(330)
        left.setContentsMargins(0, 0, 0, 0)
        row.addWidget(column)
        details = QWidget()
        self._details = QVBoxLayout(details)
        self._details.setContentsMargins(0, 0, theme.SPACE_2, 0)
        self._details.setSpacing(theme.SPACE_3)
        row.addWidget(scrolled(details), 1)
        return widget

    # --- finding

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if not self._looked:
            self._looked = True
            # The page is painted first; importing what reads recordings takes a moment.
            QTimer.singleShot(0, self, self.look)

    def _settings(self) -> Settings | None:
        try:
            return self.model.settings
        except OperatorError as error:
            self._say(error)
            return None

    def _say(self, error: OperatorError) -> None:
        self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
        self.banner.show()

    def look(self) -> None:
        """Look for recordings again, in the background; each one appears as soon as it is checked."""
        settings = self._settings()
        if settings is None:
            return
        self.banner.hide()
        self._round += 1
        self._folders = settings.recordings.folders
        self.header.set_answer("Looking for recordings…")
        policy, chosen = settings.policy.folder, [each.path for each in settings.recordings.chosen]
        added = list(settings.recordings.folders)
        turn = self._round

        def find() -> tuple[list[Path], PolicyNeeds]:
            from zk0desk.training.recordings import PolicyNeeds, find_recordings, policy_needs

            try:
                needs = policy_needs(policy) if policy else PolicyNeeds()
            except OperatorError:
                needs = PolicyNeeds()
            found = list(find_recordings(added))
            return chosen + [path for path in found if path not in chosen], needs

        in_background(self, find, lambda answer: self._found(turn, *answer), self._say)

    def _found(self, turn: int, paths: list[Path], needs: PolicyNeeds) -> None:
        if turn != self._round:
            return
        self._needs = needs
        for path in [path for path in self.results if path not in paths]:
            del self.results[path]
        self._layers.setCurrentIndex(1 if paths else 0)
        if not paths:
            self._rebuild()
        self._check_next(turn, list(paths))

    def _check_next(self, turn: int, paths: list[Path]) -> None:
        if turn != self._round or not paths:
            return
        path, *rest = paths
        needs = self._needs

        def check() -> CheckResult:
            from zk0desk.training.recordings import PolicyNeeds, quick_check

            return quick_check(path, needs or PolicyNeeds())

        def done(result: CheckResult) -> None:
            if turn != self._round:
                return
            self.results[path] = result
            self._rebuild()
            self._check_next(turn, rest)

        def failed(error: OperatorError) -> None:
            self._say(error)
            self._check_next(turn, rest)

        in_background(self, check, done, failed)

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Add a folder with recordings")
        if folder:
            self.add_folder(Path(folder))

    def add_folder(self, folder: Path) -> None:
        """Look in `folder` from now on."""
        settings = self._settings()
        if settings is None or folder in settings.recordings.folders:
            return
        recordings = settings.recordings.model_copy(update={"folders": (*settings.recordings.folders, folder)})
        self.model.update_settings(settings.model_copy(update={"recordings": recordings}))

    def _settings_changed(self) -> None:
        settings = self._settings()
        if settings is None or not self._looked:
            return
        if settings.recordings.folders != self._folders:
            self.look()
        else:
            self._answer()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(Path(url.toLocalFile()).is_dir() for url in event.mimeData().urls() if url.isLocalFile()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        for url in event.mimeData().urls():
            if url.isLocalFile() and Path(url.toLocalFile()).is_dir():
                self.add_folder(Path(url.toLocalFile()))
        event.acceptProposedAction()

    # --- the list

    def _chosen(self) -> dict[Path, ChosenRecording]:
        settings = self._settings()
        return {each.path: each for each in settings.recordings.chosen} if settings else {}

    def _rebuild(self) -> None:
        chosen = self._chosen()
        # What is gone, or is found to be different now, gets another card.
        for path in [path for path in self.cards if path not in self.results or self.cards[path].result != self.results[path]]:
            self.cards.pop(path).deleteLater()
        for path, result in self.results.items():
            if path not in self.cards:
                card = RecordingCard(result, path in chosen, partial(self.show_recording, path), partial(self._choose, path))
                self.cards[path] = card
                self._list.insertWidget(self._list.count() - 1, card)
                self._fetch(path, card.picture, 0, 160)
        if self.shown not in self.results:
            self.shown = None
        if self.shown is None and self.results:
            first = next((path for path in chosen if path in self.results), next(iter(self.results)))
            self.show_recording(first)
        self._filter(self.search.text())
        self._answer()

    def _filter(self, text: str) -> None:
        for card in self.cards.values():
            card.setVisible(text.lower() in card.words)

    def _choose(self, path: Path, on: bool) -> None:
        from zk0desk.settings import ChosenRecording

        settings = self._settings()
        if settings is None:
            return
        kept = [each for each in settings.recordings.chosen if each.path != path]
        chosen = (*kept, ChosenRecording(path=path)) if on else tuple(kept)
        recordings = settings.recordings.model_copy(update={"chosen": chosen})
        self.model.update_settings(settings.model_copy(update={"recordings": recordings}))
        if self.shown == path:
            self.show_recording(path)  # the cameras' slots can be set only for what is chosen

    def _answer(self) -> None:
        from zk0desk.training.recordings import PolicyNeeds, fit_together

        chosen = self._chosen()
        for path, card in self.cards.items():
            if card.box.isChecked() != (path in chosen):
                card.box.blockSignals(True)
                card.box.setChecked(path in chosen)
                card.box.blockSignals(False)
        results = [self.results[path] for path in chosen if path in self.results]
        recordings = [result.recording for result in results if result.recording]
        bad = [result.path.name for result in results if result.status != "ok"]
        findings = fit_together(recordings, self._needs or PolicyNeeds()) if recordings else []
        blocks = [finding for finding in findings if finding.severity == "blocks"]
        if not self.results:
            text = "None was found yet. Nothing is copied and nothing leaves this computer."
        elif not results:
            text = f"{len(self.results)} found. Choose those that this computer trains on."
        else:
            episodes, frames = sum(r.episodes for r in recordings), sum(r.frames for r in recordings)
            text = f"{len(results)} of {len(self.results)} chosen: {episodes} episodes, {thousands(frames)} frames. "
            if bad:
                text += f"{', '.join(bad)} cannot be trained on as it is."
            elif blocks:
                text += f"{blocks[0].what} {blocks[0].remedy}"
            elif findings:
                text += f"They fit the policy. {findings[0].what}"
            else:
                text += "They fit the policy and each other." if len(results) > 1 else "It fits the policy."
        self.header.set_answer(text)
        self.go_on.setEnabled(bool(results) and not bad and not blocks)

    # --- the details

    def _fetch(self, path: Path, picture: _Picture, camera: int, width: int) -> None:
        recording = self.results[path].recording
        if recording is None or len(recording.cameras) <= camera or self.results[path].status == "unusable":
            return
        key = recording.cameras[camera].key

        def read() -> Any:
            from zk0desk.training.recordings import thumbnail

            return thumbnail(path, key, width)

        import shiboken6

        in_background(picture, read, lambda frame: picture.show_frame(frame) if shiboken6.isValid(picture) else None)

    def show_recording(self, path: Path) -> None:
        """Show what is known of a recording at the right."""
        self.shown = path
        for each, card in self.cards.items():
            card.set_chosen(each == path)
        while self._details.count():
            item = self._details.takeAt(0)
            if item is not None and (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        result = self.results[path]
        recording = result.recording
        head = QWidget()
        row = QHBoxLayout(head)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(Heading(recording.name if recording else path.name, 2))
        row.addSpacing(theme.SPACE_1)
        row.addWidget(Badge(*verdict(result)))
        row.addStretch(1)
        row.addWidget(LinkButton("Show in &folder", "", lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(path)))))
        self._details.addWidget(head)
        if recording:
            self._details.addWidget(
                KeyValueGrid(
                    [
                        ("Robot", recording.robot or "not named"),
                        ("Format", recording.version),
                        ("Episodes / frames", f"{recording.episodes} / {thousands(recording.frames)}"),
                        ("Rate", f"{recording.fps:g} fps, {duration(recording.duration)}"),
                        ("State", _dimensions(recording.state_dim, recording.state_names)),
                        ("Action", _dimensions(recording.action_dim, recording.action_names)),
                        ("Task", "; ".join(recording.tasks[:3]) + (" …" if len(recording.tasks) > 3 else "") or "none"),
                        ("On disk", f"{megabytes(recording.bytes_on_disk)}, never leaves"),
                    ]
                )  # fmt: skip
            )
            if recording.cameras:
                self._details.addWidget(self._cameras(path))
            if path in self._chosen():
                self._details.addWidget(self._leaving_out(path, recording.episodes))
        findings = Card("What the check found")
        for finding in result.findings:
            findings.body.addWidget(FindingRow(finding))
        if not result.findings:
            findings.body.addWidget(FindingRow(_Fine("It can be read and fits the policy", "Looked at just now; no file was changed.")))
        self._details.addWidget(findings)
        self._details.addStretch(1)

    def _leaving_out(self, path: Path, episodes: int) -> QWidget:
        widget = QWidget()
        row = QHBoxLayout(widget)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(theme.SPACE_3)
        label = Text("Leave out e&pisodes", "muted", wrap=False)
        field = QLineEdit(", ".join(str(number) for number in self._chosen()[path].leave_out))
        field.setPlaceholderText("none; such as 7, 31")
        field.setAccessibleName("Episodes that are not trained on")
        label.setBuddy(field)
        problem = Text("", "error", wrap=False)
        row.addWidget(label)
        row.addWidget(field, 1)
        row.addWidget(problem)

        def typed() -> None:
            try:
                numbers = sorted({int(part) for part in field.text().replace(",", " ").split()})
            except ValueError:
                numbers = [-1]
            wrong = any(not 0 <= number < episodes for number in numbers)
            problem.setText(f"Numbers from 0 to {episodes - 1}." if wrong else "One has to stay." if len(numbers) == episodes else "")
            if not problem.text():
                self._change(path, leave_out=tuple(numbers))

        field.editingFinished.connect(typed)
        return widget

    def _cameras(self, path: Path) -> Card:
        from zk0desk.training.recordings import PolicyNeeds, map_cameras

        recording = self.results[path].recording
        assert recording is not None
        needs = self._needs or PolicyNeeds()
        chosen = self._chosen().get(path)
        card = Card("Cameras")
        try:
            mapping = map_cameras(recording, needs, chosen.cameras if chosen else {})
        except OperatorError as error:
            card.body.addWidget(FindingRow(_Trouble(error)))
            mapping = map_cameras(recording, needs)
        slot_of = {camera: slot for slot, camera in mapping.slots.items()}
        grid = QGridLayout()
        grid.setSpacing(theme.SPACE_3)
        card.body.addLayout(grid)
        for number, camera in enumerate(recording.cameras):
            cell = QVBoxLayout()
            cell.setSpacing(4)
            picture = _Picture(QSize(196, 147), f"Picture of camera {camera.name}")
            self._fetch(path, picture, number, 392)
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
            choice.activated.connect(lambda _n, key=camera.key, box=choice: self._map(path, key, box.currentData()))
            cell.addWidget(choice)
            grid.addLayout(cell, number // 2, number % 2, Qt.AlignmentFlag.AlignLeft)
        grid.setColumnStretch(2, 1)
        if mapping.ambiguous:
            card.body.addWidget(Caption("The names do not say which camera is which: please look at the slots."))
        if mapping.missing:
            empty = ", ".join(slot.rsplit(".", 1)[-1] for slot in mapping.missing)
            card.body.addWidget(Caption(f"The policy's slots without a camera ({empty}) are masked."))
        return card

    def _change(self, path: Path, **values: object) -> None:
        """Keep `values` of the chosen recording at `path`."""
        settings = self._settings()
        if settings is None:
            return
        chosen = tuple(each.model_copy(update=values) if each.path == path else each for each in settings.recordings.chosen)
        if chosen != settings.recordings.chosen:
            recordings = settings.recordings.model_copy(update={"chosen": chosen})
            self.model.update_settings(settings.model_copy(update={"recordings": recordings}))

    def _map(self, path: Path, camera: str, slot: str) -> None:
        from zk0desk.training.recordings import PolicyNeeds, map_cameras

        recording, chosen = self.results[path].recording, self._chosen().get(path)
        if recording is None or chosen is None:
            return
        now = map_cameras(recording, self._needs or PolicyNeeds(), chosen.cameras).slots
        slots = {each: key for each, key in now.items() if key != camera and each != slot}
        if slot:
            slots[slot] = camera
        self._change(path, cameras={each.rsplit(".", 1)[-1]: key for each, key in slots.items()})
        self.show_recording(path)


class _Fine:
    severity = "ok"
    remedy = ""

    def __init__(self, what: str, why: str) -> None:
        self.what, self.why = what, why


class _Trouble:
    severity = "warning"

    def __init__(self, error: OperatorError) -> None:
        self.what, self.why, self.remedy = error.what, error.why, error.remedy


def _dimensions(count: int, names: tuple[str, ...]) -> str:
    if not count:
        return "none"
    listed = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
    return f"{count}: {listed}" if listed else str(count)
