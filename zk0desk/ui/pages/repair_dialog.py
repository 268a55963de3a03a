"""Making a repaired copy: what would be done, where it goes, what it takes; then how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QDialog, QFileDialog, QHBoxLayout, QLineEdit, QProgressBar, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.pages.recording_words import duration, megabytes
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.repair_process import RepairProcess
from zk0desk.ui.widgets import FindingRow, Heading, PrimaryButton, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.training.recordings import CheckResult, PolicyNeeds
    from zk0desk.training.repairs import RepairPlan

STEPS = {
    "copy": "Copying",
    "leave-out": "Leaving episodes out",
    "convert": "Converting to v3.0",
    "rename": "Naming columns as LeRobot does",
    "retime": "Laying the timestamps anew",
    "reencode": "Encoding the videos",
    "statistics": "Computing the statistics",
    "check": "Checking every frame of the copy",
}


class RepairDialog(QDialog):
    """`made` carries the folder of a copy that is whole and checked. Episodes that a person left out are not in it."""

    made = Signal(Path)

    def __init__(self, result: CheckResult, needs: PolicyNeeds, leave_out: tuple[int, ...] = (), parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._result, self._needs, self._path, self._leave_out = result, needs, result.path, leave_out
        self._repair: RepairProcess | None = None
        self._turn = 0
        self.setWindowTitle("Make a copy that can be trained on")
        self.resize(600, 400)
        column = QVBoxLayout(self)
        column.setContentsMargins(theme.SPACE_6, theme.SPACE_4, theme.SPACE_6, theme.SPACE_4)
        column.setSpacing(theme.SPACE_3)
        column.addWidget(Heading("Make a copy that can be trained on"))
        self.answer = Text("", "muted")
        column.addWidget(self.answer)
        self._steps = QVBoxLayout()
        self._steps.setSpacing(0)
        column.addLayout(self._steps)
        self.reencode = TickBox("&Encode the videos anew, so that every decoder reads them")
        self.reencode.setChecked(any(finding.code == "video-frames-off" for finding in result.findings))
        self.reencode.toggled.connect(self._plan)
        videos = result.recording is not None and any(camera.codec != "images" and not camera.depth for camera in result.recording.cameras)
        if not videos:
            self.reencode.hide()
        column.addWidget(self.reencode)
        place = QHBoxLayout()
        label = Text("&Copy", "muted", wrap=False)
        self.place = QLineEdit(str(_free(result.path)))
        self.place.setAccessibleName("Folder of the copy")
        label.setBuddy(self.place)
        self.choose = SecondaryButton("C&hoose…", "folder-open-outline", self._choose)
        place.addWidget(label)
        place.addWidget(self.place, 1)
        place.addWidget(self.choose)
        column.addLayout(place)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("How much of the copy is made")
        self.progress.hide()
        self.step = Text("", "muted")
        self.step.hide()
        column.addWidget(self.step)
        column.addWidget(self.progress)
        column.addStretch(1)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        self.close_button = SecondaryButton("C&ancel", "", self.reject)
        self.go = PrimaryButton("&Make the copy", "content-copy", self._start)
        self.go.setEnabled(False)
        buttons.addWidget(self.close_button)
        buttons.addWidget(self.go)
        column.addLayout(buttons)
        self._plan()

    # --- before

    def _plan(self) -> None:
        """Find out what would be done, in the background."""
        self.go.setEnabled(False)
        self.answer.setText(f"{self._path.name} stays as it is. Looking at what has to be done…")
        self._turn += 1
        turn, path, needs, leave_out, reencode = self._turn, self._path, self._needs, self._leave_out, self.reencode.isChecked()

        def plan() -> RepairPlan:
            from zk0desk.training.recordings import deep_check
            from zk0desk.training.repairs import plan_repair

            return plan_repair(path, deep_check(path, needs), needs, leave_out=leave_out, reencode=reencode)

        in_background(self, plan, lambda answer: self._planned(answer) if turn == self._turn else None, self._failed)

    def _planned(self, plan: RepairPlan) -> None:
        while (item := self._steps.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        if not plan.impossible and not plan.steps:
            self.answer.setText(f"{self._path.name} can be trained on as it is; no copy is needed.")
            return
        if plan.impossible:
            self.answer.setText(f"{self._path.name} cannot be repaired.")
            for finding in plan.impossible:
                self._steps.addWidget(FindingRow(finding))
            return
        for step in plan.steps:
            self._steps.addWidget(FindingRow(_Doing(step.what, step.note)))
        seconds = max(1.0, plan.seconds)
        self.answer.setText(
            f"{self._path.name} stays as it is. The copy takes {megabytes(plan.bytes_needed)} of disk and about {duration(seconds)}."
        )
        self.go.setEnabled(plan.possible)
        self.go.setFocus()

    def _failed(self, error: OperatorError) -> None:
        self.answer.setText(f"{error.what} {error.why} {error.remedy}".strip())

    def _choose(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose the folder in which the copy is made", str(Path(self.place.text()).parent))
        if folder:
            self.place.setText(str(Path(folder) / Path(self.place.text()).name))

    # --- doing it

    def _start(self) -> None:
        new, reencode = Path(self.place.text()).expanduser(), self.reencode.isChecked()
        self._repair = RepairProcess(self._path, new, self._leave_out, parent=self, reencode=reencode)
        self._repair.moved.connect(self._moved)
        self._repair.done.connect(self._done)
        for widget in (self.place, self.choose, self.reencode, self.go):
            widget.setEnabled(False)
        self.step.setText("Starting…")
        self.step.show()
        self.progress.setRange(0, 0)
        self.progress.show()
        self._repair.start()

    def _moved(self, step: str, percent: int) -> None:
        self.progress.setRange(0, 100)
        self.progress.setValue(percent)
        self.step.setText(f"{STEPS.get(step, step)}: {percent} %")

    def _done(self, ok: bool, what: str, why: str) -> None:
        repair, self._repair = self._repair, None
        self.progress.hide()
        if ok and repair is not None:
            self.made.emit(repair.new)
            self.accept()
            return
        self.step.setText(f"{what} {why}")
        for widget in (self.place, self.choose, self.reencode, self.go):
            widget.setEnabled(True)

    def reject(self) -> None:
        """While the copy is made: cancel that. Else close."""
        if self._repair is not None:
            self.step.setText("Cancelling…")
            self._repair.cancel()
            return
        super().reject()

    def closeEvent(self, event: QCloseEvent) -> None:
        if self._repair is not None:
            self._repair.end()
        super().closeEvent(event)


def _free(path: Path) -> Path:
    """A name beside `path` that is not taken."""
    names = [path.with_name(f"{path.name}-repaired"), *(path.with_name(f"{path.name}-repaired-{n}") for n in range(2, 100))]
    return next((name for name in names if not name.exists()), names[-1])


class _Doing:
    severity = "note"
    remedy = ""

    def __init__(self, what: str, why: str) -> None:
        self.what, self.why = what, why
