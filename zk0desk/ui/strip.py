"""The status strip: what happens now, why, since when, what comes next, and the buttons that act on it."""

from __future__ import annotations

import time

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from zk0desk import events
from zk0desk.federation.node_state import RUNNING, NodeState
from zk0desk.ui import theme
from zk0desk.ui.engine_work import GOES_ON
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.engine_progress import words_of
from zk0desk.ui.pages.engine_words import DOING
from zk0desk.ui.widgets import DangerButton, ElidedLabel, IconLabel, SecondaryButton

HEIGHT = 60

_S = NodeState
ICONS: dict[NodeState, tuple[str, str]] = {
    _S.IDLE: ("information-outline", "muted"),
    _S.CHECKING: ("magnify-scan", "accent"),
    _S.CONNECTING: ("connection", "accent"),
    _S.WAITING_FOR_APPROVAL: ("account-clock-outline", "warning"),
    _S.WAITING_FOR_ROUND: ("progress-clock", "accent"),
    _S.DOWNLOADING: ("cloud-download-outline", "accent"),
    _S.TRAINING: ("play-circle-outline", "accent"),
    _S.UPLOADING: ("cloud-upload-outline", "accent"),
    _S.PAUSED: ("pause-circle-outline", "warning"),
    _S.RECONNECTING: ("connection", "warning"),
    _S.FINISHING: ("progress-clock", "warning"),
    _S.STOPPED: ("stop-circle-outline", "muted"),
    _S.FAILED: ("close-octagon-outline", "error"),
}
_PAUSABLE = {_S.TRAINING, _S.WAITING_FOR_ROUND, _S.DOWNLOADING}


def clock(moment: float) -> str:
    """Local time as 09:41, with the day when it is not today."""
    then = time.localtime(moment)
    return time.strftime("%H:%M" if then[:3] == time.localtime()[:3] else "%d %b %H:%M", then)


