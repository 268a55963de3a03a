"""What hostile nodes do to a federation, by attack and aggregation method: 1 of 4 and 3 of 10 nodes.

    python benchmarks/attacks.py [--rounds 12] [--steps 6] [--cases 1-of-4 3-of-10] [--methods mean median ...]

The tiny SmolVLA is trained for real: each node's rounds by the product's `LocalTrainer` on a recording of its own (four scenes of the
demo), replies spooled, clipped and combined by the product's own parts; the network is left out. Hostile nodes see what the honest ones
send, agree with each other, and claim as many frames as they can. What is told is the held-out loss after the last round, over that of
the same federation with all its nodes honest and the default method; 1.10 is the goal. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CASES = {"1-of-4": (1, 4), "3-of-10": (3, 10)}
"""How many of how many nodes are hostile."""
GOAL = 1.10
BATCH, LR = 16, 1e-3
METHODS = ("mean", "trimmed-mean", "median", "geometric-median", "multi-krum")
Attack = Callable[[np.ndarray], np.ndarray | None]


def drift(honest: np.ndarray) -> np.ndarray:
    """The same direction in every round, as long as an honest update."""
    direction = np.random.default_rng(0).standard_normal(honest.shape[1])
    return direction * np.linalg.norm(honest, axis=1).mean() / np.linalg.norm(direction)


ATTACKS: dict[str, Attack] = {
    "refused (NaN, wrong layout, keys, claims)": lambda honest: None,
    "sign flip": lambda honest: -honest.mean(axis=0),
    "sign flip, as long as the bound allows": lambda honest: -2 * np.median(np.linalg.norm(honest, axis=1)) * _unit(honest.mean(axis=0)),
    "scaled by 1e6": lambda honest: -1e6 * honest.mean(axis=0),
    "constant drift within the bound": drift,
    "a little is enough (1.5 sigma)": lambda honest: honest.mean(axis=0) - 1.5 * honest.std(axis=0),
    "copies of one honest node": lambda honest: honest[0],
}
"""What each hostile node sends, from the honest updates as rows; None: it is refused. All send the same, so all are colluding copies."""


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-30)


class Nodes:
    """Ten nodes with a recording each, and the held-out recording."""

    def __init__(self, folder: Path, count: int) -> None:
        from zk0desk.control import NodeControl
        from zk0desk.settings import Cache, ChosenRecording
        from zk0desk.training.demo_data import make_demo_held_out, make_demo_policy, make_demo_recording
        from zk0desk.training.policy import TrainablePolicy
        from zk0desk.training.policy_files import trainable_weights
        from zk0desk.training.trainer import LocalTrainer

        base = make_demo_policy(folder / "policy")
        cache = Cache(level="P", folder=folder / "cache")
        self.base = trainable_weights(base)
        self._trainers = []
        for number in range(count):
            recording = ChosenRecording(path=make_demo_recording(folder / f"node-{number}", number % 4, seed=number // 4, episodes=2))
            policy = TrainablePolicy.load(base)
            trainer = LocalTrainer(
                policy, [recording], node=f"node-{number}", device="cpu", precision="fp32", threads=1, cache=cache, emit=lambda _: None,
                control=NodeControl(),
            )  # fmt: skip
            self._trainers.append(trainer)
        self._held_out = [ChosenRecording(path=make_demo_held_out(folder / "held-out"))]
        self._policy = TrainablePolicy.load(base)

    def train(self, node: int, number: int, rounds: int, steps: int, weights: np.ndarray) -> tuple[np.ndarray, float]:
        """A node's update, and its frames."""
        from zk0desk.training.rounds import RoundPlan

        plan = RoundPlan(
            run="attacks", round=number, rounds=rounds, seed=0, lr=LR, mu=0.01, batch_size=BATCH, local_epochs=1.0, local_steps=steps,
            mu_loss_std=1e6, mu_grad_norm=1e6,
        )  # fmt: skip
        result = self._trainers[node].train(plan, weights)
        return result.delta, result.metrics["num-examples"]

    def loss(self, weights: np.ndarray) -> float:
        """The held-out loss."""
        from zk0desk.training.evaluation import evaluate

        self._policy.set_weights(weights)
        return float(evaluate(self._policy, self._held_out, batch=32).loss)

    def close(self) -> None:
        """Let go of the prefix cache."""
        for trainer in self._trainers:
            trainer.close(restore=False)


