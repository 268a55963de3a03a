"""The gateway's certificate: renewed with the same key, and what a node trusts of it."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.federation.coordinator_parts import Events, make_server
from zk0desk.federation.certificate import CertificateError, CertificateWatch, make_certificate, successor
from zk0desk.federation.invitation import certificate_sha256


def der(pem: str) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(pem)


def ending_in(days: float, key: ec.EllipticCurvePrivateKey | None = None) -> str:
    return make_certificate("localhost", key, now=datetime.now(UTC) - timedelta(days=3650 - days))[0]


@pytest.fixture
def folder(tmp_path):
    return make_server(tmp_path)


@pytest.mark.parametrize(("days", "due"), [(3000, False), (20, False), (10, True), (-100, True), (5000, True)])
def test_it_is_renewed_before_it_ends_after_it_ended_and_when_the_clock_was_set_back(folder, days, due):
    found = folder.certificate()
    folder.certificate_path.write_text(ending_in(days, found.key()))
    assert found.due() is due


def test_a_renewed_one_has_the_same_key_and_a_new_end(folder):
    found, before = folder.certificate(), folder.certificate_path.read_text()
    key = folder.key_path.read_bytes()
    found.renew()
    after = folder.certificate_path.read_text()
    assert folder.key_path.read_bytes() == key and certificate_sha256(after) != certificate_sha256(before)
    assert successor(before, der(after)) == successor(after, der(after))
    assert found.ends() > datetime.now(UTC) + timedelta(days=3600)
    assert folder.certificate_path.stat().st_mode & 0o777 == 0o644


def test_only_the_same_key_makes_a_successor():
    mine, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pinned = make_certificate("localhost", mine)[0]
    assert successor(pinned, der(make_certificate("elsewhere", mine)[0]))
    assert not successor(pinned, der(make_certificate("localhost", other)[0]))
    assert not successor(pinned, b"") and not successor(pinned, b"garbage")


def test_a_certificate_for_the_key_that_another_signed_is_no_successor():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    mine, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    forged = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(mine.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(other, hashes.SHA256())
    )  # fmt: skip
    assert not successor(make_certificate("localhost", mine)[0], forged.public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize("harm", ["no key", "empty key", "damaged key", "another key", "no certificate", "empty certificate"])
def test_what_is_missing_or_damaged_is_said_and_never_quoted(folder, harm):
    key = folder.key_path.read_text()
    path = folder.certificate_path if "certificate" in harm else folder.key_path
    if harm.startswith("no"):
        path.unlink()
    else:
        path.write_text({"empty": "", "damaged": key[:60] + key[90:], "another": make_certificate("localhost")[1]}[harm.split()[0]])
    with pytest.raises(CertificateError) as caught:
        folder.certificate().check()
    error, chain = caught.value, ""
    while error is not None:
        chain, error = chain + repr(error) + str(error), error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "tls" in caught.value.remedy and key.splitlines()[1][:20] not in chain
    with pytest.raises(CertificateError):
        folder.invitation(port=8000)


def test_the_coordinator_is_told_once_when_it_ends_within_thirty_days_and_when_it_was_renewed(folder):
    found, events = folder.certificate(), Events()
    key = found.key()
    watch = CertificateWatch(found, events)
    assert not watch.look() and not events
    folder.certificate_path.write_text(ending_in(20.5, key))
    assert not watch.look() and not watch.look()
    assert [event.code for event in events.named("notice")] == ["certificate-ends"] and "in 20 days" in events[0].what
    folder.certificate_path.write_text(ending_in(-3, key))
    assert watch.look() and not watch.look()
    assert [event.code for event in events.named("notice")] == ["certificate-ends", "certificate-renewed"]


def test_one_that_cannot_be_renewed_is_told_and_the_one_in_use_stays(folder):
    found, events = folder.certificate(), Events()
    folder.certificate_path.write_text(ending_in(5, found.key()))
    watch = CertificateWatch(found, events)
    folder.key_path.unlink()
    assert not watch.look_now_and_then()
    assert [event.code for event in events.named("notice")] == ["certificate"]
    assert not watch.look_now_and_then(), "not asked again before ten minutes have passed"