class StatusStrip(QWidget):
    """Always visible; reads the model's events."""

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self._model = model
        self._asked = ""
        self._said = ("", "")
        self.setProperty("zk", "strip")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setFixedHeight(HEIGHT)
        self.setAccessibleName("Status")
        row = QHBoxLayout(self)
        row.setContentsMargins(18, 0, 14, 0)
        row.setSpacing(10)
        self.icon = IconLabel("information-outline", "muted", 20)
        row.addWidget(self.icon)
        texts = QVBoxLayout()
        texts.setSpacing(1)
        self.what = ElidedLabel("", "bold")
        self.why = ElidedLabel("", "caption")
        self.then = ElidedLabel("", "caption")
        texts.addStretch(1)
        texts.addWidget(self.what)
        texts.addWidget(self.why)
        texts.addWidget(self.then)
        texts.addStretch(1)
        row.addSpacing(2)
        row.addLayout(texts, 1)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setMaximum(1000)
        self.progress.setFixedWidth(120)
        self.progress.setAccessibleName("Progress")
        row.addWidget(self.progress)
        row.addSpacing(theme.SPACE_2)
        self.pause = SecondaryButton("&Pause", "pause", self._pause)
        self.finish = SecondaryButton("Finish roun&d and stop", "", self._finish)
        self.stop = DangerButton("Stop &now", "", self._stop)
        self.again = SecondaryButton("Join a&gain", "", model.join)
        self.engine = SecondaryButton("Training engine", "download", model.show_engine)
        self.engine.setToolTip("Shows what trains on this computer, and how it is got")
        self.finish.setToolTip("Trains this round to its end, sends its update, then leaves the federation")
        self.stop.setToolTip("Stops at once. Nothing more is sent; recordings and settings stay as they are")
        for button in (self.pause, self.finish, self.stop, self.engine, self.again):
            row.addWidget(button)
        self._show(model.state_event)
        model.nodeStateChanged.connect(self._show)
        model.nodeEvent.connect(self._on_event)
        model.nodeStarted.connect(self._buttons)
        model.nodeEnded.connect(self._on_ended)
        model.engine.changed.connect(self._on_engine)
        model.engineSeen.connect(self._buttons)

    def _show(self, event: events.NodeStateChanged) -> None:
        state = NodeState(event.state)
        self._asked = self._asked if state in RUNNING else ""
        self.icon.set(*ICONS[state])
        self.what.setText(event.what.rstrip("."))
        since = "" if state is _S.IDLE else f"since {clock(event.since or event.time)}"
        self._said = (" · ".join(part for part in (since, event.why.rstrip(".")) if part), event.then.rstrip("."))
        self._fold()
        if state is not _S.PAUSED:
            self._progress(0, 0)
        self._buttons()

    def _on_engine(self) -> None:
        """While no node runs, what happens is the work on the engine."""
        work = self._model.engine
        if self._model.running:
            return
        if not work.busy:
            self._show(self._model.state_event)
            return
        self.icon.set("pause-circle-outline" if work.paused else "download", "warning" if work.paused else "accent")
        self.what.setText(f"{DOING[work.action][0]} the training engine")
        then = "The window can be used meanwhile" if work.action in GOES_ON else ""
        self._said = (words_of(work).rstrip("."), then)
        self._fold()
        self._progress(work.step.done, work.step.total)
        self._buttons()

    def _fold(self) -> None:
        """Reason and outlook stand in one line where they fit, else in two."""
        both = " · ".join(part for part in self._said if part)
        self.why.setText(both)
        fits = self.why.sizeHint().width() <= self.why.width()
        if not fits:
            self.why.setText(self._said[0])
        self.then.setText("" if fits else self._said[1])
        self.then.setVisible(not fits and bool(self._said[1]))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Fold again."""
        super().resizeEvent(event)
        QTimer.singleShot(0, self, self._fold)

    def _buttons(self) -> None:
        state, running = self._model.state, self._model.running
        control = self._model.control
        for button in (self.pause, self.finish, self.stop):
            button.setVisible(running)
        notice, works = self._model.last_notice, self._model.engine.busy
        lacking = state is _S.FAILED and notice is not None and notice.code == "engine-missing"
        self.engine.setVisible(not running and (works or lacking or self._model.engine_missing))
        self.engine.set_text("Training engine" if works else "Get the engine")
        self.again.setVisible(not running and not works and state in (_S.STOPPED, _S.FAILED))
        paused = control.paused if control is not None else state is _S.PAUSED
        self.pause.set_text("Re&sume" if paused else "&Pause")
        self.pause.set_icon("play" if paused else "pause")
        stopping = self._asked == "stop" or (control is not None and control.stopping)
        finishing = stopping or self._asked == "finish" or (control is not None and control.finishing) or state is _S.FINISHING
        self.pause.setEnabled((paused or state in _PAUSABLE) and not finishing)
        self.finish.setEnabled(not finishing)
        self.stop.setEnabled(not stopping)

    def _pause(self) -> None:
        control = self._model.control
        if control is not None and control.paused:
            self._model.resume()
        else:
            self._model.pause()
        self._buttons()

    def _finish(self) -> None:
        self._asked = "finish"
        self._model.finish_round()
        self._buttons()

    def _stop(self) -> None:
        self._asked = "stop"
        self._model.stop_now()
        self._buttons()

    def _on_ended(self) -> None:
        self._asked = ""
        self._progress(0, 0)
        self._buttons()

    def _on_event(self, event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            self._progress(event.step, event.steps)
        elif isinstance(event, events.Transfer):
            self._progress(event.bytes_done, event.bytes_total)

    def _progress(self, done: int, total: int) -> None:
        self.progress.setVisible(total > 0)
        if total > 0:
            value = int(1000 * min(1.0, done / total))
            if value != self.progress.value():
                self.progress.setValue(value)
