"""A float32 vector as int8 in blocks of 256, each with its own fp16 scale: a quarter of the bytes.

One packed piece is one int8 array: the values, the little-endian fp16 scales, and a power-of-two exponent that the scales share. Plain
fp16 underflows below 6e-8, so the exponent puts the largest scale near fp16's top; blocks may then differ by 2^29. What is unpacked,
q * scale * 2^exponent, is exact in float32, and therefore the same on every computer. numpy only.
"""

from __future__ import annotations

import numpy as np

BLOCK = 256
"""Values that share a scale."""
STEPS = 127
"""The largest packed value; -128 is not used."""
EXPONENTS = (-96, 96)
"""Range of the shared exponent. What is unpacked is then finite, and 1 / scale too."""
LARGEST = 2.0**110
"""Values beyond it are not packed."""

_SCALE = np.dtype("<f2")
_TOP = 15
"""The largest scale is below 2^15, half of fp16's range: rounding up has room."""
_STRIDE = 256 * BLOCK
"""Values that are worked on at once: they stay in the processor's cache."""


class Unpackable(ValueError):
    """The values are not finite, or too large."""


class NotPacked(ValueError):
    """The bytes are not what `pack` makes; the text says why."""


def packed_size(count: int) -> int:
    """Bytes of `count` packed values."""
    return count + 2 * _blocks(count) + 1


def pack(values: np.ndarray) -> np.ndarray:
    """`values` (float32, flat, at least one) as one int8 array of `packed_size`. Each is off by at most half its block's scale.

    Raises `Unpackable` when one is not finite or beyond `LARGEST`.
    """
    count, packed = values.size, np.empty(packed_size(values.size), np.int8)
    largest = _largest(values)
    top = float(largest.max())
    if not top <= LARGEST:  # NaN is not
        raise Unpackable("a value is not finite or too large")
    exponent = int(np.clip(np.frexp(top / STEPS)[1] - _TOP, *EXPONENTS)) if top else 0
    wanted = np.ldexp(largest / np.float32(STEPS), -exponent)
    scales = wanted.astype(_SCALE)
    # Rounded up, so that no value is beyond the last step; and no block of small values becomes one of zeros.
    scales = np.where(scales.astype(np.float32) < wanted, np.nextafter(scales, np.float16(np.inf)), scales).astype(_SCALE)
    packed[count:-1] = scales.view(np.int8)
    packed[-1] = exponent
    steps = np.ldexp(scales.astype(np.float32), exponent)
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
    scratch = np.empty(min(count, _STRIDE), np.float32)
    for start in range(0, count, _STRIDE):
        part = values[start : start + _STRIDE]
        scaled = scratch[: part.size]
        _by_block(np.multiply, part, inverse[start // BLOCK :], scaled)
        np.rint(scaled, out=scaled)
        packed[start : start + part.size] = scaled
    return packed


def unpack(packed: np.ndarray, target: np.ndarray) -> None:
    """Write the values in `packed` into `target` (float32, flat).

    Raises `NotPacked`, before anything is written, unless all of it is what `pack` can have made.
    """
    count = target.size
    if packed.dtype != np.int8 or packed.shape != (packed_size(count),):
        raise NotPacked(f"is {packed.dtype} of shape {packed.shape} where int8 of shape ({packed_size(count)},) belongs")
    exponent = int(packed[-1])
    if not EXPONENTS[0] <= exponent <= EXPONENTS[1]:
        raise NotPacked(f"has the exponent {exponent}")
    scales = np.frombuffer(packed[count:-1].tobytes(), _SCALE).astype(np.float32)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise NotPacked("has a scale that is not finite, or negative")
    if packed[:count].min() < -STEPS:
        raise NotPacked(f"has a value below -{STEPS}")
    steps = np.ldexp(scales, exponent)
    for start in range(0, count, _STRIDE):
        part = target[start : start + _STRIDE]
        part[:] = packed[start : start + part.size]
        _by_block(np.multiply, part, steps[start // BLOCK :], part)


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest magnitude of each block; NaN where there is one."""
    whole = values.size - values.size % BLOCK
    largest = np.empty(_blocks(values.size), np.float32)
    scratch = np.empty(min(whole, _STRIDE), np.float32)
    for start in range(0, whole, _STRIDE):
        part = values[start : min(start + _STRIDE, whole)]
        magnitudes = np.abs(part, out=scratch[: part.size])
        np.max(magnitudes.reshape(-1, BLOCK), axis=1, out=largest[start // BLOCK : (start + part.size) // BLOCK])
    if whole < values.size:
        largest[-1] = np.abs(values[whole:]).max()
    return largest


def _by_block(ufunc: np.ufunc, values: np.ndarray, factors: np.ndarray, out: np.ndarray) -> None:
    whole = values.size - values.size % BLOCK
    ufunc(values[:whole].reshape(-1, BLOCK), factors[: whole // BLOCK, None], out=out[:whole].reshape(-1, BLOCK))
    if whole < values.size:
        ufunc(values[whole:], factors[whole // BLOCK], out=out[whole:])
