"""What leaves this computer, what never does, and what an update can still tell. Shown before the first message.

`consent_digest` binds an agreement to this text and to one invitation: a changed text or invitation asks again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.messages import MIN_FRAMES, TRAIN_METRICS
from zk0desk.federation.updates import encoded_bytes

if TYPE_CHECKING:
    from zk0desk.training.policy_files import PolicyFiles


class ConsentMissing(OperatorError):
    """Nobody has agreed yet to what leaves this computer."""

    code = "consent-missing"
    exit_status = ExitStatus.USAGE


def leaves(invitation: Invitation, files: PolicyFiles | None = None) -> list[str]:
    """What is sent to the federation's computer, a sentence each. `files` only sharpens the size."""
    values = files.trainable_parameters if files else invitation.trainable_parameters
    size = encoded_bytes(values, invitation.encoding)
    return [
        f"Each round, what training here changed in the policy's {values:,} trainable values: {_bytes(size)}, to {invitation.address}.",
        f"With it these figures: {', '.join(TRAIN_METRICS)}.",
        "This node's public key, this computer's network address, and the versions of zk0desk and Flower.",
        "When the coordinator asks what this node can do: the versions, and the number of frames that it trains on.",
        f"A sign of life every 30 seconds, to {invitation.address} and nowhere else.",
    ]


def never_leaves() -> list[str]:
    """What is never sent, a sentence each."""
    return [
        "Images, videos, states, actions, tasks, and anything computed from a single frame.",
        "The cache of prepared frames, which is computed from pictures: it stays in a folder that only you can open.",
        "Names of recordings, folders, files or people.",
        "Normalisation statistics of your recordings.",
        f"Losses that are means over fewer than {MIN_FRAMES} frames.",
        "The private key of this node.",
    ]


def remains() -> str:
    """What remains possible although recordings stay here."""
    return (
        "The coordinator sees this node's update. Parts of recordings can sometimes be inferred from updates; "
        "take part only with recordings for which that is acceptable, and with a coordinator whom you trust."
    )


def consent_text(invitation: Invitation, files: PolicyFiles | None = None) -> str:
    """The whole text as a person reads it in a terminal."""

    def listed(title: str, sentences: Sequence[str]) -> str:
        return "\n".join([title, *(f"  - {sentence}" for sentence in sentences)])

    return "\n\n".join([
        listed("Leaves this computer:", leaves(invitation, files)),
        listed("Never leaves it:", never_leaves()),
        f"What remains: {remains()}",
    ])  # fmt: skip


def consent_digest(invitation: Invitation) -> str:
    """Hex SHA-256 of the text and the invitation: what the settings hold once somebody agreed."""
    # What is agreed to does not end with the invitation.
    invited = invitation.model_dump(mode="json", by_alias=True, exclude={"valid_until"})
    content = {"text": [leaves(invitation), never_leaves(), remains()], "invitation": invited}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_consent(invitation: Invitation, agreed: str) -> None:
    """Raise `ConsentMissing` unless `agreed` (the settings' value) is the digest of this text and invitation."""
    if agreed != consent_digest(invitation):
        raise ConsentMissing(
            "Nobody has agreed yet to what leaves this computer.",
            "The invitation or the text has changed since." if agreed else "That is asked before the first message.",
            "Read it on the Federation page, or with `zk0desk node --agree`, and agree.",
        )


def _bytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
