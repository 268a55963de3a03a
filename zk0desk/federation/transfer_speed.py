"""How fast weights and updates travel between this node and its federation: as the last rounds had it, never by a test of its own.

A node keeps what a round's transfers took in its journal. Before the first round nothing is known, and nothing is made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zk0desk.federation.updates import LOSSY, encoded_bytes

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation
    from zk0desk.journal import Journal

SMALLEST_S = 1e-3
"""A transfer that took less counts as that long."""


@dataclass(frozen=True)
class TransferSpeed:
    """Bytes a second of the last download and the last upload, each with what is around it (encoding, hashing); 0: not known."""

    down: float = 0.0
    up: float = 0.0

    def upload_seconds(self, invitation: Invitation) -> float:
        """Seconds that sending a round's update takes; 0 where it is not known."""
        return update_bytes(invitation) / self.up if self.up else 0.0


def update_bytes(invitation: Invitation) -> int:
    """Bytes of a round's update."""
    return encoded_bytes(invitation.trainable_parameters, invitation.encoding)


def weights_bytes(invitation: Invitation) -> int:
    """Bytes of a round's weights for a node that was in the round before: what changed in them, or the whole where nothing is encoded."""
    return encoded_bytes(invitation.trainable_parameters, invitation.encoding) if invitation.encoding in LOSSY else whole_bytes(invitation)


def whole_bytes(invitation: Invitation) -> int:
    """Bytes of the whole weights as float32: in the first round, and after some missed ones."""
    return encoded_bytes(invitation.trainable_parameters, "fp32")


def keep_transfer(journal: Journal, invitation: Invitation, direction: Literal["down", "up"], count: int, seconds: float) -> None:
    """Keep what a round's download or upload of `count` bytes took."""
    known = journal.recall(_fact(invitation), {})
    journal.remember(_fact(invitation), {**known, direction: [count, max(SMALLEST_S, seconds)]})


def transfer_speed(journal: Journal, invitation: Invitation) -> TransferSpeed:
    """What is known of the line to `invitation`'s federation."""
    known = journal.recall(_fact(invitation), {})
    return TransferSpeed(*(count / seconds for count, seconds in (known.get(direction, (0, 1)) for direction in ("down", "up"))))


def _fact(invitation: Invitation) -> str:
    return f"line {invitation.certificate_sha256[:16]}"
