"""`zk0desk hub`: a base policy or a recording from the Hugging Face Hub, and the token for what is not public."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.control import NodeControl
    from zk0desk.federation.hub import Kind

app = typer.Typer(
    no_args_is_help=True,
    help="Fetch a base policy or a recording from the Hugging Face Hub. Your own recordings are never sent there.\n\n"
    "Example: zk0desk hub get policy lerobot/smolvla_base",
)
get = typer.Typer(
    no_args_is_help=True,
    help="Fetch a base policy or a recording by its name on the Hub.\n\nExample: zk0desk hub get policy lerobot/smolvla_base",
)
app.add_typer(get, name="get")

Name = Annotated[str, typer.Argument(help="Its name on the Hub: USER/NAME.", show_default=False)]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@get.command()
def policy(name: Name, revision: Revision = "main", as_json: AsJson = False) -> int:
    """Fetch a SmolVLA base policy with its tokenizer; it then loads without the Hub.

    Prints the folder and the commit that the revision is. A fetch that was cut or stopped goes on where it ended. Exit
    status: 0 it is there, 2 a name that cannot be or offline by choice, 4 no policy for zk0desk, 5 the Hub refused
    (token, conditions, too many requests), 6 not reached, 130 Ctrl-C.

    Example: zk0desk hub get policy lerobot/smolvla_base --revision main
    """
    from zk0desk.training.policy_files import read_policy

    folder = _fetched("policy", name, revision)
    _print(folder, as_json, {"policy-id": read_policy(folder).policy_id})
    return int(ExitStatus.OK)


@get.command()
def recording(name: Name, revision: Revision = "main", as_json: AsJson = False) -> int:
    """Fetch a LeRobot recording to where LeRobot looks for it, so that the window lists it.

    A recording that is there already is never replaced. A fetch that was cut or stopped goes on where it ended. Exit
    status: 0 it is there, 2 a name that cannot be or offline by choice, 4 no recording, 5 the Hub refused (token,
    conditions, too many requests), 6 not reached, 130 Ctrl-C.

    Example: zk0desk hub get recording lerobot/svla_so101_pickplace
    """
    from zk0desk.training.recordings import quick_check

    folder = _fetched("recording", name, revision)
    _print(folder, as_json, {"check": quick_check(folder).status})
    return int(ExitStatus.OK)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def login(context: typer.Context) -> int:
    """Keep your token for the Hub in the system's keyring: for what is private, or given on conditions.

    Asks for the token, or reads it from standard input; never from the command line, which the shell remembers and
    others on this computer can see. A token that may only read is enough.

    Example: zk0desk hub login < token.txt
    """
    from zk0desk.federation.hub_token import TokenInvalid, keep_token

    if context.args:
        raise TokenInvalid(
            "Nothing was kept: a token does not belong on the command line.",
            "The shell remembers it, and others on this computer can see it.",
            "Call zk0desk hub login alone; it asks. If it was a real token, withdraw it at https://huggingface.co/settings/tokens",
        )
    keep_token(typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline(8192))
    print("The token is in the keyring. The Hub is asked whether it is right when something is fetched.")
    return int(ExitStatus.OK)


@app.command()
def logout() -> int:
    """Take the token out of the keyring. What was fetched stays.

    Example: zk0desk hub logout
    """
    from zk0desk.federation.hub_token import forget_token

    print("The token is out of the keyring." if forget_token() else "There was no token in the keyring.")
    return int(ExitStatus.OK)


def _fetched(kind: Kind, name: str, revision: str) -> Path:
    from zk0desk.control import NodeControl, Stopped
    from zk0desk.federation.hub import fetch

    control, line = NodeControl(), _ProgressLine()
    with _interrupt_stops(control):
        try:
            return fetch(kind, name, revision, control=control, progress=line.show)
        except Stopped:
            print("Stopped. What has arrived is kept; the same command goes on.", file=sys.stderr)
            raise KeyboardInterrupt from None
        finally:
            line.end()


@contextmanager
def _interrupt_stops(control: NodeControl) -> Iterator[None]:
    import signal

    kept = {each: signal.signal(each, lambda *_: control.stop_now()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, before in kept.items():
            signal.signal(each, before)


class _ProgressLine:
    """Bytes on stderr: one line that changes on a terminal, else a line at times."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0
        self._open = False

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._shown < (0.2 if self._terminal else 5.0):
            return
        self._shown = now
        text = f"{100 * done // total:3d} %  {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        print(f"\r{text:<50}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)
        self._open = self._terminal

    def end(self) -> None:
        if self._open:
            print(file=sys.stderr)


def _print(folder: Path, as_json: bool, more: dict[str, str]) -> None:
    from zk0desk.federation.hub import origin

    known = origin(folder)
    assert known is not None
    about: dict[str, Any] = {
        "folder": str(folder),
        "repo-id": known.repo_id,
        "revision": known.revision,
        "commit": known.commit,
        "bytes": sum(known.sizes.values()),
        "files": len(known.sizes),
        **({"backbone": known.backbone} if known.backbone else {}),
        **more,
    }
    if as_json:
        print(json.dumps(about))
        return
    for name, value in about.items():
        print(f"{name:9} {value:,}" if isinstance(value, int) else f"{name:9} {value}")
