"""`zk0desk policy merge` and `zk0desk policy compare`: two policies of one base, between them and beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0desk.commands.policy_view import Progress, cell

if TYPE_CHECKING:
    from zk0desk.settings import ChosenRecording, Settings
    from zk0desk.training.merging import Point
    from zk0desk.training.policy_files import PolicyFiles

Recordings = Annotated[
    list[Path] | None,
    typer.Option(
        help="A recording's folder; may be given several times. Evaluate on recordings that nobody trained on.", show_default=False
    ),
]
Sample = Annotated[int, typer.Option(min=0, help="Evaluate about so many frames, at least two of each episode; 0: all.")]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Frames that are computed at once. It does not change the result.")]
SettingsFile = Annotated[Path | None, typer.Option("--settings", help="Settings file; default: the operator's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def merge(
    base: Annotated[Path, typer.Argument(help="The base policy's folder.", show_default=False)],
    federated: Annotated[Path, typer.Argument(help="Folder of the policy that was trained from it.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where the merged policy is written. A policy that is there is replaced.", show_default=False)],
    alpha: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="0 is the base, 1 the trained policy.", show_default=False)] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Evaluate from 0 to 1 and take the best.")] = False,
    steps: Annotated[int, typer.Option(min=2, max=101, help="Values of alpha that --sweep evaluates.")] = 11,
    recordings: Recordings = None,
    retention: Annotated[
        list[Path] | None, typer.Option(help="A recording of a task that the base policy knew; may be given again.", show_default=False)
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the losses over alpha to this PNG.", show_default=False)] = None,
    sample: Sample = 0,
    batch: Batch = 8,
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Merge a base policy and a trained one linearly (RETAIN): less forgotten, for a little less learned.

    --sweep takes the alpha with the lowest sum of the loss on the recordings and that on those of --retention. With --alpha and
    recordings, base, merged and trained policy are measured. Each frame gets the same noise every time.

    \b
    Example:
      zk0desk policy merge ~/smolvla_base ~/arms/runs/1f0c/round-0030 --sweep --recordings ~/held-out --retention ~/cubes --out ~/merged
    """
    from zk0desk import settings as settings_of
    from zk0desk.errors import SettingsError
    from zk0desk.training.merging import file_weights, merged, read_alike
    from zk0desk.training.policy_files import write_policy

    if sweep == (alpha is not None):
        raise SettingsError("Nothing was merged.", "Either --alpha or --sweep is needed.", "Give one of the two.")
    if sweep and not recordings:
        raise SettingsError("Nothing was merged.", "A sweep needs recordings to choose by.", "Name one with --recordings FOLDER.")
    if retention and not recordings:
        raise SettingsError("Nothing was merged.", "--retention is evaluated beside --recordings.", "Name one with --recordings FOLDER.")
    first, second = read_alike(base, federated)
    alphas = [number / (steps - 1) for number in range(steps)] if sweep else sorted({0.0, float(alpha or 0.0), 1.0})
    points: list[Point] = []
    if recordings:
        points = _measure(settings_of.load(settings_file), first, second, alphas, recordings, retention or [], batch, sample)
    chosen = min(points, key=lambda point: point.both).alpha if sweep else float(alpha or 0.0)
    saved = write_policy(out, first.folder, merged(file_weights(first), file_weights(second), chosen), processors_from=second.folder)
    if picture and points:
        _draw(picture, points, chosen)
    if as_json:
        print(
            json.dumps({"folder": str(saved), "alpha": chosen, "policy-id": first.policy_id, "points": [each.to_json() for each in points]})
        )
        return
    if points:
        _table(points, chosen)
    print(f"The policy merged with alpha {chosen:g} is in {saved}.")
    if picture and points:
        print(f"The losses over alpha are drawn in {picture}.")


