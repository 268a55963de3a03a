"""The way in: recordings, this computer, invitation, consent, join. What is done, and what blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PySide6.QtWidgets import QHBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.hardware_look import Asked
from zk0desk.ui.widgets import IconLabel, Text

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation
    from zk0desk.settings import Settings
    from zk0desk.ui.hardware_look import HardwareLook


ENGINE = {"engine-missing": "Get the training engine", "engine-broken": "Mend the training engine"}
"""Findings about this computer that a click on its page mends, and the button that leads there."""


@dataclass(frozen=True)
class Step:
    """A step of the way in. `blocked` says why it cannot be taken yet, `warning` what limits it though it is done; or empty.

    A step that `fails` cannot be taken on this computer as it is, whatever a person chooses on its page.
    """

    name: str
    page_id: str
    done: bool
    blocked: str = ""
    warning: str = ""
    fails: bool = False
    remedy: str = ""
    """The words of a button that leads to what is in the way; empty: back to the step's page."""

    @property
    def sign(self) -> tuple[str, str, str]:
        """Icon, colour and word where they do not depend on the other steps; empty otherwise."""
        if self.fails:
            return "close-circle", "error", "not possible"
        if self.done and self.warning:
            return "alert-circle", "warning", "done, with limits"
        return ("check-circle", "ok", "done") if self.done else ("", "", "")


def invitation_of(settings: Settings) -> Invitation | None:
    """The invitation that the settings hold, or None where there is none or it cannot be used."""
    from zk0desk.federation.asked_round import invitation_in

    return invitation_in(settings)


def steps_of(settings: Settings, look: HardwareLook | None = None, *, agreed: bool = False, joined: bool = False) -> list[Step]:
    """The five steps as the settings tell them, and `look`, what was seen of this computer (None: not looked yet).

    `agreed`: the box is ticked. What was agreed to before an earlier joining is asked again.
    """
    invitation = invitation_of(settings)
    recordings = bool(settings.recordings.chosen)
    computer = _computer_step(settings, look)
    agreed = invitation is not None and (agreed or joined)
    ready = recordings and computer.done and agreed
    return [
        Step("Recordings", "recordings", recordings, "" if recordings else "Choose at least one recording."),
        computer,
        Step("Invitation", "federation", invitation is not None, "" if invitation else "Paste or open the coordinator's invitation."),
        Step("Consent", "federation", agreed, "" if invitation else "It needs an invitation first."),
        Step("Join", "federation", joined, "" if ready else "The steps before it are not done."),
    ]


def _computer_step(settings: Settings, look: HardwareLook | None) -> Step:
    """Done with a policy that trains here. What was seen with another policy than the chosen one does not count."""
    name, page_id, folder = "This computer", "computer", settings.policy.folder
    if folder is None or not (folder / "config.json").is_file():
        return Step(name, page_id, False, "Choose the base policy's folder.")
    if look is None or look.asked != Asked.of(settings):
        return Step(name, page_id, False, "This computer is being looked at.")
    if look.trouble is not None:
        return Step(name, page_id, False, str(look.trouble), fails=True)
    first = look.verdict.findings[0] if look.verdict.findings else None
    if first is not None and first.code in ENGINE:
        return Step(name, page_id, False, f"{first.what} {first.why}".strip(), remedy=ENGINE[first.code])
    reason = f"{first.what} {first.remedy}".strip() if first is not None else ""
    if look.verdict.answer == "no":
        return Step(name, page_id, False, f"This computer cannot train the policy. {reason}".strip(), fails=True)
    return Step(name, page_id, True, warning=reason if look.verdict.answer == "limits" else "")


class Stepper(QWidget):
    """The steps in a row, each with a sign and a word."""

    def __init__(self) -> None:
        super().__init__()
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.setSpacing(theme.SPACE_2)

    def show_steps(self, steps: list[Step]) -> None:
        """Show `steps`; the first that is not done is the current one."""
        while self._row.count():
            item = self._row.takeAt(0)
            if item is not None and (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        current = next((step for step in steps if not step.done), None)
        for number, step in enumerate(steps, 1):
            icon, color, state = step.sign
            if not icon:
                icon, color = f"numeric-{number}-circle-outline", "accent" if step is current else "muted"
                state = "next" if step is current else "not yet"
            self._row.addWidget(IconLabel(icon, color, 20))
            word = Text(step.name, "bold" if step is current else "" if step.done else "muted", wrap=False)
            said = step.blocked or step.warning
            word.setAccessibleName(f"Step {number}, {step.name}: {state}. {said}".strip())
            word.setToolTip(said)
            self._row.addWidget(word)
            if number < len(steps):
                self._row.addWidget(Text("—", "muted", wrap=False))
        self._row.addStretch(1)
