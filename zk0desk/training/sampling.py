"""A stratified sample of frames, and what it says about all of them: a ratio estimate with its standard error.

The strata are the episodes' tasks within a recording, so that each episode, task and recording is in the sample with its share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zk0desk.training.frames import Frames
from zk0desk.training.noise import seed_of

LEAST = 2
"""Frames of each stratum, where it has as many: with one there is no telling how much frames differ."""


@dataclass(frozen=True)
class Stratum:
    """All frames of one task in one episode of one recording. `key` names it by its content, whatever else is evaluated."""

    recording: int
    task: str
    frames: np.ndarray
    key: str


@dataclass(frozen=True)
class Mean:
    """A mean over the valid entries of `of` frames, estimated from `frames` of them, with its standard error (0 when all were seen).

    `frames_error` is the standard error as a statement on other frames like these, each with noise of its own (0: too few to tell).
    """

    loss: float
    standard_error: float
    frames: int
    of: int
    frames_error: float = 0.0


@dataclass(frozen=True)
class SeenFrames:
    """The frames that an evaluation saw, in order: each one's recording (a number in `names`), mean loss, and valid entries."""

    names: tuple[str, ...] = ()
    recordings: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    losses: np.ndarray = field(default_factory=lambda: np.empty(0))
    entries: np.ndarray = field(default_factory=lambda: np.empty(0))

    def mean(self, numbers: Sequence[int] | None = None) -> tuple[float, float]:
        """Mean loss over the valid entries of the recordings `numbers` (default: all), and its standard error; NaN without frames.

        The error is that of a ratio estimate from frames drawn alike, each with noise of its own: how far the loss on other such
        frames may be. Frames of one episode resemble each other, so that it is rather too small.
        """
        chosen = self._of(numbers)
        return _ratio(self.losses[chosen], self.entries[chosen])

    def difference(self, other: SeenFrames, numbers: Sequence[int] | None = None) -> tuple[float, float]:
        """This mean less that of `other`, which saw the same frames with the same noise, and the difference's standard error.

        Far smaller than the errors of the two: what makes a frame hard is taken out. ValueError unless the frames are the same.
        """
        if self.names != other.names or not np.array_equal(self.entries, other.entries):
            raise ValueError("the two evaluations saw different frames")
        chosen = self._of(numbers)
        return _ratio((self.losses - other.losses)[chosen], self.entries[chosen])

    def _of(self, numbers: Sequence[int] | None) -> np.ndarray:
        return np.ones(len(self.losses), bool) if numbers is None else np.isin(self.recordings, list(numbers))


def _ratio(values: np.ndarray, entries: np.ndarray) -> tuple[float, float]:
    total = float(entries.sum())
    if not total:
        return math.nan, math.nan
    mean = float(values @ entries) / total
    if len(values) < 2:
        return mean, math.nan
    variance = len(values) * float(np.var(entries * (values - mean), ddof=1))
    return mean, math.sqrt(variance) / total


def strata_of(frames: Frames) -> list[Stratum]:
    """The strata of all frames, in order."""
    found: list[Stratum] = []
    for number, table in enumerate(frames.tables):
        groups: dict[tuple[int, str], list[int]] = {}
        for row in range(len(table)):
            groups.setdefault((int(table.first[row]), table.tasks[row]), []).append(row)
        start = int(frames.starts[number])
        for (first, task), rows in groups.items():
            found.append(Stratum(number, task, start + np.asarray(rows), f"{table.content} {first} {task}"))
    return found


def draw_sample(strata: Sequence[Stratum], size: int, seed: int) -> list[np.ndarray]:
    """Frames of each stratum, without repetition: in all `size` in proportion to the strata, but two of each. 0: all frames.

    Which ones a stratum gives depends on its content, its number of frames and the seed alone.
    """
    sizes = np.array([len(stratum.frames) for stratum in strata])
    if not size or size >= sizes.sum():
        return [stratum.frames for stratum in strata]
    exact = size * sizes / sizes.sum()
    counts = np.floor(exact).astype(int)
    for place in np.argsort(-(exact - counts), kind="stable")[: size - counts.sum()]:
        counts[place] += 1
    counts = np.minimum(np.maximum(counts, LEAST), sizes)
    drawn = []
    for stratum, count in zip(strata, counts, strict=True):
        order = np.random.default_rng(seed_of("sample", seed, stratum.key)).permutation(len(stratum.frames))
        drawn.append(np.sort(stratum.frames[order[:count]]))
    return drawn


def estimate(sizes: Sequence[int], losses: Sequence[np.ndarray], entries: Sequence[np.ndarray]) -> Mean:
    """The mean loss over all valid entries of strata of `sizes` frames, from the losses and entry counts of those drawn of each.

    A ratio estimate: sum of N/n * loss * entries over sum of N/n * entries. Its variance is the usual linearised one, with
    the correction for finite strata.
    """
    weights = [size / len(each) if len(each) else 0.0 for size, each in zip(sizes, losses, strict=True)]
    top = sum(weight * float(loss @ count) for weight, loss, count in zip(weights, losses, entries, strict=True))
    bottom = sum(weight * float(count.sum()) for weight, count in zip(weights, entries, strict=True))
    mean = top / bottom if bottom else math.nan
    variance = 0.0
    for size, loss, count in zip(sizes, losses, entries, strict=True):
        drawn = len(loss)
        if 1 < drawn < size:
            variance += size**2 * (1 - drawn / size) * float(np.var(count * (loss - mean), ddof=1)) / drawn
    standing = [weight * count for weight, count in zip(weights, entries, strict=True)]
    _, others = _ratio(np.concatenate([np.empty(0), *losses]), np.concatenate([np.empty(0), *standing]))
    error = math.sqrt(variance) / bottom if bottom else math.nan
    return Mean(mean, error, sum(map(len, losses)), sum(sizes), others if math.isfinite(others) else 0.0)
