"""How long `zk0desk --help` takes: `python benchmarks/help.py [RUNS]`. Limit: a median of 0.3 s.

The last line is JSON: `{"benchmark": "help", "median-s": .., "worst-s": .., "bare-python-s": .., "limit-s": 0.3, "ok": ..}`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

LIMIT_S = 0.3


def seconds(arguments: list[str], runs: int) -> list[float]:
    """Wall-clock seconds of each of `runs` starts of this interpreter with `arguments`, after one that warms the disk."""
    taken = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return taken[1:]


def main(runs: int = 9) -> int:
    """Measure and print; 0 when the median is within the limit."""
    bare = statistics.median(seconds(["-c", "pass"], runs))
    taken = seconds(["-m", "zk0desk", "--help"], runs)
    median = statistics.median(taken)
    print(f"zk0desk --help: median {median:.3f} s, worst {max(taken):.3f} s of {runs}; bare Python {bare:.3f} s; limit {LIMIT_S} s")
    result = {
        "benchmark": "help",
        "median-s": median,
        "worst-s": max(taken),
        "bare-python-s": bare,
        "limit-s": LIMIT_S,
        "ok": median < LIMIT_S,
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(*[int(argument) for argument in sys.argv[1:2]]))
