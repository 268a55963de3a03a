"""The prefix cache when all goes well: what was written is read, by its key, in its budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from tests.training.cache_parts import ENTRIES, ENTRY_BYTES, KEY, SHAPE, Heard, shelf, stored_values, values
from zk0desk import folders
from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.training.prefix_index import Layout
from zk0desk.training.prefix_values import StorageRangeError, restored, stored


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def cache(tmp_path: Path, heard: Heard) -> Iterator[PrefixCache]:
    with PrefixCache(tmp_path / "cache", 10**9, emit=heard, keep_free=0) as made:
        yield made


def test_a_first_visit_misses_and_a_later_one_reads_what_was_trained_on(cache: PrefixCache, heard: Heard) -> None:
    made = shelf(cache)
    array, hits = made.read([3, 1, 4])
    assert not hits.any() and not array.any()
    trained_on = made.write([3, 1, 4], values([3, 1, 4]))
    array, hits = made.read([4, 3, 2, 1])
    assert hits.tolist() == [True, True, False, True]
    assert (array[[1, 3, 0]] == trained_on).all() and not array[2].any()
    assert made.filled == 3 and not heard.events
    assert (made.use.hits, made.use.misses, made.use.written) == (3, 4, 3) and made.use.bytes_read == 3 * ENTRY_BYTES


def test_reading_through_gives_the_same_bits_at_every_visit_and_computes_once(cache: PrefixCache) -> None:
    made = shelf(cache)
    asked: list[int] = []

    def compute(places: np.ndarray) -> np.ndarray:
        rows = np.array(batch)[places]
        asked.extend(rows.tolist())
        return values(rows)

    batch = [7, 2, 9]
    first, hits = made.read_through(batch, compute)
    assert not hits.any()
    batch = [9, 5, 2]
    second, hits = made.read_through(batch, compute)
    assert hits.tolist() == [True, False, True] and asked == [7, 2, 9, 5]
    assert (second[[2, 0]] == first[[1, 2]]).all() and (second[1] == stored_values([5])[0]).all()


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    with PrefixCache(tmp_path / "cache", 10**9, keep_free=0) as cache:
        written = shelf(cache).write([0, ENTRIES - 1], values([0, ENTRIES - 1]))
    with PrefixCache(tmp_path / "cache", 10**9, keep_free=0) as cache:
        array, hits = shelf(cache).read([0, ENTRIES - 1])
    assert hits.all() and (array == written).all()


OTHERS = [{"level": "P"}, {"cameras": ["wrist", "top"]}, {"recording": "1" * 64}, {"more": None}, {"mask": 1}, {"mask": 1.0}]


def test_any_difference_in_the_key_is_another_shelf(cache: PrefixCache) -> None:
    made = [cache.shelf({**KEY, **other}, ENTRIES, SHAPE, "float16", {}) for other in [{}, *OTHERS]]
    made += [cache.shelf(KEY, ENTRIES + 1, SHAPE, "float16", {}), cache.shelf(KEY, ENTRIES, (1024, 3), "float16", {})]
    made += [cache.shelf(KEY, ENTRIES, SHAPE, dtype, {}) for dtype in ("bfloat16", "float32", "float64")]
    assert len({each.folder for each in made}) == len(made)
    made[0].write([0], values([0]))
    assert not any(each.read([0])[1].any() for each in made[1:])


def test_the_order_of_a_keys_parts_and_what_it_is_about_make_no_difference(cache: PrefixCache) -> None:
    cache.shelf(KEY, ENTRIES, SHAPE, "float16", {"recording": "a"}).write([0], values([0]))
    again = cache.shelf(dict(reversed(KEY.items())), ENTRIES, SHAPE, "float16", {"recording": "renamed"})
    assert again.read([0])[1].all() and cache.shelves()[0].about == {"recording": "renamed"}


def test_the_files_of_another_shelf_under_this_ones_name_are_not_used(cache: PrefixCache, tmp_path: Path) -> None:
    wrong = shelf(cache, name="wrong")
    wrong.write([0], values([0]))
    right = Layout({**KEY, "recording": "cubes"}, ENTRIES, SHAPE, "float16")
    wrong.folder.rename(tmp_path / "cache" / right.name)
    made = shelf(cache)
    assert made.folder.name == right.name and not made.read([0])[1].any()
    assert (made.write([0], values([0], seed=5)) == made.read([0])[0]).all()


def test_what_was_prefetched_is_taken_from_there_and_reads_the_same(cache: PrefixCache) -> None:
    made = shelf(cache)
    made.write(list(range(20)), values(list(range(20))))
    batches = [list(np.random.default_rng(each).permutation(20)[:6]) for each in range(8)]
    buffer = np.empty((6, *SHAPE), np.float16)
    for batch, following in zip(batches, [*batches[1:], batches[0]], strict=True):
        made.prefetch(following)
        array, hits = made.read(batch, out=buffer)
        assert array is buffer and hits.all() and (array == stored_values(batch)).all()


def test_what_is_written_after_it_was_prefetched_is_a_hit(cache: PrefixCache) -> None:
    made = shelf(cache)
    made.prefetch([1, 2])
    made._ahead[np.array([1, 2]).tobytes()].result()
    made.write([2], values([2]))
    array, hits = made.read([1, 2])
    assert hits.tolist() == [False, True] and (array[1] == stored_values([2])[0]).all()


def test_prefetching_into_a_buffer_copies_nothing_more(cache: PrefixCache) -> None:
    made = shelf(cache)
    made.write([1, 2], values([1, 2]))
    buffer = np.empty((2, *SHAPE), np.float16)
    made.prefetch([1, 2], out=buffer)
    array, _ = made.read([1, 2], out=buffer)
    assert array is buffer and (array == stored_values([1, 2])).all()


def test_batches_that_nobody_asks_for_are_dropped(cache: PrefixCache) -> None:
    made = shelf(cache)
    for row in range(30):
        made.prefetch([row])
    assert len(made._ahead) <= 4
    made.close()
    made.prefetch([1])
    assert not made.read([1])[1].any()


def test_the_folder_is_the_operators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with PrefixCache(budget_bytes=10**9, keep_free=0) as cache:
        made = shelf(cache)
        made.write([0], values([0]))
        assert cache.folder == folders.prefix_cache_folder()
        for path in (cache.folder, made.folder):
            assert path.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in made.folder.iterdir())


def test_wrong_use_is_told_to_the_programmer(cache: PrefixCache) -> None:
    made = shelf(cache)
    for rows in ([ENTRIES], [-1], [[1]]):
        with pytest.raises(IndexError):
            made.read(rows)
    with pytest.raises(ValueError, match="entries of shape"):
        made.write([1, 2], values([1]))
    with pytest.raises(ValueError, match="contiguous"):
        made.read([1, 2], out=np.empty((2, *SHAPE), np.float32))
    with pytest.raises(ValueError, match="stores"):
        shelf(cache, dtype="int8")
    array, hits = made.read([])
    assert array.shape == (0, *SHAPE) and hits.shape == (0,) and made.write([], array).shape == array.shape


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@given(numbers=nps.arrays(np.float32, 8, elements=st.floats(-65504, 65504, width=32)))
def test_numbers_are_rounded_as_torch_rounds_them(dtype: str, numbers: np.ndarray) -> None:
    import torch

    by_torch = torch.from_numpy(numbers).to(getattr(torch, dtype))
    assert (restored(stored(numbers, dtype), dtype) == by_torch.float().numpy()).all()
    assert (stored(restored(stored(numbers, dtype), dtype), dtype) == stored(numbers, dtype)).all()


@pytest.mark.parametrize(("dtype", "number"), [("float16", 1e5), ("float16", np.nan), ("bfloat16", np.inf), ("bfloat16", 3.4e38),
                                               ("bfloat16", np.nan), ("float32", 1e39), ("float64", -np.inf)])  # fmt: skip
def test_a_number_that_does_not_fit_is_refused_and_nothing_is_written(cache: PrefixCache, dtype: str, number: float) -> None:
    made = shelf(cache, dtype=dtype)
    numbers = values([1, 2]).astype(np.float64)
    numbers[1, 2, 1023] = number
    with pytest.raises(StorageRangeError):
        made.write([1, 2], numbers)
    assert made.filled == 0


def test_bits_that_are_bfloat16_already_are_taken_as_they_are(cache: PrefixCache) -> None:
    made = shelf(cache, dtype="bfloat16")
    bits = stored(values([1]), "bfloat16")
    assert (made.write([1], bits) == bits).all() and (made.read([1])[0] == bits).all()
    with pytest.raises(TypeError):
        made.write([1], np.ones((1, *SHAPE), np.int32))


# --- the budget ---------------------------------------------------------------------------------------------------


def budgeted(tmp_path: Path, entries: float, heard: Heard | None = None) -> PrefixCache:
    return PrefixCache(tmp_path / "cache", int(entries * ENTRY_BYTES), emit=heard, keep_free=0)


def fill(made, rows: int) -> None:
    made.write(list(range(rows)), values(list(range(rows))))


def test_the_shelf_that_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    with budgeted(tmp_path, 100) as cache:
        for age, name in enumerate(["new", "old", "older"]):
            made = shelf(cache, name=name)
            fill(made, 30)
            made.close()
            os.utime(made.folder / "shelf.json", (1e9 - age, 1e9 - age))
        fill(shelf(cache, name="now"), 30)
        assert {each.about["recording"] for each in cache.shelves()} == {"now", "new", "old"}
        assert cache.usage().bytes <= cache.budget


def test_a_shelf_that_is_open_never_makes_room_and_what_does_not_fit_is_said_once(tmp_path: Path, heard: Heard) -> None:
    with budgeted(tmp_path, 50, heard) as cache:
        first, second = shelf(cache, name="first"), shelf(cache, name="second")
        fill(first, 30)
        for _ in range(3):
            fill(second, 30)
        assert first.filled == 30 and 0 < second.filled < 30
        assert cache.usage().bytes <= cache.budget + 8192 and heard.codes == ["cache-full"]
        array, hits = second.read(list(range(30)))
        assert (array[hits] == stored_values(list(range(30)))[hits]).all()


HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/training")
from cache_parts import shelf
from zk0desk.training.prefix_cache import PrefixCache
cache = PrefixCache(Path(sys.argv[1]), 10**9, keep_free=0)
made = shelf(cache, name="held")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_shelf_that_another_process_has_open_stays_until_that_process_ends(tmp_path: Path, checkout: Path) -> None:
    with budgeted(tmp_path, 50) as cache:
        held = shelf(cache, name="held")
        fill(held, 40)
        held.close()
        command = [sys.executable, "-c", HOLD, str(cache.folder)]
        with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "open\n"
            made = shelf(cache, name="mine")
            fill(made, 30)
            assert {each.about["recording"]: each.in_use for each in cache.shelves()} == {"held": True, "mine": True}
            assert [each.about["recording"] for each in cache.clear("held").in_use] == ["held"]
            other.kill()  # however it ends
            other.wait()
        made._rest_until = 0.0
        fill(made, 30)
        assert [each.about["recording"] for each in cache.shelves()] == ["mine"] and made.filled == 30


def test_the_disk_keeps_what_the_cache_must_not_take(tmp_path: Path, heard: Heard) -> None:
    with PrefixCache(tmp_path / "cache", 10**12, emit=heard, keep_free=10**15) as cache:
        made = shelf(cache)
        fill(made, 5)
        assert made.filled == 0 and heard.codes == ["cache-full"]


# --- looking after it ---------------------------------------------------------------------------------------------


def test_the_shelves_of_a_recording_are_cleared_by_its_path_name_or_content(tmp_path: Path) -> None:
    for recording in ("/recordings/cubes", Path("/recordings/x/../cubes"), "cubes", "sha-cubes"):
        with budgeted(tmp_path, 100) as cache:
            for name in ("cubes", "cups"):
                fill(shelf(cache, name=name), 2)
        with budgeted(tmp_path, 100) as cache:
            cleared = cache.clear(recording)
            assert [each.about["recording"] for each in cleared.removed] == ["cubes"] and cleared.bytes > 0 and not cleared.in_use
            assert [each.about["recording"] for each in cache.shelves()] == ["cups"]
            assert cache.clear("nothing").removed == ()
    with budgeted(tmp_path, 100) as cache:
        assert len(cache.clear().removed) == 1
        assert cache.usage().bytes == 0 and not list(cache.folder.iterdir())


def test_a_removal_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    left = tmp_path / "cache" / ".going-1"
    left.mkdir(parents=True)
    (left / "entries.bin").write_bytes(b"x")
    with budgeted(tmp_path, 100) as cache:
        shelf(cache)
        assert not left.exists()


def test_other_files_in_the_cache_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cache" / "photos").mkdir(parents=True)
    (tmp_path / "cache" / "letter.txt").write_text("mine")
    with budgeted(tmp_path, 100) as cache:
        fill(shelf(cache), 2)
    with budgeted(tmp_path, 100) as cache:
        cache.clear()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["letter.txt", "photos"]


def test_facts_and_usage_are_json(cache: PrefixCache) -> None:
    fill(shelf(cache), 7)
    facts = json.loads(json.dumps([each.to_json() for each in cache.shelves()]))[0]
    assert (facts["filled"], facts["entries"], facts["entry-bytes"], facts["in-use"]) == (7, ENTRIES, ENTRY_BYTES, True)
    assert json.loads(json.dumps(cache.usage().to_json()))["bytes"] == facts["bytes"] >= 7 * ENTRY_BYTES
