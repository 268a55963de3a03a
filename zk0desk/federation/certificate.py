"""The gateway's certificate: self-signed, made with its key, and made anew with the same key before it ends.

An invitation holds a certificate, and what nodes trust of it is the key: another certificate that this key has signed for itself is as
good (`successor`). So a renewal asks nothing of the operators.
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import Notice, Sink
from zk0desk.folders import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import Certificate

    from zk0desk.federation.invitation import Invitation

YEARS = 10
RENEW = timedelta(days=14)
"""How long before its end a certificate is renewed."""
TELL = timedelta(days=30)
"""How long before its end a coordinator is told."""
FETCH_S = 5.0
"""How long a node waits for the certificate that a federation shows, in seconds."""


class CertificateError(OperatorError):
    """The certificate or its key is missing, empty or damaged, or the two do not belong together."""

    code = "certificate"
    exit_status = ExitStatus.USAGE


def make_certificate(name: str, key: ec.EllipticCurvePrivateKey | None = None, *, now: datetime | None = None) -> tuple[str, str]:
    """A self-signed certificate for `name`, localhost and loopback, and its private key, both PEM; of `key`, or a new one (EC P-256)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = key or ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = []
    for each in dict.fromkeys([name, "localhost", "127.0.0.1", "::1"]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(each)))
        except ValueError:
            names.append(x509.DNSName(each.encode("idna").decode()))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = now or datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Nodes' clocks may be behind.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


# --- the server's side --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerCertificate:
    """A server's certificate and key, in their files; `name` is what a renewed one is for."""

    certificate_path: Path
    key_path: Path
    name: str

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The private key. `CertificateError` when its file is missing, empty or damaged."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            found = serialization.load_pem_private_key(self.key_path.read_bytes(), None)
        except OSError as error:
            raise CertificateError(f"{self.key_path} cannot be read.", f"{error.strerror}.", _RESTORE) from error
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # What the library says of a key may hold a part of it.
            raise CertificateError(f"{self.key_path} holds no private key.", "It is empty or damaged.", _RESTORE) from None
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{self.key_path} holds another kind of key.", "The server's is an elliptic curve key.", _RESTORE)
        return found

    def ends(self) -> datetime:
        """When the certificate ends. `CertificateError` when its file is missing, empty or damaged."""
        return self._certificate().not_valid_after_utc

    def check(self) -> None:
        """Raise `CertificateError` unless certificate and key are there and belong together."""
        if self._certificate().public_key() != self.key().public_key():
            raise CertificateError(
                "The server's certificate and its key do not belong together.", f"{self.certificate_path} is for another key.", _RESTORE
            )

    def due(self, now: datetime | None = None) -> bool:
        """Whether it has ended or soon does, or has not begun (the clock was set back)."""
        found, now = self._certificate(), now or datetime.now(UTC)
        return now > found.not_valid_after_utc - RENEW or now < found.not_valid_before_utc

    def renew(self) -> None:
        """Write a new certificate of the same key; the files' errors as `CertificateError`."""
        certificate, _ = make_certificate(self.name, self.key())
        try:
            write_atomically(self.certificate_path, certificate, 0o644)
        except OSError as error:
            raise CertificateError(
                "The server's certificate could not be renewed.",
                f"{self.certificate_path}: {error.strerror}.",
                "Make room, or make the folder writable; it is tried again by itself.",
            ) from error

    def remark(self, now: datetime | None = None) -> str:
        """A sentence for the coordinator when it ends within 30 days or has ended, else empty."""
        ends, now = self.ends(), now or datetime.now(UTC)
        if now > ends:
            return f"The server's certificate has ended, on {ends:%Y-%m-%d}."
        return f"The server's certificate ends on {ends:%Y-%m-%d}, in {(ends - now).days} days." if ends - now <= TELL else ""

    def _certificate(self) -> Certificate:
        from cryptography import x509

        try:
            return x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        except OSError as error:
            raise CertificateError(f"{self.certificate_path} cannot be read.", f"{error.strerror}.", _RESTORE) from error
        except ValueError as error:
            raise CertificateError(f"{self.certificate_path} holds no certificate.", "It is empty or damaged.", _RESTORE) from error


class CertificateWatch:
    """Looks after a running server's certificate: renews it, and tells the coordinator when it ends soon."""

    EVERY_S = 600.0

    def __init__(self, certificate: ServerCertificate, emit: Sink) -> None:
        self._certificate, self._emit = certificate, emit
        self._next = 0.0
        self._told = ""
        certificate.check()

    def look(self) -> bool:
        """Renew it when that is due; whether that was done. `CertificateError` when it cannot be used as it is."""
        self._next = time.monotonic() + self.EVERY_S
        renewed = self._certificate.due()
        if renewed:
            self._certificate.renew()
            ends = self._certificate.ends()
            what = f"The server's certificate was renewed, with the same key; it ends on {ends:%Y-%m-%d}."
            self._emit(Notice(severity="note", code="certificate-renewed", what=what, why="Nodes and invitations stay as they are."))
        if (remark := self._certificate.remark()) and remark != self._told:
            self._told = remark
            why = f"It is renewed by itself {RENEW.days} days before, as long as this server runs; invitations stay valid."
            self._emit(Notice(severity="warning", code="certificate-ends", what=remark, why=why))
        return renewed

    def look_now_and_then(self) -> bool:
        """As `look`, every ten minutes; what is wrong then is told, and the certificate in use stays."""
        if time.monotonic() < self._next:
            return False
        try:
            return self.look()
        except CertificateError as error:
            if error.what != self._told:
                self._told = error.what
                self._emit(Notice(severity="error", code=error.code, what=error.what, why=error.why, remedy=error.remedy))
            return False


_RESTORE = "Put both files of tls/ back from a copy; without them, make a new folder with `zk0desk server init` and invite again."


# --- the node's side ----------------------------------------------------------------------------------------------


def trusting(pem: str) -> ssl.SSLContext:
    """A TLS context that trusts the certificate `pem` and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    return context


def successor(pinned: str, shown: bytes) -> str:
    """`shown` (DER) as PEM when the key of the certificate `pinned` (PEM) has signed it for itself, else empty."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        old, new = x509.load_pem_x509_certificate(pinned.encode()), x509.load_der_x509_certificate(shown)
        if new.public_key() != old.public_key():
            return ""
        new.verify_directly_issued_by(new)
    except (ValueError, TypeError, InvalidSignature):
        return ""
    return ssl.DER_cert_to_PEM_cert(shown)


def renewed(invitation: Invitation) -> str:
    """The certificate (PEM) that the invitation's federation shows now, when it is a successor of the invitation's; else empty.

    Nothing about this computer is sent: the certificate is looked at and the connection closed.
    """
    import socket

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Who holds the key decides, and the next connection checks the certificate in full.
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        contextlib.closing(socket.create_connection((invitation.host, invitation.port), FETCH_S)) as plain,
        context.wrap_socket(plain, server_hostname=invitation.host) as secure,
    ):
        return successor(invitation.certificate, secure.getpeercert(binary_form=True) or b"")
    return ""
