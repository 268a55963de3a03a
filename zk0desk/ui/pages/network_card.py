"""Disk, and the way to the federation: measured when a person asks for it, with nothing of this computer sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zk0desk.errors import OperatorError
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.widgets import Card, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.settings import Settings

NOTHING = "Not measured yet. 64 MB are written, read and removed; the invitation's address is called without a key and without a name."


class _Measured(NamedTuple):
    network: str
    disk: str


class NetworkCard(Card):
    """Two sentences, and a button that measures."""

    def __init__(self, model: AppModel) -> None:
        super().__init__("Disk and network")
        self._model = model
        self.header.addStretch(1)
        self.button = SecondaryButton("Meas&ure both", "speedometer", self.measure)
        self.header.addWidget(self.button)
        self.network = Text(NOTHING, "muted")
        self.disk = Text("", "muted")
        self.disk.hide()
        self.body.addWidget(self.network)
        self.body.addWidget(self.disk)

    def measure(self) -> None:
        """Measure in the background; it takes seconds."""
        try:
            settings, journal = self._model.settings, self._model.journal_path
        except OperatorError as error:
            self.network.setText(str(error))
            return
        self.button.setEnabled(False)
        self.network.setText("Measuring…")
        self.disk.hide()
        in_background(self, lambda: _measure(settings, journal), self._show, self._failed)

    def _show(self, found: _Measured) -> None:
        self.button.setEnabled(True)
        self.network.setText(found.network)
        self.disk.setText(f"Disk: {found.disk}")
        self.disk.show()

    def _failed(self, error: OperatorError) -> None:
        self.button.setEnabled(True)
        self.network.setText(str(error))


def _measure(settings: Settings, journal: Path | None) -> _Measured:
    from zk0desk.federation.asked_round import invitation_in
    from zk0desk.federation.network import look_at_network
    from zk0desk.training.disk_look import look_at_disk

    disk, invitation = look_at_disk().sentence, invitation_in(settings)
    if invitation is None:
        return _Measured("No federation was called: open an invitation first.", disk)
    try:
        return _Measured(" ".join(look_at_network(invitation, journal).sentences), disk)
    except OperatorError as error:
        return _Measured(f"{error} Nothing of yours was sent.", disk)
