"""How replies become one update: who weighs how much, what is valid, and the weighted sum. Pure functions, numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zk0desk.federation import updates
from zk0desk.federation.messages import MessageRefused


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


@dataclass(frozen=True)
class Update:
    """A valid update as it came: pieces in their encoding, L2 norm, bytes and SHA-256 over the pieces."""

    pieces: Sequence[np.ndarray]
    encoding: str
    norm: float
    bytes: int
    sha256: str


def check_update(pieces: Sequence[np.ndarray], encoding: str, size: int) -> Update:
    """The update in `pieces`; `MessageRefused` unless number, dtypes and shapes are exact and all values finite.

    One piece is decoded at a time, so checking needs 16 MiB, not the whole update again.
    """
    if len(pieces) != updates.pieces(size):
        raise MessageRefused("arrays", f"{len(pieces)} pieces where {updates.pieces(size)} belong.")
    scratch = np.empty(min(size, updates.PIECE), np.float32)
    squares, digest, count = 0.0, hashlib.sha256(), 0
    for index, piece in enumerate(pieces):
        target = scratch[: min(updates.PIECE, size - index * updates.PIECE)]
        updates.decode_piece(piece, encoding, target, f"arrays[{index}]")
        squares += updates.norm(target) ** 2
        digest.update(np.ascontiguousarray(piece).data)
        count += piece.nbytes
    return Update(pieces, encoding, squares**0.5, count, digest.hexdigest())


def add_weighted(weights: np.ndarray, accepted: Sequence[tuple[float, Update]]) -> np.ndarray:
    """w + sum p_k delta_k in float32, multiply then add, in the order of `accepted`: the same bits on every computer."""
    result = weights.copy()
    scratch = np.empty(min(weights.size, updates.PIECE), np.float32)
    for share, update in accepted:
        for index, piece in enumerate(update.pieces):
            part = result[index * updates.PIECE : (index + 1) * updates.PIECE]
            delta = scratch[: part.size]
            updates.decode_piece(piece, update.encoding, delta)
            np.multiply(delta, np.float32(share), out=delta)
            np.add(part, delta, out=part)
    return result


def mean_over(p: Mapping[str, float], metrics: Mapping[str, Mapping[str, float]], key: str) -> float | None:
    """The mean of a metric over the nodes that sent it, weighted by their shares; None when none did."""
    sent = {node: metrics[node][key] for node in sorted(p) if key in metrics[node]}
    total = sum(p[node] for node in sent)
    return sum(p[node] * value for node, value in sent.items()) / total if total else None
