"""The node's key: made once, kept where the operator said, told to nobody."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend

from zk0desk import folders
from zk0desk.federation.credentials import KeyFileError, KeyringUnavailable, NodeKey, default_key_file, load_or_make_key
from zk0desk.federation.server_folder import fingerprint_of, read_public_key
from zk0desk.settings import Federation


class MemoryKeyring(KeyringBackend):
    """A real backend of keyring's, in memory."""

    priority = 1  # type: ignore[assignment]

    def __init__(self, *, forgets: bool = False) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.forgets = forgets

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if not self.forgets:
            self.kept[service, username] = password


@pytest.fixture
def memory_keyring(monkeypatch: pytest.MonkeyPatch) -> MemoryKeyring:
    backend = MemoryKeyring()
    monkeypatch.setattr(keyring.core, "_keyring_backend", backend)
    return backend


def in_file(path: Path | None = None) -> Federation:
    return Federation(key_storage="file", key_file=path)


def test_that_a_key_in_the_keyring_is_the_same_after_a_restart(memory_keyring: MemoryKeyring) -> None:
    first = load_or_make_key(Federation())
    assert load_or_make_key(Federation()).fingerprint == first.fingerprint
    assert len(memory_keyring.kept) == 1
    assert not list(folders.settings_file().parent.glob("*")) if folders.settings_file().parent.exists() else True


def test_that_nodes_with_homes_of_their_own_have_keys_of_their_own(memory_keyring: MemoryKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_make_key(Federation())
    monkeypatch.setenv("ZK0DESK_HOME", os.environ["ZK0DESK_HOME"] + "-2")
    assert load_or_make_key(Federation()).fingerprint != first.fingerprint


def test_that_a_computer_without_keyring_is_told_of_the_file() -> None:
    with pytest.raises(KeyringUnavailable, match='key-storage = "file"'):
        load_or_make_key(Federation())
    assert not default_key_file().exists()


def test_that_a_keyring_that_forgets_is_not_believed(memory_keyring: MemoryKeyring) -> None:
    memory_keyring.forgets = True
    with pytest.raises(KeyringUnavailable, match="does not keep"):
        load_or_make_key(Federation())


def test_that_a_damaged_entry_is_never_replaced(memory_keyring: MemoryKeyring) -> None:
    load_or_make_key(Federation())
    entry = next(iter(memory_keyring.kept))
    memory_keyring.kept[entry] = "not a key"
    with pytest.raises(KeyringUnavailable, match="cannot be used"):
        load_or_make_key(Federation())
    assert memory_keyring.kept[entry] == "not a key"


def test_that_the_key_file_is_the_owners_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.pem"
    first = load_or_make_key(in_file(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_key(in_file(path)).fingerprint == first.fingerprint
    assert [each.name for each in path.parent.iterdir()] == ["node.pem"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_that_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.pem"
    load_or_make_key(in_file(path))
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"{mode:o}"):
        load_or_make_key(in_file(path))


def test_that_a_damaged_key_file_is_neither_replaced_nor_quoted(tmp_path: Path) -> None:
    path = tmp_path / "node.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(KeyFileError) as error:
        load_or_make_key(in_file(path))
    assert "c2VjcmV0" not in str(error.value)
    assert "c2VjcmV0" in path.read_text()


def test_that_two_starts_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path, found = tmp_path / "node.pem", []
    threads = [threading.Thread(target=lambda: found.append(load_or_make_key(in_file(path)).fingerprint)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and set(found) == {load_or_make_key(in_file(path)).fingerprint}


def test_that_the_private_key_is_in_no_repr() -> None:
    key = NodeKey.make()
    body = key.to_pem().decode().splitlines()[1]
    assert body not in repr(key) + str(key) + repr(vars(key))


def test_that_the_coordinator_reads_what_the_operator_copies() -> None:
    key = NodeKey.make()
    assert read_public_key(key.public_line) == key.public_key_bytes
    assert fingerprint_of(key.public_key_bytes) == key.fingerprint
