"""The command line. `zk0desk` alone opens the window.

A command's module is imported when that command is called or its own help is shown, never for `zk0desk --help`; and the
window's way (`zk0desk`, `zk0desk-window`) does not even import the argument parser.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zk0desk.desktop.opening import is_invitation
from zk0desk.errors import ExitStatus, OperatorError

if TYPE_CHECKING:
    import click


class _Command(NamedTuple):
    """Where a command lives (`module`, `attribute`: a Typer app or a function), and its line in `zk0desk --help`."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "demo": _Command("zk0desk.commands.demo", "demo", "Run a whole federation on this computer, with a tiny SmolVLA."),
    "recordings": _Command("zk0desk.commands.recordings", "app", "Find and check LeRobot recordings."),
    "doctor": _Command("zk0desk.commands.doctor", "doctor", "Say whether this computer can train the policy, and if not, why."),
    "node": _Command("zk0desk.commands.node", "node", "Take part in a federation without a window."),
    "policy": _Command("zk0desk.commands.policy", "app", "Look at policies, and save the shared one for your robot."),
    "cache": _Command("zk0desk.commands.cache", "app", "See, check and remove what was computed of your frames and kept."),
    "hub": _Command("zk0desk.commands.hub", "app", "Fetch a base policy or a recording from the Hugging Face Hub."),
    "identity": _Command("zk0desk.commands.identity", "app", "Show this node's identity, back it up, or put a backup in."),
    "data": _Command("zk0desk.commands.data", "data", "Show what zk0desk keeps on this computer, by size, or remove it."),
    "engine": _Command("zk0desk.commands.engine", "app", "Get, check and save what trains: torch, LeRobot and flwr."),
    "server": _Command("zk0desk.commands.server", "app", "Run a federation: initialise, start, invite, admit, train."),
}
"""Every command, in the order in which the help shows them."""

_ENGINE = {"torch", "torchvision", "lerobot", "flwr", "transformers", "accelerate", "datasets"}

_LOG_BYTES = 1_000_000
"""A log of unexpected errors that is larger than this begins anew; the old one is kept once."""

_ABOUT = """Train a shared robot policy together with other robot owners, without giving your recordings away.

Without a command the window opens, with --background out of sight: in the desktop's tray, or minimised. An invitation (a line that
begins with zk0desk:join? or a .zk0invite file) in the place of a command opens the window on it. --remove-data is data --remove.

\b
Examples:
  zk0desk
  zk0desk demo
  zk0desk recordings check ~/recordings/cubes
  zk0desk node --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `zk0desk` with `arguments` (default: those of the process); the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] == "--background" or is_invitation(given[0]):
        return guarded(lambda: _open_window(given))
    if given[0] == "--remove-data":
        given[:1] = ["data", "--remove"]
    return guarded(lambda: _command_line(given), as_json="--json" in given)


def window() -> int:
    """Entry point of `zk0desk-window`: the window, with an invitation to open if one is given."""
    return guarded(lambda: _open_window(sys.argv[1:]))


def guarded(action: Callable[[], int], *, as_json: bool = False) -> int:
    """Run `action`; turn what it raises into a sentence and an exit status. A person never sees a traceback.

    An `OperatorError` goes to stderr, or, `as_json`, to stdout as `{"error": {code, what, why, remedy}}`. Anything
    unexpected goes to the log file, which the sentence names.
    """
    try:
        try:
            status = action()
            sys.stdout.flush()
            return status
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _ENGINE:
                raise
            from zk0desk.engine.missing import missing

            raise missing(f"{error.name} is not installed on this computer.") from error
    except OperatorError as error:
        _tell(error, as_json)
        return int(error.exit_status)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output went away (`zk0desk ... | head`); the interpreter's last flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitStatus.FAILED)
    except Exception as error:  # noqa: BLE001 - the last place where an exception can become a sentence
        _tell(_unexpected(error), as_json)
        return int(ExitStatus.FAILED)


def _tell(error: OperatorError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.to_json()}), flush=True)
    else:
        print("\n".join(part for part in (error.what, error.why, error.remedy) if part), file=sys.stderr, flush=True)


def _unexpected(error: Exception) -> OperatorError:
    from zk0desk import folders

    what = f"zk0desk met an error that it did not expect: {type(error).__name__}: {error}"
    text = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} zk0desk {' '.join(sys.argv[1:2])}\n{traceback.format_exc()}\n"
    path = folders.state_folder() / "errors.log"
    try:
        folders.private_folder(path.parent)
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.old"))
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
    except OSError as trouble:
        return OperatorError(what, f"The details could not be written to {path} ({trouble.strerror}).", "Free some space and try again.")
    return OperatorError(what, f"The details are in {path}.", "Try again; if it happens again, report it with that file.")


def _open_window(arguments: Sequence[str]) -> int:
    from zk0desk.ui.main import run

    return int(run(list(arguments)))


def _command_line(arguments: list[str]) -> int:
    import click

    try:
        result = _group().main(args=arguments, prog_name="zk0desk", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    return result if isinstance(result, int) and not isinstance(result, bool) else int(ExitStatus.OK)


def _group() -> click.Group:
    """The root of all commands. A command is imported when click asks for it by name."""
    import click

    class LazyGroup(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return _load(cmd_name) if cmd_name in COMMANDS else None

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            with formatter.section("Commands"):
                formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])

    def version(ctx: click.Context, _parameter: Any, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            from zk0desk import __version__

            click.echo(f"zk0desk {__version__}")
            ctx.exit()

    options = [click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=version, help="Show the version.")]
    return LazyGroup(name="zk0desk", help=_ABOUT, params=options, no_args_is_help=True)


def _load(name: str) -> click.Command:
    """Import the module of command `name` and make a click command of its Typer app or function."""
    from importlib import import_module

    import typer
    import typer.core

    entry = COMMANDS[name]
    target = getattr(import_module(entry.module), entry.attribute)
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(target)
        target = app
    # Plain help for all: rich takes a tenth of a second to load, and pipes and screen readers do not want boxes.
    typer.core.HAS_RICH = False
    target._add_completion = False
    command = typer.main.get_command(target)
    command.name = name
    return command
