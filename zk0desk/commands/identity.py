"""`zk0desk identity`: the key by which a federation knows this node. Show it, back it up, put a backup in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus, OperatorError

if TYPE_CHECKING:
    from zk0desk.settings import Federation

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show this node's identity, back it up, or put a backup in. The identity is a key that a coordinator admits once; without it this "
    "computer has to be admitted anew.\n\n\b\nExample: zk0desk identity show",
)

PASSPHRASE = "ZK0DESK_PASSPHRASE"
"""Names the passphrase where nobody can be asked."""

SettingsFile = Annotated[Path | None, typer.Option("--settings", help="Settings file; default: the operator's.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class NobodyToAsk(OperatorError):
    """A passphrase is needed, and there is no terminal to ask on."""

    code = "nobody-to-ask"
    exit_status = ExitStatus.USAGE


@app.command()
def show(settings_file: SettingsFile = None, as_json: AsJson = False) -> int:
    """Show the fingerprint and the public key of this node, and where the private key is kept. None is made where there is none yet.

    \b
    Example: zk0desk identity show
    """
    from zk0desk.federation.credentials import stored_key

    federation = _federation(settings_file)
    key = stored_key(federation)
    if as_json:
        print(
            json.dumps({"fingerprint": key and key.fingerprint, "public-key": key and key.public_line, "storage": federation.key_storage})
        )
    elif key is None:
        print("This node has no identity yet; it is made when you join.")
    else:
        print(f"{key.fingerprint}\n{key.public_line}\nThe private key is kept in the {federation.key_storage}.")
    return int(ExitStatus.OK)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The backup's file; it must not be there yet.")],
    settings_file: SettingsFile = None,
) -> int:
    """Write this node's key to FILE, encrypted with a passphrase that is asked for (or that ZK0DESK_PASSPHRASE holds).

    Keep file and passphrase apart from this computer. Whoever has both is this node.

    \b
    Example: zk0desk identity backup /media/stick/zk0desk-identity.pem
    """
    from zk0desk.federation.identity import back_up

    key = back_up(_federation(settings_file), file.expanduser(), passphrase(twice=True))
    print(f"The identity {key.fingerprint} is in {file}, encrypted. Without the passphrase nobody can use it, nor can you.")
    return int(ExitStatus.OK)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="The backup's file.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another identity that this node has; it is lost without a backup.")
    ] = False,
    settings_file: SettingsFile = None,
) -> int:
    """Make the key in the backup FILE this node's key. It goes where the settings keep it: the keyring or a file.

    \b
    Example: zk0desk identity restore /media/stick/zk0desk-identity.pem
    """
    from zk0desk.federation.identity import restore as put_in

    key = put_in(_federation(settings_file), file.expanduser(), passphrase(twice=False), replace=replace)
    print(f"This node is {key.fingerprint} now.")
    return int(ExitStatus.OK)


def passphrase(*, twice: bool) -> str:
    """The passphrase from the environment, or asked for on the terminal; `NobodyToAsk` where there is neither."""
    given = os.environ.get(PASSPHRASE)
    if given:
        return given
    if not sys.stdin.isatty():
        raise NobodyToAsk("A passphrase is needed.", "There is no terminal to ask on.", f"Call it in a terminal, or set {PASSPHRASE}.")
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))


def _federation(settings_file: Path | None) -> Federation:
    from zk0desk.settings import load

    return load(settings_file).federation
