"""`zk0desk recordings`: find and check LeRobot recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.training.recordings import CheckResult, PolicyNeeds

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
    as_json: AsJson = False,
) -> int:
    """List the recordings in FOLDERS and where LeRobot keeps its own, each with what a quick check says.

    \b
    Example: zk0desk recordings list ~/recordings --json
    """
    from zk0desk.training.recordings import find_recordings, quick_check

    results = [quick_check(path) for path in find_recordings(folders or [])]
    if as_json:
        print(json.dumps([result.to_json() for result in results], indent=2))
        return int(ExitStatus.OK)
    if not results:
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
    import sys

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