def run(nodes: Nodes, count: int, hostile: int, attack: Attack, method: str, rounds: int, steps: int, spool: Any) -> float:
    """The held-out loss after a run of `count` nodes, of which the last `hostile` attack."""
    from zk0desk.federation import combining, updates
    from zk0desk.federation.norm_bound import NormHistory, bound_for
    from zk0desk.settings import ServerAggregation

    rules = ServerAggregation.model_validate({"method": method, "hostile-nodes": hostile})
    weights, history = nodes.base.copy(), NormHistory()
    for number in range(1, rounds + 1):
        came = [nodes.train(node, number, rounds, steps, weights) for node in range(count - hostile)]
        sent = attack(np.stack([delta for delta, _ in came]).astype(np.float64)) if hostile else None
        if sent is not None:
            came += [(sent.astype(np.float32), float(steps * BATCH))] * hostile
        accepted, examples = [], {}
        for place, (delta, frames) in enumerate(came):
            writer = spool.open("fp32", delta.size)
            for piece in updates.encode_pieces(delta, "fp32"):
                writer.add(piece)
            accepted.append((f"{place:03d}", writer.done()))
            examples[accepted[-1][0]] = frames
        norms = [update.norm for _, update in accepted]
        bound, history = bound_for(history, norms, lr=LR, steps=steps, parameters=weights.size, factor=rules.clip, rounds=rules.clip_rounds)
        weights = weights + combining.combine(spool, accepted, examples, rules, bound=bound, max_share=0.5).delta
        spool.clear()
    return nodes.loss(weights)


def main() -> int:
    """Measure and print; 0 when a robust method is within the goal against every attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    given = parser.parse_args()

    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    from zk0desk.federation import robust
    from zk0desk.federation.spool import Spool

    began, result = time.perf_counter(), {}
    with tempfile.TemporaryDirectory(prefix="zk0desk-attacks-") as name:
        folder = Path(name)
        nodes, spool = Nodes(folder, max(CASES[case][1] for case in given.cases)), Spool(folder / "spool")
        untrained = nodes.loss(nodes.base)
        print(f"held-out loss of the base policy, {untrained:.4f}; {given.rounds} rounds of {given.steps} steps", flush=True)
        for case in given.cases:
            hostile, count = CASES[case]
            able = [method for method in given.methods if count >= robust.least_nodes(method, hostile)]
            clean = run(nodes, count, 0, ATTACKS["sign flip"], "mean", given.rounds, given.steps, spool)
            print(
                f"\n{hostile} of {count} hostile; all honest: {clean:.4f}\n{'':44}" + "".join(f"{method:>18}" for method in able),
                flush=True,
            )
            table = {}
            for attack, send in ATTACKS.items():
                row = {method: run(nodes, count, hostile, send, method, given.rounds, given.steps, spool) / clean for method in able}
                table[attack] = {method: round(ratio, 3) for method, ratio in row.items()}
                print(f"{attack:44}" + "".join(f"{ratio:18.3f}" for ratio in row.values()), flush=True)
            worst = {method: max(row[method] for row in table.values()) for method in able}
            print(f"{'worst':44}" + "".join(f"{ratio:18.3f}" for ratio in worst.values()), flush=True)
            result[case] = {"clean": round(clean, 4), "ratio": table, "worst": worst}
        nodes.close()
    within = {name: [method for method, ratio in each["worst"].items() if ratio <= GOAL] for name, each in result.items()}
    ok = all(within.values())
    last = {"benchmark": "attacks", "base": round(untrained, 4), "goal": GOAL, **result, "within": within, "ok": ok}
    last["seconds"] = round(time.perf_counter() - began)
    if given.out:
        given.out.write_text(json.dumps(last, indent=1))
    print(json.dumps(last))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
