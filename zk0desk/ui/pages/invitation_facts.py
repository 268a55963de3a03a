"""What an invitation says, in words: where the federation is, which policy it trains, how much work and traffic that is."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from zk0desk.federation.transfer_speed import update_bytes, weights_bytes, whole_bytes

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation


def facts(invitation: Invitation, fingerprint: str, *, admitted: bool = False) -> list[tuple[str, str]]:
    """Names and values. `fingerprint` is the node's, or empty while it has no key; `admitted`: the coordinator lets it take part."""
    steps = invitation.local_steps
    work = _counted(steps, "steps") if steps else _counted(invitation.local_epochs, "epochs")
    per_round, first = weights_bytes(invitation) + update_bytes(invitation), whole_bytes(invitation) - weights_bytes(invitation)
    admission = "admitted at once by the invitation's code" if invitation.admission == "open" else "to be admitted by the coordinator"
    if admitted:
        admission = "admitted"
    elif invitation.valid_until:
        admission += f"; the invitation is valid until {datetime.fromtimestamp(invitation.valid_until):%Y-%m-%d %H:%M}"
    contact = f", contact {invitation.contact}" if invitation.contact else ""
    print_ = invitation.certificate_sha256.upper()
    certificate = ":".join(print_[n : n + 2] for n in range(0, 12, 2))
    return [
        ("Federation", f"{invitation.federation}{contact}"),
        ("Address", f"{invitation.address}, certificate {certificate}…"),
        (
            "Policy",
            f"{invitation.policy_name or invitation.policy_id}: {_parameters(invitation.trainable_parameters)} of "
            f"{_parameters(invitation.parameters)} parameters train; id {invitation.policy_id}",
        ),
        (
            "Plan",
            f"{_counted(invitation.rounds, 'rounds')} of {work}, batch {invitation.batch_size}; "
            f"at most {_length(invitation.deadline_s)} a round",
        ),
        ("Traffic", f"about {_megabytes(per_round)} a round, {_megabytes(first + per_round * invitation.rounds)} for the run"),
        ("Your node", f"key {fingerprint}, {admission}" if fingerprint else f"its key is made when you join; {admission}"),
    ]  # fmt: skip


def _parameters(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count:,}"


def _counted(count: float, what: str) -> str:
    return f"{count:g} {what}" if count != 1 else f"1 {what.removesuffix('s')}"


def _length(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
