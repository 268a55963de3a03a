"""What the federation of the settings asks of a round: as its last round's message said, else as its invitation says."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk import folders
from zk0desk.errors import OperatorError
from zk0desk.federation.transfer_speed import TransferSpeed, transfer_speed
from zk0desk.training.asked_round import AskedRound, usual_round
from zk0desk.training.rounds import RoundPlan

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation
    from zk0desk.journal import Journal
    from zk0desk.settings import Settings

_LOOKED_AT = 200
"""Messages of the ledger that are looked through for the last round's: one leaves with it, and a few around it."""


def invitation_in(settings: Settings) -> Invitation | None:
    """The invitation that the settings hold, or None where there is none or it cannot be used."""
    from zk0desk.federation.invitation import Invitation

    if not settings.federation.invitation:
        return None
    try:
        return Invitation.parse(settings.federation.invitation)
    except OperatorError:
        return None


def asked_round(settings: Settings, journal: Path | None = None) -> AskedRound:
    """What is asked of a round. `journal` is the file of the journal (default: the operator's); it is only read, and may be missing."""
    invitation = invitation_in(settings)
    if invitation is None:
        return usual_round()
    plan = RoundPlan(
        run="", round=1, rounds=invitation.rounds, seed=0, lr=1e-4, mu=0.01, batch_size=invitation.batch_size,
        local_epochs=invitation.local_epochs, local_steps=invitation.local_steps,
    )  # fmt: skip
    asked = AskedRound(plan, invitation.deadline_s, "invitation")
    with contextlib.suppress(OperatorError), _opened(journal) as opened:
        if opened is not None:
            asked = _last_round(opened, invitation) or asked
    return replace(asked, transfer_s=known_transfer_speed(invitation, journal).upload_seconds(invitation))


def known_transfer_speed(invitation: Invitation, journal: Path | None = None) -> TransferSpeed:
    """What the journal knows of how fast rounds of this federation travelled; nothing where there is no journal."""
    with contextlib.suppress(OperatorError), _opened(journal) as opened:
        if opened is not None:
            return transfer_speed(opened, invitation)
    return TransferSpeed()


def _opened(path: Path | None) -> contextlib.AbstractContextManager[Journal | None]:
    path = path or folders.journal_file()
    if not path.is_file():
        return contextlib.nullcontext()
    from zk0desk.journal import Journal

    return Journal(path)


def _last_round(journal: Journal, invitation: Invitation) -> AskedRound | None:
    """What the last round's message of this federation asked for, if the ledger holds one."""
    for entry in journal.ledger(invitation.address, _LOOKED_AT):
        if (entry.direction, entry.kind, entry.peer) == ("received", "train", invitation.address):
            config: dict[str, Any] = (entry.contents or {}).get("config", {})
            try:
                plan = RoundPlan(
                    run="", round=1, rounds=int(config["num-rounds"]), seed=0, lr=float(config["lr"]), mu=float(config["proximal-mu"]),
                    batch_size=int(config["batch-size"]), local_epochs=float(config["local-epochs"]),
                    local_steps=int(config["local-steps"]),
                )  # fmt: skip
                return AskedRound(plan, float(config["deadline-s"]), "last round")
            except (KeyError, TypeError, ValueError):
                return None
    return None
