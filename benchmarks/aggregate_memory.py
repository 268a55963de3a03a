"""What the aggregating process takes of memory: replies of 100 MB from 2, 4 and 8 nodes, by aggregation method.

    python benchmarks/aggregate_memory.py [--nodes 2 4 8] [--encoding fp32|fp16|int8] [--methods mean median ...] [--mb 100]

Each figure is a process of its own that does what a round does, with the product's parts: the pieces are unpacked from the answers of a
SuperLink as they come over HTTP, two at once, checked and spooled; then clipped, combined, and the next weights formed. What is missing
is the network and the SuperLink (`server_round.py` has them). Peaks of anonymous and of file-backed memory are sampled every 2 ms.
The last line is JSON: by method, anonymous and file-backed MB with the most nodes, and the largest of all peaks together.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LIMIT_MB, ROBUST_LIMIT_MB = 650, 1300
METHODS = ("mean", "trimmed-mean", "median", "geometric-median", "multi-krum")


class Peak:
    """The highest resident memory while it runs, in MB: anonymous, file-backed, and both at the same time."""

    def __enter__(self) -> Peak:
        self.anonymous = self.file = self.both = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            anonymous, file = resident()
            self.anonymous, self.file, self.both = max(self.anonymous, anonymous), max(self.file, file), max(self.both, anonymous + file)
            if self._ends.wait(0.002):
                return


def resident() -> tuple[float, float]:
    """Anonymous and file-backed resident memory of this process, MB."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, file, shared = (float(found[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile", "RssShmem"))
    return anonymous, file + shared


