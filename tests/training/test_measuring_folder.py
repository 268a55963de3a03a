"""The folder of a measurement: nobody's shelves, gone at the end, and cleared away when its process was killed."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zk0desk.training.measuring_folder import forget, measuring_folder
from zk0desk.training.prefix_cache import PrefixCache

KILLED = """
import os, signal, sys
from pathlib import Path
from zk0desk.training.measuring_folder import measuring_folder
with measuring_folder(Path(sys.argv[1])) as folder:
    (folder / "entries.bin").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_killed_process(cache: Path) -> Path:
    subprocess.run([sys.executable, "-c", KILLED, str(cache)], timeout=60, check=False)
    (left,) = cache.iterdir()
    assert (left / "entries.bin").exists()
    return left


def test_it_is_the_operators_own_on_the_caches_disk_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "frames"
    with pytest.raises(KeyError), measuring_folder(cache) as folder:
        assert folder.parent == cache and stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / ("a" * 64)).mkdir()
        (folder / ("a" * 64) / "entries.bin").write_bytes(b"x" * 10)
        forget(folder)
        with PrefixCache(cache) as kept:
            assert kept.shelves() == [] and kept.usage().bytes == 0
        raise KeyError
    assert not cache.exists(), "it was not there before"
    cache.mkdir()
    with measuring_folder(cache):
        pass
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_measurement_and_one_that_lives_stays(tmp_path: Path) -> None:
    left = left_by_a_killed_process(tmp_path)
    with measuring_folder(tmp_path) as first:
        assert not left.exists()
        with measuring_folder(tmp_path) as second:
            assert first.exists() and second.exists() and first != second
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_whoever_uses_the_cache_next(tmp_path: Path) -> None:
    left = left_by_a_killed_process(tmp_path)
    with PrefixCache(tmp_path) as cache:
        cache.clear()
    assert not left.exists()


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), measuring_folder(tmp_path / "file"):
        pass
