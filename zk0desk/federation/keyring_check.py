"""Whether the system's keyring keeps what it is given, tried at start, and whether it still holds the node's key.

A keyring may wait for a password that nobody gives, forget what it was told, or be another one after an update of the system.
"""

from __future__ import annotations

import secrets
import threading

from zk0desk.federation.keyring_record import SERVICE, KeyringUnavailable, account, elsewhere, keyring_names, remember

ANSWER_S = 20.0
"""Seconds that a keyring has to answer; unlocking it by hand takes some."""


class KeyringSilent(KeyringUnavailable):
    """The keyring does not answer in time."""

    code = "keyring-silent"


def check_keyring(within_s: float = ANSWER_S) -> KeyringUnavailable | None:
    """What is in the keyring's way, or None: it keeps what it is given. Call it in the background.

    A probe is kept, read and removed in a thread of its own, for at most `within_s` seconds.

    A keyring that never answers leaves its thread behind, which ends with the process.
    """
    found: list[KeyringUnavailable | None] = []

    def ask() -> None:
        found.append(_tried())

    thread = threading.Thread(target=ask, name="zk0desk-keyring", daemon=True)
    thread.start()
    thread.join(within_s)
    if found:
        return found[0]
    return KeyringSilent(
        "This computer's keyring does not answer.",
        f"It was waited for {within_s:.0f} seconds; it may wait for a password in a window of its own.",
        'Unlock it and check again, or choose "file" as Key storage in Settings: a file that only you can read.',
    )


def _tried() -> KeyringUnavailable | None:
    import keyring
    from keyring.errors import KeyringError

    name = next(iter(keyring_names()), "")
    probe, value = f"probe-{secrets.token_hex(4)}", secrets.token_hex(8)
    try:
        keyring.set_password(SERVICE, probe, value)
        kept = keyring.get_password(SERVICE, probe) == value
        keyring.delete_password(SERVICE, probe)
        there = keyring.get_password(SERVICE, account()) is not None
    except (KeyringError, RuntimeError, OSError) as error:
        why = f"{name} answers with {type(error).__name__}: it may be locked." if name else "No keyring is installed."
        return elsewhere() or _cannot(why)
    if not kept:
        return _cannot(f"{name} forgot at once what it was given.")
    if there:
        remember()
        return None
    return elsewhere()


def _cannot(why: str) -> KeyringUnavailable:
    return KeyringUnavailable(
        "This computer's keyring cannot keep secrets.",
        why,
        'Install or unlock one (on Linux gnome-keyring or KWallet), or choose "file" as Key storage in Settings: a file that only you '
        "can read.",
    )
