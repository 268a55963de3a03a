"""Robust aggregation beside ByzFL, which is the oracle; and what the settings are told when nodes are too few."""

import byzfl
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.federation.reply_parts import spooled
from zk0desk.federation import combining, robust
from zk0desk.federation.spool import Spool
from zk0desk.settings import ServerAggregation

METHODS = [robust.TRIMMED_MEAN, robust.MEDIAN, robust.GEOMETRIC_MEDIAN, robust.MULTI_KRUM]


@st.composite
def updates_and_f(draw, krum=False):
    """Updates of n nodes as rows, f of them hostile: far away, mirrored, copies of each other, a little off, or zero."""
    f = draw(st.integers(1, 3))
    n = draw(st.integers(2 * f + (3 if krum else 1), 2 * f + 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    honest = rng.standard_normal((n - f, draw(st.integers(1, 40)))) + rng.standard_normal(1)
    kind = draw(st.sampled_from(["far", "mirrored", "copies", "a little", "zero", "none"]))
    size = honest.shape[1]
    hostile = {
        "far": lambda: rng.standard_normal((f, size)) * 1e6,
        "mirrored": lambda: np.tile(-honest.mean(axis=0), (f, 1)),
        "copies": lambda: np.tile(rng.standard_normal(size) * 3, (f, 1)),
        "a little": lambda: np.tile(honest.mean(axis=0) - 1.5 * honest.std(axis=0), (f, 1)),
        "zero": lambda: np.zeros((f, size)),
        "none": lambda: rng.standard_normal((f, size)),
    }[kind]()
    rows = np.concatenate([honest, hostile])[rng.permutation(n)]
    return rows.astype(np.float32), f


@given(updates_and_f())
def test_that_trimmed_mean_and_median_are_byzfls(given_updates):
    rows, f = given_updates
    wide = rows.astype(np.float64)
    assert robust.middle(rows, robust.TRIMMED_MEAN, f) == pytest.approx(byzfl.TrMean(f=f)(wide), rel=1e-5, abs=1e-5)
    assert robust.middle(rows, robust.MEDIAN, f) == pytest.approx(byzfl.Median()(wide), rel=1e-5, abs=1e-5)


@given(updates_and_f(krum=True))
def test_that_multi_krum_takes_what_byzfls_takes(given_updates):
    rows, f = given_updates
    wide = rows.astype(np.float64)
    distances = np.linalg.norm(wide[:, None] - wide[None], axis=2) ** 2
    scores = np.sort(np.sort(distances, axis=1)[:, 1 : len(rows) - f].mean(axis=1))
    chosen = wide[robust.multi_krum(wide @ wide.T, f)].mean(axis=0)
    # Where two scores are equal at the border either may be taken, unless the updates are the same.
    assume(not np.isclose(scores[len(rows) - f - 1], scores[len(rows) - f], rtol=1e-9))
    assert chosen == pytest.approx(byzfl.MultiKrum(f=f)(wide), rel=1e-9, abs=1e-9)


@given(updates_and_f(), st.integers(1, 8))
def test_that_each_iterate_of_the_geometric_median_is_byzfls(given_updates, iterations):
    wide = given_updates[0].astype(np.float64)
    weights = robust.geometric_median(wide @ wide.T, smoothing=0.1, iterations=iterations, tolerance=0.0)
    expected = byzfl.GeometricMedian(nu=0.1, T=iterations)(wide)
    assert weights @ wide == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(wide).max())


@given(updates_and_f())
def test_that_the_geometric_median_is_nearest_to_all(given_updates):
    wide = given_updates[0].astype(np.float64)
    found = robust.geometric_median(wide @ wide.T) @ wide

    def sum_of_distances(point):
        return np.linalg.norm(wide - point, axis=1).sum()

    best = byzfl.GeometricMedian(nu=1e-9, T=2000)(wide)
    assert sum_of_distances(found) <= sum_of_distances(best) * (1 + 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_that_what_the_second_pass_forms_from_disk_is_byzfls(tmp_path, method):
    rng = np.random.default_rng(3)
    rows = (rng.standard_normal((7, 3000)) + 0.5).astype(np.float32)
    rows[5:] = -40 * rows[:2]
    spool = Spool(tmp_path / "spool")
    accepted = [(f"node {number}", spooled(spool, row)) for number, row in enumerate(rows)]
    rules = ServerAggregation.model_validate({"method": method, "hostile-nodes": 2})
    combined = combining.combine(spool, accepted, dict.fromkeys(dict(accepted), 1.0), rules, bound=1e9, max_share=1.0)
    wide = rows.astype(np.float64)
    oracle = {
        robust.TRIMMED_MEAN: byzfl.TrMean(f=2), robust.MEDIAN: byzfl.Median(), robust.MULTI_KRUM: byzfl.MultiKrum(f=2),
        robust.GEOMETRIC_MEDIAN: byzfl.GeometricMedian(nu=1e-6, T=500),
    }[method]  # fmt: skip
    assert combined.delta == pytest.approx(oracle(wide), rel=1e-4, abs=1e-5)
    assert sum(combined.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("method", METHODS)
def test_that_updates_are_clipped_before_they_are_combined(tmp_path, method):
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((5, 500)).astype(np.float32)
    rows[0] *= 1000
    spool = Spool(tmp_path / "spool")
    accepted = [(str(number), spooled(spool, row)) for number, row in enumerate(rows)]
    rules = ServerAggregation.model_validate({"method": method, "hostile-nodes": 1})
    bound = 1.01 * float(np.linalg.norm(rows[1:], axis=1).max())
    combined = combining.combine(spool, accepted, dict.fromkeys(dict(accepted), 1.0), rules, bound=bound, max_share=1.0)
    assert list(combined.clipped) == ["0"] and combined.clipped["0"] == pytest.approx(bound / np.linalg.norm(rows[0]), rel=1e-6)
    assert np.linalg.norm(combined.delta) < bound


@pytest.mark.parametrize(
    ("method", "hostile", "nodes", "would"),
    [("multi-krum", 1, 4, '"median"'), ("multi-krum", 2, 6, "5"), ("median", 1, 2, '"mean"'), ("trimmed-mean", 2, 4, '"mean"'),
     ("geometric-median", 1, 2, '"mean"')],
)  # fmt: skip
def test_that_too_few_nodes_for_a_method_are_refused_with_one_that_would_do(method, hostile, nodes, would):
    with pytest.raises(robust.TooFewForMethod) as refused:
        robust.check_method(method, hostile, nodes)
    assert would in refused.value.remedy and str(robust.least_nodes(method, hostile)) in refused.value.why


@pytest.mark.parametrize("method", ["mean", *METHODS])
def test_that_just_enough_nodes_are_enough(method):
    robust.check_method(method, 2, robust.least_nodes(method, 2))
