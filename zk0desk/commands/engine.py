"""`zk0desk engine`: the training engine of a packaged zk0desk: get it, check it, mend it, save it, go back."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.control import NodeControl
    from zk0desk.engine.install import Got
    from zk0desk.engine.lists import EngineList
    from zk0desk.engine.progress import Progress
    from zk0desk.engine.store import Installed

app = typer.Typer(
    no_args_is_help=True,
    help="Get, check and save what trains: torch, LeRobot, flwr and what they need. A zk0desk that was installed as a package fetches this "
    "engine when it is wanted; in a Python environment the environment itself is the engine, and nothing is fetched.\n\n\b\n"
    "Example: zk0desk engine status",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; while it works, a line for each step.")]
Steered = Annotated[bool, typer.Option("--steered", help="Take `pause`, `resume` and `stop` as lines; their end stops.")]
Backend = Annotated[
    str | None, typer.Option(help="cu130, cu128, cu126, cpu or mps. Default: that of the engine in use, or what fits.", show_default=False)
]
Thorough = Annotated[bool, typer.Option("--thorough", help="Read every file and compare its hash, not its size alone.")]
From = Annotated[Path | None, typer.Option("--from", help="A folder with the wheels; then nothing is fetched.", show_default=False)]


@app.command()
def status(as_json: AsJson = False) -> int:
    """Say which engine there is, which one this computer needs and why, and what getting it would take.

    Nothing is fetched. Exit status: 0 there is one, 3 the one in use is damaged, 4 there is none for this computer, 7 there is none yet.

    \b
    Example: zk0desk engine status --json
    """
    from zk0desk.amounts import gigabytes
    from zk0desk.engine import choice, install, lists, state

    found = state.look()
    chosen = None if found.kind == "environment" else choice.here()
    takes = None
    if chosen and chosen.backend and (found.kind != "ready" or found.newer):
        offered, used = lists.shipped(), found.engine.backend if found.engine else ""
        takes = install.plan(offered.get(used) or offered[chosen.backend])
    if as_json:
        told = {"state": found.to_json(), "choice": chosen and chosen.to_json(), "plan": takes and takes.to_json()}
        print(json.dumps(told, indent=2))
    else:
        _say(found.sentence, found.remedy if found.kind != "none" else "")
        for older in found.older:
            _say(
                f"Another engine is there too: {older.backend}, {gigabytes(older.bytes)}.", "zk0desk engine back uses it; prune removes it."
            )
        if chosen:
            _say(f"For this computer: {chosen.backend}." if chosen.backend else "", chosen.why, chosen.remedy)
            for option in chosen.options:
                _say(f"  {option.backend:6} {gigabytes(option.download)} to fetch.", option.why)
        if takes:
            _say(_takes(takes))
            _say(found.remedy)
    if found.kind == "environment":
        return int(ExitStatus.ENGINE_MISSING if found.missing else ExitStatus.OK)
    if found.kind == "none" and chosen and chosen.backend is None:
        return int(ExitStatus.UNUSABLE)
    return int({"ready": ExitStatus.OK, "damaged": ExitStatus.REPAIRABLE}.get(found.kind, ExitStatus.ENGINE_MISSING))


@app.command()
def get(
    backend: Backend = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    steered: Steered = False,
    as_json: AsJson = False,
) -> int:
    """Fetch the engine for this computer, test it, and use it. What is unchanged is taken over from the engine that is there.

    Says first how much is fetched and what it takes on the disk, and asks on a terminal. Ctrl-C ends it at any time: the same command goes
    on where it ended. Exit status: 0 it works, 1 failed (no room, damaged, another zk0desk works on it), 3 it is there and something of it
    does not work, 4 there is none for this computer, 5 the server refused, 6 not reached, 130 Ctrl-C.

    \b
    Example: zk0desk engine get --backend cpu
    """
    _needs_artefact()
    wanted = _wanted(backend)
    return _make(wanted, None, yes, steered, as_json)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="What `zk0desk engine export` made, or a folder of wheels.")],
    backend: Backend = None,
    steered: Steered = False,
    as_json: AsJson = False,
) -> int:
    """Make the engine from a folder, without a network. Every file is compared with what this zk0desk's own list says.

    Exit status: as with get; 4 also when the folder is for another system or version.

    \b
    Example: zk0desk engine import /media/stick/zk0desk-engine-linux-x86_64-cpu-0123456789abcdef
    """
    from zk0desk.engine import portable

    _needs_artefact()
    wanted, source = portable.found_list(folder, backend or (None if (folder / portable.LIST).exists() else _chosen_backend()))
    return _make(wanted, source, True, steered, as_json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to save it; it makes a folder of its own there.")],
    steered: Steered = False,
    as_json: AsJson = False,
) -> int:
    """Save the engine to a folder, for a computer without a network that has the same version of zk0desk.

    Called again it goes on where it ended. Exit status: 0 saved, 1 failed, 3 the engine is damaged, 7 there is none, 130 Ctrl-C.

    \b
    Example: zk0desk engine export /media/stick
    """
    from zk0desk.amounts import gigabytes
    from zk0desk.engine import portable

    engine = _current()
    with _working(steered, as_json) as (control, told):
        saved = portable.export(engine, folder, control=control, told=told)
    if as_json:
        print(json.dumps({"exported": saved.to_json()}), flush=True)
    else:
        _say(f"The engine is in {saved.folder}, {gigabytes(saved.bytes)}.", f"There: zk0desk engine import {saved.folder}")
    return int(ExitStatus.OK)


@app.command()
def verify(thorough: Thorough = False, steered: Steered = False, as_json: AsJson = False) -> int:
    """Compare the engine's files with what was unpacked: by size in a second, with --thorough by hash in a minute.

    Exit status: 0 all are there, 3 some are missing or damaged, 7 there is no engine.

    \b
    Example: zk0desk engine verify --thorough
    """
    from zk0desk.engine.verify import verify as verified

    engine = _current()
    with _working(steered, as_json) as (control, told):
        found = verified(engine, thorough=thorough, control=control, told=told)
    if as_json:
        print(json.dumps({"verified": found.to_json()}), flush=True)
    else:
        _say(found.sentence, "" if found.ok else "To mend it: zk0desk engine repair")
        for each in found.damaged[:20]:
            _say(f"  {each.what:8} {each.path}")
    return int(ExitStatus.OK if found.ok else ExitStatus.REPAIRABLE)


@app.command()
def repair(source: From = None, thorough: Thorough = False, steered: Steered = False, as_json: AsJson = False) -> int:
    """Verify the engine and bring back what is missing or damaged. Only the wheels of these files are fetched.

    Exit status: 0 it is whole, 3 it is damaged again at once, others as with get.

    \b
    Example: zk0desk engine repair --thorough
    """
    from zk0desk.engine.verify import repair as repaired

    engine = _current()
    with _working(steered, as_json) as (control, told):
        found = repaired(engine, thorough=thorough, control=control, told=told, source=source)
    if as_json:
        print(json.dumps({"verified": found.to_json()}), flush=True)
    else:
        _say(f"{found.repaired:,} files were brought back." if found.repaired else "Nothing had to be brought back.", found.sentence)
    return int(ExitStatus.OK)


@app.command()
def back(as_json: AsJson = False) -> int:
    """Use the engine that was used before the last update. It stays until `prune`.

    Exit status: 0 it is used from the next start on, 1 there is no other.

    \b
    Example: zk0desk engine back
    """
    from zk0desk.engine import store

    _needs_artefact()
    engine = store.go_back()
    if as_json:
        print(json.dumps({"engine": engine.to_json()}))
    else:
        _say(f"The engine {engine.id} ({engine.backend}) is used from the next start on.", "To go forward again: zk0desk engine back")
    return int(ExitStatus.OK)


@app.command()
def prune(as_json: AsJson = False) -> int:
    """Remove engines that are not used any more, and what was begun and not finished.

    Exit status: 0 removed, or there was nothing; 1 some of it is in use by another process, and stays.

    \b
    Example: zk0desk engine prune
    """
    from zk0desk.amounts import gigabytes
    from zk0desk.engine import store

    _needs_artefact()
    gone = store.prune()
    if as_json:
        print(json.dumps({"pruned": gone.to_json()}))
    else:
        _say(f"{gigabytes(gone.bytes)} were freed." if gone.removed else "There was nothing to remove.")
        for each in gone.in_use:
            print(f"The engine {each} is in use, so it stays. Close zk0desk, and try again.", file=sys.stderr)
    return int(ExitStatus.FAILED if gone.in_use else ExitStatus.OK)


@app.command("test")
def test_(steered: Steered = False, as_json: AsJson = False) -> int:
    """Import the engine in a process of its own and compute on the device. Takes seconds, the first time half a minute.

    Exit status: 0 it works, 3 the device does not compute, 7 it cannot be loaded.

    \b
    Example: zk0desk engine test
    """
    from zk0desk.engine import selftest
    from zk0desk.engine.artefact import artefact
    from zk0desk.engine.progress import said

    engine = _current() if artefact() else None
    with _working(steered, as_json) as (control, told):
        told(said("testing"))
        found = selftest.run(engine, control)
    if as_json:
        print(json.dumps({"self-test": found.to_json()}), flush=True)
    else:
        _say(found.sentence, found.remedy)
    return int(ExitStatus.OK if found.ok else ExitStatus.REPAIRABLE if found.usable else ExitStatus.ENGINE_MISSING)


@app.command()
def update(
    fetch: Annotated[bool, typer.Option("--get", help="Also fetch a mended engine, if there is one.")] = False,
    steered: Steered = False,
    as_json: AsJson = False,
) -> int:
    """Ask once whether there is a later zk0desk, or a mended engine for this one. Only asked when you say so; it changes nothing.

    With --get a mended engine is fetched (what changed of it), tested and used; the old one stays for going back. A later zk0desk is named
    with its address and never installed by itself. Exit status: 0 asked, 1 this zk0desk names no place to ask, or a node or window of it
    runs, others as with get.

    \b
    Example: zk0desk engine update --get
    """
    from zk0desk.engine import store, updates
    from zk0desk.engine.errors import EngineError

    _needs_artefact()
    source = updates.feed()
    if source is None:
        why = "Those who built it named no place that is asked."
        raise EngineError("This zk0desk looks for no updates.", why, "Install a later one over it when there is one.")
    engine = store.current()
    with _working(steered, as_json) as (control, _):
        # Whoever steers this knows whether a node is joined.
        busy = not steered and _runs()
        found = updates.look(source, engine.backend if engine else None, busy=busy, control=control)
    if as_json:
        print(json.dumps({"update": found.to_json()}), flush=True)
    else:
        news = f"zk0desk {found.version} is there." if found.newer else "This is the latest zk0desk."
        _say(news, found.notes if found.newer else "", found.artefact.url if found.newer and found.artefact else "")
    mended = found.engine if found.engine and (engine is None or engine.id != found.engine.id) else None
    if mended is None:
        return int(ExitStatus.OK)
    if not fetch:
        if not as_json:
            _say("There is a mended engine.", "To get it: zk0desk engine update --get")
        return int(ExitStatus.OK)
    return _make(mended, None, True, steered, as_json, origin="feed")


def _runs() -> bool:
    """Whether a window or a node of this person runs."""
    from zk0desk.desktop.remove_data import StillRunning, refuse_while_running

    try:
        refuse_while_running()
    except StillRunning:
        return True
    return False


def _make(wanted: EngineList, source: Path | None, yes: bool, steered: bool, as_json: bool, origin: str = "artefact") -> int:
    """Get an engine, say what came of it, and compile it."""
    from zk0desk.control import Stopped
    from zk0desk.engine import bytecode, install, selftest, state

    takes = install.plan(wanted, source)
    if as_json:
        print(json.dumps({"plan": takes.to_json()}), flush=True)
    else:
        _say(_takes(takes))
        if takes.fits and takes.fetch and not yes and sys.stdin.isatty() and not typer.confirm("Go on?", default=True):
            return int(ExitStatus.INTERRUPTED)
    with _working(steered, as_json) as (control, told):
        got = install.get(wanted, control=control, told=told, source=source, test=selftest.run, origin=origin)
        told.end()
        if as_json:
            print(json.dumps({**got.to_json(), "state": state.look().to_json()}), flush=True)
        else:
            _tell_got(got)
        with contextlib.suppress(Stopped):
            # Whoever ends this only loses speed: what is not compiled now is compiled when it is imported.
            bytecode.compile_modules(got.engine, control=control, told=told)
    return int(ExitStatus.OK if got.self_test is None or got.self_test.ok else ExitStatus.REPAIRABLE)


def _tell_got(got: Got) -> None:
    from zk0desk.amounts import gigabytes

    _say(f"The engine {got.engine.backend} is there, {gigabytes(got.engine.bytes)}.")
    if got.self_test:
        _say(got.self_test.sentence, got.self_test.remedy)
    if not got.used:
        _say("It is not used; the engine that was used before stays.")


def _takes(takes: Any) -> str:
    from zk0desk.amounts import gigabytes

    parts = [f"{gigabytes(takes.fetch)} to fetch" if takes.fetch else "Nothing to fetch"]
    parts += [f"{gigabytes(takes.there)} are there already"] if takes.there else []
    parts += [f"{gigabytes(takes.linked)} are taken over from the engine that is there"] if takes.linked else []
    room = f"It needs {gigabytes(takes.disk_needed)} of disk in {takes.folder}; {gigabytes(takes.disk_free)} are free."
    return f"{', '.join(parts)}. {room}"


def _wanted(backend: str | None) -> EngineList:
    from zk0desk.engine import choice, lists, store
    from zk0desk.engine.errors import EngineUnsupported

    offered, used = lists.shipped(), store.current()
    if backend is None and used and used.backend in offered:
        return offered[used.backend]  # an update never changes what a person chose
    if backend is None:
        chosen = choice.here()
        if chosen.backend is None:
            raise EngineUnsupported("There is no engine for this computer.", chosen.why, chosen.remedy)
        return offered[chosen.backend]
    if backend not in offered:
        names = ", ".join(offered) or "none"
        raise EngineUnsupported(
            f"This zk0desk brings no engine {backend!r} for this computer.", f"It brings: {names}.", "Choose one of these."
        )
    return offered[backend]


def _chosen_backend() -> str | None:
    from zk0desk.engine import choice

    return choice.here().backend


def _needs_artefact() -> None:
    from zk0desk.engine.artefact import artefact
    from zk0desk.engine.errors import EngineIsEnvironment

    if artefact() is None:
        what = "Nothing is fetched: this Python environment itself is the engine."
        why = "zk0desk runs from a checkout, or was installed with pip."
        raise EngineIsEnvironment(what, why, 'What is missing in it comes with: pip install "zk0desk[engine]"')


def _current() -> Installed:
    from zk0desk.engine import missing, store

    _needs_artefact()
    engine = store.current()
    if engine is None:
        raise missing.missing("The training engine is not on this computer.")
    return engine


@contextlib.contextmanager
def _working(steered: bool, as_json: bool) -> Iterator[tuple[NodeControl, _Line]]:
    """A control that signals and lines act on, and where progress goes."""
    from zk0desk.commands.steering import steered_by_lines, stopped_by_signals
    from zk0desk.control import NodeControl, Stopped

    control, line = NodeControl(), _Line(as_json)
    with stopped_by_signals(control):
        if steered:
            steered_by_lines(control)
        try:
            yield control, line
        except Stopped:
            line.end()
            if not as_json:
                print("Stopped. What has arrived is kept; the same command goes on.", file=sys.stderr)
            raise KeyboardInterrupt from None
        finally:
            line.end()


class _Line:
    """Progress as JSON lines, or as one line on a terminal that changes; a line at times elsewhere."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._phase = ""
        self._open = False

    def __call__(self, progress: Progress) -> None:
        if self._as_json:
            print(json.dumps({"progress": progress.to_json()}), flush=True)
        elif sys.stderr.isatty():
            print(f"\r{progress.words[:118]:<118}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif progress.phase != self._phase:
            print(progress.words, file=sys.stderr, flush=True)
        self._phase = progress.phase

    def end(self) -> None:
        """Take the line away."""
        if self._open:
            print(f"\r{'':<118}\r", end="", file=sys.stderr, flush=True)
            self._open = False


def _say(*parts: str) -> None:
    if text := " ".join(part for part in parts if part):
        print(text, flush=True)
