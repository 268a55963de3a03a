"""Attacks on a small federation whose nodes learn something: what is refused, and what does harm in spite of the defences."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.federation.reply_parts import answered, request, spooled
from zk0desk.federation import combining, messages, robust
from zk0desk.federation.messages import MessageRefused
from zk0desk.federation.norm_bound import NormHistory, bound_for
from zk0desk.federation.spool import Spool
from zk0desk.settings import ServerAggregation

SIZE, ROUNDS, LR = 400, 25, 1e-2


def a_little(honest: np.ndarray, w: np.ndarray) -> np.ndarray:
    """As far against the others as their own scatter hides (Baruch et al. 2019)."""
    return honest.mean(axis=0) - 1.0 * honest.std(axis=0)


ATTACKS = {
    "sign flip": lambda honest, w: -honest.mean(axis=0),
    "scaled by 1e6": lambda honest, w: -1e6 * honest.mean(axis=0),
    "constant drift": lambda honest, w: np.full(SIZE, np.linalg.norm(honest, axis=1).mean() / SIZE**0.5),
    "a little is enough": a_little,
}


@functools.cache
def final_loss(attack: str, hostile: int, nodes: int, method: str, clip: float = 2.0) -> float:
    """The loss of the global weights after rounds in which each node goes a fifth of the way to its own optimum.

    Hostile nodes all send the same, so they are colluding copies too.
    """
    rng = np.random.default_rng(1)
    target = rng.standard_normal(SIZE)
    own = target + 0.3 * rng.standard_normal((nodes - hostile, SIZE))
    rules = ServerAggregation.model_validate({"method": method, "hostile-nodes": hostile or 1, "clip": clip})
    w, history = np.zeros(SIZE, np.float32), NormHistory()
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool")
        for _ in range(ROUNDS):
            honest = 0.2 * (own - w) + 0.01 * rng.standard_normal(own.shape)
            sent = [*honest, *([ATTACKS[attack](honest, w)] * hostile if hostile else [])]
            accepted = [(f"{number:02d}", spooled(spool, each.astype(np.float32))) for number, each in enumerate(sent)]
            norms = [update.norm for _, update in accepted]
            bound, history = bound_for(history, norms, lr=LR, steps=1000, parameters=SIZE, factor=rules.clip, rounds=rules.clip_rounds)
            w = w + combining.combine(spool, accepted, dict.fromkeys(dict(accepted), 40.0), rules, bound=bound, max_share=0.5).delta
            spool.clear()
    return float(np.mean((w - target) ** 2)) + 0.5


CLEAN = functools.partial(final_loss, "sign flip", 0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("hostile", "nodes"), [(1, 4), (3, 10)])
@pytest.mark.parametrize("method", [robust.GEOMETRIC_MEDIAN, robust.MEDIAN, robust.TRIMMED_MEAN])
def test_that_robust_methods_end_near_the_clean_run(attack, hostile, nodes, method):
    assert final_loss(attack, hostile, nodes, method) < 1.1 * CLEAN(nodes - hostile, robust.MEAN)


@pytest.mark.parametrize("attack", ATTACKS)
def test_that_multi_krum_ends_near_the_clean_run(attack):
    assert final_loss(attack, 3, 10, robust.MULTI_KRUM) < 1.1 * CLEAN(7, robust.MEAN)


def test_that_the_default_keeps_learning_where_an_unclipped_mean_is_destroyed():
    clean, begun = CLEAN(3, robust.MEAN), 1.5
    assert final_loss("scaled by 1e6", 1, 4, robust.MEAN, clip=1e6) > 1e3
    assert final_loss("scaled by 1e6", 1, 4, robust.MEAN) < 0.5 * (clean + begun)


# --- what is refused before anything is aggregated


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def nan_in_one(size: int = 1000) -> np.ndarray:
    update = np.full(size, 1e-3, np.float32)
    update[size // 2] = np.nan
    return update


FINE = np.full(1000, 1e-3, np.float32)


def test_that_an_honest_reply_is_taken(spool):
    update, metrics = answered(spool, request(), FINE)
    assert update.norm == pytest.approx(np.linalg.norm(FINE)) and metrics["num-examples"] == 40.0


@pytest.mark.parametrize(
    ("update", "config", "metrics", "key"),
    [
        (nan_in_one(), {}, {}, "arrays[0]"),
        (FINE[:-1], {}, {}, "arrays[0]"),
        (FINE.astype(np.float64), {}, {}, "arrays[0]"),
        (FINE, {"layout-sha256": "cd" * 32}, {}, "layout-sha256"),
        (FINE, {"base-sha256": "cd" * 32}, {}, "base-sha256"),
        (FINE, {"encoding": "fp16"}, {}, "encoding"),
        (FINE, {"server-round": 3}, {}, "server-round"),
        (FINE, {"extra": 1}, {}, "extra"),
        (FINE, {}, {"num-examples": 1e12}, "num-examples"),
        (FINE, {}, {"num-examples": float("nan")}, "num-examples"),
        (FINE, {}, {"num-examples": 1e6}, "num-examples"),
        (FINE, {}, {"frames-seen": 1e6}, "frames-seen"),
        (FINE, {}, {"steps-done": 50.0}, "steps-done"),
        (FINE, {}, {"seconds": 1e5}, "seconds"),
        (FINE, {}, {"height": 2.0}, "height"),
    ],
)
def test_that_a_reply_against_the_contract_is_refused_and_leaves_nothing(spool, update, config, metrics, key):
    with pytest.raises(MessageRefused) as refused:
        answered(spool, request(), update, config=config, metrics=metrics)
    assert refused.value.key == key
    assert not list(spool.folder.iterdir())


def test_that_a_reply_of_an_earlier_round_is_called_replayed(spool):
    with pytest.raises(MessageRefused) as refused:
        answered(spool, request(), FINE, config=messages.reply_config(request(server_round=2)))
    assert refused.value.code == "replayed" and "round 2" in refused.value.why
