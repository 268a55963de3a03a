"""The soak benchmark's short form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_federation_under_random_kills_loses_no_round_and_leaves_nothing(checkout: Path):
    command = [sys.executable, str(checkout / "benchmarks" / "soak.py"), "--minutes", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=1100, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rounds"] > 20
    assert sum(found["kills"].values())
    assert (found["rounds-lost"], found["findings"], found["processes-left"], found["files-left"]) == (0, [], 0, [])
    assert found["ok"], found
