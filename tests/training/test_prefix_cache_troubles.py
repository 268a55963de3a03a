"""The prefix cache when things go wrong: never wrong numbers, never an exception, and it mends itself."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.cache_parts import (
    ENTRIES,
    ENTRY_BYTES,
    Heard,
    change_byte,
    entries_file,
    index_file,
    shelf,
    stored_values,
    values,
)  # fmt: skip
from zk0desk.training import prefix_files, prefix_shelf
from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.training.prefix_index import HEADER_BYTES, parse_layout, word_at
from zk0desk.training.prefix_shelf import Shelf

ALL = list(range(ENTRIES))
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def cache(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefixCache]:
    monkeypatch.setattr(prefix_shelf, "REST_S", 0.0)
    with PrefixCache(tmp_path / "cache", 10**9, emit=heard, keep_free=0) as made:
        yield made


def right_or_missing(made: Shelf, rows: list[int], seed: int = 0) -> np.ndarray:
    """Which rows hit; every hit has the right bits, and every miss is zeros."""
    array, hits = made.read(rows)
    assert (array[hits] == stored_values(rows, seed)[hits]).all() and not array[~hits].any()
    return hits


def repaired(made: Shelf, rows: list[int]) -> None:
    """After one more visit all of it hits."""
    array, _ = made.read_through(rows, lambda places: values(np.array(rows)[places]))
    assert (array == stored_values(rows)).all()
    assert right_or_missing(made, rows).all()


# --- a process that is killed -----------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests/training")
from cache_parts import shelf, values
from zk0desk.training import prefix_shelf, prefix_shelf_files
from zk0desk.training.prefix_cache import PrefixCache

folder, write, piece = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
cache = PrefixCache(folder, 10**9, keep_free=0)
made = shelf(cache)
real, done = prefix_shelf.write_at, 0

def write_at(descriptor, content, offset):
    global done
    done += 1
    if done == write:
        view = memoryview(content).cast("B")
        real(descriptor, view[: int(piece * len(view))], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor, content, offset)

prefix_shelf.write_at = prefix_shelf_files.write_at = write_at
made.write(list(range(8)), values(list(range(8))))
"""


