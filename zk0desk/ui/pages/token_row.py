"""The Hub's token: whether there is one in the keyring, and giving or taking it out. It is kept nowhere else, and never shown."""

from __future__ import annotations

from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.widgets import LinkButton, SecondaryButton, Text

HINT = "What is public needs no token. For the rest, make one that may only read at https://huggingface.co/settings/tokens."


class TokenRow(QWidget):
    """One line, and a field once a person wants to log in."""

    def __init__(self) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_2)
        line = QHBoxLayout()
        self.said = Text("", "muted")
        self.log_in = LinkButton("&Log in…", "key-outline", self.ask)
        self.log_out = LinkButton("Log o&ut", "", self._forget)
        self.log_out.hide()
        line.addWidget(self.said, 1)
        line.addWidget(self.log_in)
        line.addWidget(self.log_out)
        column.addLayout(line)
        self._asking = QWidget()
        row = QHBoxLayout(self._asking)
        row.setContentsMargins(0, 0, 0, 0)
        self.field = QLineEdit()
        self.field.setEchoMode(QLineEdit.EchoMode.Password)
        self.field.setPlaceholderText("hf_…")
        self.field.setAccessibleName("Token for the Hub")
        self.field.returnPressed.connect(self._keep)
        self.keep = SecondaryButton("&Keep it in the keyring", "", self._keep)
        row.addWidget(self.field, 1)
        row.addWidget(self.keep)
        self._asking.hide()
        column.addWidget(self._asking)
        self._look()

    def ask(self) -> None:
        """Show the field."""
        self._asking.show()
        self.log_in.hide()
        self.said.setText(HINT)
        self.field.setFocus()

    def _look(self) -> None:
        from zk0desk.federation.hub_token import read_token

        self.said.setText("The keyring is asked for a token…")
        in_background(self, lambda: read_token() is not None, self._show, self._say)

    def _show(self, there: bool) -> None:
        self.said.setText("A token is in the keyring; it goes to the Hub alone." if there else "No token is in the keyring. " + HINT)
        self._asking.hide()
        self.log_in.setVisible(not there)
        self.log_out.setVisible(there)

    def _say(self, error: OperatorError) -> None:
        self.keep.setEnabled(True)
        self.said.setText(str(error))

    def _keep(self) -> None:
        from zk0desk.federation.hub_token import keep_token

        text = self.field.text()
        self.field.clear()
        self.keep.setEnabled(False)
        in_background(self, lambda: keep_token(text), lambda _: self._kept(), self._say)

    def _kept(self) -> None:
        self.keep.setEnabled(True)
        self._look()

    def _forget(self) -> None:
        from zk0desk.federation.hub_token import forget_token

        in_background(self, forget_token, lambda _: self._look(), self._say)
