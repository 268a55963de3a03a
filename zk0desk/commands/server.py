"""`zk0desk server`: run a federation."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from zk0desk.errors import ExitStatus, SettingsError
from zk0desk.events import Event

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="""Run a federation: make its folder, start it, invite operators, admit their computers, train.

\b
Example:
  zk0desk server init ~/arms --name arms.example.org --policy ~/smolvla_base --held-out ~/recordings/held-out
  zk0desk server start ~/arms &
  zk0desk server invite ~/arms
  zk0desk server run ~/arms""",
)

Folder = Annotated[Path, typer.Argument(help="The server's folder.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WithParent = Annotated[bool, typer.Option("--with-parent", hidden=True, help="End when standard input ends.")]


@app.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="Name or address under which operators reach this computer.")] = "localhost",
    policy: Annotated[Path | None, typer.Option(help="Folder of the SmolVLA base policy.", show_default=False)] = None,
    held_out: Annotated[list[Path] | None, typer.Option(help="A held-out recording; may be given again.", show_default=False)] = None,
    retention: Annotated[
        list[Path] | None, typer.Option(help="A recording of a task that the base policy knew; may be given again.", show_default=False)
    ] = None,
    federation: Annotated[str, typer.Option(help="Name of the federation.")] = "zk0desk federation",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port that nodes call; 0 takes a free one.")] = 8000,
) -> None:
    """Make a server's folder: certificate, admission code, settings with comments.

    \b
    Example: zk0desk server init ~/arms --name arms.example.org --policy ~/smolvla_base
    """
    from pydantic import ValidationError

    from zk0desk.federation.server_folder import init_server
    from zk0desk.settings import ChosenRecording, ServerNetwork, ServerPolicy, ServerSettings

    base = policy.expanduser().resolve() if policy else ServerPolicy().folder
    measured, known = (tuple(ChosenRecording(path=path.expanduser().resolve()) for path in every or ()) for every in (held_out, retention))
    try:
        settings = ServerSettings(
            federation=federation,
            network=ServerNetwork(name=name, port=port),
            policy=ServerPolicy(folder=base, held_out=measured, retention=known),
        )
    except ValidationError as error:
        raise SettingsError("The folder was not made.", f"{error.errors()[0]['msg']}.", "Correct the options.") from error
    if policy:
        from zk0desk.training.policy_files import read_policy

        read_policy(base)
    server = init_server(folder, settings)
    print(f"The server's folder is {server.path}. Look through server.toml, then: zk0desk server start {server.path}")


@app.command()
def start(
    folder: Folder,
    run: Annotated[bool, typer.Option("--run", help="Also conduct the rounds.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds, instead of the settings' number.", show_default=False)] = None,
    with_parent: WithParent = False,
) -> None:
    """Start the SuperLink and its gateway, and keep them running. Events are lines of JSON on standard output.

    \b
    Example: zk0desk server start ~/arms --run
    """
    from zk0desk.federation.event_log import logged
    from zk0desk.federation.server_folder import ServerFolder
    from zk0desk.federation.supervisor import Server
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    home = ServerFolder(folder)
    server = Server(home, logged(home, _print), relay=_print, run=run, rounds=rounds)
    _until_told(server.stop, with_parent, within=1.7)
    server.serve()


@app.command("run")
def run_(
    folder: Folder,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds, instead of the settings' number.", show_default=False)] = None,
    new: Annotated[bool, typer.Option("--new", help="Begin a new run, even if the last is not finished.")] = False,
    with_parent: WithParent = False,
) -> None:
    """Conduct the rounds on the server that runs in FOLDER; go on with the last run where it stopped.

    Events are lines of JSON on standard output. Ctrl-C stops at once, and nothing but the round under way is lost.

    \b
    Example: zk0desk server run ~/arms --rounds 30
    """
    from zk0desk.control import NodeControl, Stopped
    from zk0desk.federation.event_log import logged
    from zk0desk.federation.server_app import run_rounds
    from zk0desk.federation.server_folder import ServerFolder
    from zk0desk.federation.tracking import tracked

    control = NodeControl()
    _until_told(control.stop_now, with_parent, within=1.7)
    try:
        with tracked(folder, logged(ServerFolder(folder), _print)) as emit:
            run_rounds(folder, emit, control=control, rounds=rounds, fresh=new)
    except Stopped:
        return


@app.command()
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> int:
    """Say how the federation stands: the round and its schedule, who is online, training, late, refused or quarantined and why, losses,
    bytes, time left.

    Reads the server's folder and asks the SuperLink who is online. Exit status: 0 it runs, 6 no server runs in this folder, of which
    what is known is told all the same.

    \b
    Example: zk0desk server status ~/arms --watch
    """
    from rich.console import Console

    from zk0desk.commands.server_view import snapshot
    from zk0desk.commands.server_view import watch as follow
    from zk0desk.errors import OperatorError
    from zk0desk.federation.server_folder import ServerFolder
    from zk0desk.federation.server_status import StatusReader, online_keys

    server = ServerFolder(folder)
    reader = StatusReader(server)
    if watch:
        follow(server)
        return 0
    found = reader.read()
    if found.running is not None:
        with contextlib.suppress(OperatorError):  # a SuperLink that is being started again; the rest is told
            found = reader.read(online_keys(found.running))
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        console = Console()
        console.print(snapshot(found.to_json(), console.width))
    if found.running is None:
        if as_json:
            return int(ExitStatus.UNREACHABLE)
        server.running()
    return 0


@app.command("set")
def set_(
    folder: Folder,
    key: Annotated[str, typer.Argument(help="The setting with its section, as rounds.min-nodes.", show_default=False)],
    value: Annotated[str, typer.Argument(help="Its new value.", show_default=False)],
) -> None:
    """Change a setting in server.toml; comments stay. A running federation takes it over before its next round, where it can.

    What a run was begun with (policy, seed, encoding and the like) is refused while it is under way: exit status 5. Taken over before
    the next round: rounds.min-nodes, fraction, wait-s, deadline-s, max-share, keep-checkpoints, keep-updates; policy.evaluate-every; the
    bounds in [schedule]; aggregation.clip and quarantine-after.

    \b
    Example: zk0desk server set ~/arms rounds.min-nodes 3
    """
    from zk0desk.federation.live_settings import change_setting
    from zk0desk.federation.server_folder import ServerFolder

    change = change_setting(ServerFolder(folder), key, value)
    if change.before == change.after:
        print(f"{key} is {change.after} already.")
        return
    when = {
        "next-round": "a run takes it over before its next round",
        "next-start": "the server and the rounds take it over when they are started again",
        "next-run": "the next run takes it over",
    }[change.when]
    print(f"{key} was {change.before} and is {change.after}; {when}.")


@app.command()
def invite(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Also write a file, NAME.zk0invite.", show_default=False)] = None,
    valid_days: Annotated[
        float | None, typer.Option(min=0.01, max=3650, help="New nodes may use it for so many days.", show_default=False)
    ] = None,
    uses: Annotated[int | None, typer.Option(min=1, max=10_000, help="So many nodes may use it.", show_default=False)] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the limited invitations instead, and how often each was used.")] = False,
    withdraw: Annotated[
        str, typer.Option(metavar="NAME", help="End a limited invitation now, by its name in the list.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print the invitation: one line to send to operators.

    With --valid-days or --uses it is one of its own, with a code of its own; nodes that joined with it stay when it has ended. Without,
    it is the invitation whose code is in the folder's file `admission-code`.

    \b
    Example: zk0desk server invite ~/arms --valid-days 7 --uses 1 --out anna.zk0invite
    """
    import time

    from zk0desk.federation.server_folder import ServerFolder

    server = ServerFolder(folder)
    if withdraw:
        server.settings()
        server.nodes().withdraw(withdraw)
        print(json.dumps({"withdrawn": withdraw}) if as_json else f"The invitation {withdraw} has ended. Nodes that joined with it stay.")
        return
    if listed:
        server.settings()
        known = server.nodes().invitations()
        if as_json:
            print(json.dumps([each.to_json() for each in known]))
            return
        for each in known:
            until = f"until {datetime.fromtimestamp(each.ends):%Y-%m-%d %H:%M}" if each.ends else "without an end"
            print(f"{each.name}  {each.state(time.time()):8}  used by {each.used} of {each.uses or 'any number'}, {until}")
        if not known:
            print("No invitation is limited.")
        return
    invitation = server.invitation(ends=time.time() + valid_days * 86_400 if valid_days else 0.0, uses=uses or 0)
    if out:
        invitation.write(out)
    print(json.dumps({"invitation": invitation.to_line(), "valid-until": invitation.valid_until}) if as_json else invitation.to_line())


