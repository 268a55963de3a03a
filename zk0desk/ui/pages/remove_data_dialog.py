"""What zk0desk keeps on this computer, by size, and removing all of it. Afterwards there is only one thing to do: close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from zk0desk.desktop.remove_data import size_words
from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.identity_dialog import BackupDialog
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import Banner, DangerButton, Heading, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.desktop.remove_data import Kept, Removed


class RemoveDataDialog(QDialog):
    """Looks first; removes when the box is ticked. `removed` says whether anything went: the window then has to close."""

    def __init__(self, model: AppModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._works = False
        self.removed = False
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Remove all data")
        self.resize(620, 500)
        column = QVBoxLayout(self)
        column.setContentsMargins(theme.SPACE_6, theme.SPACE_4, theme.SPACE_6, theme.SPACE_4)
        column.setSpacing(theme.SPACE_3)
        column.addWidget(Heading("What zk0desk keeps on this computer"))
        self.answer = Text("Looking…", "muted")
        column.addWidget(self.answer)
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(theme.SPACE_4)
        self._grid.setVerticalSpacing(theme.SPACE_1)
        self._grid.setColumnStretch(1, 1)
        column.addLayout(self._grid)
        self.identity = Banner("warning")
        self.back_up = SecondaryButton("&Back it up…", "key-outline", self._back_up)
        self.identity.actions.addWidget(self.back_up)
        self.identity.hide()
        column.addWidget(self.identity)
        self.banner = Banner("error")
        self.banner.hide()
        column.addWidget(self.banner)
        column.addStretch(1)
        self.agree = TickBox("Remove all of it. &This cannot be undone.")
        self.agree.toggled.connect(lambda _on: self._enable())
        self.agree.setEnabled(False)
        column.addWidget(self.agree)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        self.close_button = SecondaryButton("&Keep everything", "", self.reject)
        self.go = DangerButton("&Remove", "delete-outline", self.remove)
        self.go.setEnabled(False)
        buttons.addWidget(self.close_button)
        buttons.addWidget(self.go)
        column.addLayout(buttons)
        self.look()

    def look(self) -> None:
        """Find out what is there, in the background."""
        from zk0desk.desktop import remove_data
        from zk0desk.settings import Settings

        try:
            settings = self._model.settings
        except OperatorError:
            settings = Settings()  # what cannot be read is removed all the same
        self._settings = settings
        in_background(self, lambda: remove_data.look(settings), self._show, self._failed)

    def _show(self, kept: Kept) -> None:
        rows = [(size_words(each.bytes), each.title, "\n".join(each.places)) for each in kept.kinds]
        rows += [("keyring", each, "") for each in kept.secrets] + [("desktop", each, "") for each in kept.entries]
        for number, (size, title, where) in enumerate(rows):
            amount = Text(size, "bold", wrap=False)
            amount.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            name = Text(title)
            name.setToolTip(where)
            self._grid.addWidget(amount, number, 0)
            self._grid.addWidget(name, number, 1)
        if kept.nothing:
            self.answer.setText("zk0desk keeps nothing on this computer.")
            return
        self.answer.setText(f"Altogether {size_words(kept.bytes)}. Your recordings are not among it, and stay.")
        if kept.identity:
            why = "Without a backup this computer has to be admitted anew."
            self.identity.set("warning", f"With it goes this node's identity {kept.fingerprint}".strip() + ".", why)
            self.identity.show()
        self.agree.setEnabled(True)
        self._enable()

    def _enable(self) -> None:
        self.go.setEnabled(self.agree.isChecked() and not self._works and not self.removed)

    def _back_up(self) -> None:
        dialog = BackupDialog(self._settings.federation, self)

        def finished(_result: int) -> None:
            if dialog.said:
                self.identity.set("ok", dialog.said, "With its passphrase it can be put in again.")

        dialog.finished.connect(finished)
        dialog.open()

    def remove(self) -> None:
        """Remove everything, in the background. Refused while the node runs or an engine is fetched."""
        from zk0desk.desktop import remove_data

        if self._model.running or self._model.engine.busy:
            what = "The node runs." if self._model.running else "The training engine is being worked on."
            self.banner.set("error", f"{what} Nothing was removed.", "Stop it first, then try again.")
            self.banner.show()
            return
        self._works = True
        self._enable()
        self.agree.setEnabled(False)
        self.close_button.setEnabled(False)
        self.answer.setText("Removing…")
        self._model.close()
        settings = self._settings
        in_background(self, lambda: remove_data.remove(settings), self._gone, self._failed)

    def _gone(self, removed: Removed) -> None:
        self._works = False
        self.removed = True
        self._model.window_state.forget()
        self.identity.hide()
        self.agree.hide()
        self.go.hide()
        self.answer.setText(f"{size_words(removed.bytes)} were removed.")
        kind, why = ("warning", " ".join(removed.left)) if removed.left else ("ok", "")
        self.banner.set(kind, "Some of it could not be removed." if removed.left else "Nothing of zk0desk's data is left.", why)
        self.banner.show()
        self.close_button.setEnabled(True)
        self.close_button.set_text("&Close zk0desk")

    def _failed(self, error: OperatorError) -> None:
        self._works = False
        self.close_button.setEnabled(True)
        self.agree.setEnabled(True)
        self.answer.setText("Nothing was removed.")
        self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
        self.banner.show()
        self._enable()

    def reject(self) -> None:
        """Close, but not in the middle of removing. After it the whole window closes: it would write again what is gone."""
        if self._works:
            return
        super().reject()
        if self.removed:
            self._model.quitAsked.emit()

    def closeEvent(self, event: QCloseEvent) -> None:
        if self._works:
            event.ignore()
            return
        super().closeEvent(event)
