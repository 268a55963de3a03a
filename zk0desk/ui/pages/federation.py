"""Federation: an invitation is explained, consent is asked, and the node joins. Nothing is sent before Join."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import Qt
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QGuiApplication, QShowEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QPlainTextEdit, QStackedLayout, QVBoxLayout, QWidget

from zk0desk.desktop.opening import is_link
from zk0desk.errors import OperatorError
from zk0desk.federation.node_state import RUNNING, SENTENCES, NodeState
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.dropped import invitation_in
from zk0desk.ui.hardware_look import Asked, HardwareLook, look_at_hardware
from zk0desk.ui.keyring_banner import KeyringBanner
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.consent_lists import ConsentLists
from zk0desk.ui.pages.example_message import ExampleDialog
from zk0desk.ui.pages.hub_dialog import open_hub_dialog
from zk0desk.ui.pages.invitation_facts import facts
from zk0desk.ui.pages.join_footer import JoinFooter
from zk0desk.ui.pages.steps import Stepper, invitation_of, steps_of
from zk0desk.ui.widgets import (
    Banner,
    Caption,
    Card,
    KeyValueGrid,
    LinkButton,
    PageHeader,
    PrimaryButton,
    SecondaryButton,
    Text,
    scrolled,
)  # fmt: skip

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation
    from zk0desk.federation.probe import ProbeResult
    from zk0desk.settings import Settings


ADMITTED = frozenset({NodeState.WAITING_FOR_ROUND, NodeState.DOWNLOADING, NodeState.TRAINING, NodeState.UPLOADING, NodeState.PAUSED})
"""States that only a node is in that the coordinator lets take part."""


class FederationPage(QWidget):
    """The way in, and what the node does once it is in."""

    page_id, title, icon_name = "federation", "Federation", "lan-connect"

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self.setAcceptDrops(True)
        self._key_known = ""
        self._key_line = ""
        self._looking: Asked | None = None
        self._admitted = False
        self._offered: Invitation | None = None
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(22, theme.SPACE_4, 20, theme.SPACE_4)
        column.setSpacing(theme.SPACE_3)
        self.header = PageHeader("Federation")
        column.addWidget(self.header)
        self.stepper = Stepper()
        column.addWidget(self.stepper)
        self.banner = Banner("error")
        self.banner.hide()
        column.addWidget(self.banner)
        column.addWidget(KeyringBanner(model))
        self.offer = Banner("info")
        self.offer.actions.addWidget(SecondaryButton("Use the new one", "", self._use_offered))
        self.offer.actions.addWidget(SecondaryButton("Keep mine", "", self._decline_offered))
        self.offer.hide()
        column.addWidget(self.offer)
        self._layers = QStackedLayout()
        column.addLayout(self._layers, 1)
        self._layers.addWidget(self._asking())
        self._layers.addWidget(self._explaining())
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addWidget(scrolled(content), 1)
        self.footer = JoinFooter(self._join, model.stop_now, self._elsewhere)
        self.agree, self.join = self.footer.agree, self.footer.join
        self.agree.toggled.connect(lambda _on: self.refresh())
        outer.addWidget(self.footer)
        self.footer.hide()
        self._layers.currentChanged.connect(lambda layer: self.footer.setVisible(layer == 1))
        model.settingsChanged.connect(self.refresh)
        model.nodeStateChanged.connect(lambda _event: self.refresh())
        model.nodeStarted.connect(self.refresh)
        model.nodeEnded.connect(self.refresh)
        model.hardwareSeen.connect(self.refresh)
        model.invitationOpened.connect(self._opened_from_outside)
        if model.pending_invitation:
            self._opened_from_outside(model.pending_invitation)

    # --- what it is made of

    def _asking(self) -> QWidget:
        widget = QWidget()
        column = QVBoxLayout(widget)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_3)
        card = Card("Your invitation")
        card.body.addWidget(
            Text("The coordinator sends you a line that begins with zk0desk:join? or a file. Paste it, open it, or drop it here.", "muted")
        )
        self.paste = QPlainTextEdit()
        self.paste.setPlaceholderText("zk0desk:join?…")
        self.paste.setAccessibleName("Invitation")
        self.paste.setTabChangesFocus(True)
        self.paste.setMaximumHeight(110)
        self.paste.setAcceptDrops(False)  # the page takes them: a file's address is no invitation
        self.paste.textChanged.connect(self._pasted)
        card.body.addWidget(self.paste)
        self.paste_problem = Text("", "error")
        self.paste_problem.hide()
        card.body.addWidget(self.paste_problem)
        row = QHBoxLayout()
        row.addWidget(SecondaryButton("&Open a file", "folder-open-outline", self._choose_file))
        row.addStretch(1)
        self.cancel = LinkButton("&Keep the one before", "", self.refresh)
        row.addWidget(self.cancel)
        self.read = PrimaryButton("Read &it", "email-open-outline", lambda: self.take(self.paste.toPlainText()))
        self.read.setEnabled(False)
        row.addWidget(self.read)
        card.body.addLayout(row)
        column.addWidget(card)
        column.addWidget(Caption("Reading an invitation sends nothing."))
        column.addStretch(1)
        return widget

    def _explaining(self) -> QWidget:
        widget = QWidget()
        column = QVBoxLayout(widget)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_3)
        card = Card()
        self.facts = KeyValueGrid()
        card.body.addWidget(self.facts)
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        self.check = SecondaryButton("Chec&k the address", "access-point-network", self.check_address)
        self.copy_key = SecondaryButton("Cop&y your node's key", "content-copy", self._copy_key)
        self.fetch = SecondaryButton("Fetch the &policy from the Hub…", "cloud-download-outline", self.fetch_policy)
        self.change = LinkButton("Use anot&her invitation", "", self._ask)
        for button in (self.check, self.copy_key, self.change):
            row.addWidget(button)
        row.addStretch(1)
        card.body.addLayout(row)
        card.body.addWidget(self.fetch, 0, Qt.AlignmentFlag.AlignLeft)
        self.key_hint = Caption("")
        card.body.addWidget(self.key_hint)
        column.addWidget(card)
        self.lists = ConsentLists(self._example)
        column.addWidget(self.lists)
        column.addStretch(1)
        return widget

    # --- taking an invitation

    def _pasted(self) -> None:
        text = self.paste.toPlainText().strip()
        self.read.setEnabled(bool(text))
        self.paste_problem.hide()
        if "zk0desk:join?" in text and len(text) > 200:
            self.take(text)

    def _choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open an invitation", "", "Invitations (*.zk0invite);;All files (*)")
        if path:
            self.take_file(Path(path))

    def _opened_from_outside(self, text: str) -> None:
        """A link, a file or a drop. It may be a stranger's: an invitation that is held already is not replaced without asking."""
        self.model.pending_invitation = ""
        if is_link(text):
            self.take(text, asking=True)
        else:
            self.take_file(Path(text), asking=True)

    def take_file(self, path: Path, *, asking: bool = False) -> None:
        """Read the invitation in a file in the background, and explain it. `asking`: before it takes the place of another one."""
        from zk0desk.federation.invitation import Invitation

        in_background(self, lambda: Invitation.read(path), partial(self._keep, asking=asking), self._problem)

    def take(self, text: str, *, asking: bool = False) -> None:
        """Read an invitation's text and explain it. Nothing is sent. `asking` as in `take_file`."""
        from zk0desk.federation.invitation import Invitation

        try:
            invitation = Invitation.parse(text)
        except OperatorError as error:
            self._problem(error)
            return
        self._keep(invitation, asking=asking)

    def _problem(self, error: OperatorError) -> None:
        self._ask()
        self.paste_problem.setText(str(error))
        self.paste_problem.show()

    def _keep(self, invitation: Invitation, *, asking: bool = False) -> None:
        self._decline_offered()
        if self.model.running:
            self.banner.set("warning", "The node is in a federation.", "Leave it first; then open the other invitation.")
            self.banner.show()
            return
        settings = self._settings()
        if settings is None:
            return
        line = invitation.to_line()
        held = invitation_of(settings)
        if asking and held is not None and line != settings.federation.invitation:
            self._offered = invitation
            what = f"Another invitation was opened: to {invitation.federation} at {invitation.address}."
            self.offer.set("info", what, f"You hold one to {held.federation} at {held.address}. Nothing has changed, and nothing was sent.")
            self.offer.show()
            return
        if line != settings.federation.invitation:
            federation = settings.federation.model_copy(update={"invitation": line, "consent": ""})
            self.agree.setChecked(False)
            self.model.update_settings(settings.model_copy(update={"federation": federation}))
        self.paste.clear()
        self.banner.hide()
        self.refresh()

    def _use_offered(self) -> None:
        if self._offered is not None:
            self._keep(self._offered)

    def _decline_offered(self) -> None:
        self._offered = None
        self.offer.hide()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if invitation_in(event.mimeData(), any_file=True) or event.mimeData().hasText():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        data = event.mimeData()
        found = invitation_in(data, any_file=True)
        if found:
            self._opened_from_outside(found)
        else:
            self.take(data.text(), asking=True)
        event.acceptProposedAction()

    # --- showing it

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        look = self.model.hardware
        if look is not None and look.verdict.answer == "no":
            self.model.hardware = None  # what stood in the way may be mended: looked at anew
        self.refresh()

    def _settings(self) -> Settings | None:
        try:
            return self.model.settings
        except OperatorError as error:
            self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
            self.banner.show()
            return None

    def _ask(self) -> None:
        settings = self._settings()
        self._layers.setCurrentIndex(0)
        self.cancel.setVisible(settings is not None and invitation_of(settings) is not None)
        self.paste.setFocus()

    def refresh(self) -> None:
        """Show what the settings and the node tell."""
        settings = self._settings()
        if settings is None:
            return
        joined = self.model.running and self.model.state in RUNNING
        self._look(settings)
        self.stepper.show_steps(steps_of(settings, self.model.hardware, agreed=self.agree.isChecked(), joined=joined))
        invitation = invitation_of(settings)
        if invitation is None:
            self.header.set_answer("No invitation yet. Nothing has been sent.")
            self._layers.setCurrentIndex(0)
            self.cancel.hide()
            return
        self._layers.setCurrentIndex(1)
        self._admitted = joined and (self._admitted or self.model.state in ADMITTED or self.model.live_run is not None)
        self.facts.set_rows(facts(invitation, self._key_known, admitted=self._admitted))
        self.key_hint.setVisible(not self._admitted)
        self.fetch.setVisible(not joined and (settings.policy.folder is None or not (settings.policy.folder / "config.json").is_file()))
        self.lists.show_invitation(invitation)
        event = self.model.state_event
        if joined:
            self.header.set_answer(f"{event.what.rstrip('.')}. {event.why} {event.then}".strip())
        elif self.model.state is NodeState.FAILED:
            self.header.set_answer(f"{event.what} {event.why} {event.then}".strip())
        else:
            idle = event.state == NodeState.IDLE
            self.header.set_answer("You were invited. Nothing has been sent yet." if idle else SENTENCES[NodeState.STOPPED][1])
        self.change.setEnabled(not joined)
        self._enable(settings, joined)
        if self.isVisible() and not self._key_known:
            self._find_key(settings)

    def _look(self, settings: Settings) -> None:
        """Look at this computer in the background, unless it was looked at with this policy already."""
        asked, known = Asked.of(settings), self.model.hardware
        if known is not None and known.asked.folder == asked.folder and known.asked != asked:
            known = self.model.hardware = known.judged(asked)  # the computer is the same
        if not self.isVisible() or asked.folder is None or asked in (self._looking, known.asked if known is not None else None):
            return

        def seen(look: HardwareLook) -> None:
            if self._looking == look.asked:
                self._looking = None
            self.model.hardware = look
            self.model.hardwareSeen.emit()

        def failed(error: OperatorError) -> None:
            # `_looking` stays: another look is for a person to ask for, on the page about this computer.
            self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
            self.banner.show()

        self._looking = asked
        in_background(self, lambda: look_at_hardware(asked), seen, failed)

    def _enable(self, settings: Settings, joined: bool) -> None:
        before = steps_of(settings, self.model.hardware)[:3]
        self.footer.show_state(before, self.page_id, running=self.model.running, joined=joined)

    # --- what its buttons do

    def fetch_policy(self) -> None:
        """Ask for the base policy on the Hub: the one that the invitation names where it does."""
        settings = self._settings()
        invitation = invitation_of(settings) if settings else None
        name, _, revision = (invitation.policy_name if invitation else "").partition("@")
        known = name.count("/") == 1
        open_hub_dialog(self.model, "policy", self, name=name if known else "", revision=revision if known and revision else "main")

    def check_address(self) -> None:
        """Ask the address whether a SuperLink answers there. No key and no name is sent."""
        settings = self._settings()
        invitation = invitation_of(settings) if settings else None
        if invitation is None:
            return
        from zk0desk.federation.probe import probe

        self.check.setEnabled(False)
        self.banner.set("info", f"Calling {invitation.address}…", "No key and no name is sent.")
        self.banner.show()
        in_background(self, lambda: probe(invitation), partial(self._reached, invitation), partial(self._not_reached, invitation))

    def _of_now(self, invitation: Invitation) -> bool:
        """Whether an answer about `invitation` still concerns what is shown."""
        self.check.setEnabled(True)
        settings = self._settings()
        return settings is not None and settings.federation.invitation == invitation.to_line()

    def _reached(self, invitation: Invitation, found: ProbeResult) -> None:
        if not self._of_now(invitation):
            return
        self.banner.set(
            "ok",
            f"The SuperLink answers in {found.latency_ms:.0f} ms; its certificate is the invitation's.",
            "Nothing of yours was sent.",
        )

    def _not_reached(self, invitation: Invitation, error: OperatorError) -> None:
        if not self._of_now(invitation):
            return
        self.banner.set("error", error.what, f"{error.why} {error.remedy} Nothing of yours was sent.".strip())
        self.banner.show()

    def _find_key(self, settings: Settings) -> None:
        from zk0desk.federation.credentials import load_or_make_key

        def found(key: Any) -> None:
            self._key_known, self._key_line = key.fingerprint, key.public_line
            self.copy_key.setEnabled(True)
            invitation = invitation_of(self.model.settings)
            if invitation is None:
                return
            self.facts.set_rows(facts(invitation, self._key_known, admitted=self._admitted))
            if invitation.admission != "open":
                ask = f"Tell the coordinator: “Please admit the node {key.fingerprint}”"
                self.key_hint.setText(f"{ask}, and send the key that the button copies.")

        def failed(error: OperatorError) -> None:
            self.key_hint.setText(str(error))
            self.copy_key.setEnabled(False)

        in_background(self, lambda: load_or_make_key(settings.federation), found, failed)

    def _copy_key(self) -> None:
        if self._key_line:
            QGuiApplication.clipboard().setText(self._key_line)
            self.key_hint.show()
            self.key_hint.setText(f"Copied. Send it to the coordinator; its fingerprint is {self._key_known}.")

    def _example(self) -> None:
        try:
            settings, journal = self.model.settings, self.model.journal
        except OperatorError as error:
            self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
            self.banner.show()
            return
        invitation = invitation_of(settings)
        if invitation is None:
            return
        dialog = ExampleDialog(self, invitation, self._key_known)
        dialog.open()
        dialog.fill(settings.recordings.chosen, journal)

    def _elsewhere(self, page_id: str) -> None:
        """Show the page on which something is still to be done; on that about this computer, the engine is at its top."""
        if page_id == "computer":
            self.model.show_engine()
        else:
            self.model.showPage.emit(page_id)

    def _join(self) -> None:
        settings = self._settings()
        invitation = invitation_of(settings) if settings else None
        if settings is None or invitation is None or not self.join.isEnabled():
            return
        from zk0desk.federation.consent import consent_digest

        federation = settings.federation.model_copy(update={"consent": consent_digest(invitation)})
        self.model.update_settings(settings.model_copy(update={"federation": federation}))
        self.banner.hide()
        self.model.join()
        self.model.showPage.emit("training")
