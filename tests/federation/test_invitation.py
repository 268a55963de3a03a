"""Invitations: what a person pastes is read, or refused with a sentence."""

import base64
import datetime
import zlib
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.federation.invitation import LINE_LIMIT, PREFIX, Invitation, InvitationError, certificate_sha256


@cache
def certificate() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    signed = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode()


def invitation(**changes: object) -> Invitation:
    pem = certificate()
    values: dict[str, object] = {
        "federation": "Arms of the north",
        "contact": "ada@example.org",
        "host": "arms.example.org",
        "port": 8000,
        "certificate": pem,
        "certificate_sha256": certificate_sha256(pem),
        "policy_id": "smolvla-1a2b",
        "policy_name": "smolvla_base",
        "backbone_sha256": "a" * 64,
        "layout_sha256": "b" * 64,
        "parameters": 450_046_176,
        "trainable_parameters": 99_880_992,
        "admission": "approved",
        "code": "q7h-x2",
        "rounds": 30,
        "local_epochs": 20.0,
        "batch_size": 64,
        "deadline_s": 2700.0,
        "flwr_version": "1.41.0",
        "zk0desk_version": "0.1.0",
    }
    return Invitation.model_validate({**values, **changes})


def test_a_line_that_was_written_is_read_again():
    assert Invitation.parse(invitation().to_line()) == invitation()


def test_a_line_broken_and_quoted_by_a_mail_program_is_read():
    line = invitation().to_line()
    text = "Hello,\nplease join:\n\n" + "\r\n".join(line[i : i + 76] for i in range(0, len(line), 76)) + "\n"
    assert Invitation.parse(text) == invitation()


def test_a_file_is_read_by_its_path(tmp_path):
    invitation().write(tmp_path / "north.zk0invite")
    assert Invitation.read(tmp_path / "north.zk0invite").address == "arms.example.org:8000"


def test_a_missing_file_is_told_with_its_path(tmp_path):
    with pytest.raises(InvitationError, match="cannot be read"):
        Invitation.read(tmp_path / "none.zk0invite")


@pytest.mark.parametrize("text", ["", "hello", "https://example.org/join", PREFIX, PREFIX + "????"])
def test_text_that_is_no_invitation_says_so(text):
    with pytest.raises(InvitationError):
        Invitation.parse(text)


@given(st.text(max_size=300))
def test_no_pasted_text_raises_anything_but_an_invitation_error(text):
    for candidate in (text, PREFIX + text):
        with pytest.raises(InvitationError):
            Invitation.parse(candidate)


@given(st.integers(0, 10_000))
def test_a_line_that_was_cut_off_is_told_to_be_damaged(cut):
    line = invitation().to_line()
    with pytest.raises(InvitationError, match="damaged|empty"):
        Invitation.parse(line[: len(PREFIX) + cut % (len(line) - len(PREFIX) - 8)])


def test_a_line_that_unpacks_to_gigabytes_is_refused_early():
    bomb = base64.urlsafe_b64encode(zlib.compress(b" " * 10_000_000)).decode()
    with pytest.raises(InvitationError, match="larger|too long"):
        Invitation.parse(PREFIX + bomb[:LINE_LIMIT])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", "a b"),
        ("host", "http://x"),
        ("port", 0),
        ("rounds", 10**9),
        ("federation", "a\nb"),
        ("deadline_s", float("nan")),
        ("code", "a b"),
        ("policy_id", "../x"),
        ("certificate_sha256", "0" * 64),
        ("certificate", "none"),
        ("encoding", "pickle"),
        ("batch_size", 0),
    ],
)
def test_values_outside_their_range_are_refused_with_their_name(key, value):
    import json

    data = {**json.loads(invitation().model_dump_json(by_alias=True)), key.replace("_", "-"): value}
    line = PREFIX + base64.urlsafe_b64encode(zlib.compress(json.dumps(data).encode())).decode()
    with pytest.raises(InvitationError, match="certificate" if "certificate" in key else key.replace("_", "-")):
        Invitation.parse(line)
