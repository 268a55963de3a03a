"""`zk0desk policy`: what a policy's folder holds, and saving the federation's policy for one's own robot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Look at policies, and save the shared one for your robot.\n\nExample: zk0desk policy save ~/policies/shared --best",
    no_args_is_help=True,
)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder with config.json and model.safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a policy's fingerprints: two computers train the same policy when these agree.

    Example: zk0desk policy show ~/policies/smolvla_base
    """
    from zk0desk.training.policy_files import read_policy

    files = read_policy(folder)
    if as_json:
        print(json.dumps(files.to_json()))
        return
    for name, value in files.to_json().items():
        print(f"{name:21} {value:,}" if isinstance(value, int) else f"{name:21} {value}")


@app.command()
def save(
    folder: Annotated[Path, typer.Argument(help="Where the policy is written. A policy that is there is replaced.")],
    best: Annotated[bool, typer.Option("--best/--last", help="The round with the lowest held-out loss, or the newest.")] = False,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file; default: the operator's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Save the federation's policy with your own recordings' statistics, as a folder that LeRobot loads.

    Example: zk0desk policy save ~/policies/shared --best
    """
    from zk0desk import settings
    from zk0desk.training.kept_runs import newest_run
    from zk0desk.training.policy import save_shared_policy

    run = newest_run()
    which = run.which(best)
    saved = save_shared_policy(folder, run.policy, run.weights(which), settings.load(settings_file).recordings.chosen)
    about = {"folder": str(saved), "run": run.run, "round": run.rounds[which], "eval-loss": run.losses[which]}
    if as_json:
        print(json.dumps(about))
        return
    print(f"Saved the policy of run {run.run}, round {run.rounds[which]}, to {saved}.")
    print(f'Load it with SmolVLAPolicy.from_pretrained("{saved}"), or name it to LeRobot with --policy.path={saved}.')
