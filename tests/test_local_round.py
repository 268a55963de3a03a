"""The benchmark of a local round against LeRobot's own loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "local_round.py"


@pytest.mark.long
@pytest.mark.parametrize("level", ["V", "P"])
def test_that_the_tiny_form_trains_lerobots_round_and_ends_with_json(level: str, tmp_path: Path):
    asked = ["--size", "tiny", "--level", level, "--cameras", "1", "--rounds", "2", "--epochs", "10", "--lerobot-steps", "0"]
    command = [sys.executable, str(PROGRAM), *asked, "--picture", str(tmp_path / "loss.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["size"], result["level"], result["cameras"], result["lerobot-extrapolated"]) == ("tiny", level, 1, False)
    assert result["gradient-difference-float32"] < 1e-5 and 0 < result["gradient-difference"] < 1e-3
    # The same frames, noise and times in the same order: each step's loss is LeRobot's.
    assert result["loss-apart"] < 1e-3
    assert result["later"] > 1 and result["first"] > 0 and "five" not in result
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"], "it leaves nothing behind"
