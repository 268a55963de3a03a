"""The Gaussian mechanism and its accountant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.training.privacy import Release, add_noise, clipped, epsilon, noise_ratio, noise_words, rounds_within, secret_generator

DELTA = 1e-5


def exact_epsilon(noise_multiplier: float, delta: float) -> float:
    """The Gaussian mechanism's own (Balle and Wang 2018, theorem 8), by bisection."""

    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def spent(eps: float) -> float:
        a, b = 1 / (2 * noise_multiplier), eps * noise_multiplier
        return cdf(a - b) - math.exp(eps) * cdf(-a - b)

    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 5.0])
def test_one_release_is_bounded_by_the_mechanisms_own_epsilon_and_little_above(noise: float) -> None:
    found, exact = epsilon([Release(noise)], DELTA), exact_epsilon(noise, DELTA)
    assert exact <= found <= 1.3 * exact


@pytest.mark.parametrize("count", [1, 10, 250])
def test_releases_compose_as_one_of_less_noise(count: int) -> None:
    """`count` releases with noise z are one with z / sqrt(count): the mechanism's own composition."""
    assert epsilon([Release(2.0, count)], DELTA) == pytest.approx(epsilon([Release(2.0 / math.sqrt(count))], DELTA), rel=0.02)
    parts = [Release(2.0)] * count if count < 20 else [Release(2.0, count - 7), Release(2.0, 7)]
    assert epsilon(parts, DELTA) == pytest.approx(epsilon([Release(2.0, count)], DELTA), rel=1e-9)


def test_no_noise_spends_all_and_no_release_nothing() -> None:
    assert epsilon([Release(1.0, 20), Release(0.0)], DELTA) == math.inf
    assert epsilon([], DELTA) == epsilon([Release(0.0, 0)], DELTA) == 0


@pytest.mark.parametrize("spent", [[], [Release(4.0, 3)]])
def test_the_rounds_within_a_budget_are_the_most(spent: list[Release]) -> None:
    count = rounds_within(8.0, DELTA, 1.5, spent)
    assert epsilon([*spent, Release(1.5, count)], DELTA) <= 8.0 < epsilon([*spent, Release(1.5, count + 1)], DELTA)
    assert rounds_within(1e-9, DELTA, 1.5, spent) == 0


def test_noise_has_its_standard_deviation_and_is_never_the_same() -> None:
    vector = np.full(2_500_000, 3.0, np.float32)
    add_noise(vector, 0.25, np.random.default_rng(0))
    assert abs(vector.mean() - 3.0) < 5 * 0.25 / math.sqrt(vector.size)
    assert vector.std() == pytest.approx(0.25, rel=5 / math.sqrt(2 * vector.size))
    assert np.unique(vector[:1000]).size > 990
    one, other = np.zeros(100, np.float32), np.zeros(100, np.float32)
    add_noise(one, 1.0, secret_generator())
    add_noise(other, 1.0, secret_generator())
    assert not np.array_equal(one, other)


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3), st.integers(1, 50))
def test_what_is_too_long_is_scaled_to_the_bound_and_never_beyond(length: float, clip: float, size: int) -> None:
    vector = (np.ones(size) * length / math.sqrt(size)).astype(np.float32)
    found = clipped(vector, clip)
    norm = float(np.linalg.norm(found.astype(np.float64)))
    assert norm <= clip
    if np.linalg.norm(vector.astype(np.float64)) <= clip:
        assert np.array_equal(found, vector) and found is not vector
    else:
        assert norm == pytest.approx(clip, rel=1e-5)


def test_the_ratio_of_noise_to_update_is_said_in_words() -> None:
    assert noise_ratio(1.0, 10**8) == 1e4
    assert noise_words(1.0, 10**8) == (
        "The noise will be 1e+04 times as long as an update may be at most. Nothing is learned under so much noise in a few rounds."
    )
    assert noise_words(0.01, 100, 4) == "The noise will be 2.5% of the longest that the mean of 4 updates may be."
