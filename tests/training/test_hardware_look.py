"""Looking at a computer: control groups, GPUs by NVML and by the kernel's files, torch's build. On files that are laid out here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from zk0desk import gpus
from zk0desk.training import hardware_look
from zk0desk.training.container_limits import Limits, container_limits, usable_cores
from zk0desk.training.hardware import inspect_computer

GB = 10**9
Files = dict[str, str | int]


@pytest.fixture
def lay(tmp_path: Path) -> Callable[[Files], Path]:
    """Write files below a folder, which is returned."""

    def write(files: Files) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return tmp_path

    return write


# --- control groups


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({"own": "0::/"}, Limits()),
        ({"own": "0::/", "memory.max": "max", "cpu.max": "max 100000"}, Limits()),
        # version 2: a container sees its own group as the root
        (
            {
                "own": "0::/", "memory.max": 4 * GB, "memory.current": 3 * GB, "memory.stat": f"anon 1\ninactive_file {GB}",
                "cpu.max": "200000 100000",
            },
            Limits(4 * GB, 2 * GB, 2.0),
        ),
        # version 2: a service, whose slice is tighter
        (
            {
                "own": "0::/a.slice/b.service", "a.slice/memory.max": 2 * GB, "a.slice/memory.current": GB,
                "a.slice/b.service/memory.max": 8 * GB,
            },
            Limits(2 * GB, GB, 0.0),
        ),
        # version 1, with its number for "no limit"
        ({"own": "4:memory:/\n1:cpu,cpuacct:/", "memory/memory.limit_in_bytes": 9223372036854771712, "cpu/cpu.cfs_quota_us": -1}, Limits()),
        (
            {
                "own": "4:memory:/docker/1\n1:cpu:/docker/1", "memory/memory.limit_in_bytes": 6 * GB,
                "memory/memory.usage_in_bytes": 2 * GB,
                "memory/memory.stat": f"total_inactive_file {GB}", "cpu/cpu.cfs_quota_us": 150000, "cpu/cpu.cfs_period_us": 100000,
            },
            Limits(6 * GB, GB, 1.5),
        ),
    ],
    ids=["none", "no limit", "v2", "v2, slice", "v1, no limit", "v1"],
)  # fmt: skip
def test_the_tightest_limit_of_the_control_groups_counts(lay, files: Files, limits: Limits) -> None:
    root = lay(files)
    assert container_limits(root, root / "own") == limits


def test_the_containers_memory_and_cores_are_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training import container_limits as module

    tight = Limits(memory=2 * GB, memory_used=GB // 2, cpu=1.2)
    monkeypatch.setattr(hardware_look, "container_limits", lambda: tight)
    monkeypatch.setattr(module, "container_limits", lambda: tight)
    seen = inspect_computer()
    assert (seen.memory, seen.memory_limit, seen.cores) == (2 * GB, 2 * GB, 1)
    assert seen.memory_free <= 1.5 * GB and usable_cores() == 1


# --- NVIDIA


@pytest.mark.parametrize(
    ("chosen", "order"),
    [(None, [0, 1, 2]), ("", []), ("2,0", [2, 0]), ("GPU-bb", [1]), ("0,-1,2", [0]), ("0,7,1", [0]), ("1,1", [1]), ("GPU-", [])],
)
def test_of_several_gpus_those_are_seen_that_cuda_shows(chosen: str | None, order: list[int]) -> None:
    assert gpus.visible(["GPU-aa11", "GPU-bb22", "GPU-cc33"], chosen) == order


class Trouble(Exception):
    pass


def nvml(cards: list[dict], *, start: Exception | None = None) -> ModuleType:
    """pynvml for a computer with these cards; what a card leaves out, its driver does not tell."""
    module = ModuleType("pynvml")

    def tell(key: str) -> Callable[..., object]:
        def told(card: dict, *_: object) -> object:
            if key not in card:
                raise Trouble(key)
            return card[key]

        return told

    def begin() -> None:
        if start:
            raise start

    vars(module).update(
        NVMLError=Trouble, NVML_TEMPERATURE_GPU=0, nvmlInit=begin, nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"580.65.06", nvmlDeviceGetCount=lambda: len(cards),
        nvmlDeviceGetHandleByIndex=cards.__getitem__,
        nvmlDeviceGetUUID=lambda card: f"GPU-{cards.index(card)}", nvmlDeviceGetName=tell("name"),
        nvmlDeviceGetCudaComputeCapability=tell("capability"), nvmlDeviceGetMemoryInfo=tell("memory"),
        nvmlDeviceGetUtilizationRates=tell("use"), nvmlDeviceGetTemperature=tell("temperature"),
        nvmlDeviceGetComputeRunningProcesses=tell("compute"), nvmlDeviceGetGraphicsRunningProcesses=tell("graphics"),
    )  # fmt: skip
    return module


def process(pid: int, memory: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


def test_all_that_the_driver_tells_of_a_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {
        "name": "NVIDIA RTX 4070", "capability": (8, 9), "memory": SimpleNamespace(total=12 * GB, free=9 * GB), "temperature": 61,
        "use": SimpleNamespace(gpu=40), "compute": [process(1, 2 * GB)], "graphics": [process(1, 2 * GB), process(2, GB)],
    }  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml([card]))
    (gpu,) = gpus.nvidia_gpus()
    assert (gpu.name, gpu.driver, gpu.capability, gpu.memory_free) == ("NVIDIA RTX 4070", "580.65.06", (8, 9), 9 * GB)
    assert (gpu.temperature, gpu.utilisation, gpu.memory_others, gpu.shared) == (61, 40, 3 * GB, False)


def test_what_the_driver_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = {"name": "A", "capability": (8, 9), "memory": SimpleNamespace(total=8, free=4), "compute": [process(9, None)], "graphics": []}
    jetson = {"name": "Orin (nvgpu)", "capability": (8, 7)}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml([windows, jetson]))
    first, second = gpus.nvidia_gpus(memory=32 * GB, memory_free=20 * GB)
    assert (first.temperature, first.utilisation, first.memory_others) == (None, None, None)
    assert (second.shared, second.memory, second.memory_free) == (True, 32 * GB, 20 * GB)


def test_without_a_driver_there_is_no_gpu_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], start=Trouble("driver not loaded")))
    assert gpus.nvidia_gpus() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.nvidia_gpus() == []


def test_a_gpu_on_the_bus_whose_driver_is_silent_is_seen(lay, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = lay(
        {
            "0000:01:00.0/vendor": "0x10de",
            "0000:01:00.0/class": "0x030000",
            "0000:01:00.1/vendor": "0x10de",
            "0000:01:00.1/class": "0x040300",
        }
    )
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpus, "PCI", bus)
    monkeypatch.setattr(sys, "platform", "linux")
    assert [(gpu.kind, gpu.driver) for gpu in gpus.find_gpus(GB, GB) if gpu.kind == "cuda"] == [("cuda", "none")]


# --- AMD


def test_an_amd_gpu_is_told_by_the_kernels_files(lay) -> None:
    card = "drm/card1/device"
    root = lay({
        "kfd/0/properties": "cpu_cores_count 16\nsimd_count 0", "kfd/1/properties": "simd_count 192\ngfx_target_version 110000",
        f"{card}/vendor": "0x1002", f"{card}/mem_info_vram_total": 24 * GB, f"{card}/mem_info_vram_used": GB,
        f"{card}/gpu_busy_percent": 7, f"{card}/hwmon/hwmon3/temp1_input": 52000, f"{card}/product_name": "AMD Radeon RX 7900 XTX",
        "drm/card1-DP-1/status": "connected", "drm/card0/device/vendor": "0x8086",
    })  # fmt: skip
    (gpu,) = gpus.amd_gpus(root / "drm", root / "kfd")
    assert (gpu.kind, gpu.name, gpu.capability, gpu.memory_free) == ("rocm", "AMD Radeon RX 7900 XTX", (11, 0), 23 * GB)
    assert (gpu.temperature, gpu.utilisation, gpu.memory_others) == (52, 7, GB)
    assert gpus.amd_gpus(root / "nothing", root / "here") == []


# --- torch


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\nrocm = None", "cuda 13.0"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("cuda = None\nhip = '6.4.43482-0f2d60242'", "rocm 6.4"),
        ("__version__ = '2.11.0'", ""),
    ],
)
def test_torchs_build_is_read_and_torch_is_not_loaded(lay, monkeypatch: pytest.MonkeyPatch, text: str, build: str) -> None:
    root = lay({"torch/version.py": text, "torch/__init__.py": "raise SystemExit('torch was loaded')"})
    monkeypatch.setattr(hardware_look, "find_spec", lambda name: SimpleNamespace(origin=str(root / name / "__init__.py")))
    assert hardware_look.torch_build() == build


def test_a_child_that_was_ended_by_a_signal_says_so_in_words() -> None:
    assert "an instruction that this processor does not have" in hardware_look.last_words(-4, "")
    assert hardware_look.last_words(1, "Traceback\nOSError: libtorch.so") == "OSError: libtorch.so"
    assert hardware_look.last_words(3, "") == "exit status 3"
