"""A recording or a base policy from the Hugging Face Hub: which one, what it takes, and how far it is. Nothing of this computer is sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QCoreApplication, Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QLineEdit, QProgressBar, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.hub_fetch import HubFetch, Rate
from zk0desk.ui.pages.choice_box import ChoiceBox
from zk0desk.ui.pages.recording_words import megabytes
from zk0desk.ui.pages.token_row import TokenRow
from zk0desk.ui.widgets import Banner, Heading, PrimaryButton, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.federation.hub import Kind, Offer
    from zk0desk.ui.model import AppModel

KINDS: dict[str, Kind] = {"Recording": "recording", "Base policy": "policy"}
EXAMPLES = {"recording": "lerobot/svla_so101_pickplace", "policy": "lerobot/smolvla_base"}
TOKEN_CODES = {"hub-token-missing", "hub-token-refused", "hub-gated", "hub-rate-limited"}
"""Errors for which a token may be the remedy."""


class HubDialog(QDialog):
    """`fetched` carries what it is (`recording` or `policy`) and its folder. Closed in the middle, it keeps what has arrived."""

    fetched = Signal(str, Path)

    def __init__(self, kind: Kind, name: str = "", revision: str = "main", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._work = HubFetch(self)
        self._work.looked.connect(self._offered)
        self._work.fetched.connect(self._arrived)
        self._work.stopped.connect(self._paused)
        self._work.failed.connect(self._failed)
        self._work.moved.connect(self._moved)
        self._offer: Offer | None = None
        self._rate = Rate()
        self._begun = False
        self.setWindowTitle("From the Hub")
        self.resize(620, 480)
        column = QVBoxLayout(self)
        column.setContentsMargins(theme.SPACE_6, theme.SPACE_4, theme.SPACE_6, theme.SPACE_4)
        column.setSpacing(theme.SPACE_3)
        column.addWidget(Heading("From the Hugging Face Hub"))
        column.addWidget(Text("Only the question for it goes out. Your recordings are never sent there.", "muted"))
        column.addLayout(self._fields(kind, name, revision))
        self.token = TokenRow()
        column.addWidget(self.token)
        self.banner = Banner("error")
        self.banner.hide()
        column.addWidget(self.banner)
        self.said = Text("")
        column.addWidget(self.said)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("How much of it has arrived")
        self.progress.hide()
        column.addWidget(self.progress)
        column.addStretch(1)
        buttons = QHBoxLayout()
        self.cancel = SecondaryButton("&Discard what came", "delete-outline", self._cancel)
        self.cancel.hide()
        buttons.addWidget(self.cancel)
        buttons.addStretch(1)
        self.pause = SecondaryButton("&Pause", "pause", self._pause)
        self.pause.hide()
        self.close_button = SecondaryButton("&Close", "", self.reject)
        self.go = PrimaryButton("Loo&k it up", "magnify", self._go)
        for button in (self.pause, self.close_button, self.go):
            buttons.addWidget(button)
        column.addLayout(buttons)
        self._edited()
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self._work.end)

    def _fields(self, kind: Kind, name: str, revision: str) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(theme.SPACE_4)
        grid.setVerticalSpacing(theme.SPACE_2)
        self.kind = ChoiceBox(list(KINDS.items()), kind)
        self.name, self.revision = QLineEdit(name), QLineEdit(revision)
        for row, (word, field) in enumerate((("&What", self.kind), ("&Name", self.name), ("&Revision", self.revision))):
            label = Text(word, "muted", wrap=False)
            label.setBuddy(field)
            field.setAccessibleName(word.replace("&", ""))
            grid.addWidget(label, row, 0)
            grid.addWidget(field, row, 1)
        self.revision.setToolTip("A branch, a tag or a commit")
        grid.setColumnStretch(1, 1)
        self.kind.chosen.connect(lambda _value: self._edited())
        self.name.textEdited.connect(lambda _text: self._edited())
        self.revision.textEdited.connect(lambda _text: self._edited())
        self.name.setFocus()
        return grid

    # --- asking

    def _asked(self) -> tuple[Kind, str, str]:
        return self.kind.value, self.name.text().strip(), self.revision.text().strip() or "main"

    def _edited(self) -> None:
        """Another one is asked for: what was told of the one before does not count."""
        self._offer = None
        self._begun = False
        self.name.setPlaceholderText(f"USER/NAME, such as {EXAMPLES[self.kind.value]}")
        self.said.setText("")
        self.banner.hide()
        self.progress.hide()
        self.cancel.hide()
        self.go.set_text("Loo&k it up")
        self.go.set_icon("magnify")
        self.go.setEnabled(bool(self.name.text().strip()))

    def _go(self) -> None:
        kind, name, revision = self._asked()
        self.banner.hide()
        self._enable(False)
        if self._offer is None:
            self.said.setText("The Hub is asked…")
            self._work.look(kind, name, revision)
            return
        self._begun = True
        self._rate = Rate()
        self.said.setText("Beginning…")
        self.progress.setRange(0, 0)
        self.progress.show()
        self.cancel.hide()
        self.pause.show()
        # The commit that was looked at, so that it is what was told and no newer one.
        self._work.fetch(kind, name, revision if self._offer.there else self._offer.commit)

    def _enable(self, on: bool) -> None:
        for widget in (self.kind, self.name, self.revision, self.go, self.token):
            widget.setEnabled(on)

    def _offered(self, offer: Offer) -> None:

        self._offer = offer
        self._enable(True)
        if offer.there:
            self.said.setText(f"It is on this computer already, in {offer.folder}.")
            self.go.set_text("&Use it")
            self.go.set_icon("check")
        else:
            arrived = f" {megabytes(offer.arrived)} of it has arrived already." if offer.arrived > offer.bytes // 100 else ""
            self.said.setText(
                f"It takes {megabytes(offer.bytes)} in {offer.folder}; {megabytes(offer.free)} is free there.{arrived} "
                f"Commit {offer.commit[:12]}."
            )
            self.go.set_text("&Go on" if arrived else "&Fetch it")
            self.go.set_icon("download")
        self.go.setFocus()

    # --- fetching

    def _moved(self, done: int, total: int) -> None:
        from zk0desk.amounts import duration

        rate = self._rate.add(done)
        self.progress.setRange(0, 1000)
        self.progress.setValue(1000 * done // max(1, total))
        left = f", {rate / 1e6:.1f} MB/s, about {duration((total - done) / rate)} left" if rate and done < total else ""
        if self.pause.isEnabled():
            self.said.setText(f"{megabytes(done)} of {megabytes(total)}{left}.")

    def _pause(self) -> None:
        self.pause.setEnabled(False)
        self.said.setText("Stopping…")
        self._work.stop()

    def _paused(self) -> None:
        self._rest("Paused. What has arrived is kept; going on fetches the rest.")

    def _rest(self, sentence: str) -> None:
        """Nothing is fetched at the moment, and can be gone on with."""
        self._enable(True)
        self.pause.hide()
        self.pause.setEnabled(True)
        self.said.setText(sentence)
        self.progress.setVisible(self._begun and self.progress.maximum() > 0)
        self.cancel.setVisible(self._begun)
        if self._begun:
            self.go.set_text("&Go on")
            self.go.set_icon("download")

    def _failed(self, error: OperatorError) -> None:
        self._rest("")
        self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
        self.banner.show()
        if error.code in TOKEN_CODES and self.token.log_in.isVisibleTo(self):
            self.token.ask()

    def _cancel(self) -> None:
        from zk0desk.federation.hub import discard

        kind, name, _ = self._asked()
        try:
            discard(kind, name)
        except OperatorError as error:
            self._failed(error)
            return
        self._edited()
        self.said.setText("What had arrived is removed.")

    def _arrived(self, folder: Path) -> None:
        self.fetched.emit(self.kind.value, folder)
        self.accept()

    # --- closing

    def done(self, result: int) -> None:
        """Close; a fetch that is under way is stopped, and keeps what has arrived."""
        self._work.end()
        super().done(result)

    def closeEvent(self, event: QCloseEvent) -> None:
        self._work.end()
        super().closeEvent(event)


def open_hub_dialog(model: AppModel, kind: Kind, parent: QWidget, *, name: str = "", revision: str = "main") -> HubDialog:
    """Show the dialog over `parent`. A policy that is fetched becomes the base policy of the settings."""
    from PySide6.QtCore import Qt

    def use(what: str, folder: Path) -> None:
        if what == "policy":
            settings = model.settings
            policy = settings.policy.model_copy(update={"folder": folder})
            model.update_settings(settings.model_copy(update={"policy": policy}))

    dialog = HubDialog(kind, name, revision, parent)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.fetched.connect(use)
    dialog.open()
    return dialog
