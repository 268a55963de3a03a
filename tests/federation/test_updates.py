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
from zk0desk.federation.updates import UpdateTooLarge, decode, encode, norm, weights_sha256


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


@pytest.mark.parametrize("value", [np.nan, np.inf, 100.0])
def test_that_an_update_that_fp16_cannot_hold_is_not_sent(value: float) -> None:
    with pytest.raises(UpdateTooLarge):
        encode(np.array([0.0, value], np.float32), "fp16")


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


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-60, 60, width=32)), st.sampled_from(["fp32", "fp16"]))
def test_that_what_is_encoded_is_decoded_near_to_it(vector: np.ndarray, encoding: str) -> None:
    back = decode(encode(vector, encoding), encoding, vector.size)
    assert back.dtype == np.float32
    assert np.allclose(back, vector, rtol=1e-3, atol=1e-7)


def test_that_the_hash_is_that_of_the_little_endian_bytes() -> None:
    vector = np.array([1.0, -2.0], np.float32)
    assert weights_sha256(vector) == hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
