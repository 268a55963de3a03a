"""`zk0desk recordings`: find and check LeRobot recordings."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.settings import Settings
    from zk0desk.training.recordings import CheckResult, PolicyNeeds
    from zk0desk.training.repairs import RepairPlan, RepairProgress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Find and check LeRobot recordings. They are only read, and nothing is sent.\n\n\b\nExample: zk0desk recordings list ~/recordings",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
SIGNS = {"blocks": "blocks    ", "repairable": "repairable", "note": "note      "}


@app.command("list")
def list_(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders to look in, besides LeRobot's own.", show_default=False)] = None,
    search: Annotated[str, typer.Option(help="Words in the name, the folder, the robot, a task or a camera.", show_default=False)] = "",
    sort: Annotated[str, typer.Option(help="name, robot, episodes, duration, size, health or date.")] = "name",
    health: Annotated[list[str] | None, typer.Option(help="Only ok, repairable or unusable ones.", show_default=False)] = None,
    robot: Annotated[list[str] | None, typer.Option(help="Only of this robot.", show_default=False)] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only with this camera.", show_default=False)] = None,
    as_json: AsJson = False,
) -> int:
    """List the recordings in FOLDERS and where LeRobot keeps its own, each with what a quick check says.

    \b
    Example: zk0desk recordings list ~/recordings --sort size --health ok --json
    """
    from zk0desk.training.library import HEALTHS, ORDERS, Entry, View, arrange
    from zk0desk.training.recording_watch import changed_at
    from zk0desk.training.recordings import find_recordings, quick_check

    order = next((known for known in ORDERS if known == sort), None)
    if order is None:
        raise typer.BadParameter(f"sort by {', '.join(ORDERS)}", param_hint="--sort")
    if not set(health or ()) <= set(HEALTHS):
        raise typer.BadParameter(f"it is {', '.join(HEALTHS)}", param_hint="--health")
    view = View(search, order, False, frozenset(health or ()), frozenset(robot or ()), frozenset(camera or ()))
    found = [Entry(quick_check(path), changed_at(path)) for path in find_recordings(folders or [])]
    results = [entry.result for entry in arrange(found, view)]
    if as_json:
        print(json.dumps([result.to_json() for result in results], indent=2))
        return int(ExitStatus.OK)
    if found and not results:
        print(f"None of the {len(found)} recordings that were found is what you asked for.")
    elif not results:
        print("No LeRobot recording was found. Name the folder that holds yours: zk0desk recordings list FOLDER")
    width = max((len(result.path.name) for result in results), default=0)
    for result in results:
        recording = result.recording
        facts = f"{recording.episodes} episodes, {recording.frames} frames, {recording.robot or 'robot not named'}" if recording else ""
        print(f"{result.path.name:<{width}}  {result.status:<10}  {facts}\n{'':<{width}}  {result.path}")
    return int(ExitStatus.OK)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="The recording's folder.")],
    policy: Annotated[Path | None, typer.Option(help="The policy's folder; default: what SmolVLA asks for.", show_default=False)] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every row and look into every episode's videos. The answer is kept.")] = False,
    again: Annotated[bool, typer.Option("--again", help="With --deep: look anew, even if an answer is kept.")] = False,
    as_json: AsJson = False,
) -> int:
    """Say whether a recording can be trained on, and if not, why and what to do.

    Exit status: 0 usable, 3 usable after a repair, 4 not usable.

    \b
    Example: zk0desk recordings check ~/recordings/cubes --deep --json
    """
    from zk0desk.training.recordings import PolicyNeeds, policy_needs, quick_check

    needs = policy_needs(policy) if policy else PolicyNeeds()
    result = _deep(path, needs, again) if deep or again else quick_check(path, needs)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        _print(result)
    return int(result.exit_status)


def _deep(path: Path, needs: PolicyNeeds, again: bool) -> CheckResult:
    """The deep check, with its progress on a terminal."""
    from zk0desk.training.recordings import Progress, deep_check

    shown = -1

    def progress(step: Progress) -> None:
        nonlocal shown
        percent = 100 * step.done // step.total
        if percent != shown and sys.stderr.isatty():
            shown = percent
            print(f"\r{percent:3d} %  {step.what[:60]:<60}", end="", file=sys.stderr, flush=True)

    result = deep_check(path, needs, progress=progress, again=again)
    if shown >= 0:
        print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)
    return result


def _print(result: CheckResult) -> None:
    words = {"ok": "can be trained on", "repairable": "can be trained on after a repair", "unusable": "cannot be trained on"}
    print(f"{result.path.name} {words[result.status]}.")
    recording = result.recording
    if recording:
        cameras = ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in recording.cameras) or "none"
        robot = recording.robot or "robot not named"
        print(f"  {robot}, format {recording.version}, {recording.episodes} episodes, {recording.frames} frames")
        print(f"  {recording.fps:g} fps, {recording.duration:.0f} s, {recording.bytes_on_disk / 1e6:.1f} MB; cameras: {cameras}")
        print(f"  state {recording.state_dim}, action {recording.action_dim}; {'; '.join(recording.tasks[:3]) or 'no task'}")
    for finding in result.findings:
        print(f"  {SIGNS[finding.severity]}  {finding.what} {finding.why} {finding.remedy}".rstrip())


@app.command()
def curate(
    path: Annotated[Path, typer.Argument(help="The recording's folder. It is only read.")],
    too_short: Annotated[bool, typer.Option("--too-short", help="Leave out episodes shorter than the policy's chunk of actions.")] = False,
    shorter_than: Annotated[float, typer.Option(min=0, help="Leave out episodes of fewer seconds.", show_default=False)] = 0.0,
    jumps: Annotated[bool, typer.Option("--jumps", help="Leave out episodes in which the arm jumps.")] = False,
    no_motion: Annotated[bool, typer.Option("--no-motion", help="Leave out episodes in which the arm does not move.")] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Leave out episodes that repeat an earlier one.")] = False,
    leave_out: Annotated[str, typer.Option(help="Episodes to leave out: 3,7.", show_default=False)] = "",
    reason: Annotated[str, typer.Option(help="Why those of --leave-out are left out.")] = "left out by hand",
    take_back: Annotated[str | None, typer.Option(help="Episodes to train on again: 3,7, or all.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="The recording changed: the numbers are still right.")] = False,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Default: the window's settings.", show_default=False)] = None,
    as_json: AsJson = False,
) -> int:
    """Say which episodes are left out of training, and change that. No file of the recording is touched: the settings keep it.

    Without options, prints what is left out and what the filters propose. Exit status: 0, 3 where the recording has
    changed since episodes were left out, 4 where it cannot be read.

    \b
    Example: zk0desk recordings curate ~/recordings/cubes --jumps --duplicates --leave-out 3,7 --reason "the cube fell"
    """
    from zk0desk.commands.curate import Wishes, curate_recording

    filters = {"too-short": too_short, "jumps": jumps, "no-motion": no_motion, "duplicates": duplicates}
    all_back = take_back is not None and take_back.strip() == "all"
    wishes = Wishes(
        filters=tuple(name for name, on in filters.items() if on),
        shorter_than=shorter_than,
        leave_out=_numbers(leave_out, "--leave-out"),
        reason=reason,
        take_back=() if all_back else _numbers(take_back or "", "--take-back"),
        all_back=all_back,
        keep=keep,
    )
    return curate_recording(path, wishes, settings_file, lambda: _deep(path, _needs_of(settings_file), again=False), as_json=as_json)


def _needs_of(settings_file: Path | None) -> PolicyNeeds:
    from zk0desk import settings
    from zk0desk.training.recordings import PolicyNeeds, policy_needs

    chosen: Settings = settings.load(settings_file)
    folder = chosen.policy.folder
    return policy_needs(folder) if folder else PolicyNeeds()


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError as error:
        raise typer.BadParameter("name episodes by their numbers: 3,7", param_hint=option) from error


Source = Annotated[Path, typer.Argument(help="The recording's folder. It is only read.")]
New = Annotated[Path, typer.Argument(help="Folder for the copy; it must be new or empty.")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep a copy that cannot be trained on either, to look at it.")]


@app.command()
def convert(path: Source, new: New, keep: Keep = False, as_json: AsJson = False) -> int:
    """Make a copy in LeRobot's format v3.0 of a recording in v2.0 or v2.1, with whatever else is to be repaired.

    Exit status: 0 done, 4 it cannot be, 130 interrupted; then nothing is left of the copy.

    \b
    Example: zk0desk recordings convert ~/recordings/cubes ~/recordings/cubes-v30
    """
    return _repair(path, new, keep=keep, as_json=as_json, convert=True)


@app.command()
def repair(
    path: Source,
    new: New,
    reencode: Annotated[bool, typer.Option("--reencode", help="Encode the videos anew, as H.264.")] = False,
    leave_out: Annotated[str, typer.Option(help="Episodes to leave out: 3,7.", show_default=False)] = "",
    keep: Keep = False,
    lines: Annotated[bool, typer.Option("--progress", help="Print `progress STEP PERCENT` as lines on standard error.")] = False,
    as_json: AsJson = False,
) -> int:
    """Make a copy of a recording that can be trained on. What is done is printed first.

    Exit status: 0 done, 4 it cannot be, 130 interrupted; then nothing is left of the copy.

    \b
    Example: zk0desk recordings repair ~/recordings/cubes ~/recordings/cubes-repaired --leave-out 3,7
    """
    numbers = list(_numbers(leave_out, "--leave-out"))
    return _repair(path, new, keep=keep, as_json=as_json, lines=lines, leave_out=numbers, reencode=reencode)


def _repair(path: Path, new: Path, *, keep: bool, as_json: bool, convert: bool = False, lines: bool = False, **options: Any) -> int:
    """Check, plan, print the plan, repair."""
    from zk0desk.training import repairs
    from zk0desk.training.recordings import PolicyNeeds

    needs = PolicyNeeds()
    plan = repairs.plan_repair(path, _deep(path, needs, again=False), needs, **options)
    _print_plan(plan, new, sys.stderr if as_json else sys.stdout)
    if convert and not plan.impossible and not plan.has(repairs.Step.CONVERT):
        why, remedy = "LeRobot reads it as it is.", "To repair it otherwise: zk0desk recordings repair."
        raise repairs.RepairError(f"{path.name} needs no conversion.", why, remedy, code="nothing-to-convert")
    said = ("", -1)

    def progress(step: RepairProgress) -> None:
        nonlocal said
        now = (step.step, int(100 * step.done))
        if now != said and lines:
            print("progress", *now, file=sys.stderr, flush=True)
        elif now != said and sys.stderr.isatty():
            print(f"\r{step.step:<12}{now[1]:3d} %", end="", file=sys.stderr, flush=True)
        elif now[0] != said[0] and not lines:
            print(step.step, file=sys.stderr, flush=True)
        said = now

    try:
        with _interrupted_by_signals():
            result = repairs.repair(path, new, plan, progress=progress, keep=keep)
    finally:
        if sys.stderr.isatty():
            print(f"\r{'':<18}\r", end="", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print(f"Done in {result.seconds:.0f} s: {result.path}, {result.bytes / 1e6:.1f} MB.")
        _print(result.check)
    return int(ExitStatus.OK)


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Within it SIGTERM ends the command as Ctrl-C does, so that nothing is left of a half copy.

    SIGINT is heard also where it is ignored, as by all that a script starts in the background: the window cancels by it.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _print_plan(plan: RepairPlan, new: Path, to: TextIO) -> None:
    for finding in plan.impossible[1:]:  # the error tells the first
        print(f"This stands in the way too: {finding.what} {finding.why} {finding.remedy}".rstrip(), file=to)
    if not plan.possible:
        return
    print(f"{plan.path} stays as it is. The copy {new}:", file=to)
    for step in plan.steps:
        print(f"  {step.code:<10}  {step.what} {step.note}".rstrip(), file=to)
    print(f"  It needs {plan.bytes_needed / 1e6:,.0f} MB of disk and about {max(1.0, plan.seconds):.0f} s.", file=to, flush=True)
