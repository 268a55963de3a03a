"""How weights and updates travel: flat float32 vectors in pieces, as fp32 or as fp16 of the change times 1024.

bf16 or fp16 *weights* would lose an eighth of a small change, so only changes are sent in 16 bit. numpy only.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zk0desk.errors import OperatorError
from zk0desk.federation.messages import ENCODINGS, MessageRefused

PIECE = 4 * 2**20
"""Values of one piece: 16 MiB as fp32, 8 MiB as fp16. Pieces travel one by one, so a stop or a lost line costs one."""
SCALE = np.float32(1024.0)
"""fp16 holds down to 6e-8; times 2^10 the small changes of an optimiser step keep their digits."""

_DTYPES: dict[str, np.dtype[np.floating[Any]]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


class UpdateTooLarge(OperatorError):
    """A change does not fit its encoding, or is not finite; it is not sent."""

    code = "update-unfit"


def pieces(size: int) -> int:
    """How many pieces a vector of `size` values has."""
    return -(-size // PIECE)


def encoded_bytes(size: int, encoding: str) -> int:
    """Bytes of a vector of `size` values on the wire, framing aside."""
    return size * _DTYPES[encoding].itemsize


def encode(vector: np.ndarray, encoding: str) -> list[np.ndarray]:
    """`vector` (float32, flat) as pieces of at most `PIECE` values in `encoding`.

    Raises `UpdateTooLarge` when a value is not finite or does not fit (beyond 63 as fp16).
    """
    return list(encode_pieces(vector, encoding))


def encode_pieces(vector: np.ndarray, encoding: str) -> Iterator[np.ndarray]:
    """As `encode`, one piece at a time."""
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise ValueError(f"a flat float32 vector is encoded, not {vector.dtype} of shape {vector.shape}")
    for start in range(0, vector.size, PIECE):
        part = vector[start : start + PIECE]
        if encoding == "fp16":
            with np.errstate(over="ignore", invalid="ignore"):
                part = (part * SCALE).astype(_DTYPES["fp16"])
        else:
            part = part.astype(_DTYPES[encoding], copy=False)
        if not np.isfinite(part).all():
            raise UpdateTooLarge(
                "The update cannot be sent.",
                f"A value is not finite or too large for {encoding}.",
                "The learning rate may be too high; tell the coordinator.",
            )
        yield part


def decode(arrays: Sequence[np.ndarray], encoding: str, size: int) -> np.ndarray:
    """The float32 vector of `size` values in `arrays`; `MessageRefused` unless dtypes, shapes and sizes are exact and all values finite."""
    if encoding not in ENCODINGS:
        raise MessageRefused("encoding", f"{encoding!r:.20} is not one of {', '.join(ENCODINGS)}.")
    if len(arrays) != pieces(size):
        raise MessageRefused("arrays", f"{len(arrays)} pieces where {pieces(size)} belong.")
    vector = np.empty(size, np.float32)
    for index, array in enumerate(arrays):
        start = index * PIECE
        target = vector[start : start + PIECE]
        decode_piece(array, encoding, target, f"arrays[{index}]")
    return vector


def decode_piece(array: np.ndarray, encoding: str, target: np.ndarray, name: str = "arrays") -> None:
    """Write one piece into `target` (float32); `MessageRefused` unless dtype and shape are exact and all values finite."""
    if array.dtype != _DTYPES[encoding] or array.shape != target.shape:
        raise MessageRefused(name, f"is {array.dtype} of shape {array.shape} where {_DTYPES[encoding]} of shape {target.shape} belongs.")
    if not np.isfinite(array).all():
        raise MessageRefused(name, "holds values that are not finite.")
    target[:] = array
    if encoding == "fp16":
        target /= SCALE


def weights_sha256(vector: np.ndarray) -> str:
    """Hex SHA-256 of `vector` as little-endian float32 bytes."""
    if vector.dtype != np.float32:
        raise ValueError(f"weights are float32, not {vector.dtype}")
    plain = np.ascontiguousarray(vector)
    if sys.byteorder == "big":
        plain = plain.astype("<f4")
    return hashlib.sha256(plain.data).hexdigest()


def norm(vector: np.ndarray) -> float:
    """L2 norm, summed in float64 piece by piece."""
    total = 0.0
    for start in range(0, vector.size, PIECE):
        part = vector[start : start + PIECE].astype(np.float64)
        total += float(part @ part)
    return total**0.5
