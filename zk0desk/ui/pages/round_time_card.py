"""How long a round takes on this computer: measured when a person asks for it, corrected by what training takes."""

from __future__ import annotations

from PySide6.QtCore import QCoreApplication
from PySide6.QtWidgets import QProgressBar

from zk0desk.errors import OperatorError
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.round_time import Measurement, known_round_time
from zk0desk.ui.widgets import Card, SecondaryButton, Text

NOTHING = "Not measured yet. A few real steps are trained on the chosen recordings; it takes a minute or two, and nothing is sent."


class RoundTimeCard(Card):
    """`refresh` shows what is known."""

    def __init__(self, model: AppModel) -> None:
        super().__init__("How long a round takes")
        self._model = model
        self._measurement: Measurement | None = None
        self._turn = 0
        self.header.addStretch(1)
        self.button = SecondaryButton("&Measure", "timer-outline", self.measure)
        self.header.addWidget(self.button)
        self.answer = Text(NOTHING, "muted")
        self.body.addWidget(self.answer)
        self.progress = QProgressBar()
        self.progress.setRange(0, 0)
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("A round's time is being measured")
        self.progress.hide()
        self.body.addWidget(self.progress)
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self._end)

    def refresh(self, why: str = "") -> None:
        """Show what is known, or `why` nothing could be measured."""
        try:
            settings = self._model.settings
        except OperatorError:
            return
        ready = settings.policy.folder is not None and bool(settings.recordings.chosen)
        self.button.setEnabled(ready and self._measurement is None)
        self.button.setToolTip("" if ready else "Choose recordings and the base policy first.")
        self._turn += 1
        turn = self._turn
        if why or not ready:
            self.answer.setText(why or "Choose recordings and the base policy first.")
            return
        journal = self._model.journal_path
        in_background(self, lambda: known_round_time(settings, journal), lambda known: self._show(turn, known))

    def _show(self, turn: int, known: str) -> None:
        if turn == self._turn and self._measurement is None:
            self.answer.setText(known or NOTHING)

    def measure(self) -> None:
        """Train a few real steps, in a process of its own."""
        self._measurement = Measurement(self._model.settings_path, self)
        self._measurement.done.connect(self._measured)
        self.button.setEnabled(False)
        self.answer.setText("A few real steps are trained on the chosen recordings. Nothing is sent.")
        self.progress.show()
        self._measurement.start()

    def _measured(self, why: str) -> None:
        measurement, self._measurement = self._measurement, None
        if measurement is not None:
            measurement.deleteLater()
        self.progress.hide()
        self.refresh(why)

    def _end(self) -> None:
        if self._measurement is not None:
            self._measurement.end()