@app.command()
def nodes(
    folder: Folder,
    as_json: AsJson = False,
    new: Annotated[
        bool, typer.Option("--new", help="Begin a new list of nodes, where it is lost or damaged; the old file is kept beside it.")
    ] = False,
) -> None:
    """List nodes: online, admitted, waiting to be admitted, revoked.

    \b
    Example: zk0desk server nodes ~/arms
    """
    from zk0desk.federation.server_folder import ServerFolder

    server = ServerFolder(folder)
    server.settings()
    if new:
        server.new_nodes()
    found = _nodes(server)
    if as_json:
        print(json.dumps(found))
        return
    for node in found:
        print(f"{node['fingerprint']}  {node['status']:8}  {node['address']}")
    if not found:
        print("No node has called yet.")


@app.command()
def admit(folder: Folder, who: Annotated[str, typer.Argument(help="Fingerprint, or the line that begins with zk0-node:")]) -> None:
    """Admit a node. Compare the fingerprint with the operator first, by voice.

    \b
    Example: zk0desk server admit ~/arms "7c1e 09af 55d2 8b40"
    """
    from zk0desk.federation.server_folder import ServerFolder
    from zk0desk.federation.superlink import admit as let_in

    server = ServerFolder(folder)
    server.settings()
    print(f"Node {let_in(server, who).fingerprint} is admitted.")


