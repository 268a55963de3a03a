"""How long a round takes on this computer: a few real steps are timed, on the real recordings, when a person asks for it.

What was measured is kept for (device, precision, policy, camera sizes), and real training corrects it. torch is loaded by `measure`
alone. How a round's time is put together:

    steps * (computing a batch + waiting for it) + decoding what is visited for the first time

Computing grows with the batch from a fixed part (the optimiser, the proximal term, launching kernels). Decoded pictures stay in memory
while they fit, so that only the first visit of a frame decodes; that is done beside training, on the cores that training leaves free,
and only what takes longer than the training of those frames adds to the round.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.control import NodeControl
from zk0desk.events import Event, Notice, RoundStarted, Sink, StepDone
from zk0desk.settings import ChosenRecording, Training
from zk0desk.training.container_limits import usable_cores
from zk0desk.training.frames import KEEP_BYTES, RUN
from zk0desk.training.policy_size import BATCH
from zk0desk.training.rounds import RoundPlan

if TYPE_CHECKING:
    import torch

    from zk0desk.training.frames import Frames

STEP_LIMIT_S = 12.0
"""A batch that takes longer is measured smaller."""
MEASURED_S = 15.0
"""Seconds of steps that are measured, but at least `MIN_STEPS`."""
MIN_STEPS, MAX_STEPS = 2, 8
REMEMBERED_STEPS = 2000
"""Measured training counts as at most so many steps against what comes after it."""


Key = tuple[str, str, str, str, tuple[str, ...]]
"""What an estimate is kept for: device, its name, precision, policy, camera sizes."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What steps of `batch` frames took: seconds, bytes. `date` is Unix time.

    `compute_s` a step's computing, `frame_s` what a frame more or less adds to it, `wait_s` a step's waiting for data whose pictures
    were seen before, `decode_s` decoding a frame's pictures for the first time, which take `picture_bytes`. `frames` are those of the
    recordings. `steps` were measured; `trained_steps` of real training have corrected it by `factor`.
    """

    device: str
    device_name: str
    precision: str
    policy_id: str
    cameras: tuple[str, ...]
    frames: int
    batch: int
    micro_batch: int
    steps: int
    compute_s: float
    frame_s: float
    wait_s: float
    decode_s: float
    picture_bytes: int
    peak_memory: int
    date: float
    factor: float = 1.0
    trained_steps: int = 0

    @property
    def key(self) -> Key:
        """What an estimate is kept for."""
        return (self.device, self.device_name, self.precision, self.policy_id, tuple(self.cameras))

    @property
    def step_seconds(self) -> float:
        """Seconds of a step of `batch` frames, after its pictures were seen once."""
        return self._step(self.batch)

    @property
    def waiting(self) -> float:
        """The share of a step, 0 to 1, that waits for data."""
        return self.wait_s / (self.compute_s + self.wait_s) if self.wait_s else 0.0

    @property
    def frames_per_second(self) -> float:
        """Frames that are trained on in a second."""
        return self.batch / self.step_seconds

    @property
    def stays(self) -> bool:
        """Whether all decoded pictures stay in memory, so that a frame is decoded once."""
        return self.frames * self.picture_bytes <= KEEP_BYTES

    def _step(self, batch: float) -> float:
        """Seconds of a step of `batch` frames. What does not depend on the batch is never negative."""
        fixed = max(0.0, self.compute_s - self.batch * self.frame_s)
        return self.factor * (fixed + batch * ((self.compute_s - fixed) / self.batch + self.wait_s / self.batch))

    def round_seconds(self, plan: RoundPlan, *, seen: bool = False) -> float:
        """Seconds that a round of `plan` takes on the recordings that were measured; `seen`: their pictures are in memory already."""
        a_pass = -(-self.frames // plan.batch_size)
        steps = plan.local_steps or max(1, round(plan.local_epochs * a_pass))
        # The last batch of a pass is what is left of it.
        visits = min(steps * plan.batch_size, steps / a_pass * self.frames)
        trained = steps * self._step(visits / steps)
        if seen or not self.stays:
            return trained
        new = min(visits, self.frames)
        decoding = new * self.decode_s * self.factor
        return trained + max(0.0, decoding - trained * new / visits)

    def run_seconds(self, rounds: int, plan: RoundPlan) -> float:
        """Seconds of training in `rounds` rounds of `plan`, one after the other."""
        return self.round_seconds(plan) + max(0, rounds - 1) * self.round_seconds(plan, seen=True)

    def corrected(self, steps: int, seconds: float, *, batch: int = 0) -> Estimate:
        """This estimate after `steps` steps of `batch` frames (0: as measured) that took `seconds` of real training."""
        if steps < 1 or not seconds > 0:
            return self
        expected = steps * self._step(batch or self.batch)
        before = self.trained_steps or self.steps
        ratio = (before + steps * seconds / expected) / (before + steps)
        return replace(self, factor=self.factor * ratio, trained_steps=min(REMEMBERED_STEPS, self.trained_steps + steps))

    def to_json(self) -> dict[str, Any]:
        """The estimate as a JSON object, keys in kebab-case."""
        data = {name.replace("_", "-"): value for name, value in asdict(self).items()}
        return {**data, "step-seconds": self.step_seconds, "waiting": self.waiting, "frames-per-second": self.frames_per_second}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Estimate:
        """What `to_json` wrote. KeyError, TypeError or ValueError when it is something else."""
        values = {field.name: data[field.name.replace("_", "-")] for field in fields(cls)}
        values["cameras"] = tuple(str(size) for size in values["cameras"])
        made = cls(**values)
        if not (made.batch >= 1 and made.compute_s > 0 and made.factor > 0 and made.frames >= 1):
            raise ValueError("no estimate")
        return made


def duration(seconds: float) -> str:
    """Seconds for a person: "45 s", "38 min", "2 h 10 min"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{round(seconds / 3600)} h"


