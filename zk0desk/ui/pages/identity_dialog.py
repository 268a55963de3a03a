"""A backup of the node's identity, and putting one in: a file, a passphrase, and nothing of either is kept here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QFileDialog, QGridLayout, QHBoxLayout, QLineEdit, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import Heading, PrimaryButton, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.federation.credentials import NodeKey
    from zk0desk.settings import Federation


class _IdentityDialog(QDialog):
    """What both have: a file, a passphrase, what is in the way, and the button."""

    heading, about, button = "", "", ""

    def __init__(self, federation: Federation, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._federation = federation
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(self.heading)
        self.resize(580, 300)
        column = QVBoxLayout(self)
        column.setContentsMargins(theme.SPACE_6, theme.SPACE_4, theme.SPACE_6, theme.SPACE_4)
        column.setSpacing(theme.SPACE_3)
        column.addWidget(Heading(self.heading))
        column.addWidget(Text(self.about, "muted"))
        self.grid = QGridLayout()
        self.grid.setHorizontalSpacing(theme.SPACE_4)
        self.grid.setVerticalSpacing(theme.SPACE_2)
        self.grid.setColumnStretch(1, 1)
        column.addLayout(self.grid)
        self.file = QLineEdit()
        self.choose = SecondaryButton("C&hoose…", "folder-open-outline", self._choose)
        self.passphrase = QLineEdit()
        self._row("&File", self.file, self.choose)
        self._secret("&Passphrase", self.passphrase)
        self.below = QVBoxLayout()
        column.addLayout(self.below)
        self.problem = Text("", "error")
        self.problem.hide()
        column.addWidget(self.problem)
        column.addStretch(1)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        self.close_button = SecondaryButton("&Close", "", self.reject)
        self.go = PrimaryButton(self.button, "key-outline", self._go)
        buttons.addWidget(self.close_button)
        buttons.addWidget(self.go)
        column.addLayout(buttons)
        self._edited()

    def _row(self, word: str, field: QLineEdit, beside: QWidget | None = None) -> None:
        row = self.grid.rowCount()
        label = Text(word, "muted", wrap=False)
        label.setBuddy(field)
        field.setAccessibleName(word.replace("&", ""))
        field.textEdited.connect(lambda _text: self._edited())
        self.grid.addWidget(label, row, 0)
        self.grid.addWidget(field, row, 1)
        if beside is not None:
            self.grid.addWidget(beside, row, 2)

    def _secret(self, word: str, field: QLineEdit) -> None:
        field.setEchoMode(QLineEdit.EchoMode.Password)
        self._row(word, field)

    def _choose(self) -> None:
        raise TypeError("each dialog asks in its own way")

    def _work(self) -> NodeKey:
        raise TypeError("each dialog does its own work")

    def _done(self, key: NodeKey) -> None:
        raise TypeError("each dialog tells its own end")

    def _edited(self) -> None:
        self.problem.hide()
        self.go.setEnabled(bool(self.file.text().strip() and self.passphrase.text()))

    def _go(self) -> None:
        self.go.setEnabled(False)
        in_background(self, self._work, self._done, self._failed)

    def _failed(self, error: OperatorError) -> None:
        self.go.setEnabled(True)
        self.problem.setText(f"{error.what} {error.why} {error.remedy}".strip())
        self.problem.show()

    def _path(self) -> Path:
        return Path(self.file.text().strip()).expanduser()

    def done(self, result: int) -> None:
        """Close, and forget what was typed."""
        for field in self.findChildren(QLineEdit):
            if field.echoMode() is QLineEdit.EchoMode.Password:
                field.clear()
        super().done(result)


class BackupDialog(_IdentityDialog):
    """Writes a backup; `said` tells where it is, once it is there."""

    heading = "Back up this node's identity"
    about = (
        "The identity is the key by which coordinators know this computer. The backup is encrypted with a passphrase; keep both away from "
        "this computer. Whoever has both is this node."
    )
    button = "&Write the backup"

    def __init__(self, federation: Federation, parent: QWidget | None = None) -> None:
        self.again = QLineEdit()
        self.said = ""
        super().__init__(federation, parent)
        self._secret("The same &again", self.again)
        self.file.setText(str(Path.home() / "zk0desk-identity.pem"))
        self._edited()

    def _choose(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, self.heading, self.file.text(), "Backups (*.pem)")
        if path:
            self.file.setText(path)
            self._edited()

    def _edited(self) -> None:
        super()._edited()
        self.go.setEnabled(self.go.isEnabled() and self.passphrase.text() == self.again.text())

    def _work(self) -> NodeKey:
        from zk0desk.federation.identity import back_up

        return back_up(self._federation, self._path(), self.passphrase.text())

    def _done(self, key: NodeKey) -> None:
        self.said = f"The identity {key.fingerprint} is in {self._path()}, encrypted."
        self.accept()


class RestoreDialog(_IdentityDialog):
    """Puts a backup in; another identity is replaced only where that is ticked."""

    heading = "Put in a backup of an identity"
    about = "This node then is the one that was backed up, and need not be admitted anew. It must not run on two computers at once."
    button = "Put it i&n"

    def __init__(self, federation: Federation, parent: QWidget | None = None) -> None:
        self.replace = TickBox("Replace the &identity that this node has; it is lost without a backup")
        self.said = ""
        super().__init__(federation, parent)
        self.below.addWidget(self.replace)

    def _choose(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, self.heading, str(Path.home()), "Backups (*.pem);;All files (*)")
        if path:
            self.file.setText(path)
            self._edited()

    def _work(self) -> NodeKey:
        from zk0desk.federation.identity import restore

        return restore(self._federation, self._path(), self.passphrase.text(), replace=self.replace.isChecked())

    def _done(self, key: NodeKey) -> None:
        self.said = f"This node is {key.fingerprint} now."
        self.accept()
