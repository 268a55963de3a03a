"""Shares and sums: the mathematics of aggregation, checked against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.federation import updates
from zk0desk.federation.messages import MessageRefused
from zk0desk.federation.strategy import add_weighted, check_update, mean_over, shares

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


@pytest.mark.parametrize("encoding", ["fp32", "fp16"])
def test_the_sum_is_multiply_then_add_in_float32_over_all_pieces(encoding):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(updates.PIECE + 77, dtype=np.float32)
    deltas = [(rng.standard_normal(weights.size, dtype=np.float32) * 1e-3) for _ in range(3)]
    accepted = [
        (share, check_update(updates.encode(d, encoding), encoding, d.size)) for share, d in zip((0.2, 0.3, 0.5), deltas, strict=True)
    ]
    expected = weights.copy()
    for (share, _), delta in zip(accepted, deltas, strict=True):
        expected = expected + np.float32(share) * updates.decode(updates.encode(delta, encoding), encoding, delta.size)
    assert np.array_equal(add_weighted(weights, accepted), expected)


def test_the_norm_of_an_update_is_that_of_all_its_pieces():
    delta = np.random.default_rng(2).standard_normal(updates.PIECE + 5, dtype=np.float32)
    assert check_update(updates.encode(delta, "fp32"), "fp32", delta.size).norm == pytest.approx(np.linalg.norm(delta.astype(np.float64)))


@pytest.mark.parametrize(
    "pieces",
    [[], [np.zeros(9, np.float32)], [np.zeros(10, np.float64)], [np.zeros((10, 1), np.float32)], [np.full(10, np.inf, np.float32)],
     [np.zeros(10, np.float32)] * 2],
)  # fmt: skip
def test_an_update_that_is_not_exactly_as_agreed_is_refused(pieces):
    with pytest.raises(MessageRefused):
        check_update(pieces, "fp32", 10)


def test_a_mean_counts_only_nodes_that_sent_the_metric():
    assert mean_over({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": {"loss": 1.0}, "b": {"loss": 4.0}, "c": {}}, "loss") == pytest.approx(2.0)
    assert mean_over({"a": 1.0}, {"a": {}}, "loss") is None
