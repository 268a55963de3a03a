"""What is said about a computer: described machines and their verdicts, and this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zk0desk.training.hardware import Computer, Gpu, inspect_computer, memory_needed, verdict

GB = 10**9
VERSIONS = {"torch": "2.11.0", "lerobot": "0.6.1", "flwr": "1.41.0"}
PLAIN = Computer(
    system="Linux 6.8 x86_64",
    cpu="Some processor",
    cores=8,
    instructions=("sse4_2", "avx", "avx2", "fma"),
    memory=32 * GB,
    memory_free=24 * GB,
    disk_free=200 * GB,
    versions=VERSIONS,
)
RTX = Gpu("cuda", "NVIDIA RTX 4070", 12 * GB, 11 * GB, "580.65.06", (8, 9))
APPLE = Gpu("mps", "Apple M3 GPU", 18 * GB, 12 * GB)
SMALL = (187_000, 60_000)

MACHINES = {
    "a new NVIDIA GPU": (replace(PLAIN, gpus=(RTX,)), "ok", "cuda:0", ""),
    "an Apple chip": (replace(PLAIN, system="Darwin 24 arm64", instructions=(), gpus=(APPLE,)), "ok", "mps", ""),
    "no GPU": (PLAIN, "limits", "cpu", "no-gpu"),
    "an old driver": (replace(PLAIN, gpus=(replace(RTX, driver="470.82"),)), "limits", "cpu", "driver-too-old"),
    "a Pascal GPU": (replace(PLAIN, gpus=(replace(RTX, name="GTX 1080", capability=(6, 1)),)), "limits", "cpu", "gpu-too-old"),
    "a GPU that others use": (replace(PLAIN, gpus=(replace(RTX, memory_free=1 * GB),)), "limits", "cpu", "gpu-memory"),
    "a GPU that is too small": (replace(PLAIN, gpus=(replace(RTX, memory=2 * GB, memory_free=2 * GB),)), "limits", "cpu", "gpu-memory"),
    "an old GPU beside a new one": (replace(PLAIN, gpus=(replace(RTX, capability=(5, 0)), RTX)), "limits", "cuda:1", "gpu-too-old"),
    "torch without CUDA": (replace(PLAIN, gpus=(RTX,), torch_cuda=False), "limits", "cpu", "torch-without-cuda"),
    "too little memory": (replace(PLAIN, memory=4 * GB, memory_free=3 * GB), "no", "cpu", "memory-too-small"),
    "memory that others use": (replace(PLAIN, gpus=(RTX,), memory_free=1 * GB), "limits", "cuda:0", "memory-taken"),
    "a full disk": (replace(PLAIN, gpus=(RTX,), disk_free=1 * GB), "no", "cuda:0", "disk-full"),
    "no engine": (replace(PLAIN, versions={}), "no", "cpu", "engine-missing"),
    "a broken engine": (replace(PLAIN, engine_error="OSError: libtorch.so"), "no", "cpu", "engine-broken"),
    "an old processor": (replace(PLAIN, gpus=(RTX,), instructions=("sse4_2", "avx")), "ok", "cuda:0", "cpu-old"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_described_machine_gets_its_verdict(name: str) -> None:
    computer, answer, device, code = MACHINES[name]
    found = verdict(computer)
    assert (found.answer, found.device) == (answer, device)
    assert [finding.code for finding in found.findings][:1] == ([code] if code else [])
    assert found.exit_status == {"ok": 0, "limits": 3, "no": 4}[answer]
    for finding in found.findings:
        assert finding.what.endswith("."), "a finding is a sentence"
        assert finding.remedy, "a finding says what to do"


def test_a_small_policy_trains_on_a_small_computer_without_limits() -> None:
    computer = replace(PLAIN, memory=6 * GB, memory_free=5 * GB)
    assert verdict(computer, *SMALL).answer == "ok"


def test_what_blocks_is_said_first() -> None:
    found = verdict(replace(PLAIN, memory=4 * GB, memory_free=1 * GB, gpus=(replace(RTX, driver="470.1"),)))
    assert found.findings[0].severity == "blocks"
    assert found.findings[0].what in found.sentence


def test_memory_grows_with_the_policy_and_the_frames() -> None:
    assert memory_needed(*SMALL) < memory_needed() < memory_needed(frames=8)
    assert memory_needed() > 4 * 450_046_176


def test_this_computer_is_seen_without_torch() -> None:
    code = (
        "import sys; from zk0desk.training.hardware import inspect_computer, verdict; c = inspect_computer(); verdict(c);"
        "assert c.cores >= 1 and c.memory > 0 and c.disk_free > 0; print([m for m in ('torch', 'lerobot', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_seen_can_be_written_as_json() -> None:
    computer = inspect_computer()
    data = json.loads(json.dumps({**verdict(computer).to_json(), "computer": computer.to_json()}))
    assert data["status"] in ("ok", "limits", "no")
    assert data["computer"]["versions"]["zk0desk"]


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


def test_a_recording_is_checked_on_the_command_line(demo_recording: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zk0desk", "recordings", "check", str(demo_recording), "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "ok"
    done = subprocess.run(
        [sys.executable, "-m", "zk0desk", "recordings", "check", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 4
    assert "is no LeRobot recording" in done.stdout


def test_recordings_are_listed_on_the_command_line(demo_recording: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zk0desk", "recordings", "list", str(demo_recording.parent), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [each["path"] for each in json.loads(done.stdout)] == [str(demo_recording)]