# --- measuring


def measure(
    policy_folder: Path,
    recordings: Sequence[ChosenRecording],
    settings: Training,
    *,
    batch_size: int = BATCH,
    control: NodeControl,
    emit: Sink,
) -> Estimate:
    """Load the policy and time real steps of training on `recordings`; the estimate is kept. It takes a minute or two at full size.

    The policy and the recordings stay as they are. `emit` is given each `StepDone` and each `Notice`. Raises `Stopped` when `control` is
    asked to stop, and what loading and training raise: `PolicyError`, `RecordingError`, `EngineMissingError`, `RoundFailedError`.
    """
    from zk0desk.training.kept_estimates import keep, key_of
    from zk0desk.training.loading import load_engine

    load_engine()
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.trainer import LocalTrainer

    policy = TrainablePolicy.load(Path(policy_folder))
    control.check()
    steps = _Steps(emit)
    trainer = LocalTrainer(
        policy, recordings, node="estimate", device=settings.device, precision=settings.precision, micro_batch=settings.micro_batch,
        memory_free=settings.memory_free, threads=settings.threads, emit=steps, control=control,
    )  # fmt: skip
    start, frames = policy.get_weights(), policy.frames_of(recordings)
    decode_s = _decoding(frames)
    control.check()

    def timed(batch: int, count: int) -> tuple[float, float]:
        """Median computing and mean waiting of `count` steps, after one that is left out."""
        for again in range(2):
            # Where pictures stay, the second time finds them decoded; where not, it meets other frames, as training does.
            steps.clear()
            trainer.train(_plan(batch, count + 1, round=1 if frames.stay else again + 1), start)
        return statistics.median(steps.computing[1:]), statistics.fmean(steps.waiting[1:])

    with _PeakMemory(policy.device) as peak:
        batch = min(batch_size, trainer.frames)
        first = min(2, batch)
        trainer.train(_plan(first, 2), start)
        a_frame = steps.computing[-1] / first
        while batch > first and batch * a_frame > STEP_LIMIT_S:
            batch //= 2
        count = max(MIN_STEPS, min(MAX_STEPS, int(MEASURED_S / (batch * a_frame))))
        compute_s, wait_s = timed(batch, count)
        fewer = max(1, batch // 4)
        frame_s = (compute_s - timed(fewer, count)[0]) / (batch - fewer) if fewer < batch else compute_s / batch
    device, name, precision, fingerprint, cameras = key_of(policy, trainer, recordings)
    estimate = Estimate(
        device=device,
        device_name=name,
        precision=precision,
        policy_id=fingerprint,
        cameras=cameras,
        frames=trainer.frames,
        batch=batch,
        micro_batch=min(batch, trainer.micro_batch or batch),
        steps=count,
        compute_s=compute_s,
        frame_s=min(max(frame_s, 0.0), compute_s / batch),
        wait_s=wait_s,
        decode_s=decode_s,
        picture_bytes=frames.picture_bytes,
        peak_memory=peak.bytes,
        date=time.time(),
    )
    keep(estimate)
    return estimate


def _plan(batch: int, steps: int, round: int = 1) -> RoundPlan:
    # The same seed and round give the same frames in the same order.
    return RoundPlan(run="estimate", round=round, rounds=1, seed=0, lr=1e-4, mu=0.01, batch_size=batch, local_steps=steps)


class _Steps:
    """Takes the trainer's events: how long each step computed, and how long it waited for its data before."""

    def __init__(self, emit: Sink) -> None:
        self._emit = emit
        self.clear()

    def clear(self) -> None:
        self.computing: list[float] = []
        self.waiting: list[float] = []
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RoundStarted):
            self._last = time.monotonic()
        if isinstance(event, StepDone):
            now = time.monotonic()
            self.computing.append(event.seconds)
            self.waiting.append(max(0.0, now - self._last - event.seconds))
        if isinstance(event, (StepDone, Notice)):
            self._emit(event)
        self._last = time.monotonic()


def _decoding(frames: Frames) -> float:
    """Seconds a frame of decoding pictures that were not seen before, on the threads that the trainer uses."""
    threads = min(4, usable_cores())
    with ThreadPoolExecutor(threads, "zk0desk-decode") as pool:
        indices = list(range(len(frames)))
        if len(frames) > 2 * RUN:
            frames.batch([0], pool)  # what is loaded at the first time
            indices = list(range(RUN, min(len(frames), RUN + threads * RUN)))
        # In an order that gives each thread something else to decode; without room to keep them, each picture for itself.
        indices = np.random.default_rng(0).permutation(indices).tolist()[: None if frames.stay else 8 * threads]
        group = [indices[place] for place in frames.alike(indices)[0]]
        began = time.monotonic()
        frames.batch(group, pool)
        return (time.monotonic() - began) / len(group)


class _PeakMemory:
    """The most memory of `device` that was in use meanwhile: PyTorch's on a GPU, this process's on a processor."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._done = threading.Event()
        self.bytes = 0

    def __enter__(self) -> _PeakMemory:
        import torch

        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._thread = threading.Thread(target=self._watch, name="zk0desk-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        self._done.set()
        self._thread.join()
        if self._device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_reserved(self._device))

    def _watch(self) -> None:
        import psutil
        import torch

        own = psutil.Process()
        while True:
            used = torch.mps.driver_allocated_memory() if self._device.type == "mps" else own.memory_info().rss
            self.bytes = max(self.bytes, int(used))
            if self._done.wait(0.05):
                return
