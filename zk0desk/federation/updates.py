"""How weights and updates travel: flat float32 vectors in pieces, as fp32, as fp16 of the change times 1024, or as int8 in blocks.

bf16 or fp16 *weights* would lose an eighth of a small change, so only changes are sent in 16 or 8 bit. A piece is one array, whatever
the encoding, and is decoded without the others. numpy only.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from zk0desk.errors import OperatorError
from zk0desk.federation import int8_blocks
from zk0desk.federation.messages import ENCODINGS, MessageRefused

PIECE = 4 * 2**20
"""Values of one piece: 16 MiB as fp32, 8 MiB as fp16, 4 MiB as int8. Pieces travel one by one, so a stop or a lost line costs one."""
SCALE = np.float32(1024.0)
"""fp16 holds down to 6e-8; times 2^10 the small changes of an optimiser step keep their digits."""

DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("i1")}
"""The dtype of a piece by encoding. Pieces have one dimension, of `piece_length`."""
DIFFERENCES = 3
"""Most encoded steps in one message: three in int8 are three quarters of the whole weights' bytes."""
LOSSY = ("fp16", "int8")
"""Encodings that leave something out: the sender adds it to what it sends next."""


class UpdateTooLarge(OperatorError):
    """A change does not fit its encoding, or is not finite; it is not sent."""

    code = "update-unfit"


def pieces(size: int) -> int:
    """How many pieces a vector of `size` values has."""
    return -(-size // PIECE)


def piece_length(count: int, encoding: str) -> int:
    """Length of the array that holds a piece of `count` values."""
    return int8_blocks.packed_size(count) if encoding == "int8" else count


def encoded_bytes(size: int, encoding: str) -> int:
    """Bytes of a vector of `size` values on the wire, framing aside."""
    whole, rest = divmod(size, PIECE)
    length = whole * piece_length(PIECE, encoding) + (piece_length(rest, encoding) if rest else 0)
    return length * DTYPES[encoding].itemsize


def encode(vector: np.ndarray, encoding: str) -> list[np.ndarray]:
    """`vector` (float32, flat) as pieces of at most `PIECE` values in `encoding`.

    Raises `UpdateTooLarge` when a value is not finite or does not fit (beyond 63 as fp16, 1e33 as int8).
    """
    return list(encode_pieces(vector, encoding))


def encode_pieces(vector: np.ndarray, encoding: str) -> Iterator[np.ndarray]:
    """As `encode`, one piece at a time."""
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise ValueError(f"a flat float32 vector is encoded, not {vector.dtype} of shape {vector.shape}")
    for start in range(0, vector.size, PIECE):
        yield encode_piece(vector[start : start + PIECE], encoding)


def encode_piece(part: np.ndarray, encoding: str) -> np.ndarray:
    """One piece of at most `PIECE` values (float32), as `encode`. As fp32 it is `part` itself."""
    try:
        if encoding == "int8":
            return int8_blocks.pack(part)
        if encoding == "fp16":
            with np.errstate(over="ignore", invalid="ignore"):
                part = (part * SCALE).astype(DTYPES["fp16"])
        else:
            part = part.astype(DTYPES[encoding], copy=False)
        fits = bool(np.isfinite(part).all())
    except int8_blocks.Unpackable:
        fits = False
    if not fits:
        raise UpdateTooLarge(
            "The update cannot be sent.",
            f"A value is not finite or too large for {encoding}.",
            "The learning rate may be too high; tell the coordinator.",
        )
    return part


class EncodedPiece(NamedTuple):
    """A piece of a change and of what was owed, from value `start` on: as it travels, what the other side reads out of it, and what is
    still owed. `decoded` and `left` (float32) are good until the next piece."""

    start: int
    array: np.ndarray
    decoded: np.ndarray
    left: np.ndarray


def encode_owed(change: np.ndarray, owed: np.ndarray | None, encoding: str) -> Iterator[EncodedPiece]:
    """Error feedback: `change` plus what earlier encodings left out (`owed`), both flat float32 of one size, piece by piece.

    Raises `UpdateTooLarge` as `encode`.
    """
    decoded, left = (np.empty(min(change.size, PIECE), np.float32) for _ in range(2))
    for start in range(0, change.size, PIECE):
        part = change[start : start + PIECE]
        if owed is not None:
            part = part + owed[start : start + PIECE]
        array, back = encode_piece(part, encoding), decoded[: part.size]
        decode_piece(array, encoding, back)
        yield EncodedPiece(start, array, back, np.subtract(part, back, out=left[: part.size]))


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
    """Write one piece into `target` (float32); `MessageRefused` unless dtype and shape are exact and all values finite.

    What comes out is the same on every computer, to the bit: no step of it rounds.
    """
    if encoding == "int8":
        try:
            int8_blocks.unpack(array, target)
        except int8_blocks.NotPacked as error:
            raise MessageRefused(name, f"{error}.") from error
        return
    if array.dtype != DTYPES[encoding] or array.shape != target.shape:
        raise MessageRefused(name, f"is {array.dtype} of shape {array.shape} where {DTYPES[encoding]} of shape {target.shape} belongs.")
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
