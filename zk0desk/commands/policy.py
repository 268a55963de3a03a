"""`zk0desk policy`: what a policy's folder holds, and saving the federation's policy for one's own robot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0desk.commands.policy_merge import compare, merge
from zk0desk.commands.policy_view import Progress, evaluation_table, plain

if TYPE_CHECKING:
    from zk0desk.settings import Settings
    from zk0desk.training.evaluation import Evaluation

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


@app.command()
def evaluate(
    folder: Annotated[
        Path | None, typer.Argument(help="The policy's folder. Without it: the shared policy, beside the base policy.", show_default=False)
    ] = None,
    recordings: Annotated[
        list[Path] | None,
        typer.Option(help="A recording's folder; may be given several times. Default: those in the settings.", show_default=False),
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Evaluate about so many frames, at least two of each episode; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Frames that are computed at once. It does not change the result.")] = 8,
    best: Annotated[bool, typer.Option("--best/--last", help="Of the shared policy: the best round, or the newest.")] = False,
    lines: Annotated[bool, typer.Option("--progress", help="Print `progress DONE TOTAL` as lines on standard error.")] = False,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file; default: the operator's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a policy's loss on your own recordings: in all, and for each recording, task and set of cameras. Nothing is sent.

    Each frame gets the same noise and time in every evaluation, so that two policies can be compared. Ctrl-C ends it.

    Example: zk0desk policy evaluate ~/policies/shared --recordings ~/recordings/cubes --sample 500
    """
    from zk0desk import settings as settings_of
    from zk0desk.errors import SettingsError
    from zk0desk.settings import ChosenRecording
    from zk0desk.training.kept_runs import newest_run
    from zk0desk.training.loading import load_engine

    settings: Settings = settings_of.load(settings_file)
    known = {each.path.expanduser().absolute(): each for each in settings.recordings.chosen}
    paths = [path.expanduser().absolute() for path in recordings or known]
    chosen = [known.get(path, ChosenRecording(path=path)) for path in paths]
    if not chosen:
        raise SettingsError("There is nothing to evaluate on.", "No recordings are named or chosen.", "Name one with --recordings FOLDER.")
    run = None if folder else newest_run()
    load_engine()
    from zk0desk.training.devices import choose_device
    from zk0desk.training.evaluation import evaluate as measure
    from zk0desk.training.policy import TrainablePolicy

    policy = TrainablePolicy.load(run.policy if run else Path(folder or ""))
    policy.policy.to(choose_device(settings.training.device))
    told = Progress(lines, parts=2 if run else 1)

    def measured() -> Evaluation:
        return measure(policy, chosen, batch=batch, sample=sample, seed=seed, progress=told)

    try:
        found = {"base" if run else "policy": measured()}
        if run:
            policy.set_weights(run.weights(run.which(best)))
            told.part = 1
            found["shared"] = measured()
    finally:
        told.close()
    about: dict[str, Any] = {"folder": str(policy.files.folder), "policy-id": policy.files.policy_id}
    if run:
        about |= {"run": run.run, "round": run.rounds[run.which(best)]}
    if as_json:
        print(json.dumps({**about, **{name: plain(each) for name, each in found.items()}}))
        return
    words = f"The shared policy of run {run.run}, round {about['round']}, beside its base policy" if run else f"The policy in {folder}"
    evaluation_table(f"{words}: flow-matching loss", found)


app.command()(merge)
app.command()(compare)
