"""`zk0desk cache`: what is kept of the frames that the frozen part of the policy has seen."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus
from zk0desk.events import Event, Notice, PrefixChosen, Prepared

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


@app.command()
def prepare(
    settings_file: SettingsFile = None,
    only_look: Annotated[bool, typer.Option("--look", help="Only say what would be kept, and what it takes and gains.")] = False,
    steered: Annotated[bool, typer.Option("--steered", help="Take `pause`, `resume` and `stop` as lines; their end stops.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a JSON object on a line, and what came of it.")] = False,
) -> int:
    """Prepare the chosen recordings' frames before a round, so that the first round is as fast as the later ones.

    The level is chosen as in training: by what fits the budget, the disk and the memory. Nothing leaves this computer. Ctrl-C ends it at
    any time, and what is done stays. Exit status: 0 all frames are prepared, 2 nothing is chosen, 3 not all of them fit, or none are kept,
    4 unusable recording or policy, 7 engine missing, 130 Ctrl-C.

    \b
    Example: zk0desk cache prepare
    """
    from zk0desk import settings
    from zk0desk.commands.steering import steered_by_lines, stopped_by_signals
    from zk0desk.control import NodeControl, Stopped

    chosen = settings.load(settings_file, settings.Settings)
    control, said = NodeControl(), _Said(as_json)
    with stopped_by_signals(control):
        if steered:
            steered_by_lines(control)
        from zk0desk.training.loading import load_engine

        try:
            load_engine()
            from zk0desk.training.prepare import look, prepare_chosen

            if only_look:
                said(look(chosen, control=control))
                return int(ExitStatus.OK)
            found = prepare_chosen(chosen, emit=said, control=control)
        except Stopped:
            said.end("Stopped. What is done stays, and is gone on with the next time.")
            return int(ExitStatus.INTERRUPTED)
    if as_json:
        print(json.dumps({"prepared": {key.replace("_", "-"): value for key, value in asdict(found).items()}}), flush=True)
    else:
        frames = f"{found.filled:,} of {found.frames:,} frames are prepared"
        said.end(f"{frames}, {found.computed:,} of them now, in {found.seconds:.0f} s. {found.why}".strip())
    return int(ExitStatus.OK if found.filled == found.frames else ExitStatus.REPAIRABLE)


class _Said:
    """Prints events: JSON lines, or sentences and, on a terminal, a line that tells how far it is."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._first: Prepared | None = None

    def __call__(self, event: Event) -> None:
        if self._as_json:
            print(json.dumps(event.to_json()), flush=True)
            return
        match event:
            case PrefixChosen():
                self.end(f"{event.reason} {event.larger}".strip())
                if event.level != "off":
                    self.end(f"A visit of a frame is expected to be about {event.gain:.1f} times as fast as in LeRobot's own step.")
            case Notice():
                self.end(f"{event.severity}: {event.what} {event.why} {event.remedy}".strip())
            case Prepared() if sys.stderr.isatty():
                self._first = self._first or event
                rate = (event.done - self._first.done) / event.seconds if event.seconds > 0 else 0.0
                pace = f", {rate:.1f} frames a second" if rate else ""
                print(f"\r{event.done:,} of {event.frames:,} frames{pace}{'':<12}", end="", file=sys.stderr, flush=True)

    def end(self, sentence: str) -> None:
        """Print a sentence in the place of the line of progress."""
        if self._as_json:
            return
        if sys.stderr.isatty():
            print(f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)
        print(sentence, flush=True)


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
