"""The node's identity as a thing of its own: whether there is one, a backup of it that a passphrase protects, and putting that back."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.credentials import NodeKey, keep_key, stored_key

if TYPE_CHECKING:
    from zk0desk.settings import Federation

SHORTEST = 8
"""Characters of a passphrase at least."""
LARGEST = 65_536
"""Bytes of a backup at most."""


class NoIdentity(OperatorError):
    """There is no key yet."""

    code = "no-identity"
    exit_status = ExitStatus.USAGE


class BackupRefused(OperatorError):
    """The backup cannot be written, read, or put in the place of what is there."""

    code = "identity-backup"
    exit_status = ExitStatus.USAGE


def back_up(federation: Federation, path: Path, passphrase: str) -> NodeKey:
    """Write this node's key to the new file `path`, encrypted (PKCS 8, PEM) with `passphrase`; the key. Mode 0600.

    Raises `NoIdentity`, `BackupRefused`, or what reading the key raises. A file that is there is never replaced.
    """
    from cryptography.hazmat.primitives import serialization

    if len(passphrase) < SHORTEST:
        why = f"It has {len(passphrase)} characters; whoever finds the file could try all of them."
        raise BackupRefused("This passphrase is too short.", why, f"Give at least {SHORTEST} characters, such as four words.")
    key = stored_key(federation)
    if key is None:
        raise NoIdentity("There is no identity to back up.", "This node has no key yet; it is made when you join.", "")
    encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = key.private_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    head = f"zk0desk: the identity of the node {key.fingerprint}, encrypted.\nPut it back with: zk0desk identity restore FILE\n\n"
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(head.encode() + pem)
                file.flush()
                os.fsync(file.fileno())
            _put_new(Path(name), path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except FileExistsError as error:
        raise BackupRefused(f"{path} is there already.", "A backup replaces nothing.", "Choose another name.") from error
    except OSError as error:
        raise BackupRefused(f"{path} cannot be written.", f"{error.strerror}.", "Choose another folder, such as a USB stick's.") from error
    return key


def _put_new(partial: Path, path: Path) -> None:
    """Give `partial` the name `path`; FileExistsError when that is taken. A disk without hard links (a USB stick) is renamed on."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(path) from None
        partial.rename(path)


def restore(federation: Federation, path: Path, passphrase: str, *, replace: bool = False) -> NodeKey:
    """Make the key in the backup `path` this node's key, where the settings say that it is kept; the key.

    Another key that is there is only replaced with `replace`. Raises `BackupRefused`, or what the keyring or file raises.
    """
    key = _read(path, passphrase)
    there = None
    try:
        there = stored_key(federation)
    except OperatorError:
        if not replace:
            raise
    if there is not None and there.fingerprint != key.fingerprint and not replace:
        raise BackupRefused(
            f"This node has another identity already: {there.fingerprint}.",
            f"The backup holds {key.fingerprint}. The one that is replaced is lost without a backup of its own.",
            "Back it up first if it is admitted anywhere, then restore with --replace.",
        )
    keep_key(federation, key)
    return key


def _read(path: Path, passphrase: str) -> NodeKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise BackupRefused(f"{path} is no backup of an identity.", "It is no file, or too large for one.", "Choose the backup's file.")
        data = path.read_bytes()
    except OSError as error:
        raise BackupRefused(f"{path} cannot be read.", f"{error.strerror}.", "Check that you may read it.") from error
    begin = data.find(b"-----BEGIN")
    try:
        key = serialization.load_pem_private_key(data[max(0, begin) :], password=passphrase.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = "The passphrase is another one, or the file is no backup of an identity, or it is damaged."
        raise BackupRefused(f"{path} cannot be opened.", why, "Check the passphrase, letter by letter, and the file.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise BackupRefused(f"{path} is no backup of a node's identity.", "It holds a key of another kind.", "Choose the backup's file.")
    return NodeKey(key)

