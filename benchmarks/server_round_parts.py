"""What both sides of `server_round.py` share: what is measured, processes that end with it, and the memory of the one that aggregates."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

HERE = Path(__file__).parent
PROJECTIONS = ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")
PIECE = 4 * 2**20
"""Values of one array: 16 MiB. Both sides send arrays of this size."""


@dataclass(frozen=True)
class Case:
    """What is run: `values` of the trainable set, `nodes`, and `rounds` that are timed (one more, the first, is not).

    `on_disk`: the SuperLink keeps messages in a database, and stock's SuperLink speaks TLS; else in memory, and stock without TLS.
    `encoding` is ours, empty for the settings' default; stock sends fp32.
    """

    values: int
    nodes: int
    on_disk: bool
    rounds: int
    encoding: str = ""


@dataclass(frozen=True)
class Measured:
    """Seconds of each timed round; processor seconds of a round, by the processes' part; the aggregating process's peak memory in MB
    (`total`, `anonymous`, `file`); seconds of a round's parts (medians); and bytes of one update."""

    seconds: list[float]
    cpu: dict[str, float]
    memory: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)
    update_bytes: int = 0


class Memory:
    """The peak memory of a process, looked at fifty times a second: `total` is the kernel's own high-water mark."""

    def __init__(self, pid: int) -> None:
        self._path, self._ended = Path(f"/proc/{pid}/status"), threading.Event()
        self.peak = {"total": 0.0, "anonymous": 0.0, "file": 0.0}
        self.series: list[tuple[float, float]] = []
        """When, and how much was anonymous then, in MB."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            try:
                lines = dict(line.split(":", 1) for line in self._path.read_text().splitlines())
                kib = {name: int(lines[name].split()[0]) for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")}
            except (OSError, KeyError, ValueError):
                continue  # it has ended, or is about to
            self.series.append((time.time(), kib["RssAnon"] * 1024 / 1e6))
            now = {"total": kib["VmHWM"], "anonymous": kib["RssAnon"], "file": kib["RssFile"] + kib["RssShmem"]}
            self.peak = {name: max(peak, now[name] * 1024 / 1e6) for name, peak in self.peak.items()}

    def stop(self) -> dict[str, float]:
        """End, and the peaks in MB."""
        self._ended.set()
        self._thread.join()
        return self.peak


class Cpu:
    """Processor time of processes and of those that they started, by the part that they play (`parts`: process ids)."""

    def __init__(self) -> None:
        self.parts: dict[str, list[int]] = {}
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """Count from now on."""
        self._before = self._now()

    def of_a_round(self, rounds: int) -> dict[str, float]:
        """Seconds since `begin`, over `rounds`."""
        return {part: (seconds - self._before[part]) / rounds for part, seconds in self._now().items()}

    def _now(self) -> dict[str, float]:
        named = {pid for pids in self.parts.values() for pid in pids}
        return {part: sum(_processor_time(psutil.Process(pid), named) for pid in pids) for part, pids in self.parts.items()}


def _processor_time(process: psutil.Process, apart: set[int]) -> float:
    """Of a process and all that it started, but those that are counted apart."""
    try:
        times = process.cpu_times()
        below = [each for each in process.children() if each.pid not in apart]
    except psutil.NoSuchProcess:
        return 0.0
    own = times.user + times.system + times.children_user + times.children_system
    return own + sum(_processor_time(each, apart) for each in below)


def make_policy(folder: Path, values: int) -> Path:
    """Files that read as a SmolVLA policy with `values` trainable values and a backbone of a few."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    tensors = {f"model.{name}.weight": rng.standard_normal((4, 4), dtype=np.float32) for name in PROJECTIONS}
    left = values - 16 * len(PROJECTIONS)
    for number, start in enumerate(range(0, left, PIECE)):
        layer = rng.standard_normal(min(PIECE, left - start), dtype=np.float32) * np.float32(0.02)
        tensors[f"model.vlm_with_expert.lm_expert.layers.{number}.weight"] = layer
    tensors["model.vlm_with_expert.vlm.weight"] = rng.standard_normal((30, 4), dtype=np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": "smolvla"}))
    return folder


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def started(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process with its output in `log`, ended with all that it started when the block is left."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True, env=environment, start_new_session=True
        )
    family = psutil.Process(process.pid)
    try:
        yield process
    finally:
        below = family.children(recursive=True) if process.poll() is None else []
        for each in (family, *below):
            try:
                each.send_signal(signal.SIGTERM)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs([*below], timeout=3)
        for each in alive:
            each.kill()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def python(script: str, *arguments: object) -> list[str]:
    """The command that runs a program of this folder."""
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def wait_for[T](found: Callable[[], T], seconds: float, what: str, log: Path) -> T:
    """The first true value of `found()`; ends the program with the log's end when there is none in time."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if value := found():
            return value
        time.sleep(0.05)
    end = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    raise SystemExit(f"{what} did not come within {seconds:.0f} s.\n{end}")


def quiet_environment(folder: Path) -> dict[str, str]:
    """No telemetry, nothing of this computer's own settings, and commands of this Python's folder."""
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    places = {"FLWR_HOME": str(folder / "flwr"), "ZK0DESK_HOME": str(folder / "home"), "TMPDIR": str(folder)}
    return {**os.environ, **places, "PATH": commands, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
