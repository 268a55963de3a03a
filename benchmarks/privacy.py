"""What differential privacy costs in held-out loss, and what epsilon it buys, by how much noise: with a few nodes of the tiny SmolVLA.

    python benchmarks/privacy.py [--rounds 10] [--steps 5] [--nodes 4 10]

Each node's rounds are trained for real by the product's `LocalTrainer`, as in `attacks.py`; the coordinator's sum is the product's
`PrivateSum`. The clip is the median length of the first round's updates, so that it costs little by itself. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from attacks import Nodes

NOISE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
DELTA = 1e-5


def run(nodes: Nodes, count: int, noise: float, rounds: int, steps: int, folder: Path, spool: Any) -> float:
    """The held-out loss after a run with this noise multiplier; 0: the plain mean without clip and noise."""
    from zk0desk.federation import strategy, updates
    from zk0desk.federation.private_sum import PrivateSum
    from zk0desk.settings import ServerPrivacy

    weights, private, clip = nodes.base.copy(), None, 0.0
    for number in range(1, rounds + 1):
        came = []
        for node in range(count):
            delta, _ = nodes.train(node, number, rounds, steps, weights)
            writer = spool.open("fp32", delta.size)
            for piece in updates.encode_pieces(delta, "fp32"):
                writer.add(piece)
            came.append((f"{node:03d}", writer.done()))
        if noise and private is None:
            clip = float(np.median([update.norm for _, update in came]))
            chosen = ServerPrivacy(mechanism="central", noise_multiplier=noise, clip=clip, expected_nodes=count, epsilon=1e6, delta=DELTA)
            private = PrivateSum(chosen, count, folder / f"privacy-{count}-{noise}.json", lambda _event: None)
        if private is None:
            step = np.zeros_like(weights)
            strategy.add_weighted(step, [(1 / count, update) for _, update in came])
        else:
            step = private.combine(spool, came, "privacy", number).delta
        weights = weights + step
        spool.clear()
    return nodes.loss(weights)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 10])
    given = parser.parse_args()

    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    from zk0desk.federation.spool import Spool
    from zk0desk.training.privacy import Release, epsilon, noise_ratio

    began, tables = time.perf_counter(), {}
    with tempfile.TemporaryDirectory(prefix="zk0desk-privacy-") as name:
        folder = Path(name)
        nodes, spool = Nodes(folder, max(given.nodes)), Spool(folder / "spool")
        untrained, size = nodes.loss(nodes.base), nodes.base.size
        print(
            f"held-out loss of the base policy, {untrained:.4f}; {given.rounds} rounds of {given.steps} steps; {size:,} values", flush=True
        )
        for count in given.nodes:
            print(f"\n{count} nodes\n{'noise multiplier':>18}{'epsilon':>12}{'noise/update':>14}{'held-out loss':>15}", flush=True)
            rows = []
            for noise in (0.0, *NOISE):
                loss = run(nodes, count, noise, given.rounds, given.steps, folder, spool)
                spent = epsilon([Release(noise, given.rounds)], DELTA) if noise else None
                rows.append({"noise": noise, "epsilon": spent, "ratio": noise_ratio(noise, size, count), "loss": round(loss, 4)})
                shown = f"{spent:12.3g}" if spent is not None else f"{'none':>12}"
                print(f"{noise:18g}{shown}{rows[-1]['ratio']:14.3g}{loss:15.4f}", flush=True)
            tables[str(count)] = rows
        nodes.close()
    seconds = round(time.perf_counter() - began)
    print(json.dumps({"benchmark": "privacy", "base": round(untrained, 4), "delta": DELTA, "values": size, **tables, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
