"""Who is asked, who weighs how much, and the weighted sum. Numpy only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from zk0desk.federation import updates
from zk0desk.federation.spool import Spooled


def shares(examples: Mapping[str, float], max_share: float) -> dict[str, float]:
    """p_k of each node: proportional to its examples, none above `max_share`, summing to 1.

    What a node loses to the cap goes to the others in proportion, again and again until none is above; a cap below
    1/n acts as 1/n. `examples` are positive; an empty mapping gives an empty one.
    """
    if not examples:
        return {}
    cap = max(max_share, 1 / len(examples))
    capped: set[str] = set()
    while True:
        free = {node: count for node, count in examples.items() if node not in capped}
        left, total = 1 - cap * len(capped), sum(free.values())
        result = {node: cap if node in capped else left * free[node] / total for node in examples}
        above = {node for node in free if result[node] > cap * (1 + 1e-12)}
        if not above or len(above) == len(free):
            # When all that is left would exceed the cap, the cap is 1/n and all are equal.
            return {node: 1 / len(examples) for node in examples} if above else result
        capped |= above


def drawn(keys: Sequence[bytes], fraction: float, least: int, *, seed: int, run: str, number: int) -> set[bytes]:
    """Which nodes round `number` asks: a `fraction` of them, rounded up, at least `least`; drawn by (seed, run, round) and each node's key.

    Whether one node is drawn before another does not depend on who else is there.
    """
    count = min(len(keys), max(least, math.ceil(round(fraction * len(keys), 9))))
    ticket = {key: hashlib.sha256(f"{seed}\n{run}\n{number}\n".encode() + key).digest() for key in keys}
    return set(sorted(keys, key=lambda key: ticket[key])[:count])


def add_weighted(delta: np.ndarray, weighted: Sequence[tuple[float, Spooled]]) -> None:
    """delta += sum weight * update in float32, multiply then add, in the order of `weighted`: the same bits on every computer."""
    scratch = np.empty(min(delta.size, updates.PIECE), np.float32)
    for index in range(updates.pieces(delta.size)):
        part = delta[index * updates.PIECE : (index + 1) * updates.PIECE]
        decoded = scratch[: part.size]
        for weight, update in weighted:
            update.read(index, decoded)
            np.multiply(decoded, np.float32(weight), out=decoded)
            np.add(part, decoded, out=part)


def is_finite(vector: np.ndarray) -> bool:
    """Whether all values are finite, looked at piece by piece."""
    return all(bool(np.isfinite(vector[at : at + updates.PIECE]).all()) for at in range(0, vector.size, updates.PIECE))


def examples(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`num-examples` of each node; one that sends no metrics counts as the lower median of the others, all as 1 when none does."""
    sent = sorted(each["num-examples"] for each in metrics.values() if each)
    usual = sent[(len(sent) - 1) // 2] if sent else 1.0
    return {node: each["num-examples"] if each else usual for node, each in metrics.items()}


def mean_over(p: Mapping[str, float], metrics: Mapping[str, Mapping[str, float]], key: str) -> float | None:
    """The mean of a metric over the nodes that sent it, weighted by their shares; None when none did."""
    sent = {node: metrics[node][key] for node in sorted(p) if key in metrics[node]}
    total = sum(p[node] for node in sent)
    return sum(p[node] * value for node, value in sent.items()) / total if total else None
