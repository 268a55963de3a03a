"""The operator's token for the Hub: in the system's keyring and nowhere else, under a service name of its own."""

from __future__ import annotations

import re

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.credentials import KeyringUnavailable, account

SERVICE = "zk0desk-hub"
"""Name under which the keyring keeps the token: not the node key's."""
_FORM = re.compile(r"[\x21-\x7e]{8,4096}")


class TokenInvalid(OperatorError):
    """What was given cannot be a token. It is not quoted."""

    code = "hub-token-invalid"
    exit_status = ExitStatus.USAGE


def keep_token(text: str) -> None:
    """Keep the token in `text` in the keyring. Raises `TokenInvalid` or `KeyringUnavailable`, neither of which quotes it."""
    import keyring
    from keyring.errors import KeyringError

    token = text.strip()
    if not _FORM.fullmatch(token):
        raise TokenInvalid(
            "That is no token.",
            "Nothing was given." if not token else "A token is one word of letters and digits.",
            "Copy it from https://huggingface.co/settings/tokens; it begins with hf_.",
        )
    try:
        keyring.set_password(SERVICE, _account(), token)
        # Some backends keep what they are given, others say so and do not.
        kept = keyring.get_password(SERVICE, _account()) == token
    except (KeyringError, RuntimeError, OSError) as error:
        raise _unavailable(type(error).__name__) from None
    if not kept:
        raise _unavailable("it forgot the token at once")


def read_token() -> str | None:
    """The token in the keyring, or None where there is none. Raises `KeyringUnavailable` where the keyring cannot be asked."""
    import keyring
    from keyring.errors import KeyringError

    try:
        token = keyring.get_password(SERVICE, _account())
    except (KeyringError, RuntimeError, OSError) as error:
        raise _unavailable(type(error).__name__) from None
    return token if token and _FORM.fullmatch(token) else None


def forget_token() -> bool:
    """Take the token out of the keyring; whether there was one. Raises `KeyringUnavailable`."""
    import keyring
    from keyring.errors import KeyringError

    try:
        if keyring.get_password(SERVICE, _account()) is None:
            return False
        keyring.delete_password(SERVICE, _account())
    except (KeyringError, RuntimeError, OSError) as error:
        raise _unavailable(type(error).__name__) from None
    return True


def _account() -> str:
    """One entry for each `ZK0DESK_HOME`, as the node's key has."""
    return account().replace("node-key", "hub-token", 1)


def _unavailable(why: str) -> KeyringUnavailable:
    return KeyringUnavailable(
        "This computer's keyring cannot be used for the Hub's token.",
        f"No keyring is installed, or it is locked ({why}).",
        "Unlock the keyring and try again. A token is kept nowhere else; what is public needs none.",
    )
