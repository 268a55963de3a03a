"""What is said about a computer: described machines and their verdicts, and this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zk0desk.training.hardware import Computer, Gpu, inspect_computer, memory_needed, verdict
from zk0desk.training.hardware_devices import best_of

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
    torch_build="cuda 13.0",
    disk_place="/home/me/.local/share/zk0desk/runs",
)
LAPTOP = replace(PLAIN, memory=16 * GB, memory_free=10 * GB, display=True, keyring="Secret Service")
MAC = replace(PLAIN, system="Darwin 24.1 arm64", instructions=(), torch_build="cpu")
ARM = replace(PLAIN, system="Linux 5.15 aarch64", cpu="ARMv8", instructions=("asimd",))
WSL = replace(PLAIN, system="Linux 5.15-microsoft-standard-WSL2 x86_64", wsl=True)
RTX = Gpu("cuda", "NVIDIA RTX 4070", 12 * GB, 11 * GB, "580.65.06", (8, 9), memory_others=0)
BIG = replace(RTX, name="NVIDIA RTX 3090", memory=24 * GB, memory_free=23 * GB, capability=(8, 6))
H100 = replace(RTX, name="NVIDIA H100", memory=80 * GB, memory_free=79 * GB, capability=(9, 0))
TURING = replace(RTX, name="NVIDIA RTX 2060", memory=6 * GB, memory_free=5.8 * GB, capability=(7, 5))
PASCAL = replace(RTX, name="NVIDIA GTX 1080", memory=8 * GB, memory_free=7 * GB, capability=(6, 1))
ORIN = Gpu("cuda", "Orin (nvgpu)", 32 * GB, 28 * GB, "540.4.0", (8, 7), shared=True)
APPLE = Gpu("mps", "Apple GPU", 18 * GB, 14 * GB, shared=True)
RADEON = Gpu("rocm", "AMD Radeon RX 7900 XTX", 24 * GB, 23 * GB, "amdgpu", (11, 0))
MUTE = Gpu("cuda", "NVIDIA GPU", 0, 0, "none")
SMALL = (187_000, 60_000)


def on(*gpus: Gpu, **changes: Any) -> Computer:
    """A computer with these GPUs."""
    return replace(PLAIN, gpus=gpus, **changes)


def gb(memory: float, free: float, others: float | None = None) -> dict[str, Any]:
    """Memory, what is free of it, and what others hold, in GB."""
    held = {} if others is None else {"memory_others": int(others * GB)}
    return {"memory": int(memory * GB), "memory_free": int(free * GB), **held}


class Row(NamedTuple):
    """A described machine and what is said about it: the answer, where, how, how many frames at once, and the first finding's code."""

    machine: str
    computer: Computer
    answer: str
    device: str
    precision: str
    micro_batch: int
    code: str = ""


