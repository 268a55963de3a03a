"""Preparing frames in a process of its own: it loads the policy, and its memory is free again when it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QProcess, Signal

from zk0desk.events import Event
from zk0desk.ui.durations import duration


class PrepareProcess(QObject):
    """Runs `zk0desk cache prepare`, or with `look` only asks what it would keep.

    `told` carries its events: PrefixChosen, Prepared and Notice. `done` says whether it came to its end, and a sentence ("" after a look).
    """

    told = Signal(object)
    done = Signal(bool, str)

    def __init__(self, settings: Path | None, *, look: bool = False, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.look = look
        self.arguments = ["-m", "zk0desk", "cache", "prepare", "--json", "--steered"]
        if look:
            self.arguments.append("--look")
        if settings is not None:
            self.arguments += ["--settings", str(settings)]
        self.paused = False
        self._process = QProcess(self)
        self._process.readyReadStandardOutput.connect(self._read)
        self._process.finished.connect(self._finished)
        self._process.errorOccurred.connect(self._broken)
        self._rest = b""
        self._found: dict[str, Any] = {}
        self._cancelled = False
        self._over = False

    def start(self) -> None:
        """Start the process."""
        self._process.start(sys.executable, self.arguments)

    def pause(self, on: bool) -> None:
        """Hold between two batches, or go on."""
        self.paused = on
        self._say("pause" if on else "resume")

    def cancel(self) -> None:
        """Ask it to stop; what is done stays."""
        self._cancelled = True
        self._say("stop")

    def end(self) -> None:
        """Cancel, and wait until the process has ended. Nothing is told any more."""
        self._over = True
        if self._process.state() != QProcess.ProcessState.NotRunning:
            self.cancel()
            if not self._process.waitForFinished(5000):
                self._process.kill()  # entries that are half written are found, and computed again
                self._process.waitForFinished(2000)

    def _say(self, word: str) -> None:
        self._process.write(f"{word}\n".encode())

    def _read(self) -> None:
        *lines, self._rest = (self._rest + bytes(self._process.readAllStandardOutput().data())).split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
                if not isinstance(said, dict):
                    continue
                if "event" in said:
                    self.told.emit(Event.from_json(said))
                else:
                    self._found |= said
            except (ValueError, KeyError, TypeError):
                continue  # no line of ours

    def _finished(self, code: int, _status: object) -> None:
        self._read()
        if self._cancelled:
            self._tell(False, "Stopped. What is done stays, and is gone on with the next time.")
        elif "prepared" in self._found:
            found = self._found["prepared"]
            took = f" in {duration(found['seconds'])}" if found["computed"] else ""
            self._tell(True, f"{found['filled']:,} of {found['frames']:,} frames are prepared{took}. {found['why']}".strip())
        elif code == 0:
            self._tell(True, "")
        elif isinstance(error := self._found.get("error"), dict):
            self._tell(False, " ".join(str(error[key]) for key in ("what", "why", "remedy") if error.get(key)))
        else:
            text = bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace").strip()
            self._tell(False, f"Frames could not be prepared. {text[-300:] or f'The process ended with status {code}.'}")

    def _broken(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._tell(False, f"Frames could not be prepared. {self._process.errorString()}")

    def _tell(self, ok: bool, sentence: str) -> None:
        if not self._over:
            self._over = True
            self.done.emit(ok, sentence)
