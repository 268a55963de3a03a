"""The bound on an update's norm: what it follows, and what cannot move it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.federation.norm_bound import NormHistory, bound_for, clip_factor

RULES = {"steps": 1e9, "parameters": 10_000, "factor": 2.0, "rounds": 5}
norms = st.lists(st.floats(1e-6, 1e6), min_size=4, max_size=9)


def bounds(told, lr=1e-3, **rules):
    """The bounds of consecutive rounds."""
    history, found = NormHistory(), []
    for each in told:
        bound, history = bound_for(history, each, lr=lr, **{**RULES, **rules})
        found.append(bound)
    return found


def test_that_the_first_round_has_a_multiple_of_its_own_lower_median():
    assert bounds([[1.0, 2.0, 3.0, 9.0]]) == [pytest.approx(4.0)]


def test_that_earlier_rounds_count_until_they_are_too_long_ago():
    calm, wild = [1.0] * 4, [1.9] * 4
    assert bounds([calm, wild], rounds=1)[-1] == pytest.approx(2.0)
    assert bounds([calm, wild, wild], rounds=1)[-1] == pytest.approx(3.8)
    assert bounds([calm, wild, wild], rounds=5)[-1] == pytest.approx(3.8)
    assert bounds([calm, calm, wild, wild], rounds=3)[-1] == pytest.approx(2.0)


@given(norms, st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=12))
def test_that_the_bound_grows_at_most_twofold_a_round(first, factors):
    found = bounds([first, *([norm * factor for norm in first] for factor in factors)])
    assert all(after <= 2 * before * (1 + 1e-12) for before, after in zip(found, found[1:], strict=False))


@given(norms, st.floats(1e-2, 1e2))
def test_that_the_bound_follows_the_learning_rate(first, factor):
    """An update's norm does: a warm restart is not undone."""
    _, history = bound_for(NormHistory(), first, lr=1e-5, **RULES)
    same, _ = bound_for(history, first, lr=1e-5, **RULES)
    scaled, _ = bound_for(history, [norm * factor for norm in first], lr=1e-5 * factor, **RULES)
    assert scaled == pytest.approx(factor * same, rel=1e-9)


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=9), st.data())
def test_that_fewer_hostile_nodes_than_honest_ones_cannot_lift_it_above_what_honest_ones_need(honest, data):
    hostile = [data.draw(st.sampled_from([1e-9, 1e9, 1e300])) for _ in range(len(honest) - 1)]
    found = bounds([honest + hostile] * 4)
    assert all(bound <= 2 * max(honest) * (1 + 1e-12) for bound in found)


def test_that_few_replies_are_also_held_to_what_adam_can_do():
    lr, steps, parameters = 1e-3, 3, 10_000
    assert bounds([[50.0, 60.0, 70.0]], steps=steps) == [pytest.approx(2 * lr * steps * math.sqrt(parameters))]
    assert bounds([[50.0, 60.0, 70.0, 70.0]], steps=steps) == [pytest.approx(120.0)]


def test_that_without_a_learning_rate_nothing_moves_and_nothing_is_learnt_of_norms():
    _, history = bound_for(NormHistory(), [1.0] * 4, lr=1e-3, **RULES)
    assert bound_for(history, [1.0] * 4, lr=0.0, **RULES) == (0.0, history)
    assert clip_factor(1.0, 0.0) == 0.0 and clip_factor(0.0, 0.0) == 1.0


def test_that_updates_of_zeros_do_not_count():
    found = bounds([[1.0] * 4, [0.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4])
    assert found == [pytest.approx(2.0)] * 4


@given(st.lists(norms, max_size=7))
def test_that_the_history_survives_as_json(rounds):
    history = NormHistory()
    for each in rounds:
        _, history = bound_for(history, each, lr=1e-3, **RULES)
    assert NormHistory.from_json(json.loads(json.dumps(history.to_json()))) == history
