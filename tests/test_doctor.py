"""`zk0desk doctor`: the whole preflight on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_doctor_says_the_same_as_json_and_in_its_exit_status() -> None:
    done = subprocess.run([sys.executable, "-m", "zk0desk", "doctor", "--quick", "--json"], capture_output=True, text=True, timeout=60)
    data = json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "limits": 3, "no": 4}[data["status"]]


def test_doctor_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so cannot be loaded')\n")
    done = subprocess.run(
        [sys.executable, "-m", "zk0desk", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    data = json.loads(done.stdout)
    assert done.returncode == 4
    assert data["findings"][0]["code"] == "engine-broken"
    assert "libtorch.so" in data["findings"][0]["why"]
