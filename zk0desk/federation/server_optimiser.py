"""What the coordinator does with the mean update before it is added: nothing, momentum (FedAvgM), or Adam (FedAdam, Reddi et al. 2021).

With d the sum of p_k delta_k, m and v beginning at 0, t the round:

    momentum  m = beta m + d                            step = eta m
    adam      m = beta_1 m + (1 - beta_1) d             step = eta_t m / (sqrt(v) + tau)
              v = beta_2 v + (1 - beta_2) d^2           eta_t = eta sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1))

as Flower's FedAvgM and FedAdam. All in place and piece by piece, float32: the moments are the only arrays, and large ones lie in files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zk0desk.federation.updates import PIECE
from zk0desk.settings import ServerSchedule

FIRST, SECOND = "server-first-moment", "server-second-moment"
"""Names of the moments among the arrays that are kept with a round."""
MOMENTS: dict[str, tuple[str, ...]] = {"none": (), "momentum": (FIRST,), "adam": (FIRST, SECOND)}


def to_step(rules: ServerSchedule, delta: np.ndarray, number: int, kept: dict[str, np.ndarray], folder: Path) -> None:
    """Make `delta` (flat float32, the mean update of round `number`) the step that is added to the weights, in place.

    The moments are in `kept`, under `FIRST` and `SECOND`; those that are missing or of another size begin at 0, those that the optimiser
    has no use for are removed. Moments of more than one piece are mapped from files in `folder`, which is made when it is missing; they
    are scratch: what counts is what was saved with the round.
    """
    needed = MOMENTS[rules.server_optimiser]
    for name in {FIRST, SECOND} - set(needed):
        kept.pop(name, None)
    for name in needed:
        kept[name] = _writable(kept.get(name), name, delta.size, folder)
    if rules.server_optimiser == "momentum":
        _momentum(delta, kept[FIRST], rules.server_lr, rules.server_momentum)
    elif rules.server_optimiser == "adam":
        _adam(delta, kept[FIRST], kept[SECOND], rules, number)


def _momentum(delta: np.ndarray, first: np.ndarray, lr: float, beta: float) -> None:
    for part in _parts(delta.size):
        m, d = first[part], delta[part]
        m *= np.float32(beta)
        m += d
        np.multiply(m, np.float32(lr), out=d)


def _adam(delta: np.ndarray, first: np.ndarray, second: np.ndarray, rules: ServerSchedule, number: int) -> None:
    beta_1, beta_2 = rules.server_momentum, rules.server_beta_2
    lr = rules.server_lr * math.sqrt(1 - beta_2 ** (number + 1)) / (1 - beta_1 ** (number + 1))
    scratch = np.empty(min(delta.size, PIECE), np.float32)
    for part in _parts(delta.size):
        m, v, d = first[part], second[part], delta[part]
        own = scratch[: d.size]
        m *= np.float32(beta_1)
        np.multiply(d, np.float32(1 - beta_1), out=own)
        m += own
        v *= np.float32(beta_2)
        np.multiply(d, d, out=own)
        own *= np.float32(1 - beta_2)
        v += own
        np.sqrt(v, out=own)
        own += np.float32(rules.server_tau)
        np.divide(m, own, out=d)
        d *= np.float32(lr)


def _parts(size: int) -> Iterator[slice]:
    return (slice(begin, begin + PIECE) for begin in range(0, size, PIECE))


def _writable(array: np.ndarray | None, name: str, size: int, folder: Path) -> np.ndarray:
    """`array`, or zeros, where it can be written to: in memory when small, else in a file."""
    if array is not None and (array.shape != (size,) or array.dtype != np.float32):
        array = None
    if array is not None and getattr(array, "mode", "") != "c":  # that is a saved round's file: written to, all of it would be in memory
        return array
    if size <= PIECE:
        made = np.zeros(size, np.float32)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = np.memmap(folder / f"{name}.bin", np.float32, "w+", shape=(size,))
    if array is not None:
        for part in _parts(size):
            made[part] = array[part]
    return made
