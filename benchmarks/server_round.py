"""A round of the federation, stock Flower and ours side by side: `python benchmarks/server_round.py`.

Nobody trains: what is left is what the framework takes, from one round's end to the next one's, in time and in the memory of the
process that aggregates. Stock's side is flwr's `flower-superlink`, `flwr run` with its FedProx in a ServerApp, and SuperNodes with
its connection and its waits; ours is the server as `zk0desk server start` runs it, with gateway, TLS and node keys, and nodes with
the product's connection. Sizes are those of the trainable set as fp32, which is what stock sends each way. `benchmarks/README.md`
says how each figure is measured and what it does not show. `--quick` ends within two minutes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import server_round_ours as ours
import server_round_stock as stock
from server_round_parts import Case, Measured

VALUES = {1: 250_000, 100: 25_000_000, 400: 99_880_992}
"""Trainable values for each size in MB; the largest is SmolVLA's."""
ROUNDS = {1: 20, 100: 5, 400: 5}
LARGE = 100
"""From this size on ours is also run with fp32 updates: equal bytes."""
STATES = {"memory": False, "disk": True}
Key = tuple[int, int, str, str]


def cases(given: argparse.Namespace) -> list[tuple[Key, Case]]:
    """Size, nodes, state and side (`stock`, `ours`, `ours-fp32`) of each run, as they are run: sides next to each other."""
    if given.quick:
        asked = [(1, 2, "disk"), (100, 2, "memory")]
        rounds = {1: 4, 100: 1}
    else:
        asked = list(product(given.mb, given.nodes, given.state))
        rounds = {size: given.rounds or number for size, number in ROUNDS.items()}
    found = []
    for size, nodes, state in asked:
        sides = ["stock", "ours"] + (["ours-fp32"] if size >= LARGE and not given.quick else [])
        for side in (side for side in sides if side in given.sides):
            encoding = "fp32" if side == "ours-fp32" else ""
            found.append(((size, nodes, state, side), Case(VALUES[size], nodes, STATES[state], rounds[size], encoding)))
    return found


def show(key: Key, found: Measured) -> None:
    """One line."""
    size, nodes, state, side = key
    memory = found.memory
    times = f"{median(found.seconds):7.2f} s (from {min(found.seconds):.2f} to {max(found.seconds):.2f}, {len(found.seconds)} rounds)"
    print(f"{size:3d} MB, {nodes} nodes, {state:6}  {side:9}  a round {times}, update {found.update_bytes / 1e6:.1f} MB")
    lines = [f"peak {memory['total']:.0f} MB (anonymous {memory['anonymous']:.0f}, file-backed {memory['file']:.0f})"]
    lines.append("CPU of a round: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.cpu.items()))
    if found.parts:
        lines.append(", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.parts.items()))
    for line in lines:
        print(" " * 35 + line, flush=True)


def ratios(found: dict[Key, Measured]) -> dict[str, float]:
    """Ours over stock's, seconds, processor seconds and memory, of each run of both sides: below 1 is less."""
    result = {}
    for (size, nodes, state, side), measured in found.items():
        other = found.get((size, nodes, state, "stock"))
        if side == "stock" or other is None:
            continue
        name = f"{size}mb-{nodes}-nodes-{state}{side.removeprefix('ours')}"
        result[f"time-ratio-{name}"] = median(measured.seconds) / median(other.seconds)
        result[f"cpu-ratio-{name}"] = sum(measured.cpu.values()) / sum(other.cpu.values())
        result[f"memory-ratio-{name}"] = measured.memory["total"] / other.memory["total"]
    return result


def summary(found: dict[Key, Measured]) -> dict[str, float]:
    """The figures that the limits are about: 2 nodes, and peak memory with the most nodes of 100 MB."""
    result: dict[str, float] = {}
    for (size, nodes, state, side), measured in found.items():
        other = found.get((size, nodes, state, "stock"))
        end = side.removeprefix("ours") + ("" if state == "disk" else "-memory")
        if side != "stock" and nodes == 2:
            result[f"seconds-{size}mb{end}"] = median(measured.seconds)
            if other is not None:
                result[f"time-ratio-{size}mb{end}"] = median(measured.seconds) / median(other.seconds)
        if size == LARGE and side != "stock":
            for kind, name in (("total", ""), ("anonymous", "-anonymous"), ("file", "-file")):
                key = f"memory-mb-{nodes}{side.removeprefix('ours')}{name}"
                result[key] = max(result.get(key, 0.0), measured.memory[kind])
    return result


def rounded(values: dict[str, float], digits: int = 3) -> dict[str, float]:
    """The same with few digits."""
    return {name: round(value, digits) for name, value in values.items()}


def read_arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--mb", type=int, nargs="+", choices=tuple(VALUES), default=[1, 100], help="size of the trainable set as fp32")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--state", nargs="+", choices=tuple(STATES), default=list(STATES), help="where the SuperLink keeps messages")
    parser.add_argument("--rounds", type=int, help="that are timed (default: 20 of 1 MB, 5 of the others)")
    parser.add_argument("--sides", nargs="+", choices=("stock", "ours", "ours-fp32"), default=["stock", "ours", "ours-fp32"])
    parser.add_argument("--supernodes", choices=("in-process", "shipped"), default="in-process", help="stock's; see README.md")
    parser.add_argument("--quick", action="store_true", help="a few rounds with two nodes, within two minutes")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    print(
        f"{time.strftime('%Y-%m-%d')}: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" flwr {version('flwr')}; load {os.getloadavg()[0]:.1f} at the start"
    )
    found: dict[Key, Measured] = {}
    for key, case in cases(given):
        with tempfile.TemporaryDirectory(prefix="zk0desk-server-round-") as folder:
            place = Path(folder) / "run"
            found[key] = stock.measure(case, place, given.supernodes) if key[3] == "stock" else ours.measure(case, place)
        show(key, found[key])
    for name, value in ratios(found).items():
        print(f"  {name:<40} {value:5.2f} of stock's")
    rows = [
        {"mb": size, "nodes": nodes, "state": state, "side": side, "update-bytes": measured.update_bytes,
         "seconds": [round(each, 3) for each in measured.seconds], "memory-mb": rounded(measured.memory, 1),
         "cpu-s": rounded(measured.cpu), "parts-s": rounded(measured.parts)}
        for (size, nodes, state, side), measured in found.items()
    ]  # fmt: skip
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    about: dict[str, Any] = {"benchmark": "server-round", "supernodes": given.supernodes, "ratios": "ours over stock's"}
    print(json.dumps(about | rounded(summary(found) | ratios(found)) | {"rows": rows}))


if __name__ == "__main__":
    main()
