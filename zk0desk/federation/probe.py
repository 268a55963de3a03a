"""Troubles on the way to a federation, told apart in words, and a probe that looks for them.

The probe opens a TLS connection to the address of an invitation, checks the certificate, and reads the clock from the
answer's header. It shows no key and sends nothing about this computer.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import socket
import ssl
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from zk0desk.errors import ExitStatus, OperatorError, causes
from zk0desk.federation.certificate import renewed, trusting

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation

CLOCK_TOLERANCE_S = 5.0
"""A SuperLink refuses what is signed more than this in its future, or five minutes in its past."""
PATH = "/v1/fleet/pull-messages"


class ConnectionTrouble(OperatorError):
    """The federation cannot be reached or refuses this node. `lasting`: trying again by itself does not help."""

    code = "unreachable"
    exit_status = ExitStatus.UNREACHABLE
    lasting = False


class NameNotFound(ConnectionTrouble):
    """The host's name does not resolve."""

    code = "name-not-found"


class Refused(ConnectionTrouble):
    """The host answers, the port does not."""

    code = "connection-refused"


class TimedOut(ConnectionTrouble):
    """No answer in time."""

    code = "timed-out"


class LineLost(ConnectionTrouble):
    """The connection broke, or the network is down."""

    code = "line-lost"


class ServerTrouble(ConnectionTrouble):
    """The federation's computer answers, but not as a SuperLink in order."""

    code = "server-trouble"


class WrongCertificate(ConnectionTrouble):
    """Something else than the invitation's computer answers."""

    code = "wrong-certificate"
    exit_status = ExitStatus.REFUSED
    lasting = True


class NotAdmitted(ConnectionTrouble):
    """The coordinator has not admitted this node's key yet."""

    code = "not-admitted"
    exit_status = ExitStatus.REFUSED


class InvitationOver(NotAdmitted):
    """The invitation's time is over, or as many nodes have used it as it is for. The coordinator can still admit the key by hand."""

    code = "invitation-over"


class Revoked(ConnectionTrouble):
    """The coordinator has excluded this node's key."""

    code = "revoked"
    exit_status = ExitStatus.REFUSED
    lasting = True


class VersionMismatch(ConnectionTrouble):
    """Flower here and there differ in major or minor version."""

    code = "version-mismatch"
    exit_status = ExitStatus.REFUSED
    lasting = True


class ClockOff(ConnectionTrouble):
    """The clocks differ by more than the SuperLink accepts."""

    code = "clock-off"
    exit_status = ExitStatus.REFUSED
    lasting = True


def name_not_found(host: str) -> NameNotFound:
    """The sentence for a name that does not resolve."""
    return NameNotFound(
        f"The name {host} was not found.",
        "No name server knows it, or this computer is offline.",
        "Check the network; else ask the coordinator for the address.",
    )


def trouble(error: BaseException, invitation: Invitation, *, again: bool = True) -> ConnectionTrouble:
    """The sentence for `error` (a socket, TLS or HTTP library's error, or one that was raised because of such a one).

    `again`: a node that has joined tries again by itself; a person who only asks about the address has to do it.
    """
    if isinstance(error, ConnectionTrouble):
        return error
    address = invitation.address
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_trouble(cause, address)
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            return name_not_found(invitation.host)
        if isinstance(cause, ConnectionRefusedError):
            return Refused(
                f"{address} refuses the connection.",
                "The computer is there, but no SuperLink listens on that port.",
                "The coordinator has to start it; this node tries again."
                if again
                else "Ask the coordinator to start it, and for the right port; then check the address again.",
            )
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return TimedOut(
                f"{address} does not answer.",
                "No answer came in time; a firewall may drop the packets.",
                "Check the network and the address.",
            )
        if isinstance(cause, ssl.SSLError):
            return WrongCertificate(
                f"{address} does not speak TLS as a federation does.", f"{cause.reason or cause}.", "Check the port with the coordinator."
            )
    why = str(error) or type(error).__name__
    remedy = "Tried again by itself." if again else "Check the network, then check the address again."
    return LineLost(f"The connection to {address} broke.", f"{why[:200].rstrip('.')}.", remedy)


