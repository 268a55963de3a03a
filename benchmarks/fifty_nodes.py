"""Fifty nodes and one coordinator: `python benchmarks/fifty_nodes.py`.

Real connections with keys of their own, over TLS and through the gateway, as threads of a few processes. A third of the nodes is
slow, a tenth vanishes in the middle of a round and returns (before the deadline, and another time after it), one sends a NaN, one
an update that is a million times too large. Training is a stand-in, so that one computer can do it: each node's loss is a quadratic
in a policy as large as the demo's, and a round is a small step to its minimum; so it shows whether the federation still arrives
where the honest nodes want to go. Beside it the same with five nodes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from fifty_nodes_process import DEADLINE_S, behaviour, optimum, vanishes
from server_round_ours import Rounds, make_server
from server_round_parts import Case, python, quiet_environment, started

from zk0desk.federation.superlink import start_server
from zk0desk.training.policy_files import trainable_weights

VALUES = 121_000
"""Trainable values: about those of the demo's policy."""
A_PROCESS = 10
"""Nodes of one process."""


def federation(nodes: int, rounds: int, on_disk: bool, folder: Path) -> dict[str, Any]:
    """Run `rounds` rounds with `nodes` nodes, and what was seen."""
    folder.mkdir()
    environment, log = quiet_environment(folder), folder / "log"
    case = Case(VALUES, nodes, on_disk, rounds - 1)
    server = make_server(folder, case, min_nodes=max(2, int(0.8 * nodes)), deadline_s=DEADLINE_S, wait_s=0.0)
    with ExitStack() as stack:
        running = stack.enter_context(start_server(server.path, lambda _event: None))
        invitation = folder / "invitation"
        invitation.write_text(server.invitation(running.port).to_line())
        for first in range(0, nodes, A_PROCESS):
            last, places = min(first + A_PROCESS, nodes), (folder / "policy", folder / "nodes")
            command = python("fifty_nodes_process.py", invitation, *places, nodes, first, last)
            stack.enter_context(started(command, log, environment))
        rounds_ = stack.enter_context(Rounds(server, log, environment))
        rounds_.finish(60.0 * rounds)
        servers = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        beside = sum(each.memory_info().rss for each in servers) / 1e6
        policy = Path(rounds_.named("run-finished")[0]["policy"])
        return figures(rounds_, nodes, rounds) | {"servers-mb": beside, "left-of-way": left_of_way(folder / "policy", policy, nodes)}


def left_of_way(base: Path, policy: Path, nodes: int) -> float:
    """The distance to the mean of the honest nodes' optima after the run, over that before it."""
    before, after = trainable_weights(base), trainable_weights(policy)
    honest = [number for number in range(nodes) if behaviour(number, nodes) not in ("nan", "scaled")]
    goal = np.mean([optimum(before, number) for number in honest], axis=0)
    return float(np.linalg.norm(after - goal) / np.linalg.norm(before - goal))


def figures(run: Rounds, nodes: int, rounds: int) -> dict[str, Any]:
    """Rounds, their times, and memory."""
    ends = {event["round"]: event["time"] for event in run.named("checkpoint-saved")}
    formed = {event["round"]: event for event in run.named("round-aggregated")}
    lost = [number for number in range(1, rounds + 1) if number not in ends or number not in formed]
    timed = [number for number in range(2, rounds + 1) if number not in lost]
    waits = {number for number in timed for node in range(nodes // 10) if vanishes(node, number) == "long"}
    seconds = {number: ends[number] - ends[number - 1] for number in timed}
    held = {number: max((mb for when, mb in run.memory.series if ends[number - 1] < when <= ends[number]), default=0.0) for number in timed}
    early, late = timed[: len(timed) // 2], timed[len(timed) // 2 :]
    refused: dict[str, int] = {}
    for event in run.named("reply-refused"):
        refused[event["code"]] = refused.get(event["code"], 0) + 1
    return {
        "rounds": len(ends), "rounds-lost": lost, "fewest-updates": min(len(event["shares"]) for event in formed.values()),
        "round-s": median(seconds[number] for number in timed if number not in waits), "mean-round-s": sum(seconds.values()) / len(seconds),
        "longest-round-s": max(seconds.values()), "refused": refused, "memory-mb": run.memory.peak["total"],
        "memory-anonymous-mb": run.memory.peak["anonymous"], "memory-file-mb": run.memory.peak["file"],
        "memory-growth": max(held[number] for number in late) / max(held[number] for number in early),
    }  # fmt: skip


def read_arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--beside", type=int, default=5, help="nodes of the small federation to compare with")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--disk", action="store_true", help="the SuperLink keeps messages in a database")
    return parser.parse_args()


def main() -> None:
    """Run and print."""
    given = read_arguments()
    print(
        f"{time.strftime('%Y-%m-%d')}: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" flwr {version('flwr')}; load {os.getloadavg()[0]:.1f} at the start"
    )
    found: dict[int, dict[str, Any]] = {}
    for nodes in (given.beside, given.nodes):
        with tempfile.TemporaryDirectory(prefix="zk0desk-fifty-nodes-") as folder:
            seen = found[nodes] = federation(nodes, given.rounds, given.disk, Path(folder) / "run")
        print(
            f"{nodes} nodes: {seen['rounds']} rounds, lost {seen['rounds-lost'] or 'none'}, at least {seen['fewest-updates']} updates each;"
        )
        print(
            f"  a round {seen['round-s']:.2f} s, mean {seen['mean-round-s']:.2f} s with those that waited for the deadline"
            f" ({DEADLINE_S:.0f} s), longest {seen['longest-round-s']:.2f} s; refused {seen['refused'] or 'nothing'}"
        )
        print(
            f"  aggregating process: peak {seen['memory-mb']:.0f} MB (anonymous {seen['memory-anonymous-mb']:.0f}, file-backed"
            f" {seen['memory-file-mb']:.0f}), later over earlier rounds {seen['memory-growth']:.3f};"
            f" SuperLink and gateway {seen['servers-mb']:.0f} MB"
        )
        print(f"  {seen['left-of-way']:.1%} of the way to the honest nodes' optimum are left", flush=True)
    small, large = found[given.beside], found[given.nodes]
    result: dict[str, Any] = {"benchmark": "fifty-nodes", "nodes": given.nodes, "beside": given.beside, "asked-rounds": given.rounds}
    result |= {"round-ratio": large["round-s"] / small["round-s"], "memory-ratio": large["memory-mb"] / small["memory-mb"], **large}
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in (result | {"small": small}).items()}))


if __name__ == "__main__":
    main()
