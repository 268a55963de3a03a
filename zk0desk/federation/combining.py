"""The second pass: from a round's updates on disk to one, by the method of the settings. Memory does not grow with the updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zk0desk.federation import robust, strategy
from zk0desk.federation.norm_bound import clip_factor
from zk0desk.federation.spool import Spool, Spooled, gram
from zk0desk.settings import ServerAggregation


@dataclass(frozen=True)
class Combined:
    """`delta`, flat float32, its memory a file of the spool; what each node's update weighed (they sum to 1; a node that was left out is
    not in it); and what an update longer than the bound was multiplied with."""

    delta: np.ndarray
    shares: dict[str, float]
    clipped: dict[str, float]


def combine(
    spool: Spool,
    accepted: Sequence[tuple[str, Spooled]],
    examples: Mapping[str, float],
    rules: ServerAggregation,
    *,
    bound: float,
    max_share: float,
) -> Combined:
    """One update of those `accepted` (at least one), by name in the order in which they are added.

    Each is first clipped to `bound`. `examples` are frames by name: the mean weighs by them, and nobody more than `max_share`.
    """
    names, spooled = [name for name, _ in accepted], [update for _, update in accepted]
    factors = np.array([clip_factor(update.norm, bound) for update in spooled])
    clipped = {name: float(factor) for name, factor in zip(names, factors, strict=True) if factor < 1}
    delta = spool.vector(spooled[0].values)
    if rules.method in (robust.TRIMMED_MEAN, robust.MEDIAN):
        scale = factors.astype(np.float32)[:, None]
        for start, block in spool.side_by_side(spooled):
            np.multiply(block, scale, out=block)
            delta[start : start + block.shape[1]] = robust.middle(block, rules.method, rules.hostile_nodes)
        return Combined(delta, dict.fromkeys(names, 1 / len(names)), clipped)
    shares = _shares(spool, names, spooled, factors, examples, rules, max_share)
    weighted = [(shares[name] * factor, update) for name, update, factor in zip(names, spooled, factors, strict=True) if name in shares]
    strategy.add_weighted(delta, weighted)
    return Combined(delta, shares, clipped)


def _shares(
    spool: Spool,
    names: Sequence[str],
    spooled: Sequence[Spooled],
    factors: np.ndarray,
    examples: Mapping[str, float],
    rules: ServerAggregation,
    max_share: float,
) -> dict[str, float]:
    """What each update weighs, in the order of `names`."""
    if rules.method == robust.MEAN:
        return strategy.shares({name: examples[name] for name in names}, max_share)
    inner = gram(spool, spooled) * np.outer(factors, factors)
    if rules.method == robust.MULTI_KRUM:
        chosen = robust.multi_krum(inner, rules.hostile_nodes)
        return {names[each]: 1 / len(chosen) for each in chosen}
    return dict(zip(names, robust.geometric_median(inner).tolist(), strict=True))
