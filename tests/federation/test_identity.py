"""The node's identity in a backup: encrypted, never overwritten, and put back on another computer."""

from __future__ import annotations

from pathlib import Path

import pytest

from zk0desk.federation.credentials import load_or_make_key, stored_key
from zk0desk.federation.identity import BackupRefused, NoIdentity, back_up, restore
from zk0desk.settings import Federation

PASSPHRASE = "four words ärm 机器人"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(key_storage="file", key_file=tmp_path / "node" / "key.pem")


def test_an_identity_is_the_same_on_another_computer(federation: Federation, tmp_path: Path) -> None:
    key = load_or_make_key(federation)
    backup = tmp_path / "Röbot backup.pem"
    assert back_up(federation, backup, PASSPHRASE).fingerprint == key.fingerprint
    text = backup.read_text()
    assert key.fingerprint in text and "ENCRYPTED PRIVATE KEY" in text and backup.stat().st_mode & 0o077 == 0
    other = Federation(key_storage="file", key_file=tmp_path / "other" / "key.pem")
    assert restore(other, backup, PASSPHRASE).fingerprint == key.fingerprint
    assert load_or_make_key(other).fingerprint == key.fingerprint


def test_nothing_is_made_only_to_be_backed_up(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(NoIdentity):
        back_up(federation, tmp_path / "backup.pem", PASSPHRASE)
    assert not (tmp_path / "backup.pem").exists() and stored_key(federation) is None


def test_a_backup_replaces_no_file_and_wants_a_passphrase_worth_the_name(federation: Federation, tmp_path: Path) -> None:
    load_or_make_key(federation)
    backup = tmp_path / "backup.pem"
    with pytest.raises(BackupRefused, match="too short"):
        back_up(federation, backup, "secret")
    backup.write_text("someone's")
    with pytest.raises(BackupRefused, match="is there already"):
        back_up(federation, backup, PASSPHRASE)
    assert backup.read_text() == "someone's" and list(tmp_path.glob("*.partial")) == []
    with pytest.raises(BackupRefused, match="cannot be written"):
        back_up(federation, tmp_path / "no folder" / "backup.pem", PASSPHRASE)


def test_another_identity_is_replaced_only_when_that_was_said(federation: Federation, tmp_path: Path) -> None:
    backup = tmp_path / "backup.pem"
    load_or_make_key(federation)
    back_up(federation, backup, PASSPHRASE)
    other = Federation(key_storage="file", key_file=tmp_path / "other" / "key.pem")
    own = load_or_make_key(other)
    with pytest.raises(BackupRefused, match="another identity already") as refused:
        restore(other, backup, PASSPHRASE)
    assert own.fingerprint in refused.value.what and load_or_make_key(other).fingerprint == own.fingerprint
    restored = restore(other, backup, PASSPHRASE, replace=True)
    assert load_or_make_key(other).fingerprint == restored.fingerprint != own.fingerprint


@pytest.mark.parametrize(
    "content", [b"", b"not a backup", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"]
)
def test_what_is_no_backup_is_told(federation: Federation, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BackupRefused, match="cannot be opened"):
        restore(federation, tmp_path / "file", PASSPHRASE)
    with pytest.raises(BackupRefused, match="no backup"):
        restore(federation, tmp_path, PASSPHRASE)


def test_a_wrong_passphrase_is_told_and_not_quoted(federation: Federation, tmp_path: Path) -> None:
    load_or_make_key(federation)
    back_up(federation, tmp_path / "backup.pem", PASSPHRASE)
    with pytest.raises(BackupRefused, match="cannot be opened") as refused:
        restore(federation, tmp_path / "backup.pem", "another passphrase")
    assert "another passphrase" not in str(refused.value)
