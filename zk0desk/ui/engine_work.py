"""Work on the training engine in a process of its own: fetching, verifying, repairing. One piece of work at a time, whatever page is shown.

The process ends with everything of it when it is stopped, and the window stays quick while gigabytes are unpacked.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from PySide6.QtCore import QObject, QProcess, Signal

from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    from zk0desk.ui.model import WindowState

Action = Literal["get", "update", "verify", "repair", "back", "prune", "export", "import", "test"]

GOES_ON = ("get", "update", "import")
"""What was begun and not ended is gone on with at the next start."""
AT_ONCE = ("back", "prune")
"""What is done in a moment, and cannot be paused or stopped."""
RESULTS = {"engine", "verified", "exported", "pruned", "self-test", "update"}
"""What the process tells at its end; one of them is there when it did what it was asked to."""
NICENESS = 10
"""Unpacking would else take half of each core from the window's own threads."""
BEGUN = "engine"
"""The name in the window's state under which that is kept."""


@dataclass(frozen=True)
class Step:
    """How far the work is: bytes or files `done` of `total` (0: not known), and a sentence with the time that is left."""

    phase: str = ""
    done: int = 0
    total: int = 0
    words: str = ""


class EngineWork(QObject):
    """`start` begins; `changed` fires whenever something of it is another; `usable` once the engine can be used; `ended` when it is over.

    After the end `error` says what was in the way (None: nothing), `said` what was done, `test` what the self-test found.
    """

    changed = Signal()
    usable = Signal()
    ended = Signal()

    def __init__(self, state: WindowState, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._state = state
        self._process: QProcess | None = None
        self._rest = b""
        self._cancelled = False
        self._closing = False
        self.action: Action = "get"
        self.arguments: tuple[str, ...] = ()
        self.step = Step()
        self.paused = False
        self.error: OperatorError | None = None
        self.cancelled = False
        self.found: dict[str, Any] = {}
        """What the process told at its end, besides progress and errors."""

    # --- what can be asked

    @property
    def busy(self) -> bool:
        """Whether a piece of work is under way."""
        return self._process is not None

    @property
    def in_use(self) -> bool:
        """Whether the engine can be used while this work goes on: it only prepares faster starts."""
        return self.busy and "engine" in self.found

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop, and has not ended yet."""
        return self.busy and self._cancelled

    # --- doing it

    def start(self, action: Action, *arguments: str) -> None:
        """Begin `zk0desk engine ACTION ARGUMENTS`. Does nothing while another piece of work is under way."""
        if self.busy:
            return
        self.action, self.arguments = action, arguments
        self.step, self.paused, self.error, self.cancelled, self.found = Step(), False, None, False, {}
        self._rest, self._cancelled = b"", False
        self._process = process = QProcess(self)
        process.readyReadStandardOutput.connect(self._read)
        process.started.connect(self._step_back)
        process.finished.connect(self._finished)
        process.errorOccurred.connect(self._broken)
        self._remember()
        steered = () if action in AT_ONCE else ("--steered",)
        process.start(sys.executable, ["-m", "zk0desk", "engine", action, *arguments, "--json", *steered])
        self.changed.emit()

    def again(self) -> None:
        """Begin the same once more; what has arrived is there still."""
        self.start(self.action, *self.arguments)

    def pause(self, on: bool) -> None:
        """Hold, or go on."""
        if self.busy:
            self.paused = on
            self._say("pause" if on else "resume")
            self._remember()
            self.changed.emit()

    def cancel(self) -> None:
        """Ask it to stop. What has arrived stays, and is gone on with when it is begun again."""
        if self.busy:
            self._cancelled = True
            self._say("stop")
            self._state.keep(**{BEGUN: None})
            self.changed.emit()

    def end(self) -> None:
        """The window closes: stop, and wait until the process has ended. What was under way is gone on with at the next start."""
        process = self._process
        if process is None:
            return
        self._closing = True
        self._say("stop")
        if not process.waitForFinished(10_000):
            process.kill()  # what is half unpacked is found, and done again
            process.waitForFinished(2000)

    def go_on(self) -> None:
        """Go on with what the last start of the window left unfinished. What a person had paused is left for them to begin."""
        begun = self._state.values.get(BEGUN)
        if not isinstance(begun, dict) or begun.get("action") not in GOES_ON or begun.get("paused") or self.busy:
            return
        arguments = begun.get("arguments", [])
        if isinstance(arguments, list) and all(isinstance(each, str) for each in arguments):
            self.start(begun["action"], *arguments)

    def _remember(self) -> None:
        known = {"action": self.action, "arguments": list(self.arguments), "paused": self.paused}
        self._state.keep(**{BEGUN: known if self.action in GOES_ON else None})

    def _say(self, word: str) -> None:
        if self._process is not None:
            self._process.write(f"{word}\n".encode())

    def _step_back(self) -> None:
        """The window comes first where both want a processor; threads that the process begins from now on have its priority."""
        if self._process is not None and hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.processId(), NICENESS)

    # --- what the process tells

    def _read(self) -> None:
        if self._process is None:
            return
        *lines, self._rest = (self._rest + bytes(self._process.readAllStandardOutput().data())).split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # no line of ours
            if isinstance(said, dict):
                self._take(said)
        self.changed.emit()

    def _take(self, said: dict[str, Any]) -> None:
        progress = said.pop("progress", None)
        if isinstance(progress, dict):
            self.step = Step(
                str(progress.get("phase", "")),
                int(progress.get("done", 0)),
                int(progress.get("total", 0)),
                str(progress.get("words", "")),
            )
        error = said.pop("error", None)
        if isinstance(error, dict):
            self.error = OperatorError(*(str(error.get(key, "")) for key in ("what", "why", "remedy")))
        first = "engine" in said and "engine" not in self.found and self.action in (*GOES_ON, "back")
        self.found |= said
        if first:
            self._state.keep(**{BEGUN: None})
            self.usable.emit()

    def _finished(self, code: int, _status: object) -> None:
        self._read()
        process, self._process = self._process, None
        if process is None:
            return
        if self._closing:
            return
        self.cancelled = self._cancelled and not self.in_use
        if code != 0 and self.error is None and not self._cancelled and not RESULTS & set(self.found):
            text = bytes(process.readAllStandardError().data()).decode("utf-8", "replace").strip()
            why = text[-400:] or f"The process ended with status {code}."
            self.error = OperatorError("The work on the engine ended unexpectedly.", why, "Try again; what has arrived is there still.")
        self._over(process)

    def _broken(self, error: QProcess.ProcessError) -> None:
        process = self._process
        if error != QProcess.ProcessError.FailedToStart or process is None:
            return
        self._process = None
        self.error = OperatorError("The work on the engine could not be started.", process.errorString(), "Restart zk0desk and try again.")
        self._over(process)

    def _over(self, process: QProcess) -> None:
        process.deleteLater()
        self.paused = False
        self._state.keep(**{BEGUN: None})
        self.changed.emit()
        self.ended.emit()
