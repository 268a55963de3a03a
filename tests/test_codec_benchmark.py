"""The benchmark of the codec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "codec.py"


def run(tmp_path: Path, *asked: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *asked], capture_output=True, text=True, timeout=280, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("zk0desk-*")), "it leaves nothing behind"
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.long
def test_that_bytes_and_errors_of_the_encodings_are_what_is_claimed(tmp_path: Path) -> None:
    found = run(tmp_path, "--quick", "--times", "1")
    assert found["within-limit"] and found["values"] == 8_000_000
    for encoding, once, four, most in (("fp16", 3e-4, 1e-4, 2.1), ("int8", 7e-3, 2e-3, 4.1)):
        told = dict(found[encoding])  # type: ignore[call-overload]
        assert 0 < told["error-after-four"] < four and told["error-after-four"] < told["error"] < once
        assert most - 0.2 < 32 / told["up-mb"] < most and told["down-mb"] == pytest.approx(told["up-mb"], rel=1e-3)
        assert told["memory-mb"] < 100


@pytest.mark.long
@pytest.mark.timeout(300)
def test_that_the_tiny_policy_learns_the_same_in_int8_within_what_seeds_make(tmp_path: Path) -> None:
    found = run(tmp_path, "--learn", "--seeds", "2", "--rounds", "5")
    assert found["learn-less-than-seeds"] and 0 < float(str(found["learn-int8-apart"])) < 0.01
    assert float(str(found["learn-int8"])) < float(str(found["learn-before"]))
