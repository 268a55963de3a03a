"""The paper's ablations (sections 5.2, 5.3) on real SmolVLA and real recordings: `python benchmarks/ablation.py [--quick] [--picture]`.

Four nodes: three hold a third each of the banana episodes (their beginnings, middles, ends), one has another task, which the base policy
knows. FedAvg, fixed FedProx and the dynamic schedule, E = 20 against 50, 4 against 2 nodes, the nodes' own mu rule on and off, and the same
without the node that holds the known task, where forgetting shows. All make as many local steps in total. Seeds are of batches, noise and
times; within a seed all begin alike and see the same, so that differences are taken seed by seed. The rounds are the product's:
`schedule.after` decides rate and mu from the held-out loss, `combining.combine` makes a round's updates one. `benchmarks/README.md` has the
tables and says how paper and program differ. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_cases import CASES, FOUR, REFERENCE, Case, Curves
from ablation_data import TASK_OF, base_weights, share_out, tiny_policy
from ablation_told import picture, tables

PICTURE = Path(__file__).with_suffix(".png")
LR, BATCH, SCALE, CYCLE = 1e-4, 4, 10.0, 8
"""The paper's rates are for a pretrained policy of 450 M parameters: all of them, bounds too, are `SCALE` times higher for the tiny one.
The cosine's first cycle is 8 rounds and not 15, so that a run of 25 holds two cycles."""
KEPT_EVERY = 5
"""Rounds after which runs are kept, so that they go on from there."""


class Run:
    """One configuration with one seed, a round at a time."""

    def __init__(self, case: Case, seed: int, base: np.ndarray, budget: int, scale: float) -> None:
        from zk0desk.federation import schedule
        from zk0desk.settings import ServerRounds, ServerSchedule
        from zk0desk.training.run_history import RunHistory

        self.case, self.seed, self.budget, self.rounds, self.number = case, seed, budget, case.rounds(budget), 0
        self.weights, self.curves = base.copy(), Curves()
        paper = ServerSchedule()
        low, high = scale * paper.lr_lowest, scale * paper.lr_highest
        self.rules = ServerSchedule(strategy=case.strategy, lr_lowest=low, lr_highest=high, cycle=CYCLE)
        self.schedule = schedule.start(self.rules, ServerRounds(lr=scale * LR, proximal_mu=case.mu), measured=True)
        self.histories = {node: RunHistory() for node in case.nodes}

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.number >= self.rounds

    def save(self, folder: Path) -> None:
        """Keep it as it is."""
        path = self.place(folder, self.case.name, self.seed, self.budget)
        path.with_suffix(".partial").write_bytes(pickle.dumps(self))
        path.with_suffix(".partial").replace(path)

    @staticmethod
    def place(folder: Path, case: str, seed: int, budget: int) -> Path:
        """Where a run is kept."""
        return folder / f"{case.replace(', ', '-').replace(' ', '-')}-seed-{seed}-steps-{budget}.pickle"

    def jobs(self) -> list[Any]:
        """What the nodes are to do in the coming round."""
        from ablation_nodes import Job

        from zk0desk.training.rounds import RoundPlan

        asked = self.schedule.decision
        plan = RoundPlan(
            run=f"{self.case.name} {self.seed}", round=self.number + 1, rounds=self.rounds, seed=self.seed, lr=asked.lr, mu=asked.mu,
            batch_size=BATCH, local_steps=self.case.steps, mu_alpha=float(self.case.rule), mu_max=2 * self.case.mu,
        )  # fmt: skip
        return [Job(node, parts, plan, self.weights, self.histories[node]) for node, parts in self.case.nodes.items()]

    def take(self, results: Sequence[Any], spool: Any) -> None:
        """Make the results of `jobs` the next weights."""
        from zk0desk.federation import combining, strategy, updates
        from zk0desk.settings import ServerAggregation

        came, metrics = [], {}
        for node, result in zip(self.case.nodes, results, strict=True):
            writer = spool.open("fp32", result.delta.size)
            for piece in updates.encode(result.delta, "fp32"):
                writer.add(piece)
            came.append((node, writer.done()))
            metrics[node] = result.metrics
        found = combining.combine(spool, came, strategy.examples(metrics), ServerAggregation(), bound=math.inf, max_share=1.0)
        step = np.array(found.delta)
        spool.clear()
        self.weights = self.weights + step
        square = float(step @ step)
        spread = sum(
            found.shares[node] * float(np.sum((result.delta - step) ** 2)) for (node, _), result in zip(came, results, strict=True)
        )
        curves, asked = self.curves, self.schedule.decision
        curves.apart.append(spread / square)
        curves.unlike.append(float(np.std([each["loss-last"] for each in metrics.values()])))
        curves.train.append(float(strategy.mean_over(found.shares, metrics, "loss-mean") or math.nan))
        curves.raised.append(float(np.mean([each["mu-used"] for each in metrics.values()]) / asked.mu) if asked.mu else 1.0)
        curves.lr.append(asked.lr)
        curves.mu.append(asked.mu)
        self.number += 1

    def note(self, held_out: float, retention: float) -> None:
        """The losses of the weights as they are; after a round the schedule decides on them."""
        from zk0desk.federation import schedule

        self.curves.held_out.append(held_out)
        self.curves.retention.append(retention)
        if self.number:
            self.schedule, decided = schedule.after(self.rules, self.schedule, held_out, self.number)
            self.curves.signals.append(decided.told)


