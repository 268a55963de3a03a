"""How fast the prefix cache gives entries back: `python benchmarks/prefix_cache.py [SECONDS] [--folder FOLDER]`.

For entries of the size of level V and of level P (two cameras, 16 bit): random batches from memory and, where the system can be told to
forget a file, from the disk; what the checksum takes of it; a batch that was read ahead; the same from a mapped file, which nothing
checks, and from one `.npy` file an entry. It has no limit to keep. The last line is JSON: for each size the GB/s of each way.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.training.prefix_index import Layout
from zk0desk.training.prefix_shelf import Shelf

SIZES = {"V": (2, 64, 960), "P": (16, 2, 140, 320)}
"""Shapes of an entry in fp16: 245,760 and 2,867,200 bytes."""
BATCH = 64
ALL_BYTES = 600_000_000
"""What is written of each size."""


def batches(entries: int, draw: np.random.Generator) -> np.ndarray:
    """A batch of different rows."""
    return draw.choice(entries, min(BATCH, entries), replace=False)


def gigabytes_a_second(action: Callable[[np.ndarray], object], entries: int, size: int, seconds: float) -> float:
    """The median over random batches, for so many seconds."""
    draw = np.random.default_rng(0)
    action(batches(entries, draw))
    taken = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(taken) < 3:
        rows = batches(entries, draw)
        began = time.perf_counter()
        action(rows)
        taken.append(time.perf_counter() - began)
    return min(BATCH, entries) * size / float(np.median(taken)) / 1e9


def forget(path: Path) -> None:
    """Let the system write a file and drop it from its memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, shape: tuple[int, ...], seconds: float) -> dict[str, float]:
    """GB/s of each way to read entries of `shape`."""
    size = 2 * int(np.prod(shape))
    entries = ALL_BYTES // size
    draw = np.random.default_rng(1)
    content = draw.normal(size=(8, *shape)).astype(np.float16)
    with PrefixCache(folder / "cache", 10**12, keep_free=0) as cache:
        shelf = cache.shelf({"benchmark": list(shape)}, entries, shape, "float16", {})
        began = time.perf_counter()
        for first in range(0, entries, 8):
            rows = range(first, min(first + 8, entries))
            shelf.write(rows, content[: len(rows)])
        found = {"write": entries * size / (time.perf_counter() - began) / 1e9}
        found |= read_ways(shelf, entries, size, seconds)
        path = shelf.folder / "entries.bin"
        mapped = np.memmap(path, np.float16, "r", shape=(entries, *shape))
        buffer = np.empty((min(BATCH, entries), *shape), np.float16)
        found["mapped, unchecked"] = gigabytes_a_second(
            lambda rows: np.take(mapped, rows, axis=0, out=buffer, mode="clip"), entries, size, seconds
        )
    files = folder / "files"
    files.mkdir()
    for row in range(entries):
        np.save(files / f"{row}.npy", content[row % 8])

    def load(rows: np.ndarray) -> None:
        for place, row in enumerate(rows):
            buffer[place] = np.load(files / f"{row}.npy")

    found["a file an entry, unchecked"] = gigabytes_a_second(load, entries, size, seconds)
    return found


def read_ways(shelf: Shelf, entries: int, size: int, seconds: float) -> dict[str, float]:
    """GB/s of the shelf's own ways."""
    buffer = np.empty((min(BATCH, entries), *shelf.layout.shape), np.float16)

    def checked(rows: np.ndarray) -> None:
        assert shelf.read(rows, out=buffer)[1].all()

    found = {"read": gigabytes_a_second(checked, entries, size, seconds)}
    real = Layout.checksum
    words = {row: shelf._files.word(row) for row in range(entries)} if shelf._files else {}
    try:
        Layout.checksum = lambda self, row, content: words[row]  # type: ignore[method-assign]
        found["read, unchecked"] = gigabytes_a_second(checked, entries, size, seconds)
    finally:
        Layout.checksum = real  # type: ignore[method-assign]
    found["read, into new memory"] = gigabytes_a_second(lambda rows: shelf.read(rows), entries, size, seconds)

    waiting, draw = [], np.random.default_rng(0)
    following = batches(entries, draw)
    shelf.prefetch(following)
    for _ in range(8):  # a step takes longer than reading: what is left of it is a lookup
        rows, following = following, batches(entries, draw)
        time.sleep(2 * len(rows) * size / (found["read, into new memory"] * 1e9))
        began = time.perf_counter()
        shelf.read(rows)
        waiting.append(time.perf_counter() - began)
        shelf.prefetch(following)
    found["ms a batch, read ahead"] = 1e3 * float(np.median(waiting))
    if hasattr(os, "posix_fadvise"):
        taken = []
        for _ in range(3):
            forget(shelf.folder / "entries.bin")
            rows = batches(entries, draw)
            began = time.perf_counter()
            checked(rows)
            taken.append(time.perf_counter() - began)
        found["read, cold"] = len(rows) * size / float(np.median(taken)) / 1e9
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("seconds", nargs="?", type=float, default=1.0, help="seconds for each way")
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    given = parser.parse_args()
    result: dict[str, object] = {"benchmark": "prefix-cache", "batch": BATCH}
    for level, shape in SIZES.items():
        size = 2 * int(np.prod(shape))
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found = measure(Path(folder), shape, given.seconds)
        result[level] = {"entry-bytes": size} | {key.replace(", ", "-").replace(" ", "-"): value for key, value in found.items()}
        print(f"{level}: {size:,} bytes an entry, {min(BATCH, ALL_BYTES // size)} a batch")
        for way, value in found.items():
            unit = "ms" if way.startswith("ms") else f"GB/s, {value * 1e9 / size:,.0f} entries a second"
            print(f"  {way:<28} {value:7.2f} {unit}")
        print(f"  the checksum takes {1 - found['read'] / found['read, unchecked']:.0%} of a read from memory")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
