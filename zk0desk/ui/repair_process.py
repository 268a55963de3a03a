"""A repair in a process of its own: it loads LeRobot, and ends with everything of it when it is cancelled."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from PySide6.QtCore import QObject, QProcess, Signal


class RepairProcess(QObject):
    """Runs `zk0desk recordings repair PATH NEW`. `moved` carries the step and per cent; `done` whether it worked, and two sentences."""

    moved = Signal(str, int)
    done = Signal(bool, str, str)

    def __init__(
        self, path: Path, new: Path, leave_out: tuple[int, ...] = (), parent: QObject | None = None, *, reencode: bool = False
    ) -> None:
        super().__init__(parent)
        self.new = new
        self.arguments = ["-m", "zk0desk", "recordings", "repair", str(path), str(new), "--json", "--progress"]
        if leave_out:
            self.arguments += ["--leave-out", ",".join(map(str, leave_out))]
        if reencode:
            self.arguments += ["--reencode"]
        self._process = QProcess(self)
        self._process.readyReadStandardError.connect(self._read)
        self._process.finished.connect(self._finished)
        self._process.errorOccurred.connect(self._broken)
        self._lines: list[str] = []
        self._cancelled = False
        self._told = False

    def start(self) -> None:
        """Start the process."""
        self._process.start(sys.executable, self.arguments)

    def cancel(self) -> None:
        """Ask it to stop: it removes its half copy and ends."""
        self._cancelled = True
        if os.name == "posix" and (process := self._process.processId()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGINT)
        else:
            self._process.kill()  # the half copy goes when the next repair is made

    def end(self) -> None:
        """Cancel, and wait until the process has ended."""
        if self._process.state() != QProcess.ProcessState.NotRunning:
            self.cancel()
            if not self._process.waitForFinished(10_000):
                self._process.kill()
                self._process.waitForFinished(2000)

    def _read(self) -> None:
        for line in bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace").splitlines():
            word, _, rest = line.partition(" ")
            step, _, percent = rest.partition(" ")
            if word == "progress" and percent.isdigit():
                self.moved.emit(step, int(percent))
            else:
                self._lines.append(line)

    def _finished(self, code: int, _status: object) -> None:
        self._read()
        if code == 0:
            self._tell(True, f"{self.new.name} is made and can be trained on.", f"It is in {self.new.parent}.")
            return
        if self._cancelled:
            self._tell(False, "The copy was cancelled.", "Nothing of it is left; the recording is as it was.")
            return
        try:
            error = json.loads(bytes(self._process.readAllStandardOutput().data()).decode("utf-8", "replace"))["error"]
            self._tell(False, str(error["what"]), f"{error['why']} {error['remedy']}".strip())
        except (ValueError, KeyError, TypeError):
            text = " ".join(line for line in self._lines[-4:] if line.strip())
            self._tell(False, "The copy could not be made.", text[-400:] or f"The process ended with status {code}.")

    def _broken(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._tell(False, "The copy could not be made.", self._process.errorString())

    def _tell(self, ok: bool, what: str, why: str) -> None:
        if not self._told:
            self._told = True
            self.done.emit(ok, what, why)
