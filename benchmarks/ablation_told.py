"""Tables and picture of `benchmarks/ablation.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ablation_cases import CASES, COMPARED, REFERENCE, Case, Curves


def late(values: Sequence[float]) -> np.ndarray:
    """The last third, of short runs the last three."""
    return np.asarray(values[-max(3, len(values) // 3) :])


def measures(case: Case, curves: Curves, goal: float) -> dict[str, float]:
    """The figures of one run. `steps-to-goal` counts all nodes' local steps, infinite where the held-out loss never was as low."""
    reached = next((n for n, loss in enumerate(curves.held_out) if loss <= goal), math.inf)
    return {
        "held-out": float(late(curves.held_out).mean()),
        "best": min(curves.held_out),
        "last": curves.held_out[-1],
        "oscillation": float(np.std(np.diff(late(curves.held_out)))),
        "rounds-to-goal": float(reached),
        "steps-to-goal": float(reached * case.steps * len(case.nodes)),
        "forgotten": float(late(curves.retention).mean() - curves.retention[0]),
        "train": float(late(curves.train).mean()),
        "apart": float(np.mean(curves.apart)),
        "unlike": float(np.mean(curves.unlike)),
        "raised": float(np.mean(curves.raised)),
    }


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the seeds and its standard error (NaN of one seed)."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def told(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard error, or how many seeds never came there."""
    never = sum(not math.isfinite(each) for each in values)
    if never:
        rest = [each for each in values if math.isfinite(each)]
        return f"never in {never} of {len(values)}" + (f" (else {np.mean(rest):.0f})" if rest else "")
    mean, error = mean_error(values)
    return f"{mean:.{digits}f}" + (f" +- {error:.{digits}f}" if math.isfinite(error) else "")


def goal_of(found: dict[str, list[Curves]]) -> float:
    """The loss that the others are to reach: fixed FedProx's in the last third, the mean over seeds."""
    return float(np.mean([late(curves.held_out).mean() for curves in found[REFERENCE]]))


def tables(found: dict[str, list[Curves]]) -> dict[str, dict[str, list[float]]]:
    """Print the tables (Markdown); each configuration's figures by seed."""
    goal, cases = goal_of(found), {case.name: case for case in CASES}
    every: dict[str, dict[str, list[float]]] = {}
    for name, runs in found.items():
        each = [measures(cases[name], curves, goal) for curves in runs]
        every[name] = {key: [one[key] for one in each] for key in each[0]}
    columns = ("held-out", "best", "last", "oscillation", "rounds-to-goal", "steps-to-goal", "forgotten", "train")
    print(f"\n| configuration | rounds | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name, of in every.items():
        cells = [told(of[key], 0 if key.endswith("goal") else 4) for key in columns]
        print(f"| {name} | {len(found[name][0].lr)} | {' | '.join(cells)} |")
    first = next(iter(found.values()))[0]
    print(f"\nBefore: held-out {first.held_out[0]:.4f}, retention {first.retention[0]:.4f}. The goal is {goal:.4f}.")
    print("\n| configuration | nodes' updates: variance / square of mean | nodes' losses: deviation | mu used / asked |\n|---|---|---|---|")
    for name, of in every.items():
        print(f"| {name} | {told(of['apart'], 3)} | {told(of['unlike'])} | {told(of['raised'], 2)} |")
    compared = ("compared, seed by seed", "held-out", "%", "oscillation", "forgotten", "updates' variance", "losses' deviation")
    print(f"\n| {' | '.join(compared)} |\n|{'---|' * len(compared)}")
    for name, other in COMPARED:
        if name in every and other in every:
            print(f"| {name} - {other} | {' | '.join(difference_cells(every[name], every[other]))} |")
    print("\nSignals of the dynamic schedule, by seed (round: signal):")
    for name in (name for name in found if cases[name].strategy == "dynamic"):
        for seed, curves in enumerate(found[name]):
            marks = ", ".join(f"{number}: {signal}" for number, signal in enumerate(curves.signals, 1) if signal)
            print(f"  {name}, {seed}: {marks or 'none'}")
    return every


def difference_cells(of: dict[str, list[float]], other: dict[str, list[float]]) -> list[str]:
    """Cells of one row: the mean difference over the seeds with its standard error."""
    apart = {key: np.subtract(of[key], other[key]) for key in ("held-out", "oscillation", "forgotten", "apart", "unlike")}
    cells = [told(apart["held-out"]), f"{100 * apart['held-out'].mean() / np.mean(other['held-out']):+.1f}"]
    return cells + [told(apart[key]) for key in ("oscillation", "forgotten", "apart", "unlike")]


def picture(found: dict[str, list[Curves]], path: Path) -> None:
    """Losses over all nodes' local steps, mean over seeds with the standard error as a band; below, rate and mu."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = {case.name: case for case in CASES}
    columns = (
        ("FedAvg, FedProx, dynamic", ("fedavg", "fedprox", "mu 1", "dynamic")),
        ("E, nodes, the nodes' rule", ("dynamic", "dynamic, E 50", "dynamic, 2 nodes", "dynamic, no rule")),
        ("no node has the known task", ("fedavg, no cube", "fedprox, no cube", "mu 1, no cube", "dynamic, no cube")),
    )
    rows = (("held_out", "held-out loss (banana)"), ("retention", "loss of the known task (cube)"), ("apart", "updates: variance / mean²"),
            ("lr", "learning rate"))  # fmt: skip
    lowest = min(min(curves.held_out) for runs in found.values() for curves in runs)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=(15, 13), squeeze=False, layout="constrained", sharey="row")
    for column, (title, names) in enumerate(columns):
        for place, (key, words) in enumerate(rows):
            axis = axes[place][column]
            for color, name in enumerate(name for name in names if name in found):
                values = np.array([getattr(curves, key) for curves in found[name]])
                x = (
                    np.arange(key not in ("held_out", "retention"), len(found[name][0].held_out))
                    * cases[name].steps
                    * len(cases[name].nodes)
                )
                mean = values.mean(0)
                axis.plot(x, mean, color=f"C{color}", linewidth=2.6 - 0.6 * color, label=name)
                if len(values) > 1:
                    error = values.std(0, ddof=1) / math.sqrt(len(values))
                    axis.fill_between(x, mean - error, mean + error, color=f"C{color}", alpha=0.25, linewidth=0)
            axis.grid(alpha=0.2)
            if column == 0:
                axis.set_ylabel(words)
        axes[0][column].set(title=title, ylim=(0.97 * lowest, 1.5 * lowest))  # the base is far above
        axes[0][column].legend(fontsize=8)
        axes[-1][column].set_xlabel("local steps of all nodes together")
    seeds = len(next(iter(found.values())))
    figure.suptitle(f"SmolVLA on real recordings, {seeds} seed(s): mean and standard error over seeds")
    figure.savefig(path, dpi=90)
    plt.close(figure)
