"""Differential privacy: the Gaussian mechanism, and what its releases have spent (DESIGN section 3). The accountant is loaded late.

A node's contribution to a round is a vector that is first scaled down to a length of at most `clip`. What is released is that vector, or a
fixed multiple of the sum of all nodes', plus noise whose standard deviation in every coordinate is `noise_multiplier` times as long. The
unit that is protected is a node's whole contribution to a round; neighbours differ by one node (add or remove one). The accountant is
dp-accounting's, by Renyi divergences.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np

DRAWN_AT_ONCE = 2**20
"""Values of noise that are drawn at once: 8 MiB."""


@dataclass(frozen=True)
class Release:
    """`count` releases with the same `noise_multiplier`. Nothing is claimed for drawing some of the nodes."""

    noise_multiplier: float
    count: int = 1


def epsilon(releases: list[Release], delta: float) -> float:
    """What `releases` have spent together, at `delta`; infinite where one of them added no noise. 0 for none."""
    releases = [each for each in releases if each.count]
    if not releases:
        return 0.0
    if any(each.noise_multiplier <= 0 for each in releases):
        return math.inf
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    for each in releases:
        accountant.compose(GaussianDpEvent(each.noise_multiplier), each.count)
    return float(accountant.get_epsilon(delta))


def rounds_within(budget: float, delta: float, noise_multiplier: float, spent: list[Release], most: int = 100_000) -> int:
    """How many more releases with `noise_multiplier` keep the sum with `spent` within `budget` at `delta`; at most `most`."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        within = epsilon([*spent, Release(noise_multiplier, middle)], delta) <= budget
        low, high = (middle, high) if within else (low, middle - 1)
    return low


def secret_generator() -> np.random.Generator:
    """A generator for noise that nobody can draw again: 256 bits of the system's randomness seed it."""
    return np.random.Generator(np.random.Philox(secrets.randbits(256)))


def add_noise(vector: np.ndarray, standard_deviation: float, generator: np.random.Generator) -> None:
    """Add Gaussian noise to a flat float32 vector in place. It is drawn in float64, so that large and rare values are not lost."""
    for start in range(0, vector.size, DRAWN_AT_ONCE):
        part = vector[start : start + DRAWN_AT_ONCE]
        part[:] = part.astype(np.float64) + generator.normal(0.0, standard_deviation, part.size)


def clipped(vector: np.ndarray, clip: float) -> np.ndarray:
    """A flat float32 vector scaled down to an L2 norm of at most `clip`, as a new one."""
    total = 0.0
    for start in range(0, vector.size, DRAWN_AT_ONCE):
        part = vector[start : start + DRAWN_AT_ONCE].astype(np.float64)
        total += float(part @ part)
    norm = math.sqrt(total)
    # A little less than 1, since multiplying in float32 may round up.
    return vector * np.float32(clip / norm * (1 - 1e-6)) if norm > clip else vector.copy()


def noise_ratio(noise_multiplier: float, parameters: int, nodes: float = 1) -> float:
    """How many times as long as the longest update allowed the noise is: in a mean over `nodes` updates that all point the same way."""
    return noise_multiplier * math.sqrt(parameters) / nodes


def noise_words(noise_multiplier: float, parameters: int, nodes: float = 1) -> str:
    """`noise_ratio` for a person who is about to choose."""
    ratio = noise_ratio(noise_multiplier, parameters, nodes)
    what = "an update" if nodes == 1 else f"the mean of {nodes:g} updates"
    if ratio < 1:
        return f"The noise will be {100 * ratio:.2g}% of the longest that {what} may be."
    hopeless = " Nothing is learned under so much noise in a few rounds." if ratio > 30 else ""
    return f"The noise will be {ratio:.3g} times as long as {what} may be at most.{hopeless}"
