"""Numbers as the prefix cache stores them. What is trained on is the stored value, so that a hit and a miss agree bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

ARRAY_TYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
"""How a storage type looks as an array: numpy has no bfloat16, its 16 bits are kept as an unsigned integer."""

_EXPONENT = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}
"""The bits that are all ones in what is not finite."""


class StorageRangeError(ValueError):
    """A value is too large for the storage type, or not finite: nothing was stored, and nothing may be trained on it."""


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` as they are stored, any shape: rounded to the nearest, ties to even.

    Floating values of any width are rounded; an array that is stored as it is (uint16 for "bfloat16") is taken so. `StorageRangeError`
    where a finite value would become infinite, or one is not finite at all.
    """
    target = ARRAY_TYPES[dtype]
    with np.errstate(over="ignore"):
        result = _to_bfloat16(values) if dtype == "bfloat16" and values.dtype != target else np.ascontiguousarray(values, dtype=target)
    if not _finite(result, dtype):
        raise StorageRangeError(f"a value between {np.min(values)} and {np.max(values)} does not fit into {dtype}")
    return result


def restored(array: np.ndarray, dtype: str) -> np.ndarray:
    """The values of an array as it is stored, as float32 (float64 for "float64"). Exact."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if dtype == "float64" else array.astype(np.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"bfloat16 is rounded from floating values or taken as uint16, not from {values.dtype}")
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    infinite = np.uint32(0x7F800000)
    rounded = bits + (0x7FFF + ((bits >> 16) & 1))
    # NaN's bits would carry over into the sign and look like a number: it is kept from that as an infinity.
    return (np.where((bits & infinite) == infinite, infinite, rounded) >> 16).astype(np.uint16)


def _finite(array: np.ndarray, dtype: str) -> bool:
    exponent = _EXPONENT.get(dtype)
    if exponent is None:
        return bool(np.isfinite(array).all())
    return not bool(((array.view(np.uint16) & exponent) == exponent).any())  # numpy is ten times as slow with float16
