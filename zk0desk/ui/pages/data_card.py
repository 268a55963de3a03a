"""The node's identity and all that is kept on this computer: back up, put back, remove."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHBoxLayout

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.identity_dialog import BackupDialog, RestoreDialog
from zk0desk.ui.pages.remove_data_dialog import RemoveDataDialog
from zk0desk.ui.widgets import Caption, Card, DangerButton, SecondaryButton, Text

ABOUT = (
    "The identity is a key that a coordinator admits once. On another computer, or after the system was set up anew, a backup saves "
    "being admitted again. What is kept here is shown with its sizes before anything is removed; recordings stay."
)


class DataCard(Card):
    """`changed` fires after a backup was put in."""

    changed = Signal()

    def __init__(self, model: AppModel) -> None:
        super().__init__("Identity and data")
        self._model = model
        self.body.addWidget(Caption(ABOUT))
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        self.back_up = SecondaryButton("Back up the identity…", "key-outline", lambda: self._identity(BackupDialog))
        self.put_in = SecondaryButton("Put in a backup…", "key-plus", lambda: self._identity(RestoreDialog))
        self.remove = DangerButton("Remove all data…", "delete-outline", self._remove)
        row.addWidget(self.back_up)
        row.addWidget(self.put_in)
        row.addStretch(1)
        row.addWidget(self.remove)
        self.body.addLayout(row)
        self.said = Text("", "muted")
        self.said.hide()
        self.body.addWidget(self.said)

    def _identity(self, kind: type[BackupDialog] | type[RestoreDialog]) -> None:
        try:
            federation = self._model.settings.federation
        except OperatorError as error:
            self._say(str(error))
            return
        if kind is RestoreDialog and self._model.running:
            self._say("The node runs as the identity it has. Leave the federation first.")
            return
        dialog = kind(federation, self)

        def finished(_result: int) -> None:
            if dialog.said:
                self._say(dialog.said)
                if kind is RestoreDialog:
                    self.changed.emit()

        dialog.finished.connect(finished)
        dialog.open()

    def _remove(self) -> None:
        if self._model.running:
            self._say("The node runs. Stop it first; then all data can be removed.")
            return
        RemoveDataDialog(self._model, self).open()

    def _say(self, sentence: str) -> None:
        self.said.setText(sentence)
        self.said.show()
