"""Aggregation that withstands hostile nodes: what each method needs, and its mathematics. Pure functions, numpy only.

`f` is how many hostile nodes are withstood. Every node counts the same in the robust methods: a weight that a node claims for itself would
be a way around them. Trimmed mean and median: Yin et al. 2018 (arXiv 1803.01498). Multi-Krum: Blanchard et al. 2017 (NeurIPS 30), with the
n - f - 1 nearest others and n - f updates chosen, as in ByzFL. Geometric median: Weiszfeld's iteration, whose iterates are weighted sums
of the updates, so that their inner products suffice.
"""

from __future__ import annotations

import numpy as np

from zk0desk.errors import ExitStatus, OperatorError

MEAN, TRIMMED_MEAN, MEDIAN, GEOMETRIC_MEDIAN, MULTI_KRUM = "mean", "trimmed-mean", "median", "geometric-median", "multi-krum"


class TooFewForMethod(OperatorError):
    """The aggregation method cannot withstand so many hostile nodes among so few."""

    code = "aggregation-unfit"
    exit_status = ExitStatus.USAGE


def least_nodes(method: str, hostile: int) -> int:
    """Updates that `method` needs at least, to withstand `hostile` of them. 1 for the mean, which withstands none by itself."""
    if method == MEAN:
        return 1
    return 2 * hostile + (3 if method == MULTI_KRUM else 1)


def check_method(method: str, hostile: int, min_nodes: int) -> None:
    """Raise `TooFewForMethod` when rounds of `min_nodes` nodes are too small for `method`; it says which method would do."""
    needed = least_nodes(method, hostile)
    if min_nodes >= needed:
        return
    least = least_nodes(MEDIAN, hostile)
    if min_nodes >= least:
        would = f'`aggregation.method` = "{MEDIAN}", "{TRIMMED_MEAN}" or "{GEOMETRIC_MEDIAN}" would do with {least}'
    else:
        would = f'among {min_nodes} only "{MEAN}" can be used, which limits what a hostile node can do and does not undo it'
    raise TooFewForMethod(
        f"{method} cannot withstand {hostile} hostile {'node' if hostile == 1 else 'nodes'} among {min_nodes}.",
        f"It needs {needed} updates, and `rounds.min-nodes` is {min_nodes}.",
        f"Set `rounds.min-nodes` to {needed} or more; {would}.",
    )


def middle(block: np.ndarray, method: str, f: int) -> np.ndarray:
    """Coordinate-wise trimmed mean (without the `f` highest and lowest) or median of `block`, float32 of shape (updates, values)."""
    if method == MEDIAN:
        return np.median(block, axis=0)
    return np.sort(block, axis=0)[f : len(block) - f].mean(axis=0, dtype=np.float64).astype(np.float32)


def squared_distances(gram: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs, from their inner products."""
    lengths = np.diagonal(gram)
    return np.maximum(lengths[:, None] + lengths[None, :] - 2 * gram, 0.0)


def multi_krum(gram: np.ndarray, f: int) -> list[int]:
    """Which n - f updates multi-Krum takes the mean of: those whose n - f - 1 nearest others are nearest. Ties go to the first."""
    n = len(gram)
    distances = squared_distances(gram)
    scores = [np.sort(np.delete(distances[each], each))[: n - f - 1].sum() for each in range(n)]
    return sorted(np.argsort(scores, kind="stable")[: n - f].tolist())


def geometric_median(gram: np.ndarray, *, smoothing: float | None = None, iterations: int = 200, tolerance: float = 1e-9) -> np.ndarray:
    """Weights (they sum to 1) of the updates whose sum is the geometric median, by Weiszfeld's iteration from 0.

    A distance below `smoothing` (default: a millionth of the median norm) counts as that, so that an iterate may meet an update.
    """
    n = len(gram)
    lengths = np.diagonal(gram)
    least = smoothing if smoothing is not None else 1e-6 * float(np.sqrt(np.median(np.maximum(lengths, 0.0))))
    least = max(least, float(np.finfo(np.float64).tiny))
    weights = np.zeros(n)
    for _ in range(iterations):
        across = gram @ weights
        distances = np.sqrt(np.maximum(lengths - 2 * across + weights @ across, 0.0))
        closeness = 1.0 / np.maximum(distances, least)
        before, weights = weights, closeness / closeness.sum()
        if np.abs(weights - before).max() <= tolerance:
            break
    return weights
