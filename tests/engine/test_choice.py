"""Which engine a described computer needs: the rule as a table."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from zk0desk.engine.choice import Machine, choose
from zk0desk.engine.lists import EngineList, Wheel
from zk0desk.gpus import NO_DRIVER, Gpu

ALL = ("cu130", "cu128", "cu126", "cpu")


def nvidia(name: str, capability: tuple[int, int], driver: str, **more) -> Gpu:
    return Gpu("cuda", name, 8_000_000_000, 8_000_000_000, driver, capability, **more)


def linux(*gpus: Gpu, arch: str = "x86_64", **more) -> Machine:
    return Machine("linux", arch, gpus, **more)


def windows(*gpus: Gpu) -> Machine:
    return Machine("windows", "x86_64", gpus)


class Row(NamedTuple):
    name: str
    machine: Machine
    offered: tuple[str, ...]
    backend: str | None
    why: str
    remedy: str = ""


PASCAL, VOLTA, TURING, ADA, HOPPER, BLACKWELL = (6, 1), (7, 0), (7, 5), (8, 9), (9, 0), (12, 0)
ROWS = [
    Row("an RTX 4090 with a new driver", linux(nvidia("RTX 4090", ADA, "580.65.06")), ALL, "cu130",
        "RTX 4090 (generation 8.9) with driver 580"),
    Row("the oldest GPU of CUDA 13", linux(nvidia("RTX 2080", TURING, "580.65")), ALL, "cu130", "CUDA 13.0"),
    Row("the same with the driver before", linux(nvidia("RTX 2080", TURING, "579.99")), ALL, "cu126", "CUDA 12.6"),
    Row("a Volta with a new driver", linux(nvidia("V100", VOLTA, "580.65")), ALL, "cu126", "CUDA 12.6"),
    Row("a Pascal", linux(nvidia("GTX 1080", PASCAL, "550.10")), ALL, "cu126", "GTX 1080"),
    Row("a Maxwell with the oldest driver", linux(nvidia("GTX 980", (5, 2), "525.60")), ALL, "cu126", "GTX 980"),
    Row("the driver before that", linux(nvidia("GTX 980", (5, 2), "515.10")), ALL, "cpu", "torch needs 525 or newer",
        "driver 525 or newer"),
    Row("an Ada with an old driver", linux(nvidia("RTX 4070", ADA, "470.5")), ALL, "cpu", "has driver 470.5", "driver 580 or newer"),
    Row("a Kepler", linux(nvidia("K80", (3, 7), "470.5")), ALL, "cpu", "is too old: torch begins at generation 5.0"),
    Row("a Hopper with driver 570", linux(nvidia("H100", HOPPER, "570.1")), ALL, "cu126", "CUDA 12.6"),
    Row("a Hopper with driver 580", linux(nvidia("H100", HOPPER, "580.1")), ALL, "cu130", "CUDA 13.0"),
    Row("a Blackwell with driver 570", linux(nvidia("RTX 5090", BLACKWELL, "570.1")), ALL, "cu128", "CUDA 12.8", "driver 580 or newer"),
    Row("a Blackwell with driver 580", linux(nvidia("RTX 5090", BLACKWELL, "580.1")), ALL, "cu130", "CUDA 13.0"),
    Row("a Blackwell with driver 550", linux(nvidia("RTX 5090", BLACKWELL, "550.1")), ALL, "cpu", "torch needs 570", "driver 580 or newer"),
    Row("no GPU", linux(), ALL, "cpu", "There is no NVIDIA GPU here"),
    Row("a GPU without driver", linux(nvidia("NVIDIA GPU", (0, 0), NO_DRIVER)), ALL, "cpu", "its driver does not answer",
        "driver 580 or newer"),
    Row("the same in WSL", linux(nvidia("NVIDIA GPU", (0, 0), NO_DRIVER), wsl=True), ALL, "cpu", "does not answer", "in Windows"),
    Row("an AMD GPU", linux(Gpu("rocm", "RX 7900", 9, 9, "6", (11, 0))), ALL, "cpu", "RX 7900 needs torch for ROCm", "pytorch.org"),
    Row("two GPUs, one too old for CUDA 13", linux(nvidia("RTX 4070", ADA, "580.1"), nvidia("GTX 1080", PASCAL, "580.1")), ALL, "cu130",
        "GTX 1080 cannot use it"),
    Row("a Jetson Orin", linux(nvidia("Orin", (8, 7), "540.3", shared=True), arch="aarch64"), ("cu130", "cpu"), "cpu", "small boards",
        "JetPack"),
    Row("an old Jetson without NVML", linux(nvidia("Jetson Nano", (0, 0), "", shared=True), arch="aarch64"), ("cpu",), "cpu",
        "small boards", "JetPack"),
    Row("a GH200", linux(nvidia("GH200", HOPPER, "580.1"), arch="aarch64"), ("cu130", "cpu"), "cu130", "CUDA 13.0"),
    Row("no list for this processor", linux(arch="riscv64"), (), None, "no engine for linux on riscv64", "64-bit"),
    Row("a Jetson where no list is", linux(nvidia("Orin", (8, 7), "540", shared=True), arch="aarch64"), (), None, "JetPack", "64-bit"),
    Row("Windows with a GPU", windows(nvidia("RTX 3060", (8, 6), "581.15")), ALL, "cu130", "CUDA 13.0"),
    Row("Windows with an old GPU", windows(nvidia("GTX 1060", PASCAL, "537.4")), ALL, "cu126", "CUDA 12.6"),
    Row("Windows without", windows(), ALL, "cpu", "There is no NVIDIA GPU"),
    Row("an Apple chip", Machine("macos", "arm64"), ("mps",), "mps", "Apple chip"),
    Row("an Intel Mac", Machine("macos", "x86_64"), (), None, "no longer made for Intel Macs", "Apple chip"),
    Row("no GPU, and PyPI's Linux list alone", linux(), ("cu130",), "cu130",
        "brings no engine for processor; the one for CUDA 13.0 computes on the processor too"),
    Row("a GPU, and PyPI's Windows list alone", windows(nvidia("RTX 3060", (8, 6), "581.15")), ("cpu",), "cpu",
        "brings no engine for CUDA 13.0; the one for processor is taken"),
    Row("a Blackwell with driver 570 and no cu128", linux(nvidia("RTX 5090", BLACKWELL, "570.1")), ("cu130", "cu126", "cpu"), "cpu",
        "brings no engine for CUDA 12.8; the one for processor is taken", "driver 580 or newer"),
    Row("a driver that does not tell its version", linux(nvidia("RTX 4070", ADA, "")), ALL, "cpu", "driver of an unknown version",
        "driver 580"),
    Row("a generation that is not told", linux(nvidia("NVIDIA GPU", (0, 0), "580.1")), ALL, "cu130", "NVIDIA GPU with driver 580.1"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_engine_for_a_computer(row: Row) -> None:
    found = choose(row.machine, row.offered)
    assert found.backend == row.backend, found
    assert row.why in found.why and row.remedy in found.remedy, found
    assert bool(found.remedy) == bool(row.remedy), found
    assert {option.backend for option in found.options} == set(row.offered)
    assert not found.options or found.options[0].backend == row.backend


def test_every_offered_engine_says_whether_it_works_here_and_what_it_takes() -> None:
    def offer(backend: str, size: int) -> EngineList:
        return EngineList("linux", "x86_64", backend, "cp312", (Wheel("a", "1", "a-1-py3-none-any.whl", size, "0" * 64),))

    offered = {backend: offer(backend, size) for backend, size in (("cu130", 3000), ("cu126", 2000), ("cpu", 400))}
    found = choose(linux(nvidia("GTX 1080", PASCAL, "580.1")), offered)
    assert [(each.backend, each.works, each.download, each.unpacked) for each in found.options] == [
        ("cu126", True, 2000, 4000),
        ("cu130", False, 3000, 6000),
        ("cpu", True, 400, 800),
    ]
    assert "generation 7.5 or later with driver 580 or newer" in found.options[1].why


def test_without_what_fits_the_smallest_that_is_offered_is_taken() -> None:
    def offer(backend: str, size: int) -> EngineList:
        return EngineList("linux", "x86_64", backend, "cp312", (Wheel("a", "1", "a-1-py3-none-any.whl", size, "0" * 64),))

    assert choose(linux(), {"cu130": offer("cu130", 3000), "cu126": offer("cu126", 2000)}).backend == "cu126"