@app.command()
def revoke(folder: Folder, who: Annotated[str, typer.Argument(help="Fingerprint, or the line that begins with zk0-node:")]) -> None:
    """Refuse a node from now on, in the round under way too: what it sends, or has sent, does not count.

    \b
    Example: zk0desk server revoke ~/arms "7c1e 09af 55d2 8b40"
    """
    from zk0desk.federation.server_folder import ServerFolder
    from zk0desk.federation.superlink import revoke as keep_out

    server = ServerFolder(folder)
    server.settings()
    print(f"Node {keep_out(server, who).fingerprint} is refused from now on.")


@app.command()
def doctor(
    folder: Folder,
    quick: Annotated[bool, typer.Option("--quick", help="Do not read the recordings through.")] = False,
    as_json: AsJson = False,
) -> int:
    """Say before the first round whether the federation can begin, and if not, why and what to do.

    Looks at port, certificate, clock, disk, memory, settings that refuse each other, policy, held-out recordings, and admitted nodes.
    Exit status: 0 it can begin, 3 with limits, 4 it cannot.

    \b
    Example: zk0desk server doctor ~/arms
    """
    from zk0desk.federation.server_doctor import examine
    from zk0desk.federation.server_folder import ServerFolder

    def told(what: str) -> None:
        if not as_json and sys.stderr.isatty():
            print(f"reading {what}", file=sys.stderr, flush=True)

    seen = examine(ServerFolder(folder), quick=quick, told=told)
    if as_json:
        print(json.dumps(seen.to_json(), indent=2))
        return int(seen.exit_status)
    print(seen.sentence)
    width = max(map(len, seen.looked_at), default=0) + 2
    for name, value in seen.looked_at.items():
        print(f"  {name:<{width}}{value}")
    for finding in seen.findings:
        severity = "limits" if finding.severity == "repairable" else finding.severity
        print(f"  {severity:<8}  {finding.what} {finding.why} {finding.remedy}".rstrip())
    return int(seen.exit_status)


@app.command()
def plot(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The PNG that is written.", show_default=False)],
    run: Annotated[str, typer.Option(help="Beginning of a run's id; default: the last run.")] = "",
) -> None:
    """Draw a run's curves as the paper's Figure 3 has them: held-out loss, the nodes' losses, schedule, forgetting. No account is needed.

    \b
    Example: zk0desk server plot ~/arms --out arms.png
    """
    from zk0desk.federation.run_curves import draw_run
    from zk0desk.federation.server_folder import ServerFolder

    record, path = draw_run(ServerFolder(folder), out.expanduser().absolute(), run)
    print(f"The curves of run {record.uid}, {record.done} rounds, are drawn in {path}.")


