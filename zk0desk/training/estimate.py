"""How long a round takes on this computer, put together from what real steps on the real recordings took (`measure.py`). No torch.

What was measured is kept for (device, precision, policy, camera sizes, level of the prefix cache), and real training corrects it. How a
round's time is put together:

    the run's start + steps * (computing a batch + waiting for it) + first visits * what they add

Computing grows with the batch from a fixed part (the optimiser, the proximal term, launching kernels). At the levels V and P a step is
one over prepared frames; a frame's first visit adds its preparing, and the decoding of its pictures, which no later visit needs. At the
other levels every visit needs the pictures: they stay in memory while they fit, so that only the first visit decodes. Decoding is done
beside training, on the cores that training leaves free, and only what takes longer than the steps on those frames adds to the round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from zk0desk.training.frames import KEEP_BYTES
from zk0desk.training.round_steps import planned_steps
from zk0desk.training.rounds import RoundPlan

REMEMBERED_STEPS = 2000
"""Measured training counts as at most so many steps against what comes after it."""
KEEPING = ("V", "P")
"""The levels at which a frame's entry is kept for its later visits."""
LEVELS = ("off", "N", *KEEPING)


class Key(NamedTuple):
    """What an estimate is kept for: device, its name, precision, policy, camera sizes, level of the prefix cache."""

    device: str
    device_name: str
    precision: str
    policy_id: str
    cameras: tuple[str, ...]
    level: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What steps of `batch` frames took: seconds, bytes. `date` is Unix time.

    `compute_s` a step's computing, `frame_s` what a frame more or less adds to it, `wait_s` a step's waiting for data: all of frames that
    were visited before. `decode_s` decoding a frame's pictures for the first time, which take `picture_bytes`. `level` is that of the
    prefix cache, `expected` the one that the files alone let expect (`prefix_estimate`); `prepare_s` what a frame's first visit adds at V
    and P, without decoding; `start_s` a run's start, with its check of the step. `steps` were measured; `trained_steps` of real training
    have corrected it by `factor`.

    Of the recordings: their `frames`, how many of them are `prepared` now at this level, and the `share` of them (0 to 1) that is kept.
    """

    device: str
    device_name: str
    precision: str
    policy_id: str
    cameras: tuple[str, ...]
    level: str
    expected: str
    frames: int
    prepared: int = 0
    share: float = 1.0
    batch: int
    micro_batch: int
    steps: int
    compute_s: float
    frame_s: float
    wait_s: float
    decode_s: float
    prepare_s: float
    start_s: float
    picture_bytes: int
    peak_memory: int
    date: float
    factor: float = 1.0
    trained_steps: int = 0

    @property
    def key(self) -> Key:
        """What an estimate is kept for."""
        return Key(self.device, self.device_name, self.precision, self.policy_id, tuple(self.cameras), self.level)

    @property
    def step_seconds(self) -> float:
        """Seconds of a step of `batch` frames that were visited before."""
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
    def keeps(self) -> bool:
        """Whether a frame that was visited is prepared: a later visit needs neither its pictures nor the backbone."""
        return self.level in KEEPING

    @property
    def stays(self) -> bool:
        """Whether a frame is decoded once: it is prepared then, or all decoded pictures stay in memory."""
        return self.keeps or self.frames * self.picture_bytes <= KEEP_BYTES

    def round_seconds(self, plan: RoundPlan, *, seen: bool = False) -> float:
        """Seconds of a run's first round of `plan` on these recordings; `seen`: of a later one, when all that is kept was visited."""
        return self._later(plan) if seen else next(self.rounds_seconds(1, plan))

    def rounds_seconds(self, rounds: int, plan: RoundPlan) -> Iterator[float]:
        """Seconds of each of `rounds` rounds of `plan`, one after the other, from the run's start on."""
        steps, kept = planned_steps(plan, self.frames), self._kept
        for number in range(rounds):
            seconds, kept = self._round(steps, plan.batch_size, kept)
            yield seconds + (0.0 if number else self.start_s)

    def run_seconds(self, rounds: int, plan: RoundPlan) -> float:
        """Seconds of training in `rounds` rounds of `plan`, one after the other."""
        return sum(self.rounds_seconds(rounds, plan))

    def later_seconds(self, rounds: int, plan: RoundPlan) -> float:
        """Seconds of a round after the first of `rounds`, in the mean: first visits come until all frames were visited."""
        later = list(self.rounds_seconds(rounds, plan))[1:]
        return sum(later) / len(later) if later else self._later(plan)

    def new_frames(self, plan: RoundPlan) -> int:
        """Frames that are prepared in the first round of `plan`; 0 where none are kept."""
        visits = self._visits(planned_steps(plan, self.frames), plan.batch_size)
        return round(self.frames * self._newly(visits, self._kept)[1]) if self.keeps else 0

    def preparing_seconds(self, plan: RoundPlan) -> float:
        """Of the seconds of the first round, those that its frames' first visits add."""
        return self.round_seconds(plan) - self.start_s - self._later(plan)

    def share_done(self, plan: RoundPlan, seconds: float) -> float:
        """The share of the first round's steps, 0 to 1, that is done in so many seconds."""
        steps, low, high = planned_steps(plan, self.frames), 0.0, 1.0
        for _ in range(30):
            share = (low + high) / 2
            if self.start_s + self._round(steps * share, plan.batch_size, self._kept)[0] <= seconds:
                low = share
            else:
                high = share
        return low

    def corrected(self, steps: int, seconds: float, *, batch: int = 0) -> Estimate:
        """This estimate after `steps` steps of `batch` frames (0: as measured) that took `seconds` of real training.

        All of their frames were visited before, where such frames are prepared.
        """
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
        """What `to_json` wrote. KeyError, TypeError or ValueError when it is something else, an estimate of an older version too."""
        values = {field.name: data[field.name.replace("_", "-")] for field in fields(cls)}
        values["cameras"] = tuple(str(size) for size in values["cameras"])
        made = cls(**values)
        positive = made.batch >= 1 and made.compute_s > 0 and made.factor > 0 and made.frames >= 1
        if not (positive and made.level in LEVELS and made.prepare_s >= 0 and made.start_s >= 0 and 0 <= made.share <= 1):
            raise ValueError("no estimate")
        return made

    # --- parts

    def _step(self, batch: float) -> float:
        """Seconds of a step of `batch` frames. What does not depend on the batch is never negative."""
        fixed = max(0.0, self.compute_s - self.batch * self.frame_s)
        return self.factor * (fixed + batch * ((self.compute_s - fixed) / self.batch + self.wait_s / self.batch))

    def _visits(self, steps: float, batch: int) -> float:
        """Visits of frames in `steps` steps. The last batch of a pass is what is left of it."""
        return min(steps * batch, steps / -(-self.frames // batch) * self.frames)

    @property
    def _kept(self) -> float:
        """The share of the frames that need no first visit when a run begins."""
        return min(1.0, self.prepared / self.frames) if self.keeps else 0.0

    @property
    def _most(self) -> float:
        """The share of the frames that need no first visit after many rounds."""
        return max(self._kept, self.share) if self.keeps else 1.0

    def _newly(self, visits: float, kept: float) -> tuple[float, float]:
        """The share of the frames that is met for the first time in so many visits, and of that what is kept."""
        fresh = min(1.0, visits / self.frames) * (1 - kept)
        return fresh, min(fresh, max(0.0, self._most - kept))

    def _later(self, plan: RoundPlan) -> float:
        return self._round(planned_steps(plan, self.frames), plan.batch_size, self._most)[0]

    def _round(self, steps: float, batch: int, kept: float) -> tuple[float, float]:
        """Seconds of so many steps where the share `kept` of the frames needs no first visit, and that share after them."""
        visits = self._visits(steps, batch)
        fresh, newly = self._newly(visits, kept)
        trained = steps * self._step(visits / steps)
        if not self.stays:  # every visit decodes, which is waiting for data
            return trained, kept + newly
        # A frame that is not kept is as new at each of its visits.
        first = self.frames * (newly + (fresh - newly) * max(1.0, visits / self.frames))
        preparing, decoding = first * self.prepare_s * self.factor, first * self.decode_s * self.factor
        return trained + preparing + max(0.0, decoding - preparing - trained * first / visits), kept + newly