@POSIX
@pytest.mark.parametrize(("write", "piece"), [(1, 0.0), (5, 0.5), (5, 1.0), (6, 0.0), (6, 0.5), (6, 1.0), (16, 1.0)])
def test_a_process_that_is_killed_in_the_middle_of_a_write_leaves_whole_entries_or_none(
    cache: PrefixCache, checkout: Path, write: int, piece: float
) -> None:
    """Writes are an entry and its checksum by turns: the 5th is the third entry, the 6th its checksum; `piece` of it is written."""
    done = subprocess.run([sys.executable, "-c", DYING, str(cache.folder), str(write), str(piece)], cwd=checkout, timeout=60)
    assert done.returncode == -signal.SIGKILL
    made = shelf(cache)
    hits = right_or_missing(made, list(range(8)))
    assert hits.tolist() == [row < (write - 1 + (write % 2 == 0 and piece == 1)) // 2 for row in range(8)]
    repaired(made, list(range(8)))


WRITING = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/training")
from cache_parts import ENTRIES, index_file, shelf, values
from zk0desk.training.prefix_cache import PrefixCache
cache = PrefixCache(Path(sys.argv[1]), 10**9, keep_free=0)
rows = list(range(ENTRIES))
content = values(rows)
print("writing", flush=True)
while True:
    made = shelf(cache)
    made.write(rows, content)
    for row in rows:
        made._files.set_word(row, 0)
    made.close()
"""


@POSIX
def test_a_process_that_is_killed_at_any_moment_leaves_nothing_wrong(cache: PrefixCache, checkout: Path) -> None:
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITING, str(cache.folder)], cwd=checkout, stdout=subprocess.PIPE, text=True
        ) as writer:  # fmt: skip
            assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
            made = shelf(cache)
            for _ in range(30):
                right_or_missing(made, ALL)  # beside the writer, too
            writer.kill()
            writer.wait()
        right_or_missing(made, ALL)
    repaired(made, ALL)


def test_two_processes_that_fill_the_same_shelf_do_not_disturb_each_other(cache: PrefixCache, checkout: Path) -> None:
    program = WRITING.replace("while True:", "for _ in range(40):")
    command = [sys.executable, "-c", program, str(cache.folder)]
    with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        made = shelf(cache)
        for _ in range(40):
            rows = list(np.random.default_rng(0).permutation(ENTRIES)[:8])
            array, _ = made.read_through(rows, lambda places, rows=rows: values(np.array(rows)[places]))
            assert (array == stored_values(rows)).all()
        assert writer.wait(60) == 0
    repaired(made, ALL)


# --- a disk that changes what it was given -----------------------------------------------------------------------------


def test_a_flipped_bit_is_found_said_once_and_repaired(cache: PrefixCache, heard: Heard) -> None:
    made = shelf(cache)
    made.write(ALL, values(ALL))
    for row in (3, 9):
        change_byte(entries_file(made), row * ENTRY_BYTES + 77)
    assert right_or_missing(made, ALL).tolist() == [row not in (3, 9) for row in ALL]
    right_or_missing(made, ALL)
    assert heard.codes == ["cache-damaged"] and made.use.damaged == 2
    repaired(made, ALL)


def test_a_bit_that_flips_after_the_first_good_read_is_found_too(cache: PrefixCache) -> None:
    made = shelf(cache)
    made.write([3], values([3]))
    assert right_or_missing(made, [3]).all()
    change_byte(entries_file(made), 4 * ENTRY_BYTES - 1)
    assert not right_or_missing(made, [3]).any()


def test_entries_that_changed_places_are_found(cache: PrefixCache) -> None:
    made = shelf(cache)
    made.write([0, 1], values([0, 1]))
    content, index = entries_file(made).read_bytes(), index_file(made).read_bytes()
    entries_file(made).write_bytes(content[ENTRY_BYTES : 2 * ENTRY_BYTES] + content[:ENTRY_BYTES])
    first, second, end = word_at(0), word_at(1), word_at(2)
    index_file(made).write_bytes(index[:first] + index[second:end] + index[first:second] + index[end:])
    assert not right_or_missing(made, [0, 1]).any()


@given(damage=st.lists(st.tuples(st.integers(0, HEADER_BYTES + 8 * ENTRIES - 1), st.integers(0, 255)), max_size=30),
       end=st.none() | st.integers(0, HEADER_BYTES + 8 * ENTRIES), more=st.binary(max_size=40))  # fmt: skip
def test_any_garbage_in_the_index_is_a_miss_and_is_repaired(tmp_path_factory, damage, end, more) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    with PrefixCache(folder, 10**9, keep_free=0) as cache:
        made = shelf(cache)
        made.write(ALL, values(ALL))
        made.close()
        content = bytearray(index_file(made).read_bytes())
        for place, byte in damage:
            content[place] = byte
        index_file(made).write_bytes(bytes(content[:end]) + more)
        again = shelf(cache)
        right_or_missing(again, ALL)
        repaired(again, ALL)
    shutil.rmtree(folder)


@given(content=st.binary(max_size=3 * ENTRY_BYTES))
def test_any_garbage_among_the_entries_is_a_miss(tmp_path_factory, content) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    with PrefixCache(folder, 10**9, keep_free=0) as cache:
        made = shelf(cache)
        made.write([0, 1, 2], values([0, 1, 2]))
        entries_file(made).write_bytes(content)
        right_or_missing(made, [0, 1, 2])
        repaired(made, [0, 1, 2])
    shutil.rmtree(folder)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["format", "key", "entries", "shape", "dtype"]), inner),
    max_leaves=6,
)


@given(identity=_json, about=_json)
def test_any_description_is_a_layout_or_none(identity, about) -> None:
    import json

    parse_layout(json.dumps({"identity": identity, "about": about}))
    if isinstance(identity, dict):
        whole = {"format": 1, "key": {}, "entries": 1, "shape": [1], "dtype": "float16"} | identity
        found = parse_layout(json.dumps({"identity": whole, "about": about}))
        assert found is None or found[0].entry_bytes > 0


@given(text=st.text(max_size=60))
def test_a_description_that_is_no_json_is_none(text) -> None:
    assert parse_layout(text) is None


def test_a_shelf_with_a_damaged_description_is_listed_mended_when_opened_and_else_removed(cache: PrefixCache, tmp_path: Path) -> None:
    made = shelf(cache)
    made.write([0], values([0]))
    made.close()
    (made.folder / "shelf.json").write_bytes(b"\xff{")
    assert [each.damaged for each in cache.shelves()] == [True]
    assert shelf(cache).read([0])[1].all()
    assert [each.damaged for each in cache.shelves()] == [False]
    broken = cache.folder / ("a" * 64)
    broken.mkdir()
    (broken / "index.bin").write_bytes(b"?")
    assert [each.damaged for each in cache.verify() if each.shelf.name == "a" * 64] == [1]
    assert not broken.exists()


def test_verify_finds_what_is_wrong_empties_it_and_is_no_use_of_the_shelf(cache: PrefixCache) -> None:
    made = shelf(cache)
    made.write(ALL, values(ALL))
    made.close()
    change_byte(entries_file(made), 5 * ENTRY_BYTES)
    with open(entries_file(made), "r+b") as file:
        file.truncate((ENTRIES - 1) * ENTRY_BYTES)
    os.utime(made.folder / "shelf.json", (1e9, 1e9))
    seen: list[tuple[int, int]] = []
    found = cache.verify(lambda done, whole: seen.append((done, whole)))
    assert [(each.checked, each.damaged) for each in found] == [(ENTRIES, 2)] and seen[-1] == (ENTRIES, ENTRIES)
    assert [(each.checked, each.damaged) for each in cache.verify()] == [(ENTRIES - 2, 0)]
    assert cache.shelves()[0].last_used == 1e9
    assert right_or_missing(shelf(cache), ALL).sum() == ENTRIES - 2


# --- files that go away, become shorter, or cannot be written ------------------------------------------------------------


def remove_folder(made: Shelf) -> None:
    shutil.rmtree(made.folder)


def remove_whole_cache(made: Shelf) -> None:
    shutil.rmtree(made.folder.parent)


def remove_entries(made: Shelf) -> None:
    entries_file(made).unlink()


def remove_index(made: Shelf) -> None:
    index_file(made).unlink()


def cut_entries(made: Shelf) -> None:
    os.truncate(entries_file(made), 7 * ENTRY_BYTES + 100)


def cut_index(made: Shelf) -> None:
    os.truncate(index_file(made), word_at(3) + 5)


def empty_both(made: Shelf) -> None:
    os.truncate(entries_file(made), 0)
    os.truncate(index_file(made), 0)


@POSIX
@pytest.mark.parametrize("harm", [remove_folder, remove_whole_cache, remove_entries, remove_index, cut_entries, cut_index, empty_both])
def test_files_that_are_taken_away_under_a_running_process_are_done_without_and_made_again(
    tmp_path: Path, cache: PrefixCache, heard: Heard, harm: Callable[[Shelf], None]
) -> None:
    made = shelf(cache)
    made.write(ALL[:20], values(ALL[:20]))
    harm(made)
    right_or_missing(made, ALL)  # an open file that was removed still gives what it had
    made.read_through(ALL, lambda places: values(places))
    repaired(made, ALL)
    assert len(heard.codes) == len(set(heard.codes))
    with PrefixCache(cache.folder, 10**9, keep_free=0) as again:  # and it is whole for the next process
        repaired(shelf(again), ALL)


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests/training")
from cache_parts import ENTRY_BYTES, Heard, shelf, stored_values, values
from zk0desk.training.prefix_cache import PrefixCache
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * ENTRY_BYTES + 100,) * 2)
heard = Heard()
cache = PrefixCache(Path(sys.argv[1]), 10**9, emit=heard, keep_free=-(10**9))  # it does not see the end of the disk coming
made = shelf(cache)
rows = list(range(40))
assert (made.write(rows, values(rows)) == stored_values(rows)).all()
array, hits = made.read(rows)
assert (array[hits] == stored_values(rows)[hits]).all() and 0 < hits.sum() < 40, hits
print(int(hits.sum()), heard.codes)
"""


@POSIX
def test_a_file_that_may_not_grow_keeps_what_fits(tmp_path: Path, checkout: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path), "limit"], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.stdout == "10 ['cache-disk-full']\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="a small disk is made with Linux namespaces")
def test_a_disk_that_becomes_full_keeps_what_fits(tmp_path: Path, checkout: Path) -> None:
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    small = f"mount -t tmpfs -o size=160k none {tmp_path}"
    if subprocess.run([*mount, small], capture_output=True, timeout=60).returncode:
        pytest.skip("no disk may be mounted here")
    command = [*mount, f'{small} && exec "$@"', "sh", sys.executable, "-c", LIMITED, str(tmp_path), "disk"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith(" ['cache-disk-full']\n"), done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_write_that_fails_is_said_once_costs_nothing_and_is_tried_again_later(
    cache: PrefixCache, heard: Heard, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    made = shelf(cache)
    made.write([0], values([0]))
    with monkeypatch.context() as patch:
        patch.setattr(prefix_files, "_write_once", _fails(number))
        for _ in range(3):
            array, _ = made.read_through([0, 1, 2], lambda places: values(np.array([0, 1, 2])[places]))
            assert (array == stored_values([0, 1, 2])).all()
    assert len(heard.codes) == 1 and "Training goes on" in heard.events[0].remedy  # type: ignore[attr-defined]
    repaired(made, [0, 1, 2])


def test_a_disk_that_cannot_be_read_is_a_miss_and_said_once(cache: PrefixCache, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shelf(cache)
    made.write([0, 1], values([0, 1]))
    with monkeypatch.context() as patch:
        patch.setattr(prefix_files, "_read_once", _fails(errno.EIO))
        for _ in range(2):
            assert not made.read([0, 1])[1].any()
            made.write([0, 1], values([0, 1]))
        assert made.filled == 0
    assert "cache-unreadable" in heard.codes and len(heard.codes) == len(set(heard.codes))
    assert right_or_missing(made, [0, 1]).all()


def _fails(number: int) -> Callable[..., int]:
    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fails


READ_ONLY = """
import os, sys
from pathlib import Path
sys.path.insert(0, "tests/training")
from cache_parts import Heard, shelf, stored_values, values
from zk0desk.training.prefix_cache import PrefixCache
import xxhash
values([0])  # numpy is loaded whole
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
heard = Heard()
cache = PrefixCache(Path(sys.argv[1]), 10**9, emit=heard, keep_free=0)
made = shelf(cache)
assert (made.write([0, 1], values([0, 1])) == stored_values([0, 1])).all()
array, hits = made.read([0, 1])
assert (array[hits] == stored_values([0, 1])[hits]).all()
print(hits.tolist(), heard.codes)
new = shelf(cache, name="new")
new.write([0], values([0]))
print(new.read([0])[1].tolist(), len(cache.shelves()), cache.clear().removed)
"""


@POSIX
def test_a_cache_that_can_only_be_read_gives_what_it_has(tmp_path: Path, checkout: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:  # pytest's own folders keep other users out
        with PrefixCache(Path(place) / "cache", 10**9, keep_free=0) as cache:
            made = shelf(cache)
            made.write([0], values([0]))
        folders = [Path(place).parent, Path(place), cache.folder, made.folder]
        modes = [path.stat().st_mode for path in folders]
        try:
            for path in (*folders, *made.folder.iterdir()):
                path.chmod(0o555 if path.is_dir() else 0o444)
            Path(place).parent.parent.chmod(0o755)
            command = [sys.executable, "-c", READ_ONLY, str(cache.folder)]
            done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60)
        finally:
            for path, mode in zip(folders, modes, strict=True):
                path.chmod(mode)
    assert done.stdout == "[True, False] ['cache-unwritable']\n[False] 1 ()\n", done.stderr


def test_a_cache_that_cannot_be_made_at_all_is_done_without(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_shelf, "REST_S", 0.0)
    (tmp_path / "file").write_text("")
    with PrefixCache(tmp_path / "file" / "cache", 10**9, emit=heard, keep_free=0) as cache:
        made = shelf(cache)
        for _ in range(2):
            array, hits = made.read_through([1], lambda places: values([1]))
            assert (array == stored_values([1])).all() and not hits.any()
        assert cache.shelves() == [] and cache.verify() == [] and cache.clear().removed == () and cache.usage().bytes == 0
        assert heard.codes == ["cache-unwritable"] and made.filled == 0
        (tmp_path / "file").unlink()  # what was in the way is gone
        repaired(made, [1])


def test_without_positioned_reads_as_on_windows_it_works_the_same(cache: PrefixCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "pwrite")
    made = shelf(cache)
    made.write(ALL[:9], values(ALL[:9]))
    for row in range(9):
        made.prefetch([row, 8 - row])
        assert right_or_missing(made, [8 - row, row]).all() and right_or_missing(made, [row, 8 - row]).all()
    assert not right_or_missing(made, [30]).any()
