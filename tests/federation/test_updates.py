"""Weights and updates on the wire."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zk0desk.federation import updates
from zk0desk.federation.messages import MessageRefused
from zk0desk.federation.updates import (
    UpdateTooLarge,
    decode,
    decode_piece,
    encode,
    encode_owed,
    encode_piece,
    encoded_bytes,
    norm,
    piece_length,
    weights_sha256,
)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "PIECE", 1000)


def test_that_fp32_arrives_bit_by_bit_in_pieces(small_pieces: None) -> None:
    vector = np.random.default_rng(1).standard_normal(2500).astype(np.float32)
    arrays = encode(vector, "fp32")
    assert [array.size for array in arrays] == [1000, 1000, 500]
    assert np.array_equal(decode(arrays, "fp32", 2500), vector)


def test_that_fp16_of_a_small_change_loses_two_parts_in_ten_thousand(small_pieces: None) -> None:
    change = (np.random.default_rng(1).standard_normal(2500) * 1e-6).astype(np.float32)
    error = norm(decode(encode(change, "fp16"), "fp16", 2500) - change) / norm(change)
    assert 1e-5 < error < 4e-4
    plain = change.astype(np.float16).astype(np.float32)
    assert norm(plain - change) > 10 * error * norm(change)


@pytest.mark.parametrize(
    ("value", "encoding"), [(np.nan, "fp16"), (-np.inf, "fp16"), (100.0, "fp16"), (np.nan, "int8"), (-np.inf, "int8"), (1e34, "int8")]
)
def test_that_an_update_that_its_encoding_cannot_hold_is_not_sent(value: float, encoding: str) -> None:
    for place in (1, 299):
        vector = np.zeros(300, np.float32)
        vector[place] = value
        with pytest.raises(UpdateTooLarge, match=encoding):
            encode(vector, encoding)


@pytest.mark.parametrize(
    "arrays",
    [
        [], [np.zeros(1000, np.float32)], [np.zeros(1000, np.float64), np.zeros(5, np.float64)],
        [np.zeros(1000, np.float32), np.zeros(6, np.float32)], [np.zeros(1000, np.float32), np.zeros((5, 1), np.float32)],
        [np.zeros(1000, np.float32), np.full(5, np.nan, np.float32)], [np.zeros(1000, np.float16), np.zeros(5, np.float16)],
    ],
)  # fmt: skip
def test_that_arrays_of_another_shape_or_dtype_or_not_finite_are_refused(small_pieces: None, arrays: list[np.ndarray]) -> None:
    with pytest.raises(MessageRefused, match="arrays"):
        decode(arrays, "fp32", 1005)


def test_that_a_packed_piece_is_the_values_the_scales_and_their_exponent() -> None:
    values = np.concatenate([np.full(256, 127e-9, np.float32), np.arange(3, dtype=np.float32)])
    packed = encode_piece(values, "int8")
    assert packed.dtype == np.int8 and packed.size == piece_length(259, "int8") == 259 + 2 * 2 + 1
    scales, exponent = np.frombuffer(packed[259:-1].tobytes(), "<f2").astype(np.float64), int(packed[-1])
    assert packed[:256].tolist() == [127] * 256 or packed[:256].tolist() == [126] * 256
    assert packed[256:259].tolist() == [0, 63, 127] or packed[256:259].tolist() == [0, 64, 127]
    read = np.concatenate([packed[:256] * scales[0], packed[256:259] * scales[1]]) * 2.0**exponent
    back = np.empty_like(values)
    decode_piece(packed, "int8", back)
    assert np.array_equal(back, read), "float32 holds the product without rounding"


@pytest.mark.parametrize(("magnitude", "most"), [(1e-9, 0.008), (1e-6, 0.008), (1.0, 0.008), (1e20, 0.008)])
def test_that_int8_is_as_good_for_tiny_changes_as_for_large_ones(magnitude: float, most: float) -> None:
    change = (np.random.default_rng(1).standard_normal(70_001) * magnitude).astype(np.float32)
    error = decode(encode(change, "int8"), "int8", change.size) - change
    assert 0.003 < norm(error) / norm(change) < most
    largest = np.abs(np.pad(change, (0, -change.size % 256)).reshape(-1, 256)).max(axis=1).repeat(256)[: change.size]
    assert (np.abs(error) <= 0.502 * largest / 127).all(), "no value is off by more than half a step"


def test_that_int8_of_the_whole_trainable_set_is_at_most_101_megabytes() -> None:
    assert encoded_bytes(99_880_992, "int8") <= 101_000_000 - 2**18
    change = np.ones(updates.PIECE + 300, np.float32)
    assert sum(array.nbytes for array in encode(change, "int8")) == encoded_bytes(change.size, "int8")


@pytest.mark.parametrize("encoding", ["fp16", "int8"])
def test_that_what_is_left_out_once_is_sent_the_next_time(small_pieces: None, encoding: str) -> None:
    rng, size = np.random.default_rng(3), 2500
    sent, true, owed = np.zeros(size, np.float64), np.zeros(size, np.float64), None
    errors = []
    for _ in range(8):
        change = (1e-4 * np.sign(rng.standard_normal(size)) * rng.uniform(0.2, 1, size) + 2e-4).astype(np.float32)
        left = np.empty(size, np.float32)
        for piece in encode_owed(change, owed, encoding):
            sent[piece.start : piece.start + piece.decoded.size] += piece.decoded
            left[piece.start : piece.start + piece.left.size] = piece.left
        true += change
        owed = left
        errors.append(np.linalg.norm(sent - true) / np.linalg.norm(true))
        step = np.abs(change).max() / (127 if encoding == "int8" else 2048)
        assert np.abs(sent - true).max() <= 1.01 * step, "the sums differ by no more than one step of the last encoding"
    assert errors[3] < errors[0] / 3 and errors[7] < errors[0] / 6


def packed_piece(count: int) -> np.ndarray:
    return encode_piece(np.random.default_rng(2).standard_normal(count).astype(np.float32), "int8")


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [(-1, 97, "exponent"), (-1, -97, "exponent"), (3, -128, "-127"), (-2, 0x7C, "scale"), (-2, -1, "scale"), (-2, -0x80, "scale")],
)
def test_that_a_packed_piece_that_nothing_encodes_to_is_refused(place: int, value: int, why: str) -> None:
    piece, target = packed_piece(700), np.full(700, 7, np.float32)
    piece[place] = value
    with pytest.raises(MessageRefused, match=why):
        decode_piece(piece, "int8", target, "arrays[3]")
    assert (target == 7).all()


@given(st.binary(max_size=1200), st.integers(1, 700), st.booleans())
def test_that_any_bytes_are_finite_values_or_are_refused(data: bytes, count: int, fits: bool) -> None:
    length = piece_length(count, "int8")
    array = np.frombuffer(data.ljust(length, b"\x01")[:length] if fits else data, np.int8)
    target = np.zeros(count, np.float32)
    try:
        decode_piece(array, "int8", target)
    except MessageRefused:
        assert not target.any()
    else:
        assert array.size == length and np.isfinite(target).all()


@given(hnp.arrays(np.float32, st.integers(1, 600), elements=st.floats(-(2.0**110), 2.0**110, width=32)))
def test_that_every_block_is_within_half_a_step_of_what_was_packed(vector: np.ndarray) -> None:
    back = decode(encode(vector, "int8"), "int8", vector.size)
    largest = np.array([np.abs(vector[i - i % 256 : i - i % 256 + 256]).max() for i in range(vector.size)])
    # Beside a block that is 2^29 times larger, a block's step is that of the smallest scale.
    step = largest / 127 * 1.002 + np.abs(vector).max() / 127 * 2.0**-37 + 2.0**-119
    assert (np.abs(back - vector) <= 0.502 * step).all()


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-60, 60, width=32)), st.sampled_from(["fp32", "fp16", "int8"]))
def test_that_what_is_encoded_is_decoded_near_to_it(vector: np.ndarray, encoding: str) -> None:
    back = decode(encode(vector, encoding), encoding, vector.size)
    assert back.dtype == np.float32
    assert np.allclose(back, vector, rtol=1e-3, atol=1e-7 if encoding != "int8" else 1e-7 + np.abs(vector).max() / 250)


def test_that_the_hash_is_that_of_the_little_endian_bytes() -> None:
    vector = np.array([1.0, -2.0], np.float32)
    assert weights_sha256(vector) == hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
