"""Vectors on disk."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from zk0desk.federation.vector_file import let_go

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux says what of a file is in memory")
SIZE = 4 * 2**20


def held(path: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    return sum(each.rss for each in psutil.Process().memory_maps() if each.path == str(path))


def test_what_was_written_to_a_mapped_file_leaves_memory_and_stays_in_the_file(tmp_path):
    vector = np.memmap(tmp_path / "vector", np.float32, "w+", shape=(SIZE,))
    mapped = np.memmap(tmp_path / "vector", np.float32, "r+", shape=(SIZE,))
    vector.flush()
    del vector
    mapped[:] = np.arange(SIZE)
    assert held(tmp_path / "vector") >= 4 * SIZE
    let_go(mapped[SIZE // 2 :])
    assert held(tmp_path / "vector") == 0
    assert np.array_equal(mapped, np.arange(SIZE, dtype=np.float32))


def test_changes_that_are_not_the_files_are_kept(tmp_path):
    np.save(tmp_path / "vector.npy", np.zeros(SIZE, np.float32))
    own = np.load(tmp_path / "vector.npy", mmap_mode="c")
    own[:] = 1
    let_go(own)
    assert own.min() == 1
    let_go(np.ones(3))
    let_go(None)
