"""Updates on disk: what is taken, what is refused before it is written, and what is read back."""

import hashlib
import resource
from pathlib import Path

import numpy as np
import pytest

from tests.federation.reply_parts import spooled
from zk0desk.federation import strategy, updates
from zk0desk.federation.messages import MessageRefused
from zk0desk.federation.spool import Spool, SpoolTrouble, gram

ENCODINGS = ["fp32", "fp16", "int8"]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def vector(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32) * np.float32(1e-3)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_that_an_update_is_read_back_as_it_was_sent(spool, encoding):
    sent = vector(updates.PIECE + 77)
    pieces = updates.encode(sent, encoding)
    kept, expected = spooled(spool, sent, encoding), updates.decode(pieces, encoding, sent.size)
    back = np.empty(sent.size, np.float32)
    for index in range(2):
        kept.read(index, back[index * updates.PIECE :][: updates.PIECE])
    assert np.array_equal(back, expected)
    assert kept.norm == pytest.approx(np.linalg.norm(expected.astype(np.float64)), rel=1e-12)
    assert kept.sha256 == hashlib.sha256(b"".join(piece.tobytes() for piece in pieces)).hexdigest()
    assert kept.bytes == kept.path.stat().st_size == sum(piece.nbytes for piece in pieces)


@pytest.mark.parametrize(
    "pieces",
    [[], [np.zeros(9, np.float32)], [np.zeros(10, np.float64)], [np.zeros((10, 1), np.float32)], [np.full(10, np.inf, np.float32)],
     [np.zeros(10, np.float32)] * 2, [np.array([0] * 9 + [np.nan], np.float32)]],
)  # fmt: skip
def test_that_what_is_not_exactly_as_agreed_is_refused_and_nothing_of_it_stays(spool, pieces):
    writer = spool.open("fp32", 10)
    with pytest.raises(MessageRefused):
        for piece in pieces:
            writer.add(piece)
        writer.done()
    assert sum(path.stat().st_size for path in spool.folder.iterdir()) <= 40
    writer.drop()
    assert not list(spool.folder.iterdir())


def test_that_a_disk_that_is_full_is_a_sentence_and_no_fault_of_the_node(spool):
    writer, before = spool.open("fp32", 10_000), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(SpoolTrouble, match="cannot be written"):
            writer.add(vector(10_000))
        with pytest.raises(OSError, match="large"):
            spool.vector(10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.drop()


def test_that_what_a_killed_process_left_is_removed_at_the_start(tmp_path):
    spooled(Spool(tmp_path / "spool"), vector(10))
    assert not list(Spool(tmp_path / "spool").folder.iterdir())


def test_that_the_sum_is_multiply_then_add_in_float32_over_all_pieces(spool):
    deltas = [vector(updates.PIECE + 5, seed) for seed in range(3)]
    weighted = [(share, spooled(spool, delta, "fp16")) for share, delta in zip((0.2, 0.3, 0.5), deltas, strict=True)]
    expected = np.zeros(deltas[0].size, np.float32)
    for (share, _), delta in zip(weighted, deltas, strict=True):
        expected = expected + np.float32(share) * updates.decode(updates.encode(delta, "fp16"), "fp16", delta.size)
    found = spool.vector(expected.size)
    strategy.add_weighted(found, weighted)
    assert np.array_equal(found, expected)


def test_that_inner_products_and_blocks_are_those_of_all_values_of_all_updates(spool):
    deltas = np.stack([vector(updates.PIECE + 7, seed) for seed in range(3)])
    kept = [spooled(spool, delta) for delta in deltas]
    wide = deltas.astype(np.float64)
    assert gram(spool, kept) == pytest.approx(wide @ wide.T, rel=1e-12)
    seen = np.zeros_like(deltas)
    for start, block in spool.side_by_side(kept):
        seen[:, start : start + block.shape[1]] += block
    assert np.array_equal(seen, deltas)
    spool.clear()
    assert not list(spool.folder.iterdir())
