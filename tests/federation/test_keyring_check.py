"""The keyring is tried at start; and a key that is in a keyring which is gone is not replaced in silence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends.fail import Keyring as NoKeyring
from keyring.errors import KeyringLocked

from zk0desk.federation.credentials import KeyringUnavailable, load_or_make_key, stored_key
from zk0desk.federation.identity import back_up, restore
from zk0desk.federation.keyring_check import KeyringSilent, check_keyring
from zk0desk.federation.keyring_record import SecretElsewhere
from zk0desk.settings import Federation

FEDERATION = Federation()


class MemoryKeyring(KeyringBackend):
    """A real back end of keyring's, in memory. `state` says how it behaves."""

    priority = 1

    def __init__(self, title: str = "Memory") -> None:
        super().__init__()
        self.title, self.state = title, "open"
        self.kept: dict[tuple[str, str], str] = {}
        self.go_on = threading.Event()

    @property
    def name(self) -> str:
        return self.title

    def _behave(self) -> None:
        if self.state == "locked":
            raise KeyringLocked("locked")
        if self.state == "silent":
            self.go_on.wait(30)

    def get_password(self, service: str, username: str) -> str | None:
        self._behave()
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._behave()
        if self.state != "forgetful":
            self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._behave()
        self.kept.pop((service, username), None)


def use(monkeypatch: pytest.MonkeyPatch, backend: KeyringBackend) -> None:
    monkeypatch.setattr(keyring.core, "_keyring_backend", backend)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryKeyring]:
    backend = MemoryKeyring("KWallet")
    use(monkeypatch, backend)
    yield backend
    backend.go_on.set()


def test_a_keyring_that_keeps_what_it_is_given_is_left_as_it_was(memory: MemoryKeyring) -> None:
    assert check_keyring() is None and memory.kept == {}


@pytest.mark.parametrize(("state", "why"), [("locked", "KWallet answers with KeyringLocked"), ("forgetful", "forgot at once")])
def test_what_is_in_the_way_has_its_own_sentence(memory: MemoryKeyring, state: str, why: str) -> None:
    memory.state = state
    trouble = check_keyring()
    assert trouble is not None and why in trouble.why and "Key storage in Settings" in trouble.remedy


def test_a_computer_without_keyring_is_told_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, NoKeyring())
    trouble = check_keyring()
    assert trouble is not None and trouble.why == "No keyring is installed."


def test_a_keyring_that_never_answers_is_not_waited_for(memory: MemoryKeyring) -> None:
    memory.state = "silent"
    trouble = check_keyring(within_s=0.2)
    assert isinstance(trouble, KeyringSilent) and "password in a window of its own" in trouble.why


def test_a_key_in_a_keyring_that_is_gone_after_an_update_is_not_made_anew(
    memory: MemoryKeyring, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = load_or_make_key(FEDERATION)
    back_up(FEDERATION, tmp_path / "backup.pem", "a long passphrase")
    after = MemoryKeyring("Secret Service")
    use(monkeypatch, after)
    for ask in (load_or_make_key, stored_key):
        with pytest.raises(SecretElsewhere, match="cannot reach any more: KWallet") as raised:
            ask(FEDERATION)
    assert "Secret Service answers" in raised.value.why and "zk0desk identity restore" in raised.value.remedy
    assert isinstance(check_keyring(), SecretElsewhere) and after.kept == {}
    use(monkeypatch, NoKeyring())
    assert isinstance(check_keyring(), SecretElsewhere)
    use(monkeypatch, memory)
    assert load_or_make_key(FEDERATION).fingerprint == key.fingerprint and check_keyring() is None
    use(monkeypatch, after)
    restore(FEDERATION, tmp_path / "backup.pem", "a long passphrase", replace=True)
    assert load_or_make_key(FEDERATION).fingerprint == key.fingerprint and check_keyring() is None


def test_a_key_that_a_person_took_out_is_made_anew(memory: MemoryKeyring) -> None:
    before = load_or_make_key(FEDERATION)
    memory.kept.clear()
    assert check_keyring() is None
    assert load_or_make_key(FEDERATION).fingerprint != before.fingerprint


def test_the_record_names_the_keyring_and_nothing_secret(memory: MemoryKeyring) -> None:
    from zk0desk.federation.keyring_record import record_file

    key = load_or_make_key(FEDERATION)
    text = record_file().read_text()
    assert "KWallet" in text and "PRIVATE" not in text and key.fingerprint.split()[0] not in text
    assert issubclass(SecretElsewhere, KeyringUnavailable)
