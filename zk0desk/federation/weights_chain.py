"""The global weights from round to round, as all sides hold them: w_t = w_{t-1} + decode(q_t), in float32, multiply then add.

q_t is the encoded step, and what travels: a node that holds w_{t-1} gets q_t, one that is up to three rounds behind gets those
between, another the whole. What the encoding leaves out of a step goes into the next one. With fp32 nothing is encoded. numpy only.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.errors import OperatorError
from zk0desk.federation import updates
from zk0desk.federation.strategy import is_finite
from zk0desk.federation.vector_file import let_go, new_vector, read_vector

if TYPE_CHECKING:
    from zk0desk.federation.run_state import RunState

KEPT, DIFFERENCE, RESIDUAL = "codec", "codec-difference", "codec-residual"
"""Names of what is kept with a round: the steps as JSON, each step's bytes in `codec-difference-ROUND`, and what is owed."""

_FLOAT = np.dtype(np.float32)


class StepUnfit(OperatorError):
    """The step to the next weights is not finite, or too large for the run's encoding."""

    code = "step-unfit"


class WeightsChain:
    """The weights of a run from round to round. What it needs after a restart is in the run's `kept` and `kept_arrays`."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._begun = False

    def advance(self, weights: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Add `step`, of the round after the last complete one, to `weights` (flat float32, of `state.sha256`): the weights after it.

        They are added in place, so that a large set is in memory once; all that can fail comes before. Raises `StepUnfit` when the step
        cannot be encoded, or leads beyond float32; the weights and the chain are then as they were.
        """
        encoding, size = self._state.rules.encoding, weights.size
        owed, number = self._residual(size), self._state.record.done + 1
        if encoding not in updates.LOSSY:
            step = step if owed is None else step + owed
            for part in _parts(size):
                _check(weights[part], step[part])
            self._forget()
            return _added(weights, ((part, step[part]) for part in _parts(size)))
        folder = self._folder()
        difference, left = (folder / f"{name}-{number}.npy" for name in (DIFFERENCE, RESIDUAL))
        dtype = updates.DTYPES[encoding]
        length = updates.encoded_bytes(size, encoding) // dtype.itemsize

        def encode() -> None:
            with new_vector(difference, dtype, length, sync=False) as keep, new_vector(left, _FLOAT, size, sync=False) as owe:
                for piece in updates.encode_owed(step, owed, encoding):
                    keep(piece.array)
                    owe(piece.left)
                    _check(weights[piece.start : piece.start + piece.decoded.size], piece.decoded)
                    let_go(step)
                    let_go(owed)

        try:
            self._state.disk.insist(encode)
        except updates.UpdateTooLarge as error:
            raise _unfit(error.why) from error
        before = self._steps(encoding)[1 - updates.DIFFERENCES :]
        self._forget(but={step["round"] for step in before})
        steps = [*before, {"round": number, "base-sha256": self._state.sha256}]
        self._state.kept[KEPT] = {"encoding": encoding, "steps": steps}
        kept = _mapped(difference, dtype, length)
        self._state.kept_arrays |= {difference.stem: kept, RESIDUAL: _mapped(left, _FLOAT, size)}
        self._tidy({f"{DIFFERENCE}-{step['round']}" for step in steps} | {left.stem})
        return _added(weights, zip(_parts(size), _decoded(_cut(kept, size, encoding), encoding, size), strict=True))

    def behind(self, held: int | None, encoding: str) -> int:
        """How many differences lead from the weights of round `held` to the present ones, in `encoding`; 0: the whole has to travel.

        It never is more bytes than the whole. One difference is sent to a node that holds the present weights already.
        """
        steps, size = self._steps(encoding), self._state.weights.size
        count = 0 if held is None else max(1, self._state.record.done - held)
        fits = count <= len(steps) and count * updates.encoded_bytes(size, encoding) < updates.encoded_bytes(size, "fp32")
        return count if fits else 0

    def base_sha256(self, count: int, encoding: str) -> str:
        """SHA-256 of the weights that the last `count` differences are added to."""
        return str(self._steps(encoding)[-count]["base-sha256"])

    def pieces(self, count: int, encoding: str) -> Iterator[np.ndarray]:
        """The pieces of the last `count` differences, the oldest first."""
        size = self._state.weights.size
        for step in self._steps(encoding)[-count:]:
            yield from _cut(self._state.kept_arrays[f"{DIFFERENCE}-{step['round']}"], size, encoding)

    def _steps(self, encoding: str) -> list[dict[str, Any]]:
        """The steps that end at the present weights and are kept in `encoding`: round and base, the oldest first."""
        known = self._state.kept.get(KEPT, {})
        steps = list(known.get("steps", ())) if known.get("encoding") == encoding else []
        return steps if steps and steps[-1]["round"] == self._state.record.done else []

    def _residual(self, size: int) -> np.ndarray | None:
        owed = self._state.kept_arrays.get(RESIDUAL)
        return owed if owed is not None and owed.shape == (size,) else None

    def _forget(self, but: Iterable[int] = ()) -> None:
        arrays, stay = self._state.kept_arrays, {f"{DIFFERENCE}-{number}" for number in but}
        self._state.kept.pop(KEPT, None)
        for name in [name for name in arrays if name.startswith((DIFFERENCE, RESIDUAL)) and name not in stay]:
            del arrays[name]

    def _folder(self) -> Path:
        """Where this process keeps the arrays until the round's checkpoint has them. What an earlier process left there is removed."""
        folder = self._state.record.folder(self._state.folder) / KEPT
        if not self._begun:
            shutil.rmtree(folder, ignore_errors=True)
            self._begun = True
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _tidy(self, used: set[str]) -> None:
        for path in self._folder().glob("*.npy"):
            if path.stem not in used:
                with suppress(OSError):  # where a mapped file cannot be removed, it is the next time
                    path.unlink()


def _parts(size: int) -> Iterator[slice]:
    """The pieces of a vector of `size` values."""
    return (slice(start, min(start + updates.PIECE, size)) for start in range(0, size, updates.PIECE))


def _cut(array: np.ndarray, size: int, encoding: str) -> Iterator[np.ndarray]:
    """The encoded pieces that lie one after the other in `array`, of a vector of `size` values."""
    at = 0
    for part in _parts(size):
        length = updates.piece_length(part.stop - part.start, encoding)
        yield array[at : at + length]
        at += length


def _decoded(pieces: Iterable[np.ndarray], encoding: str, size: int) -> Iterator[np.ndarray]:
    """The values of each piece, good until the next."""
    scratch = np.empty(min(size, updates.PIECE), np.float32)
    for part, piece in zip(_parts(size), pieces, strict=True):
        values = scratch[: part.stop - part.start]
        updates.decode_piece(piece, encoding, values)
        yield values


def _check(weights: np.ndarray, step: np.ndarray) -> None:
    """Raise `StepUnfit` unless the sum is finite."""
    with np.errstate(over="ignore"):
        if not is_finite(weights + step):
            raise _unfit("A weight would not be finite.")


def _added(weights: np.ndarray, steps: Iterable[tuple[slice, np.ndarray]]) -> np.ndarray:
    for part, values in steps:
        np.add(weights[part], values, out=weights[part])
    return weights


def _unfit(why: str) -> StepUnfit:
    return StepUnfit("The step to the next global weights cannot be used.", why, "A lower learning rate may help.")


def _mapped(path: Path, dtype: np.dtype[Any], size: int) -> np.ndarray:
    found = read_vector(path, dtype, size)
    if found is None:
        raise OSError(f"{path} is not what was written")
    return found
