"""`zk0desk recordings`: find and check LeRobot recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.training.recordings import CheckResult

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
    as_json: AsJson = False,
) -> int:
    """Say whether a recording can be trained on, and if not, why and what to do.

    Exit status: 0 usable, 3 usable after a repair, 4 not usable.

    \b
    Example: zk0desk recordings check ~/recordings/cubes --json
    """
    from zk0desk.training.recordings import PolicyNeeds, policy_needs, quick_check

    result = quick_check(path, policy_needs(policy) if policy else PolicyNeeds())
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        _print(result)
    return int(result.exit_status)


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
