"""The way in: recordings, this computer, invitation, consent, join. What is done, and what blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PySide6.QtWidgets import QHBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.widgets import IconLabel, Text, set_kind

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation
    from zk0desk.settings import Settings


@dataclass(frozen=True)
class Step:
    """A step of the way in. `blocked` says why it cannot be taken yet, or is empty."""

    name: str
    page_id: str
    done: bool
    blocked: str = ""


def invitation_of(settings: Settings) -> Invitation | None:
    """The invitation that the settings hold, or None where there is none or it cannot be used."""
    from zk0desk.federation.invitation import Invitation

    if not settings.federation.invitation:
        return None
    try:
        return Invitation.parse(settings.federation.invitation)
    except OperatorError:
        return None


def steps_of(settings: Settings, *, joined: bool = False) -> list[Step]:
    """The five steps as the settings tell them."""
    from zk0desk.federation.consent import consent_digest

    invitation = invitation_of(settings)
    recordings = bool(settings.recordings.chosen)
    policy = settings.policy.folder is not None and (settings.policy.folder / "config.json").is_file()
    agreed = invitation is not None and settings.federation.consent == consent_digest(invitation)
    ready = recordings and policy and agreed
    return [
        Step("Recordings", "recordings", recordings, "" if recordings else "Choose at least one recording."),
        Step("This computer", "computer", policy, "" if policy else "Choose the base policy's folder."),
        Step("Invitation", "federation", invitation is not None, "" if invitation else "Paste or open the coordinator's invitation."),
        Step("Consent", "federation", agreed, "" if invitation else "It needs an invitation first."),
        Step("Join", "federation", joined, "" if ready else "The steps before it are not done."),
    ]


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
                widget.deleteLater()
        current = next((step for step in steps if not step.done), None)
        for number, step in enumerate(steps, 1):
            icon = "check-circle" if step.done else f"numeric-{number}-circle-outline"
            self._row.addWidget(IconLabel(icon, "ok" if step.done else "accent" if step is current else "muted", 20))
            word = Text(step.name, "bold" if step is current else "" if step.done else "muted", wrap=False)
            state = "done" if step.done else "next" if step is current else "not yet"
            word.setAccessibleName(f"Step {number}, {step.name}: {state}. {step.blocked}")
            word.setToolTip(step.blocked)
            self._row.addWidget(word)
            if number < len(steps):
                dash = Text("—", wrap=False)
                set_kind(dash, "muted")
                self._row.addWidget(dash)
        self._row.addStretch(1)