def train(nodes: Any, runs: Sequence[Run], spool: Any, folder: Path) -> None:
    """All runs to their ends, side by side where they ask for as many steps; kept in `folder` every few rounds."""
    for steps in sorted({run.case.steps for run in runs}):
        began = time.process_time()
        while now := [run for run in runs if run.case.steps == steps and not run.done]:
            fresh = [run for run in now if not run.curves.held_out]
            for run, losses in zip(fresh, nodes.losses([run.weights for run in fresh]) if fresh else [], strict=True):
                run.note(*losses)
            jobs = [run.jobs() for run in now]
            results = iter(nodes.train([job for each in jobs for job in each]))
            for run, asked in zip(now, jobs, strict=True):
                run.take([next(results) for _ in asked], spool)
            for run, losses in zip(now, nodes.losses([run.weights for run in now]), strict=True):
                run.note(*losses)
            made = max(run.number for run in now)
            taken = time.process_time() - began
            print(f"E = {steps}, {len(now)} runs: round {made} of {max(run.rounds for run in now)}, {taken:.0f} s CPU", flush=True)
            if made % KEPT_EVERY == 0 or all(run.done for run in now):
                for run in now:
                    run.save(folder)


# --- the program


def prepared(given: argparse.Namespace, folder: Path, own: Path) -> tuple[Any, np.ndarray]:
    """The nodes and the base policy's weights; made in `folder`, and `own` of this policy, where they are not there."""
    from ablation_nodes import OneByOne, SideBySide

    from zk0desk.settings import Cache
    from zk0desk.training.policy import TrainablePolicy

    places = share_out(folder / "recordings")
    policy = TrainablePolicy.load(given.policy or tiny_policy(own / "policy"))
    cache = Cache(level="P", folder=folder / "cache", budget_gb=given.cache_gb)
    base = base_weights(policy, places["base"], cache, own / f"base-{given.base_steps}.npy", given.base_steps)
    if given.check:
        check(SideBySide(policy, places, TASK_OF, cache), OneByOne(policy, places, cache), base)
    return OneByOne(policy, places, cache) if given.policy else SideBySide(policy, places, TASK_OF, cache), base


def check(side: Any, one: Any, base: np.ndarray) -> None:
    """Print how far the nodes side by side are from `LocalTrainer` and `evaluate`."""
    run = Run(CASES[2], 0, base, 2 * CASES[2].steps * len(FOUR), SCALE)
    ours, theirs = side.train(run.jobs()), one.train(run.jobs())
    apart = max(float(np.linalg.norm(a.delta - b.delta) / np.linalg.norm(b.delta)) for a, b in zip(ours, theirs, strict=True))
    weights = [base, base + ours[0].delta]
    losses = np.abs(np.subtract(side.losses(weights), one.losses(weights))).max()
    print(f"Side by side against LocalTrainer: updates of a round {apart:.1e} apart, relative; losses against evaluate {losses:.1e}.")


def main() -> None:
    """Run what is not there yet, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one seed, a few rounds and three configurations: a look, not the experiment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=25, help="rounds of 20 steps with four nodes; others get as many steps in total")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--policy", type=Path, help="a SmolVLA policy for this robot, instead of a tiny one; nodes then train one by one")
    parser.add_argument("--base-steps", type=int, default=800, help="steps of the base policy's training")
    parser.add_argument("--cache-gb", type=float, default=10.0, help="what the frozen part's results may take of the disk")
    parser.add_argument(
        "--keep", type=Path, help="where data, base policy and each seed's results are kept; what is there is not run again"
    )
    parser.add_argument("--check", action="store_true", help="also compare nodes side by side with LocalTrainer")
    parser.add_argument("--picture", action="store_true", help=f"draw {PICTURE.name}")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.rounds, given.base_steps = given.seeds[:1], min(given.rounds, 6), min(given.base_steps, 200)
        given.cases = ["fedavg", "fedprox", "dynamic"]
    with tempfile.TemporaryDirectory(prefix="zk0desk-ablation-") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = results(given, folder)
    print(f"{time.strftime('%Y-%m-%d')}: {platform.machine()}, {os.cpu_count()} cores, one thread")
    print(f"{given.rounds} rounds, {len(given.seeds)} seed(s), {time.process_time():.0f} s CPU for what was not kept")
    every = tables(found)
    if given.picture:
        picture(found, PICTURE)
    keys = ("held-out", "oscillation", "forgotten", "apart")
    summary = {name: {key: round(float(np.mean(of[key])), 5) for key in keys} for name, of in every.items()}
    print(json.dumps({"benchmark": "ablation", "rounds": given.rounds, "seeds": given.seeds, **summary}))


def results(given: argparse.Namespace, folder: Path) -> dict[str, list[Curves]]:
    """The curves of each configuration by seed, from `folder` or run now."""
    budget = given.rounds * CASES[0].steps * len(FOUR)
    own = folder / (given.policy.name if given.policy else "tiny")
    kept, every = own / f"runs-base-{given.base_steps}", []
    kept.mkdir(parents=True, exist_ok=True)
    for case in (case for case in CASES if case.name in {*given.cases, REFERENCE}):
        every += [(case, seed, Run.place(kept, case.name, seed, budget)) for seed in given.seeds]
    have = {path: pickle.loads(path.read_bytes()) for _, _, path in every if path.exists()}
    if given.check or any(path not in have or not have[path].done for _, _, path in every):
        import torch

        from zk0desk.federation.spool import Spool
        from zk0desk.quiet import quiet_libraries

        quiet_libraries()
        torch.set_num_threads(1)
        nodes, base = prepared(given, folder, own)
        scale = 1.0 if given.policy else SCALE
        have |= {path: Run(case, seed, base, budget, scale) for case, seed, path in every if path not in have}
        train(nodes, [have[path] for _, _, path in every], Spool(folder / "spool"), kept)
    found: dict[str, list[Curves]] = {}
    for case, _, path in every:
        found.setdefault(case.name, []).append(have[path].curves)
    return found


if __name__ == "__main__":
    main()