def compare(
    one: Annotated[Path, typer.Argument(help="A policy's folder.", show_default=False)],
    other: Annotated[Path, typer.Argument(help="Another policy's folder.", show_default=False)],
    recordings: Recordings = None,
    sample: Sample = 0,
    batch: Batch = 8,
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare two policies: fingerprints, how far their weights are apart, and their losses on recordings.

    Both see the same frames with the same noise, so that the standard error of their difference is far smaller than either's.

    Example: zk0desk policy compare ~/arms/runs/1f0c/round-0010 ~/arms/runs/1f0c/round-0030 --recordings ~/held-out
    """
    from zk0desk import settings as settings_of
    from zk0desk.training.merging import distance, file_weights, read_alike

    first, second = read_alike(one, other)
    apart, relative = distance(file_weights(first), file_weights(second))
    about: dict[str, Any] = {
        "one": {"folder": str(first.folder), "weights-sha256": _sha256(first)},
        "other": {"folder": str(second.folder), "weights-sha256": _sha256(second)},
        "policy-id": first.policy_id, "backbone-sha256": first.backbone_sha256, "layout-sha256": first.layout.sha256,
        "distance": apart, "relative-distance": relative,
    }  # fmt: skip
    losses = _beside(settings_of.load(settings_file), first, second, recordings, batch, sample) if recordings else {}
    if as_json:
        print(json.dumps({**about, "losses": losses}))
        return
    print(f"Policy      {first.policy_id}, of both: backbone {first.backbone_sha256[:16]}, layout {first.layout.sha256[:16]}")
    print(f"Weights     {about['one']['weights-sha256'][:16]} and {about['other']['weights-sha256'][:16]}")
    print(f"Distance    {apart:.6g}, {100 * relative:.3g}% of the first one's length")
    if losses:
        _losses_table(losses)


def _sha256(files: PolicyFiles) -> str:
    import hashlib

    from zk0desk.training.merging import file_weights

    return hashlib.sha256(file_weights(files).astype("<f4").tobytes()).hexdigest()


def _chosen(settings: Settings, paths: Sequence[Path]) -> list[ChosenRecording]:
    from zk0desk.settings import ChosenRecording

    known = {each.path.expanduser().absolute(): each for each in settings.recordings.chosen}
    return [known.get(path, ChosenRecording(path=path)) for path in (each.expanduser().absolute() for each in paths)]


def _measure(
    settings: Settings, first: PolicyFiles, second: PolicyFiles, alphas: Sequence[float], recordings: Sequence[Path],
    retention: Sequence[Path], batch: int, sample: int,
) -> list[Point]:  # fmt: skip
    from zk0desk.training.loading import load_engine
    from zk0desk.training.merging import along, file_weights, merged

    load_engine()
    from zk0desk.training.devices import choose_device
    from zk0desk.training.policy import TrainablePolicy

    policy = TrainablePolicy.load(first.folder)
    policy.policy.to(choose_device(settings.training.device))
    ends = file_weights(first), file_weights(second)
    told = Progress(False, parts=1)
    try:
        return along(
            policy, [(each, partial(merged, *ends, each)) for each in alphas], _chosen(settings, recordings), _chosen(settings, retention),
            settings.cache, batch=batch, sample=sample, progress=told,
        )  # fmt: skip
    finally:
        told.close()


def _beside(
    settings: Settings, first: PolicyFiles, second: PolicyFiles, recordings: Sequence[Path], batch: int, sample: int
) -> dict[str, dict[str, float]]:
    """By recording, and `all`: the loss of either, the difference, and the standard error of each."""
    from zk0desk.training.loading import load_engine
    from zk0desk.training.merging import file_weights

    load_engine()
    from zk0desk.training.devices import choose_device
    from zk0desk.training.evaluation import evaluate
    from zk0desk.training.policy import TrainablePolicy

    policy = TrainablePolicy.load(first.folder)
    policy.policy.to(choose_device(settings.training.device))
    told, seen = Progress(False, parts=2), []
    try:
        for files in (first, second):
            policy.set_weights(file_weights(files))
            seen.append(evaluate(policy, _chosen(settings, recordings), batch=batch, sample=sample, progress=told).seen)
            told.part += 1
    finally:
        told.close()
    parts: dict[str, list[int] | None] = {"all": None, **{name: [number] for number, name in enumerate(seen[0].names)}}
    names = ("one", "one-error", "other", "other-error", "difference", "difference-error")
    found = {part: (*seen[0].mean(of), *seen[1].mean(of), *seen[1].difference(seen[0], of)) for part, of in parts.items()}
    return {
        part: {name: value if math.isfinite(value) else 0.0 for name, value in zip(names, values, strict=True)}
        for part, values in found.items()
    }


def _losses_table(losses: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Flow-matching loss", title_justify="left")
    for name in ("", "one", "other", "difference"):
        table.add_column(name, justify="right" if name else "left")
    for part, found in losses.items():
        table.add_row(part, *(cell(found[name], found[f"{name}-error"]) for name in ("one", "other", "difference")))
    Console().print(table)
    print("± is the standard error: how far it may be from the loss on other frames like these.")


def _table(points: Sequence[Point], chosen: float) -> None:
    from rich.console import Console
    from rich.table import Table

    first = points[0]
    table = Table(title="Flow-matching loss over alpha (0: base, 1: trained)", title_justify="left")
    table.add_column("alpha", justify="right")
    table.add_column("recordings", justify="right")
    if first.retention:
        table.add_column("retention", justify="right")
    for point in points:
        kept = [cell(point.kept, point.kept_error)] if first.retention else []
        mark = " *" if math.isclose(point.alpha, chosen) else "  "
        table.add_row(f"{point.alpha:.2f}{mark}", cell(point.loss, point.error), *kept)
    Console().print(table)


def _draw(path: Path, points: Sequence[Point], chosen: float) -> None:
    from zk0desk import charts
    from zk0desk.charts import Line, Mark, Panel

    alphas, first = [point.alpha for point in points], points[0]

    def line(name: str, values: list[tuple[float, float]], *, dashed: bool = False) -> Line:
        return Line(name, alphas, [loss for loss, _ in values], [error for _, error in values], dashed=dashed, dots=True)

    lines = [line(name, [point.recordings[name] for point in points]) for name in first.recordings]
    lines += [line(f"{name} (known)", [point.retention[name] for point in points], dashed=True) for name in first.retention]
    marks = [Mark(chosen, f"alpha {chosen:g}")]
    title = "A base policy and the one trained from it, merged"
    panel = Panel(
        "Loss of each recording; dashed: tasks that the base policy knew", lines, "alpha (0: base policy, 1: trained)", marks=marks
    )
    charts.draw(path, title, [panel], height=420)