def aggregate(nodes: int, values: int, encoding: str, method: str, folder: Path) -> dict[str, Any]:
    """One round in this process; its peaks and seconds."""
    import numpy as np
    from flwr.app import Array
    from flwr.proto.message_pb2 import PullObjectResponse

    from zk0desk.federation import combining, grid, messages, updates
    from zk0desk.federation.allocator import return_large_blocks
    from zk0desk.federation.intake import Intake
    from zk0desk.federation.norm_bound import NormHistory, bound_for
    from zk0desk.federation.spool import Spool
    from zk0desk.federation.weights_chain import WeightsChain
    from zk0desk.settings import ServerAggregation

    def answers(node: int) -> Any:
        """The SuperLink's answers that hold the pieces of one reply."""
        draw = np.random.default_rng(node)
        for at in range(0, values, updates.PIECE):
            piece = draw.standard_normal(min(updates.PIECE, values - at), dtype=np.float32)
            piece *= np.float32(1e-4)
            chunks = []
            for number, (_, chunk) in enumerate(Array(updates.encode_piece(piece, encoding)).slice_array()):
                answer = PullObjectResponse(object_found=True, object_available=True, object_content=chunk.deflate())
                chunks.append(folder / f"answer-{node}-{at}-{number}")
                chunks[-1].write_bytes(answer.SerializeToString())
            yield chunks

    return_large_blocks()
    paths = [list(answers(node)) for node in range(nodes)]
    hexes = "ab" * 32
    asked = messages.TrainRequest(
        run_uid="r", server_round=1, num_rounds=2, seed=0, lr=1e-4, proximal_mu=0.01, batch_size=64, policy_id="p", backbone_sha256=hexes,
        layout_sha256=hexes, weights_sha256=hexes, base_sha256=hexes, local_steps=20, encoding=encoding,
    )  # fmt: skip
    weights = np.zeros(values, np.float32)
    record = SimpleNamespace(done=0, folder=lambda _: folder)
    state = SimpleNamespace(
        kept={}, kept_arrays={}, record=record, folder=folder, rules=SimpleNamespace(encoding=encoding), weights=weights, sha256=hexes
    )
    spool, pulling = Spool(folder / "spool"), threading.Semaphore(grid.PULLS)
    said = {"num-examples": 640.0, "frames-seen": 1280.0, "steps-done": 20.0}

    def receive(node: int) -> Any:
        intake = Intake(asked, spool, values, declared=0.0, elapsed=lambda: 60.0)
        intake.begin(dict(messages.reply_config(asked)), dict(said), [f"{number:06d}" for number in range(len(paths[node]))])
        for chunks in paths[node]:
            with pulling:
                contents = {str(path): PullObjectResponse.FromString(path.read_bytes()).object_content for path in chunks}
                intake.piece(grid._array("piece", grid._joined([*contents], contents)))
        return intake.end()

    seconds = {}
    with Peak() as peak:
        began = time.perf_counter()
        with ThreadPoolExecutor(max_workers=nodes) as pool:
            came = list(pool.map(receive, range(nodes)))
        seconds["spool"] = time.perf_counter() - began
        spooled = sum(update.bytes for update, _ in came)
        began = time.perf_counter()
        norms = [update.norm for update, _ in came]
        bound, _ = bound_for(NormHistory(), norms, lr=1e-4, steps=20, parameters=values, factor=2.0, rounds=5)
        accepted = [(f"{number:03d}", update) for number, (update, _) in enumerate(came)]
        rules = ServerAggregation.model_validate({"method": method, "hostile-nodes": max(0, (nodes - 3) // 2)})
        examples = {name: 640.0 for name, _ in accepted}
        combined = combining.combine(spool, accepted, examples, rules, bound=bound, max_share=0.5)
        seconds["combine"] = time.perf_counter() - began
        began = time.perf_counter()
        state.weights = WeightsChain(state).advance(weights, combined.delta)
        updates.weights_sha256(state.weights)
        seconds["weights"] = time.perf_counter() - began
        disk = sum(path.stat().st_size for path in spool.folder.iterdir())
        spool.clear()
    return {
        "nodes": nodes, "method": method, "anonymous-mb": peak.anonymous, "file-mb": peak.file, "both-mb": peak.both,
        "spooled-mb": spooled / 2**20, "disk-mb": disk / 2**20, **{f"{name}-s": each for name, each in seconds.items()},
    }  # fmt: skip


def measure(nodes: int, values: int, encoding: str, method: str) -> dict[str, Any]:
    """`aggregate` in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="zk0desk-memory-") as folder:
        command = [sys.executable, __file__, "--child", json.dumps([nodes, values, encoding, method, folder])]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> int:
    """Measure and print; 0 when all peaks are within their limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--encoding", default="fp32", choices=("fp32", "fp16", "int8"))
    parser.add_argument("--mb", type=float, default=100.0, help="bytes of a reply, in millions")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        *what, folder = json.loads(given.child)
        print(json.dumps(aggregate(*what, Path(folder))))
        return 0
    values = math.floor(given.mb * 1e6 / {"fp32": 4, "fp16": 2, "int8": 1 + 2 / 256}[given.encoding])
    print(f"{values:,} values as {given.encoding}, {given.mb:g} MB a reply")
    print("method            nodes  anonymous  file-backed  together (MB)  spool  combine  weights (s)  on disk (MB)")
    rows = []
    for method in given.methods:
        for nodes in given.nodes:
            row = measure(nodes, values, given.encoding, method)
            rows.append(row)
            memory = f"{row['anonymous-mb']:9.0f}  {row['file-mb']:11.0f}  {row['both-mb']:13.0f}"
            seconds = f"{row['spool-s']:5.1f}  {row['combine-s']:7.1f}  {row['weights-s']:11.1f}"
            print(f"{method:16}  {nodes:5}  {memory}  {seconds}  {row['disk-mb']:12.0f}", flush=True)
    most = max(given.nodes)
    last = {row["method"]: {key: round(row[key]) for key in ("anonymous-mb", "file-mb", "both-mb")} for row in rows if row["nodes"] == most}
    ok = all(row["both-mb"] <= (LIMIT_MB if row["method"] == "mean" else ROBUST_LIMIT_MB) for row in rows)
    print(json.dumps({"benchmark": "aggregate-memory", "nodes": most, "encoding": given.encoding, **last, "limit-mb": LIMIT_MB, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
