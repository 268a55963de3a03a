"""`zk0desk data`: what zk0desk keeps on this computer, with sizes, and removing all of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.desktop.remove_data import Kept


def data(
    remove: Annotated[bool, typer.Option("--remove", help="Remove all of it, after it was confirmed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --remove: do not ask.")] = False,
    backup: Annotated[
        Path | None, typer.Option("--backup", help="Back the node's identity up to this new file first.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; it removes only with --yes.")] = False,
) -> int:
    """Show what zk0desk keeps on this computer: settings, journal, runs, policies, caches, engines, secrets in the keyring.

    --remove removes it, after a backup of the node's identity was offered. Recordings are yours and stay. It refuses while a window is
    open or a node runs. `zk0desk --remove-data` is the same as `zk0desk data --remove`. Exit status: 0 done, or there was nothing; 1
    refused, or something could not be removed; 2 it has to be confirmed, and nobody can be asked.

    \b
    Example: zk0desk data --remove --backup ~/zk0desk-identity.pem
    """
    from zk0desk import settings as settings_file
    from zk0desk.desktop import remove_data
    from zk0desk.errors import SettingsError

    settings: settings_file.Settings
    try:
        settings = settings_file.load()
    except SettingsError:
        settings = settings_file.Settings()  # what cannot be read is removed all the same
    kept = remove_data.look(settings)
    removes = remove and (yes or not as_json)
    if as_json and not removes:
        print(json.dumps(kept.to_json(), indent=2))
        return int(ExitStatus.OK)
    if not as_json:
        print("\n".join(lines(kept)))
    if not removes:
        return int(ExitStatus.OK)
    if kept.nothing:
        if as_json:
            print(json.dumps({**kept.to_json(), "removed": 0, "left": []}, indent=2))
        return int(ExitStatus.OK)
    remove_data.refuse_while_running()
    if not yes and not sys.stdin.isatty():
        print("Nothing was removed: it has to be confirmed. Call it in a terminal, or with --yes.", file=sys.stderr)
        return int(ExitStatus.USAGE)
    if backup is None and not yes and kept.identity:
        backup = _asked_backup()
    if backup is not None:
        from zk0desk.commands.identity import passphrase
        from zk0desk.federation.identity import back_up

        key = back_up(settings.federation, backup.expanduser(), passphrase(twice=True))
        print(f"The identity {key.fingerprint} is in {backup}.", file=sys.stderr)
    if not yes and not typer.confirm("Remove all of it? This cannot be undone.", default=False, err=True):
        print("Nothing was removed.")
        return int(ExitStatus.OK)
    removed = remove_data.remove(settings)
    if as_json:
        print(json.dumps({**kept.to_json(), "removed": removed.bytes, "left": list(removed.left)}, indent=2))
    else:
        print(f"Removed {remove_data.size_words(removed.bytes)}.")
        for sentence in removed.left:
            print(sentence, file=sys.stderr)
    return int(ExitStatus.FAILED if removed.left else ExitStatus.OK)


def lines(kept: Kept) -> list[str]:
    """What is kept, for a terminal."""
    from zk0desk.desktop.remove_data import size_words

    if kept.nothing:
        return ["zk0desk keeps nothing on this computer."]
    rows = [f"{size_words(each.bytes):>10}  {each.title}" for each in kept.kinds]
    rows += [f"{'keyring':>10}  {each}" for each in kept.secrets]
    rows += [f"{'desktop':>10}  {each}" for each in kept.entries]
    rows.append(f"{size_words(kept.bytes):>10}  altogether. Your recordings are not among it, and stay.")
    if kept.identity:
        name = f" {kept.fingerprint}" if kept.fingerprint else ""
        rows.append(f"With it goes this node's identity{name}: without a backup this computer has to be admitted anew.")
    return rows


def _asked_backup() -> Path | None:
    if not typer.confirm("Back the node's identity up first?", default=True, err=True):
        return None
    return Path(typer.prompt("File", default=str(Path.home() / "zk0desk-identity.pem"), err=True))
