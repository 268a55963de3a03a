"""`zk0desk cache`: what is kept of the frames that the frozen part of the policy has seen."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.training.prefix_cache import PrefixCache, ShelfFacts

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="See, check and remove what was computed of your frames and kept, so that training is fast. It never leaves this computer, "
    "and can be removed at any time: it is computed again.\n\n\b\nExample: zk0desk cache list",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SettingsFile = Annotated[Path | None, typer.Option("--settings", help="Settings file; default: the operator's.", show_default=False)]


@app.command("list")
def list_(settings_file: SettingsFile = None, as_json: AsJson = False) -> int:
    """List what is kept: of which recording, at which level, how many frames, and what it takes of the budget.

    \b
    Example: zk0desk cache list --json
    """
    with _cache(settings_file) as cache:
        shelves, usage = cache.shelves(), cache.usage()
    if as_json:
        print(json.dumps({"usage": usage.to_json(), "shelves": [each.to_json() for each in shelves]}, indent=2))
        return int(ExitStatus.OK)
    for each in shelves:
        print(_line(each))
    kept = f"{_size(usage.bytes)} of a budget of {_size(usage.budget)}"
    print(f"{kept} in {usage.folder}, {_size(usage.disk_free)} free on that disk." if shelves else f"Nothing is kept in {usage.folder}.")
    return int(ExitStatus.OK)


@app.command()
def clear(
    recording: Annotated[str | None, typer.Argument(help="A recording's folder or name; default: all of it.", show_default=False)] = None,
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
) -> int:
    """Remove what is kept, of one recording or of all. The recordings themselves are not touched.

    Exit status: 0 removed, or there was nothing; 1 some of it is in use by a running node or window, and stays.

    \b
    Example: zk0desk cache clear ~/recordings/cubes
    """
    with _cache(settings_file) as cache:
        cleared = cache.clear(recording)
    if as_json:
        said = {"removed": [each.to_json() for each in cleared.removed], "in-use": [each.to_json() for each in cleared.in_use]}
        print(json.dumps({"bytes": cleared.bytes, **said}, indent=2))
    else:
        if cleared.removed:
            print(f"Removed {_size(cleared.bytes)}, of {', '.join(_name(each) for each in cleared.removed)}.")
        elif not cleared.in_use:
            print("There was nothing to remove.")
        for each in cleared.in_use:
            print(f"In use, so it stays: {_line(each)} Stop the node, and try again.", file=sys.stderr)
    return int(ExitStatus.FAILED if cleared.in_use else ExitStatus.OK)


@app.command()
def verify(settings_file: SettingsFile = None, as_json: AsJson = False) -> int:
    """Read all that is kept and compare it with its checksums. What is damaged is removed, and computed again when it is needed.

    Training does the same with each entry that it reads, so this is needed only to judge a disk. Exit status: 0 all is as it was
    written, 3 some of it was damaged.

    \b
    Example: zk0desk cache verify
    """
    shown = -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown and sys.stderr.isatty():
            shown = percent
            print(f"\r{percent:3d} %  {done:,} of {total:,} entries", end="", file=sys.stderr, flush=True)

    with _cache(settings_file) as cache:
        found = cache.verify(progress)
    if shown >= 0:
        print(f"\r{'':<50}\r", end="", file=sys.stderr, flush=True)
    damaged = sum(each.damaged for each in found)
    if as_json:
        shelves = [{**each.shelf.to_json(), "checked": each.checked, "damaged-entries": each.damaged} for each in found]
        print(json.dumps({"damaged": damaged, "shelves": shelves}, indent=2))
    else:
        for each in found:
            words = f"{each.damaged:,} damaged and removed" if each.damaged else "all as they were written"
            print(f"{_name(each.shelf)}: {each.checked:,} entries read, {words}.")
        if not found:
            print("Nothing is kept.")
    return int(ExitStatus.REPAIRABLE if damaged else ExitStatus.OK)


def _cache(settings_file: Path | None) -> PrefixCache:
    from zk0desk import settings
    from zk0desk.training.prefix_cache import PrefixCache

    chosen = settings.load(settings_file, settings.Settings).cache
    return PrefixCache(chosen.folder.expanduser() if chosen.folder else None, int(chosen.budget_gb * 1e9))


def _name(facts: ShelfFacts) -> str:
    if facts.damaged:
        return f"{facts.name[:12]} (damaged)"
    return f"{facts.about.get('recording') or facts.name[:12]} at level {facts.about.get('level', '?')}"


def _line(facts: ShelfFacts) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.last_used))
    frames = f"{facts.filled:,} of {facts.entries:,} frames, {_size(facts.bytes)}, last used {used}"
    return f"{_name(facts)}: {frames}{', in use' if facts.in_use else ''}."


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
