"""Shares and sums: the mathematics of aggregation, checked against its definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.federation.strategy import drawn, mean_over, shares

counts = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 10**9).map(float), min_size=1, max_size=12)
caps = st.floats(1e-3, 1.0)


@given(counts, caps)
def test_shares_sum_to_one(examples, cap):
    assert sum(shares(examples, cap).values()) == pytest.approx(1, abs=1e-12)


@given(counts, caps)
def test_no_share_exceeds_the_cap_or_one_in_n(examples, cap):
    assert max(shares(examples, cap).values()) <= max(cap, 1 / len(examples)) + 1e-12


@given(counts, caps)
def test_what_is_not_capped_stays_in_proportion(examples, cap):
    p = shares(examples, cap)
    highest = max(cap, 1 / len(examples))
    free = [node for node in p if p[node] < highest * (1 - 1e-9)]
    assert [p[node] * examples[free[0]] for node in free] == pytest.approx([p[free[0]] * examples[node] for node in free]) if free else True


@given(counts, caps)
def test_more_examples_never_give_a_smaller_share(examples, cap):
    p = shares(examples, cap)
    ordered = sorted(examples, key=lambda node: examples[node])
    assert all(p[few] <= p[more] + 1e-12 for few, more in zip(ordered, ordered[1:], strict=False))


@given(counts)
def test_a_cap_below_one_in_n_makes_all_equal(examples):
    assert list(shares(examples, 0.5 / len(examples)).values()) == pytest.approx([1 / len(examples)] * len(examples))


def test_excess_goes_to_the_others_in_proportion():
    assert shares({"a": 80.0, "b": 15.0, "c": 5.0}, 0.5) == pytest.approx({"a": 0.5, "b": 0.375, "c": 0.125})


def test_excess_that_lifts_another_above_the_cap_is_passed_on():
    assert shares({"a": 90.0, "b": 9.0, "c": 1.0}, 0.4) == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.2})


def test_no_nodes_have_no_shares():
    assert shares({}, 0.5) == {}


keys = st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=20, unique=True)


@given(keys, st.floats(0.01, 1.0), st.integers(1, 25))
def test_that_a_fraction_of_the_nodes_is_asked_and_at_least_as_many_as_a_round_needs(present, fraction, least):
    asked = drawn(present, fraction, least, seed=1, run="r", number=3)
    assert asked <= set(present)
    assert len(asked) == min(len(present), max(least, math.ceil(round(fraction * len(present), 9))))


@given(keys, st.floats(0.01, 1.0), st.randoms())
def test_that_the_draw_is_the_seeds_and_not_the_order_in_which_nodes_came(present, fraction, random):
    shuffled = random.sample(present, len(present))
    assert drawn(present, fraction, 1, seed=1, run="r", number=3) == drawn(shuffled, fraction, 1, seed=1, run="r", number=3)


def test_that_every_node_has_its_turn():
    present = [bytes([number]) for number in range(10)]
    times = {key: sum(key in drawn(present, 0.3, 1, seed=5, run="r", number=number) for number in range(200)) for key in present}
    assert min(times.values()) > 30 and max(times.values()) < 90


def test_a_mean_counts_only_nodes_that_sent_the_metric():
    assert mean_over({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": {"loss": 1.0}, "b": {"loss": 4.0}, "c": {}}, "loss") == pytest.approx(2.0)
    assert mean_over({"a": 1.0}, {"a": {}}, "loss") is None
