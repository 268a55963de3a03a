"""The shared policy beside the base policy on this operator's own recordings: measured in a process of its own, as it loads torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PySide6.QtCore import QProcess, Qt
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.widgets import Caption, ElidedLabel, PrimaryButton, SecondaryButton, Text, scrolled

SAMPLE = 500
"""Frames that are evaluated; a recording with fewer is evaluated whole."""
KINDS = {"recording": "Recordings", "task": "Tasks", "cameras": "Cameras"}


class EvaluateDialog(QDialog):
    """Runs `zk0desk policy evaluate` and shows its answer. Closing it ends the process."""

    def __init__(self, parent: QWidget | None = None, *, settings: Path | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("The shared policy on my own recordings")
        self.resize(620, 420)
        column = QVBoxLayout(self)
        column.setContentsMargins(22, 20, 22, 20)
        column.setSpacing(theme.SPACE_3)
        self.answer = Text("Loading the policy.", "bold")
        column.addWidget(self.answer)
        self.why = Caption(
            f"The loss of the shared policy and of the base policy on about {SAMPLE} frames of your chosen recordings. "
            "Nothing is sent, and training goes on meanwhile."
        )
        column.addWidget(self.why)
        self.progress = QProgressBar()
        self.progress.setRange(0, 0)
        self.progress.setAccessibleName("Progress of the measurement")
        column.addWidget(self.progress)
        self.table = QWidget()
        self.grid = QGridLayout(self.table)
        self.grid.setContentsMargins(10, 10, 10, 10)
        self.grid.setHorizontalSpacing(theme.SPACE_4)
        self.grid.setColumnStretch(0, 1)
        self.grid.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.table.hide()
        column.addWidget(scrolled(self.table), 1)
        row = QHBoxLayout()
        row.addStretch(1)
        self.again = SecondaryButton("Measure a&gain", "refresh", self.start)
        self.leave = PrimaryButton("&Cancel", on_click=self.close)
        row.addWidget(self.again)
        row.addWidget(self.leave)
        column.addLayout(row)
        self.arguments = ["-m", "zk0desk", "policy", "evaluate", "--best", "--json", "--progress", "--sample", str(SAMPLE)]
        if settings is not None:
            self.arguments += ["--settings", str(settings)]
        self._process = QProcess(self)
        self._process.readyReadStandardError.connect(self._read)
        self._process.finished.connect(self._finished)
        self._process.errorOccurred.connect(self._broken)
        self._closed = False

    def start(self) -> None:
        """Start measuring."""
        self.again.hide()
        self.table.hide()
        self.progress.setRange(0, 0)
        self.progress.show()
        self.answer.setText("Loading the policy.")
        self.leave.setText("&Cancel")
        self._process.start(sys.executable, self.arguments)

    def done(self, result: int) -> None:
        """The person closed it."""
        self._end()
        super().done(result)

    def closeEvent(self, event: QCloseEvent) -> None:
        """End the process."""
        self._end()
        super().closeEvent(event)

    def _end(self) -> None:
        self._closed = True
        if self._process.state() != QProcess.ProcessState.NotRunning:
            self._process.kill()  # it only reads
            self._process.waitForFinished(2000)

    def _read(self) -> None:
        for line in bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace").splitlines():
            match line.split():
                case ["progress", done, total] if done.isdigit() and total.isdigit():
                    self.answer.setText("Measuring.")
                    self.progress.setRange(0, int(total))
                    self.progress.setValue(int(done))

    def _finished(self, code: int, _status: object) -> None:
        if self._closed:
            return
        try:
            found = json.loads(bytes(self._process.readAllStandardOutput().data()).decode("utf-8", "replace").strip().splitlines()[-1])
        except (ValueError, IndexError):
            found = {}
        if code == 0 and "shared" in found:
            self.show_answer(found)
            return
        error = found.get("error") if isinstance(found, dict) else None
        if isinstance(error, dict):
            self._fail(str(error.get("what", "")), f"{error.get('why', '')} {error.get('remedy', '')}".strip())
        else:
            self._fail("The policy could not be measured.", f"The process ended with status {code}.")

    def _broken(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._fail("The policy could not be measured.", self._process.errorString())

    def _fail(self, what: str, why: str) -> None:
        self.progress.hide()
        self.answer.setText(what)
        self.why.setText(why)
        self.again.show()
        self.leave.setText("&Close")

    def show_answer(self, found: dict[str, Any]) -> None:
        """Show what was measured: the JSON object of `zk0desk policy evaluate`."""
        base, shared = found["base"], found["shared"]
        self.progress.hide()
        self.again.show()
        self.leave.setText("&Close")
        change = 100 * (shared["loss"] / base["loss"] - 1) if base["loss"] else 0.0
        self.answer.setText(
            f"The shared policy of round {found['round']} has a loss of {shared['loss']:.4f}, "
            f"the base policy {base['loss']:.4f} ({change:+.0f}%)."
        )
        seen = "all frames" if shared["frames"] == shared["of"] else f"{shared['frames']:,} of {shared['of']:,} frames"
        about = "" if not shared["standard-error"] else " ± is how far the sample may be off (standard error)."
        self.why.setText(f"Lower is better. Measured on {seen}, with the same noise for both.{about}")
        while item := self.grid.takeAt(0):
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        row = 0
        for kind, words in KINDS.items():
            parts = shared["parts"][kind]
            if kind != "recording" and len(parts) < 2:
                continue
            for place, head in enumerate((words, "base", "shared")):
                self._cell(row, place, Caption(head, wrap=False))
            for name, part in parts.items():
                row += 1
                self.grid.addWidget(ElidedLabel(name), row, 0)
                for place, mean in ((1, base["parts"][kind][name]), (2, part)):
                    error = f" ± {mean['standard-error']:.4f}" if mean["standard-error"] else ""
                    self._cell(row, place, Text(f"{mean['loss']:.4f}{error}", wrap=False))
            row += 1
        self.table.show()

    def _cell(self, row: int, column: int, widget: QWidget) -> None:
        self.grid.addWidget(widget, row, column, Qt.AlignmentFlag.AlignLeft if column == 0 else Qt.AlignmentFlag.AlignRight)
