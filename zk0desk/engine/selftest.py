"""Whether an engine works on this computer: in a process of its own, which may fail in any way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from zk0desk.control import NodeControl, Stopped
from zk0desk.engine import activation, missing
from zk0desk.engine.store import Installed

LIMIT_S = 300.0
"""Seconds: the first import after unpacking makes the bytecode too, and a GPU's first call can take a minute."""
TOLERANCE = 5e-3
"""Relative: float32 gives 1e-6, TF32 1e-3; a wrong product is off by 1."""


@dataclass(frozen=True)
class SelfTest:
    """`usable`: everything could be imported.

    `ok`: and the device computed right. `device`: "cuda", "mps" or "cpu", "" where nothing could.
    """

    ok: bool
    usable: bool
    device: str
    sentence: str
    remedy: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    build: str = ""

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return asdict(self)


def run(engine: Installed | None, control: NodeControl | None = None, *, limit_s: float = LIMIT_S) -> SelfTest:
    """Test `engine` (None: what this environment holds). Raises `Stopped` when `control` says so; everything else is in the answer."""
    began = time.monotonic()
    command = [sys.executable, "-m", "zk0desk.engine.selftest_child", *([engine.folder] if engine else [])]
    environment = {**os.environ, activation.CHOSEN: "none"} if engine else dict(os.environ)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment, start_new_session=True)
        try:
            in_time = _wait(process, control, began + limit_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said, complaint = _text(output), _text(errors)
    seconds = time.monotonic() - began
    if not in_time:
        return _broken(f"it was not done within {limit_s:.0f} s", seconds)
    if process.returncode != 0:
        return _broken(last_words(process.returncode, complaint), seconds)
    for line in reversed(said.splitlines()):
        try:
            return _judged(json.loads(line), seconds)
        except (ValueError, KeyError, TypeError):
            continue  # a library's own words
    return _broken("it said nothing", seconds)


def _wait(process: subprocess.Popen[bytes], control: NodeControl | None, until: float) -> bool:
    while True:
        if control and control.stopping:
            raise Stopped
        try:
            process.wait(0.1)
            return True
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                return False


def _judged(told: dict[str, Any], seconds: float) -> SelfTest:
    versions = {str(name): str(value) for name, value in told["versions"].items()}
    build = "rocm" if told["hip"] else f"cuda {told['cuda']}" if told["cuda"] else "cpu"
    seen, name = str(told["sees"]), str(told.get("name", ""))
    if told["error"] or float(told["wrong"]) > TOLERANCE:
        trouble = told["error"] or f"a product of two matrices came out wrong by {100 * float(told['wrong']):.0f} %."
        where = {"cuda": "the GPU", "mps": "the Apple GPU", "cpu": "the processor"}.get(seen, seen)
        sentence = f"The engine is there, and {where} does not compute with it: {trouble}"
        remedy = (
            "Update the GPU's driver, or choose the engine for the processor: zk0desk engine get --backend cpu" if seen != "cpu" else ""
        )
        return SelfTest(False, seen != "cpu", seen, sentence, remedy, seconds, versions, build)
    where = f"the GPU {name}".strip() if seen == "cuda" else "the Apple GPU" if seen == "mps" else "the processor"
    sentence = (
        f"The engine works: torch {versions['torch']}, LeRobot {versions['lerobot']} and flwr {versions['flwr']}, computing on {where}."
    )
    return SelfTest(True, True, seen, sentence, "", seconds, versions, build)


def _broken(why: str, seconds: float) -> SelfTest:
    return SelfTest(False, False, "", f"The engine cannot be loaded: {why}.", missing.remedy(broken=True), seconds)


def _text(file: Any) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 100_000))
    return bytes(file.read()).decode("utf-8", "replace")


def last_words(status: int, stderr: str) -> str:
    """Why a child process ended: the last line that it wrote, or the signal that ended it."""
    if status < 0:
        names = {signal.SIGILL: "an instruction that this processor does not have", signal.SIGSEGV: "a fault in its own code"}
        number = -status
        return f"it was ended by {names.get(signal.Signals(number), signal.Signals(number).name)}"
    return (stderr.strip().splitlines() or [f"exit status {status}"])[-1][:300]