@app.command()
def publish(
    folder: Folder,
    repo: Annotated[str, typer.Option(help="Repository on the Hub: USER/NAME.", show_default=False)],
    license_: Annotated[
        str, typer.Option("--license", help="Licence of the policy, as apache-2.0; its base may ask for one.", show_default=False)
    ],
    round_: Annotated[str, typer.Option("--round", help="best, last, or a number.")] = "best",
    run: Annotated[str, typer.Option(help="Beginning of a run's id; default: the last run.")] = "",
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it; else only you.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Put a round's policy on the Hugging Face Hub, with a card that says how it came about. First it shows what would go out, and asks.

    The token is that of `zk0desk hub login`, or HF_TOKEN; it has to allow writing. Exit status: 0 it is there, 2 a name that cannot be or
    no --yes where nobody can be asked, 4 there is nothing that may be published, 5 the Hub refused, 6 not reached.

    \b
    Example: zk0desk server publish ~/arms --repo my-lab/arms-of-the-north --license apache-2.0
    """
    import tempfile

    from zk0desk.commands.server_view import size
    from zk0desk.federation.hub_publish import prepare, send
    from zk0desk.federation.server_folder import ServerFolder
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="zk0desk-publish-") as draft:
        ready = prepare(ServerFolder(folder), repo, Path(draft), which=round_, run=run, license_=license_, private=not public)
        sizes = ready.sizes
        if not as_json:
            print(f"To {repo}, which {'everybody' if public else 'only you'} can read, would go of run {ready.run}, round {ready.round}:")
            for name, count in sizes.items():
                print(f"  {size(count):>10}  {name}")
        if not yes:
            if not sys.stdin.isatty():
                raise SettingsError("Nothing was published.", "Nobody can be asked here whether it may go out.", "Add --yes if it may.")
            if not typer.confirm("Publish it?"):
                print("Nothing was published.")
                return int(ExitStatus.FAILED)
        commit = send(ready)
    if as_json:
        about = {"repo-id": repo, "commit": commit, "private": not public, "run": ready.run, "round": ready.round}
        print(json.dumps({**about, "files": sizes}))
    else:
        print(f"Published as commit {commit[:12]} of {repo}.")
    return int(ExitStatus.OK)


@app.command("audit")
def audit_(
    folder: Folder,
    run: Annotated[str, typer.Option("--run", help="A run's id; without it the last one.", show_default=False)] = "",
    as_json: AsJson = False,
) -> int:
    """Compare all that is kept of a run: its journal's hash chain, its checkpoints and, with `rounds.keep-updates`, the aggregations again.

    It finds what was changed, lost or moved; it is no proof against the coordinator, who can write everything anew. Files are only read.
    Exit status: 0 all is as it was written, 1 something is not.

    \b
    Example: zk0desk server audit ~/arms
    """
    from dataclasses import asdict

    from zk0desk.federation.audit import audit, find_run
    from zk0desk.federation.server_folder import ServerFolder

    server = ServerFolder(folder)
    server.settings()
    found = audit(server, find_run(server, run))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"Run {found.run}: {found.entries} entries of the journal, {found.rounds} rounds, {found.checkpoints} checkpoints looked at.")
        print(f"{found.recomputed} aggregations were done again." if found.recomputed else "No updates are kept: nothing was done again.")
        for each in found.findings:
            print(f"{each.where}: {each.what}")
        print(f"{len(found.findings)} things are not as they were written." if found.findings else "All of it is as it was written.")
    return int(ExitStatus.FAILED if found.findings else ExitStatus.OK)


@app.command("_superlink", hidden=True)
def superlink_() -> None:
    """The SuperLink's process."""
    from zk0desk.federation.superlink import serve_superlink

    serve_superlink()


@app.command("_evaluator", hidden=True)
def evaluator_() -> None:
    """The process that evaluates on held-out recordings."""
    from zk0desk.federation.evaluator import serve_evaluator

    serve_evaluator()


_printing = threading.Lock()


def _print(event: Event) -> None:
    with _printing:
        sys.stdout.write(json.dumps(event.to_json()) + "\n")
        sys.stdout.flush()


def _until_told(stop: Callable[[], None], with_parent: bool, *, within: float) -> None:
    """Call `stop` on Ctrl-C, on SIGTERM and, for a child of the product, when the parent ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop())
    if with_parent:
        from zk0desk.federation.child import when_parent_ends

        when_parent_ends(stop, within=within)


def _nodes(server: Any) -> list[dict[str, Any]]:
    from zk0desk.federation.server_folder import ServerNotRunningError

    online: set[bytes] = set()
    try:
        running = server.running()
    except ServerNotRunningError:
        running = None
    if running is not None:
        from zk0desk.federation.grid import Control

        with Control(running.superlink, running.secret) as control:
            online = {node.public_key for node in control.nodes() if node.online}
    records = server.nodes().nodes()
    return [
        {**each.to_json(), **({"status": "online"} if each.status == "admitted" and each.public_key in online else {})} for each in records
    ]
