"""How fast the deep check reads rows, and how its memory grows with the recording.

    .venv/bin/python benchmarks/deep_check.py [ROWS ...]

For each number of rows, a recording of episodes of 300 frames without pictures is made and checked in a process of its own.
One JSON line each: rows, rows a second, and the most memory (MB) that the check took beyond its imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

EPISODE, FPS, FILE_ROWS = 300, 30, 500_000


def make(folder: Path, rows: int) -> None:
    """A v3.0 recording of `rows` rows (a multiple of 300), six joints, no camera."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    scalars = {name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index", "task_index")}
    vectors = {name: {"dtype": "float32", "shape": [6]} for name in ("observation.state", "action")}
    info = {"codebase_version": "v3.0", "fps": FPS, "total_episodes": rows // EPISODE, "total_frames": rows, "total_tasks": 1}
    features = {**vectors, "timestamp": {"dtype": "float32", "shape": [1]}, **scalars}
    for place in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / place).mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info | {"features": features}))
    pq.write_table(pa.table({"task_index": [0], "task": ["Put the cube into the box."]}), folder / "meta/tasks.parquet")
    first = np.arange(0, rows, EPISODE)
    listed = {"episode_index": first // EPISODE, "length": np.full(len(first), EPISODE)}
    listed |= {"dataset_from_index": first, "dataset_to_index": first + EPISODE}
    pq.write_table(pa.table(listed), folder / "meta/episodes/chunk-000/file-000.parquet")
    draw = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        index = np.arange(start, min(rows, start + FILE_ROWS))
        steps = draw.normal(0, 0.01, (len(index), 6)).astype(np.float32)
        wide = pa.FixedSizeListArray.from_arrays(pa.array(np.cumsum(steps, axis=0, dtype=np.float32).reshape(-1)), 6)
        table = {
            "observation.state": wide, "action": wide, "timestamp": (index % EPISODE / FPS).astype(np.float32),
            "frame_index": index % EPISODE, "episode_index": index // EPISODE, "index": index, "task_index": np.zeros(len(index), np.int64),
        }  # fmt: skip
        pq.write_table(pa.table(table), folder / f"data/chunk-000/file-{number:03d}.parquet")


def measure(folder: Path, rows: int) -> None:
    """Check the recording in this process and print the figures."""
    import av  # noqa: F401
    import psutil
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    from zk0desk.training.recordings import deep_check

    me, most, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, me.memory_info().rss)

    start = me.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    result = deep_check(folder, again=True)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    found = [finding.code for finding in result.findings]
    told = {"rows": rows, "rows-a-second": round(rows / seconds), "memory-mb": round((most - start) / 1e6), "seconds": round(seconds, 2)}
    print(json.dumps(told | {"found": found}))


def main() -> None:
    """Each size in a process of its own: memory that was given back once would hide what the next one takes."""
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), int(sys.argv[3]))
        return
    for rows in [int(word) for word in sys.argv[1:]] or [60_000, 600_000, 3_000_000]:
        with tempfile.TemporaryDirectory() as place:
            make(Path(place) / "rows", rows)
            home = os.environ | {"ZK0DESK_HOME": place}
            subprocess.run([sys.executable, __file__, "--measure", f"{place}/rows", str(rows)], check=True, env=home)


if __name__ == "__main__":
    main()
