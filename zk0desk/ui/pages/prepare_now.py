"""What preparing frames takes and gains on this computer, and doing it before the first round: progress, pause, cancel."""

from __future__ import annotations

import time

from PySide6.QtCore import QCoreApplication, Signal
from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.events import Event, Notice, PrefixChosen, Prepared
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.durations import duration
from zk0desk.ui.model import AppModel
from zk0desk.ui.prepare_process import PrepareProcess
from zk0desk.ui.widgets import Caption, LinkButton, SecondaryButton, Text

NOT_KNOWN = "What it takes and gains here is not known yet. Finding out loads the policy, and computes nothing."
WHILE_JOINED = "The node is joined: its rounds prepare frames themselves. A second policy in memory might not fit."


class PrepareNow(QWidget):
    """`refresh` shows what can be done now. `ended` fires when a preparation or a look is over."""

    ended = Signal()

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self._model = model
        self.process: PrepareProcess | None = None
        self._first: Prepared | None = None
        self._about: tuple[object, ...] = ()
        self._changed = 0.0
        self._known: PrefixChosen | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_2)
        self.choice = Text(NOT_KNOWN)
        column.addWidget(self.choice)
        self.larger = Caption("")
        self.larger.hide()
        column.addWidget(self.larger)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress of preparing frames")
        self.bar.hide()
        column.addWidget(self.bar)
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        self.state = Text("", "muted")
        row.addWidget(self.state, 1)
        self.look = LinkButton("What wou&ld it take?", "magnify", lambda: self.start(look=True))
        self.begin = SecondaryButton("Prepare no&w", "play-circle-outline", self.start)
        self.pause = SecondaryButton("Paus&e", "pause", self._pause)
        self.cancel = SecondaryButton("Cance&l", "", self._cancel)
        for button in (self.look, self.begin, self.pause, self.cancel):
            row.addWidget(button)
        column.addLayout(row)
        model.nodeStarted.connect(self._joined)
        model.nodeEnded.connect(self.refresh)
        model.settingsChanged.connect(self.refresh)
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self.end)
        for button in (self.pause, self.cancel):
            button.hide()

    # --- what is shown

    def refresh(self) -> None:
        """Show which buttons can be used, and why not."""
        try:
            settings = self._model.settings
        except OperatorError:
            return
        about = (settings.cache, settings.policy, settings.recordings.chosen, settings.training)
        if about != self._about:
            self._changed = time.time() if self._about else self._settings_written()
            self._about = about
            if self.process is None:
                self.show_choice(None)
        ready = settings.policy.folder is not None and bool(settings.recordings.chosen)
        works, joined = self.process is not None, self._model.running
        for button in (self.look, self.begin):
            button.setVisible(not works)
            button.setEnabled(ready and not joined)
        self.look.setVisible(not works and self._known is None)
        for button in (self.pause, self.cancel):
            button.setVisible(self.process is not None and not self.process.look)
        if not ready:
            self.state.setText("Choose recordings and the base policy first.")
        elif joined and not works:
            self.state.setText(WHILE_JOINED)
        elif self.state.text() in (WHILE_JOINED, "Choose recordings and the base policy first."):
            self.state.setText("")
        self.choice.setVisible(ready)

    @property
    def unknown(self) -> bool:
        """Whether nobody told yet what would be kept with these settings."""
        return self._known is None and self.process is None

    def stale(self, when: float) -> bool:
        """Whether what was said at the Unix time `when` may not hold any more: something was chosen since then."""
        return when < self._changed

    def show_choice(self, chosen: PrefixChosen | None) -> None:
        """Show what is kept on this computer, why, and what it gains; None: nobody asked yet."""
        self._known = chosen
        self.look.setVisible(chosen is None and self.process is None)
        self._show(chosen)

    def show_estimate(self, estimate: PrefixChosen | None) -> None:
        """Show what would probably be kept; the policy itself can still be asked."""
        self._show(estimate, "Estimated from the files; the policy itself can be asked.")

    def _show(self, chosen: PrefixChosen | None, about: str = "") -> None:
        if chosen is None:
            self.choice.setText(NOT_KNOWN)
            self.larger.hide()
            return
        gain = f" A visit of a frame is expected to be about {chosen.gain:.1f} times as fast as in LeRobot's own step."
        self.choice.setText(chosen.reason + (gain if chosen.gain > 1 else ""))
        said = f"{chosen.larger} {about}".strip()
        self.larger.setText(said)
        self.larger.setVisible(bool(said))

    def _settings_written(self) -> float:
        from zk0desk import folders

        try:
            return (self._model.settings_path or folders.settings_file()).stat().st_mtime
        except OSError:
            return time.time()

    # --- the process

    def start(self, *, look: bool = False) -> None:
        """Prepare the chosen recordings' frames, or only look what that would take."""
        if self.process is not None or self._model.running:
            return
        self._first = None
        self.process = PrepareProcess(self._model.settings_path, look=look, parent=self)
        self.process.told.connect(self._take)
        self.process.done.connect(self._done)
        self.state.setText("Loading the policy.")
        self.bar.setRange(0, 0)
        self.bar.show()
        self.pause.set_text("Paus&e")
        self.refresh()
        self.process.start()

    def end(self) -> None:
        """End the process, if it runs."""
        if self.process is not None:
            self.process.end()

    def _take(self, event: Event) -> None:
        match event:
            case PrefixChosen():
                self.show_choice(event)
                self._keep(event)
            case Prepared():
                self._first = self._first or event
                self.bar.setRange(0, max(1, event.frames))
                self.bar.setValue(event.done)
                if self.process is None or not self.process.paused:
                    self.state.setText(self._words(event))
            case Notice():
                self.state.setText(f"{event.what} {event.why}")

    def _keep(self, event: PrefixChosen) -> None:
        """Keep the answer in the journal, so that it is there when the window is opened again."""
        try:
            journal = self._model.journal
        except OperatorError:
            return  # the journal's trouble is told where it matters; the answer is shown all the same
        in_background(self, lambda: journal.record(event), lambda _nothing: None)

    def _words(self, event: Prepared) -> str:
        words = f"{event.done:,} of {event.frames:,} frames"
        made = event.done - self._first.done if self._first else 0
        if made <= 0 or event.seconds <= 0:
            return words
        rate = made / event.seconds
        left = duration((event.frames - event.done) / rate)
        return f"{words}, {rate:,.0f} a second, about {left} left" if rate >= 10 else f"{words}, {rate:.1f} a second, about {left} left"

    def _pause(self) -> None:
        if self.process is None:
            return
        self.process.pause(not self.process.paused)
        self.pause.set_text("R&esume" if self.process.paused else "Paus&e")
        self.pause.set_icon("play" if self.process.paused else "pause")
        if self.process.paused:
            self.state.setText(f"Paused. {self.state.text()}".strip())
        else:
            self.state.setText(self.state.text().removeprefix("Paused. "))

    def _cancel(self) -> None:
        if self.process is not None:
            self.state.setText("Stopping; what is done stays.")
            self.cancel.setEnabled(False)
            self.process.cancel()

    def _joined(self) -> None:
        if self.process is not None:
            self.process.cancel()
        self.refresh()

    def _done(self, _ok: bool, sentence: str) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.deleteLater()
        self.bar.hide()
        self.cancel.setEnabled(True)
        self.state.setText(sentence)
        self.refresh()
        self.ended.emit()
