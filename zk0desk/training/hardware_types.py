"""What is known of a computer, and what is said about it. Plain data: any computer can be described in a test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from zk0desk.errors import ExitStatus
from zk0desk.gpus import Gpu
from zk0desk.training.recording_types import Finding

Answer = Literal["ok", "limits", "no"]
Precision = Literal["fp32", "bf16"]
ENGINE = ("torch", "lerobot", "flwr")
"""Without one of these nothing is trained."""


@dataclass(frozen=True)
class Computer:
    """What was seen of a computer. Bytes; `versions` maps a library to its version, "" where it is not installed.

    `memory`, `memory_free` and `cores` are what this process may use: a container's limits are applied. `memory_limit` and `cpu_limit`
    (cores) say that there are such limits, or are 0. `disk_place` is where runs are kept, `disk_free` what is free there. `torch_build`
    is "cpu", or such as "cuda 13.0" and "rocm 6.4", or "" where it is not known; `torch_sees` what torch itself finds ("cuda", "mps",
    "cpu"), or "" where it was not asked. `display` is None and `keyring` "" where nobody looked.
    """

    system: str
    cpu: str
    cores: int
    instructions: tuple[str, ...]
    memory: int
    memory_free: int
    disk_free: int
    versions: dict[str, str]
    gpus: tuple[Gpu, ...] = ()
    engine_error: str = ""
    torch_build: str = ""
    torch_sees: str = ""
    display: bool | None = None
    keyring: str = ""
    wsl: bool = False
    container: bool = False
    memory_limit: int = 0
    cpu_limit: float = 0.0
    disk_place: str = ""

    def to_json(self) -> dict[str, Any]:
        """The computer as a JSON object, keys in kebab-case."""
        data: dict[str, Any] = _kebab(asdict(self))
        data["gpus"] = [_kebab(gpu) for gpu in data["gpus"]]
        return data


@dataclass(frozen=True)
class Verdict:
    """Whether the policy trains here: `ok`, with `limits`, or `no`; on which device, how, and why.

    `memory_needed` are bytes of the device's memory with `micro_batch` frames at once, `memory_left` what then stays free of it.
    `micro_batch` is 0 where not even one frame fits.
    """

    answer: Answer
    sentence: str
    device: str
    memory_needed: int
    findings: tuple[Finding, ...] = ()
    precision: Precision = "fp32"
    micro_batch: int = 0
    memory_left: int = 0

    @property
    def exit_status(self) -> ExitStatus:
        """0 it works, 3 with limits, 4 not."""
        return {"ok": ExitStatus.OK, "limits": ExitStatus.REPAIRABLE, "no": ExitStatus.UNUSABLE}[self.answer]

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object, keys in kebab-case."""
        return {
            "status": self.answer,
            "sentence": self.sentence,
            "device": self.device,
            "precision": self.precision,
            "micro-batch": self.micro_batch,
            "memory-needed": self.memory_needed,
            "memory-left": self.memory_left,
            "findings": [finding.to_json() for finding in self.findings],
        }


def _kebab(fields: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in fields.items()}
