"""The node's key: made once, kept in the system's keyring, or in a file with mode 0600 where the operator chose that.

The private key never leaves this computer and never appears in a log, an error or a `repr`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk import folders
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.keyring_record import SERVICE, KeyringUnavailable, account, elsewhere, keyring_words, remember

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from zk0desk.settings import Federation

PUBLIC_PREFIX = "zk0-node:"


class KeyFileError(OperatorError):
    """The key's file cannot be used."""

    code = "key-file"
    exit_status = ExitStatus.USAGE


@dataclass(frozen=True)
class NodeKey:
    """A node's identity: an elliptic curve key (P-384, as Flower's node authentication wants)."""

    private_key: EllipticCurvePrivateKey = field(repr=False)

    @cached_property
    def public_key_bytes(self) -> bytes:
        """The public key as PEM, the form that the SuperLink registers."""
        from cryptography.hazmat.primitives import serialization

        return self.private_key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def public_line(self) -> str:
        """One line to send to the coordinator."""
        return PUBLIC_PREFIX + base64.b64encode(self.public_key_bytes).decode()

    @property
    def fingerprint(self) -> str:
        """What people compare: the first 64 bits of the public key's SHA-256, as `7c1e 09af 55d2 8b40`."""
        digest = hashlib.sha256(self.public_key_bytes).hexdigest()
        return " ".join(digest[start : start + 4] for start in range(0, 16, 4))

    @classmethod
    def make(cls) -> NodeKey:
        """A new key."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return cls(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> NodeKey:
        """The key in `pem` (PKCS 8 or OpenSSH); ValueError when it holds no P-384 private key. The error never quotes the text."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        load = serialization.load_ssh_private_key if b"BEGIN OPENSSH" in pem else serialization.load_pem_private_key
        try:
            key = load(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("it holds no private key that can be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
            raise ValueError("it holds a key of another kind than P-384")
        return cls(key)

    def to_pem(self) -> bytes:
        """The private key, unencrypted, as OpenSSH writes it: a stock `flower-supernode` reads the same file. For keyring and file only."""
        from cryptography.hazmat.primitives import serialization

        return self.private_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())


def load_or_make_key(federation: Federation) -> NodeKey:
    """This node's key as the settings say where it is kept; made at the first call.

    Raises `KeyringUnavailable` or `KeyFileError`; a key that cannot be read is never replaced.
    """
    if federation.key_storage == "file":
        return _from_file(federation.key_file or default_key_file())
    return _from_keyring()


def default_key_file() -> Path:
    """Where the key's file is when the settings name none."""
    return folders.settings_file().parent / "node-key.pem"


def stored_key(federation: Federation) -> NodeKey | None:
    """This node's key where there is one already; None otherwise. Raises as `load_or_make_key` does; nothing is made."""
    if federation.key_storage == "file":
        path = (federation.key_file or default_key_file()).expanduser()
        return _from_file(path) if path.exists() else None
    stored = _asked(_read)
    if stored is None and (trouble := elsewhere()) is not None:
        raise trouble
    return None if stored is None else _in_keyring(stored)


def keep_key(federation: Federation, key: NodeKey) -> None:
    """Make `key` this node's key in the place of what is there, where the settings say that it is kept. Raises as `load_or_make_key`."""
    if federation.key_storage == "file":
        path = (federation.key_file or default_key_file()).expanduser()
        try:
            folders.private_folder(path.parent)
            folders.write_atomically(path, key.to_pem().decode())
        except OSError as error:
            raise _unwritable(path, error) from error
        return
    _asked(lambda: _keep(key))


def forget_key(federation: Federation) -> bool:
    """Remove this node's key from where the settings say that it is kept; whether there was one. Raises as `load_or_make_key`."""
    if federation.key_storage == "file":
        path = (federation.key_file or default_key_file()).expanduser()
        there = path.exists()
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise KeyFileError(f"The key's file {path} cannot be removed.", f"{error.strerror}.", "Check its owner and folder.") from error
        return there

    def remove() -> bool:
        import keyring

        if _read() is None:
            return False
        keyring.delete_password(SERVICE, account())
        return True

    return _asked(remove)


def _asked[T](question: Callable[[], T]) -> T:
    """What the keyring answers; `KeyringUnavailable` when it does not, or when the key is known to be in another one."""
    from keyring.errors import KeyringError

    try:
        return question()
    except (KeyringError, RuntimeError, OSError) as error:
        if isinstance(trouble := elsewhere(), KeyringUnavailable):
            raise trouble from error
        raise KeyringUnavailable(
            "This computer's keyring cannot keep the node's key.",
            f"{keyring_words()}: {type(error).__name__}.",
            'Unlock the keyring, or choose `key-storage = "file"` under [federation] in the settings: a file that only you can read.',
        ) from error


def _read() -> str | None:
    import keyring

    return keyring.get_password(SERVICE, account())


def _keep(key: NodeKey) -> str:
    """Put `key` into the keyring, and what it holds then: some back ends keep what they are given, others say so and do not."""
    import keyring

    keyring.set_password(SERVICE, account(), key.to_pem().decode())
    stored = _read()
    if stored is None:
        raise KeyringUnavailable(
            "This computer's keyring does not keep the node's key.",
            f"{keyring_words()} forgot it at once.",
            'Choose `key-storage = "file"` under [federation] in the settings: a file that only you can read.',
        )
    remember()
    return stored


def _from_keyring() -> NodeKey:
    def read_or_make() -> str:
        stored = _read()
        if stored is not None:
            remember()
            return stored
        if (trouble := elsewhere()) is not None:
            raise trouble
        return _keep(NodeKey.make())

    return _in_keyring(_asked(read_or_make))


def _in_keyring(stored: str) -> NodeKey:
    try:
        return NodeKey.from_pem(stored.encode())
    except ValueError as error:
        raise KeyringUnavailable(
            "The node's key in the keyring cannot be used.",
            f"{error}.",
            f"Remove the entry {SERVICE} / {account()}; zk0desk makes a new key.",
        ) from None


def _from_file(path: Path) -> NodeKey:
    path = path.expanduser()
    try:
        mode = path.stat().st_mode & 0o777
        data = path.read_bytes() if os.name == "nt" or not mode & 0o077 else b""
    except FileNotFoundError:
        return _make_file(path)
    except OSError as error:
        raise KeyFileError(f"The key's file {path} cannot be read.", f"{error.strerror}.", "Check its owner and permissions.") from error
    if not data:
        why = f"Its mode is {mode:o}: others may read it." if mode & 0o077 else "It is empty."
        raise KeyFileError(
            f"The key's file {path} is not used.", why, f"If it was yours alone: chmod 600 {path}. Else remove it to get a new key."
        )
    try:
        return NodeKey.from_pem(data)
    except ValueError as error:
        raise KeyFileError(f"The key's file {path} cannot be used.", f"{error}.", "Restore it, or remove it to get a new key.") from None


def _make_file(path: Path) -> NodeKey:
    key = NodeKey.make()
    try:
        folders.private_folder(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(key.to_pem())
                file.flush()
                os.fsync(file.fileno())
            # A link is made only when nobody else made the file meanwhile; then theirs is the key.
            try:
                os.link(name, path)
            except FileExistsError:
                return _from_file(path)
            except OSError:
                Path(name).replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise _unwritable(path, error) from error
    return key


def _unwritable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"The key's file {path} cannot be written.", f"{error.strerror}.", "Choose another `key-file` in the settings.")
