"""How long a round takes here: what is kept of measurements, and a measurement in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QProcess, Signal

if TYPE_CHECKING:
    from zk0desk.settings import Settings


def known_round_time(settings: Settings, journal: Path | None = None) -> str:
    """What is known of a round's time with these settings, against what the federation asks and allows; "" when nothing was measured.

    Takes up to seconds: call it in the background.
    """
    from zk0desk.federation.asked_round import asked_round
    from zk0desk.training.preflight import preflight

    asked = asked_round(settings, journal)
    chosen = settings.recordings.chosen
    return preflight(settings.policy.folder, chosen, settings.training, settings.cache, asked=asked, quick=True).round_sentence


class Measurement(QObject):
    """Runs `zk0desk doctor --measure`, which trains a few real steps. `done` carries why it could not, or "".

    It ends with the window, however that ends, and takes what it prepared with it.
    """

    done = Signal(str)

    def __init__(self, settings: Path | None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.arguments = ["-m", "zk0desk", "doctor", "--measure", "--json", "--steered"]
        if settings is not None:
            self.arguments += ["--settings", str(settings)]
        self._process = QProcess(self)
        self._process.finished.connect(self._finished)
        self._process.errorOccurred.connect(self._broken)
        self._told = False

    def start(self) -> None:
        """Start the process."""
        self._process.start(sys.executable, self.arguments)

    def end(self) -> None:
        """End the process, if it runs."""
        self._told = True
        if self._process.state() != QProcess.ProcessState.NotRunning:
            self._process.write(b"stop\n")
            if not self._process.waitForFinished(3000):
                self._process.kill()  # what it prepared is removed by the next one
                self._process.waitForFinished(3000)

    def _finished(self, code: int, _status: object) -> None:
        try:
            answer = json.loads(bytes(self._process.readAllStandardOutput().data()).decode("utf-8", "replace"))
            self._tell(str(answer["not-measured"] or ""))
        except (ValueError, KeyError, TypeError):
            text = bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace").strip()
            self._tell(text[-300:] or f"The measurement ended with status {code}.")

    def _broken(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._tell(self._process.errorString())

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self.done.emit(why)
