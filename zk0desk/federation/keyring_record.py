"""Which keyring keeps this node's key. After an update of the system it may be another one: then the key is not lost, only elsewhere.

The record is in the state folder and holds the keyring's name, nothing secret.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from zk0desk import folders
from zk0desk.errors import ExitStatus, OperatorError

SERVICE = "zk0desk"
"""Name under which the keyring keeps the key."""


class KeyringUnavailable(OperatorError):
    """The system has no keyring, or it is locked."""

    code = "keyring-unavailable"
    exit_status = ExitStatus.USAGE


class SecretElsewhere(KeyringUnavailable):
    """The node's key is in a keyring that is not reached any more."""

    code = "secret-elsewhere"


def account() -> str:
    """The keyring entry's name; one for each `ZK0DESK_HOME`, so that nodes of one computer have their own."""
    home = os.environ.get("ZK0DESK_HOME")
    if not home:
        return "node-key"
    return "node-key-" + hashlib.sha256(str(Path(home).expanduser().absolute()).encode()).hexdigest()[:12]


def record_file() -> Path:
    """Where the record is."""
    return folders.state_folder() / "keyring.json"


def keyring_names() -> tuple[str, ...]:
    """The keyrings that answer now, the one that takes new secrets first; empty where none is installed."""
    import keyring

    backend = keyring.get_keyring()
    if type(backend).__module__.endswith(".fail"):
        return ()
    # Where several are installed, keyring asks one after the other.
    each = getattr(backend, "backends", None)
    return tuple(str(one.name) for one in each) if each else (str(backend.name),)


def keyring_words() -> str:
    """The keyring that takes new secrets, for a person."""
    return f"Keyring {keyring_names()[0]}" if keyring_names() else "No keyring is installed"


def remember() -> None:
    """Keep that the keyrings of now hold this node's key. A disk that is full stops nothing."""
    known, names = _known(), list(keyring_names())
    if known.get(account()) == names:
        return
    try:
        folders.private_folder(record_file().parent)
        folders.write_atomically(record_file(), json.dumps({**known, account(): names}))
    except OSError:
        return


def elsewhere() -> SecretElsewhere | None:
    """What to say where another keyring than those of now holds this node's key; None where none is known to.

    A keyring that is still there without the key is no trouble: a person took it out, and gets a new one.
    """
    before, now = _known().get(account(), []), keyring_names()
    if not before or set(before) <= set(now):
        return None
    return SecretElsewhere(
        f"The node's key is in a keyring that zk0desk cannot reach any more: {before[0]}.",
        f"Since it was put there the system changed, and now {now[0] if now else 'no keyring'} answers. The key is not lost, and no new "
        "one is made.",
        "Bring the other keyring back, or put in a backup of the key: zk0desk identity restore FILE. To begin with a new key, which has to "
        'be admitted anew, choose "file" as Key storage in Settings.',
    )


def _known() -> dict[str, list[str]]:
    try:
        read = json.loads(record_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(read, dict):
        return {}
    return {str(name): [str(each) for each in value] for name, value in read.items() if isinstance(value, list)}
