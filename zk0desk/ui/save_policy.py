"""Saving the shared policy: in a process of its own, because it loads LeRobot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PySide6.QtCore import QObject, QProcess, Signal


class SavePolicy(QObject):
    """Runs `zk0desk policy save TARGET`. `done` carries whether it worked, and two sentences."""

    done = Signal(bool, str, str)

    def __init__(self, target: Path, *, settings: Path | None = None, best: bool = True, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._target = target
        self._process = QProcess(self)
        self._process.finished.connect(self._finished)
        self._process.errorOccurred.connect(self._broken)
        self.arguments = ["-m", "zk0desk", "policy", "save", str(target), "--best" if best else "--last", "--json"]
        if settings is not None:
            self.arguments += ["--settings", str(settings)]
        self._told = False

    def start(self) -> None:
        """Start the process."""
        self._process.start(sys.executable, self.arguments)

    def _finished(self, code: int, _status: object) -> None:
        out = bytes(self._process.readAllStandardOutput().data()).decode("utf-8", "replace").strip().splitlines()
        answer: dict[str, object] = {}
        if out:
            try:
                read = json.loads(out[-1])
                answer = read if isinstance(read, dict) else {}
            except ValueError:
                answer = {}
        if code == 0:
            folder = answer.get("folder", str(self._target))
            self._tell(True, f"The shared policy of round {answer.get('round', 'the last')} is saved.", f"LeRobot loads it from {folder}.")
            return
        error = answer.get("error")
        if isinstance(error, dict):
            self._tell(False, str(error.get("what", "")), f"{error.get('why', '')} {error.get('remedy', '')}".strip())
            return
        text = bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace").strip()
        self._tell(False, "The shared policy could not be saved.", text[-400:] or f"The process ended with status {code}.")

    def _broken(self, _error: QProcess.ProcessError) -> None:
        if _error == QProcess.ProcessError.FailedToStart:
            self._tell(False, "The shared policy could not be saved.", self._process.errorString())

    def _tell(self, ok: bool, what: str, why: str) -> None:
        if not self._told:
            self._told = True
            self.done.emit(ok, what, why)