MACHINES = [
    # laptops and workstations without a GPU
    Row("a laptop without a GPU", LAPTOP, "limits", "cpu", "fp32", 2, "no-gpu"),
    Row("a laptop with 4 GB", replace(LAPTOP, **gb(4, 3)), "no", "cpu", "fp32", 0, "memory-too-small"),
    Row("a laptop whose memory others hold", replace(LAPTOP, memory_free=2.1 * GB), "limits", "cpu", "fp32", 0, "memory-taken"),
    Row("a laptop with room for one frame", replace(LAPTOP, memory_free=5.9 * GB), "limits", "cpu", "fp32", 1, "memory-small-batch"),
    Row("a laptop with Windows", replace(LAPTOP, system="Windows 11 AMD64", torch_build="cpu"), "limits", "cpu", "fp32", 2, "no-gpu"),
    Row("a processor without AVX2", on(RTX, instructions=("sse4_2", "avx")), "ok", "cuda:0", "bf16", 32, "cpu-old"),
    Row("a processor without AVX", replace(PLAIN, instructions=("sse4_2",)), "limits", "cpu", "fp32", 2, "cpu-too-old"),
    Row("a Raspberry Pi with 8 GB", replace(ARM, **gb(8, 7)), "limits", "cpu", "fp32", 2, "no-gpu"),
    Row("a 32-bit system", replace(PLAIN, system="Linux 6.1 armv7l"), "no", "cpu", "fp32", 2, "system-unsupported"),
    Row("an Intel Mac", replace(MAC, system="Darwin 22.6 x86_64"), "no", "cpu", "fp32", 2, "system-unsupported"),
    # NVIDIA, new and old
    Row("a gaming GPU", on(RTX), "ok", "cuda:0", "bf16", 32),
    Row("a GPU of a data centre", on(H100), "ok", "cuda:0", "bf16", 64),
    Row("a Turing GPU, without bfloat16", on(TURING), "ok", "cuda:0", "fp32", 8),
    Row("a Pascal GPU", on(PASCAL), "limits", "cpu", "fp32", 2, "gpu-too-old"),
    Row("a Pascal GPU and torch for CUDA 12", on(PASCAL, torch_build="cuda 12.6"), "ok", "cuda:0", "fp32", 8),
    Row("driver 470", on(replace(RTX, driver="470.82")), "limits", "cpu", "fp32", 2, "driver-too-old"),
    Row("driver 550, and torch for CUDA 12", on(replace(RTX, driver="550.54"), torch_build="cuda 12.6"), "ok", "cuda:0", "bf16", 32),
    Row("a GPU without its driver", on(MUTE), "limits", "cpu", "fp32", 2, "driver-missing"),
    Row("torch without CUDA", on(RTX, torch_build="cpu"), "limits", "cpu", "fp32", 2, "torch-without-cuda"),
    Row("torch that sees no GPU", on(RTX, torch_sees="cpu"), "limits", "cpu", "fp32", 2, "torch-sees-no-gpu"),
    Row("a GPU that is too small", on(replace(RTX, **gb(2, 2))), "limits", "cpu", "fp32", 2, "gpu-memory"),
    Row("a GPU that others fill", on(replace(RTX, memory_free=2.1 * GB, memory_others=9.7 * GB)), "limits", "cpu", "fp32", 2, "gpu-memory"),
    Row(
        "a GPU that others use in part",
        on(replace(RTX, memory_free=6 * GB, memory_others=6 * GB)),
        "ok", "cuda:0", "bf16", 8, "gpu-shared",
    ),
    Row("a GPU that others keep busy", on(replace(RTX, utilisation=97)), "ok", "cuda:0", "bf16", 32, "gpu-busy"),
    Row("a GPU that is hot", on(replace(RTX, temperature=91)), "ok", "cuda:0", "bf16", 32, "gpu-hot"),
    Row("memory that others hold beside a GPU", on(RTX, memory_free=1 * GB), "limits", "cuda:0", "bf16", 32, "memory-taken"),
    # several GPUs
    Row("a small GPU and a large one", on(RTX, BIG), "ok", "cuda:1", "bf16", 64),
    Row("two equal GPUs", on(BIG, BIG), "ok", "cuda:0", "bf16", 64),
    Row("an old GPU beside a new one", on(PASCAL, RTX), "ok", "cuda:1", "bf16", 32, "gpu-too-old"),
    Row("a large GPU without bfloat16 beside a smaller with it", on(replace(TURING, **gb(48, 47)), RTX), "ok", "cuda:1", "bf16", 32),
    Row(
        "a large GPU that others fill beside a free one",
        on(replace(BIG, memory_free=1 * GB), RTX),
        "ok", "cuda:1", "bf16", 32, "gpu-memory",
    ),
    # other kinds
    Row("an Apple chip", replace(MAC, gpus=(APPLE,)), "ok", "mps", "fp32", 32),
    Row("an Apple chip that others use", replace(MAC, gpus=(replace(APPLE, memory_free=9 * GB),)), "ok", "mps", "fp32", 8, "gpu-shared"),
    Row(
        "an Apple chip with 8 GB that others use",
        replace(MAC, **gb(8, 3), gpus=(replace(APPLE, **gb(6, 3)),)),
        "limits", "cpu", "fp32", 0, "gpu-memory",
    ),
    Row("an AMD GPU with torch for ROCm", on(RADEON, torch_build="rocm 6.4"), "ok", "cuda:0", "bf16", 64),
    Row("an AMD GPU with torch for CUDA", on(RADEON), "limits", "cpu", "fp32", 2, "torch-without-rocm"),
    Row("a Jetson Orin", replace(ARM, gpus=(ORIN,)), "limits", "cpu", "fp32", 2, "jetson-torch"),
    Row("a Jetson Orin with NVIDIA's torch", replace(ARM, gpus=(replace(ORIN, driver=""),), torch_sees="cuda"), "ok", "cuda:0", "bf16", 64),
    # WSL and containers
    Row("WSL with a GPU", replace(WSL, gpus=(replace(RTX, memory_others=None),)), "ok", "cuda:0", "bf16", 32),
    Row(
        "WSL with an old driver of Windows",
        replace(WSL, gpus=(replace(RTX, driver="516.94"),)),
        "limits", "cpu", "fp32", 2, "driver-too-old",
    ),
    Row("WSL with half of 8 GB", replace(WSL, **gb(4, 3)), "no", "cpu", "fp32", 0, "memory-too-small"),
    Row(
        "WSL that keeps runs on Windows's disk",
        replace(WSL, gpus=(RTX,), disk_place="/mnt/c/zk0"),
        "ok", "cuda:0", "bf16", 32, "wsl-disk",
    ),
    Row("a container of 4 GB", replace(PLAIN, **gb(4, 4), memory_limit=4 * GB, container=True), "no", "cpu", "fp32", 0, "memory-too-small"),
    Row("a container of 2 cores with a GPU", on(H100, cores=2, cpu_limit=2.0, container=True), "ok", "cuda:0", "bf16", 64, "cores-limited"),
    Row("a container without the GPU", on(MUTE, container=True), "limits", "cpu", "fp32", 2, "driver-missing"),
    # disk, engine, what surrounds it
    Row("a full disk", on(RTX, disk_free=1 * GB), "no", "cuda:0", "bf16", 32, "disk-full"),
    Row("a disk with just enough", on(RTX, disk_free=4.2 * GB), "ok", "cuda:0", "bf16", 32, "disk-tight"),
    Row("no engine", replace(PLAIN, versions={}, torch_build=""), "no", "cpu", "fp32", 2, "engine-missing"),
    Row("no torch", on(RTX, versions={**VERSIONS, "torch": ""}, torch_build=""), "no", "cuda:0", "bf16", 32, "engine-missing"),
    Row("a torch that does not load", replace(PLAIN, engine_error="OSError: libtorch.so"), "no", "cpu", "fp32", 2, "engine-broken"),
    Row("no keyring", on(RTX, keyring="none: NoKeyringError"), "ok", "cuda:0", "bf16", 32, "no-keyring"),
    Row("no display", on(RTX, keyring="Secret Service", display=False), "ok", "cuda:0", "bf16", 32, "no-display"),
]  # fmt: skip


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.machine)
def test_a_described_machine_gets_its_verdict(row: Row) -> None:
    found = verdict(row.computer)
    assert Row(row.machine, row.computer, found.answer, found.device, found.precision, found.micro_batch, _first(found)) == row
    assert found.exit_status == {"ok": 0, "limits": 3, "no": 4}[row.answer]
    for finding in found.findings:
        assert finding.what.endswith(".") and finding.why.endswith((".", "so")), "a finding is sentences"
        assert finding.remedy.endswith((".", ")", '"')), "a finding says what to do"