def _certificate_trouble(error: ssl.SSLCertVerificationError, address: str) -> ConnectionTrouble:
    # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
    if error.verify_code == 9:
        return ClockOff(
            f"The certificate of {address} is not valid yet.",
            f"This computer's clock says {time.strftime('%Y-%m-%d %H:%M')}.",
            "Set this computer's clock.",
        )
    if error.verify_code == 10:
        return WrongCertificate(
            f"The certificate of {address} has expired.",
            f"This computer's clock says {time.strftime('%Y-%m-%d %H:%M')}.",
            "If the clock is right, ask the coordinator for a new invitation.",
        )
    return WrongCertificate(
        f"{address} shows another certificate than the invitation's.",
        "Another program, a proxy or another computer answers there, or the federation was set up anew.",
        "Ask the coordinator whether the invitation is still right.",
    )


def clock_off(seconds: float) -> ClockOff:
    """The sentence for clocks that differ: `seconds` is this computer's minus the federation's."""
    side = "ahead of" if seconds > 0 else "behind"
    return ClockOff(
        "This computer's clock is off.",
        f"It is {abs(seconds):.0f} s {side} the federation's, which refuses more than {CLOCK_TOLERANCE_S:.0f} s ahead or 300 s behind.",
        "Turn on setting the time by the network.",
    )


def clock_offset(date: str | None) -> float | None:
    """This computer's clock minus that in an HTTP `Date` header, in seconds (a second's grain); None without a header."""
    if not date:
        return None
    try:
        return time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None


def clock_is_refused(offset: float | None) -> bool:
    """Whether a SuperLink refuses signatures of a clock that differs by `offset` seconds. The header's grain counts as right."""
    return offset is not None and (offset > CLOCK_TOLERANCE_S + 1 or offset < -(300.0 + CLOCK_TOLERANCE_S))


def check_versions(theirs: str) -> None:
    """Raise `VersionMismatch` when Flower here (if installed) and there (`theirs`, or empty) differ in major or minor."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        ours = metadata.version("flwr")
        if theirs and theirs.split(".")[:2] != ours.split(".")[:2]:
            raise version_mismatch(f"Flower {theirs} runs there, Flower {ours} here.")


def version_mismatch(why: str) -> VersionMismatch:
    """The sentence for versions that differ; `why` names both."""
    return VersionMismatch(
        "The federation runs another version of Flower.",
        f"{why} They have to agree in the first two numbers.",
        "Update zk0desk here, or ask the coordinator to.",
    )


@dataclass(frozen=True)
class ProbeResult:
    """What the probe found: round trip in ms, the address that was called, TLS version, clock difference in s (None: not told)."""

    latency_ms: float
    address: str
    tls: str
    clock_off_s: float | None
    certificate_sha256: str

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, keys in kebab-case."""
        return {key.replace("_", "-"): value for key, value in asdict(self).items()}


def probe(invitation: Invitation, *, timeout: float = 8.0) -> ProbeResult:
    """Call the invitation's federation without a key. Raises a `ConnectionTrouble` that says what is wrong."""
    check_versions(invitation.flwr_version)
    try:
        try:
            return _probe(invitation, trusting(invitation.certificate), timeout)
        except ssl.SSLCertVerificationError:
            if not (shown := renewed(invitation)):
                raise
            return _probe(invitation, trusting(shown), timeout)
    except (OSError, http.client.HTTPException) as error:
        raise trouble(error, invitation, again=False) from error


def _probe(invitation: Invitation, context: ssl.SSLContext, timeout: float) -> ProbeResult:
    began = time.perf_counter()
    with contextlib.closing(socket.create_connection((invitation.host, invitation.port), timeout)) as plain:
        latency = (time.perf_counter() - began) * 1000
        peer = plain.getpeername()[0]
        with context.wrap_socket(plain, server_hostname=invitation.host) as secure:
            shown = hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()
            tls = secure.version() or ""
            connection = http.client.HTTPConnection(invitation.host, invitation.port, timeout=timeout)
            connection.sock = secure
            connection.request("POST", PATH, body=b"", headers={"content-type": "application/x-protobuf"})
            response = connection.getresponse()
            response.read(65_536)
    offset = clock_offset(response.getheader("date"))
    if clock_is_refused(offset):
        raise clock_off(offset or 0.0)
    if response.status >= 500:
        raise server_trouble(invitation.address, response.status, again=False)
    return ProbeResult(latency, peer, tls, offset, shown)


def server_trouble(address: str, status: int, *, again: bool = True) -> ServerTrouble:
    """The sentence for an answer that a SuperLink in order does not give. `again` as for `trouble`."""
    then = "this node tries again." if again else "wait a minute, then check the address again."
    return ServerTrouble(f"{address} answers, but not as it should.", f"HTTP status {status}.", f"The SuperLink may be starting; {then}")