def _first(found) -> str:
    return found.findings[0].code if found.findings else ""


def _said(machine: str) -> str:
    """All that is said of one of the machines above."""
    found = verdict(next(row.computer for row in MACHINES if row.machine == machine))
    return " ".join(f"{finding.what} {finding.why} {finding.remedy}" for finding in found.findings)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            "driver 470",
            "Driver 470.82 is older than CUDA 13 needs. Until then NVIDIA RTX 4070 is not used, and the processor is. Install 580",
        ),
        ("torch without CUDA", "torch was built without CUDA. NVIDIA RTX 4070 is there and cannot be used"),
        ("a laptop whose memory others hold", "2.1 GB of memory is free; training needs 5.8 GB. Other programs hold the rest. Close other"),
        (
            "a laptop with room for one frame",
            "2 frames at once need 6.0 GB. 1 at once fit; the update is the same, training is slower. Close",
        ),
        ("a laptop with room for one frame", "set Micro batch to 1 in Settings"),
        (
            "a GPU that others fill",
            "2.1 GB of NVIDIA RTX 4070's memory is free; 3.7 GB is needed. Other programs hold 9.7 GB. Close what uses",
        ),
        (
            "a GPU that others use in part",
            "8 frames at once fit. Other programs hold 6.0 GB. Close what uses the GPU; then 32 at once fit.",
        ),
        ("WSL with an old driver of Windows", "Install 580 or newer. Install it in Windows"),
        ("WSL with half of 8 GB", "memory= in .wslconfig"),
        ("a container of 4 GB", "It is the container's limit: give it more (--memory)."),
        ("a container without the GPU", "hand the GPU to it (--gpus all)"),
        ("an old GPU beside a new one", "There is nothing to do: NVIDIA RTX 4070 is used."),
        ("no engine", "torch, lerobot, flwr. The window works without it"),
        ("no display", "Use `zk0desk node`, which needs none."),
    ],
)
def test_the_words_say_why_and_what_to_do(machine: str, words: str) -> None:
    assert words in _said(machine)


def test_the_settings_device_and_precision_are_followed() -> None:
    computer = replace(PLAIN, gpus=(RTX,))
    assert verdict(computer, device="cpu").device == "cpu"
    assert verdict(computer, precision="fp32").precision == "fp32"
    assert verdict(computer, precision="fp32").micro_batch < verdict(computer).micro_batch
    assert verdict(computer, device="mps").device == "cpu"


def test_a_smaller_batch_needs_less_and_leaves_more() -> None:
    computer = replace(PLAIN, gpus=(RTX,))
    one, many = verdict(computer, batch=1), verdict(computer, batch=16)
    assert (one.micro_batch, many.micro_batch) == (1, 16)
    assert one.memory_needed < many.memory_needed and one.memory_left > many.memory_left
    assert many.memory_needed + many.memory_left < RTX.memory_free


def test_the_best_of_several_is_the_one_that_the_verdict_names() -> None:
    gpus = (replace(TURING, memory_free=47 * GB), RTX, BIG)
    assert verdict(replace(PLAIN, gpus=gpus)).device == f"cuda:{best_of(gpus)}" == "cuda:2"


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
