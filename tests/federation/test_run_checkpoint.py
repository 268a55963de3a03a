"""Rounds on disk: whole or not there, with what the parts of a run keep, and damage is seen."""

from pathlib import Path

import numpy as np
import pytest

from tests.federation.coordinator_parts import make_policy
from zk0desk.federation import run_checkpoint
from zk0desk.federation.run_checkpoint import CheckpointDamaged
from zk0desk.training.policy_files import read_policy, trainable_weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_policy(tmp_path / "policy")


def write(base: Path, number: int, **arrays: np.ndarray) -> Path:
    folder = base.parent / "run" / f"round-{number:04d}"
    weights = trainable_weights(base) + np.float32(number)
    run_checkpoint.write(
        folder, base, weights, record={"done": number}, kept={"schedule": {"lr": 1e-4 / 3, "signal": "plateau"}}, kept_arrays=arrays
    )
    return folder


def test_a_round_gives_back_weights_record_json_and_arrays_to_the_bit(base):
    residual = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    found = run_checkpoint.read(write(base, 3, residual=residual))
    assert np.array_equal(found.weights, trainable_weights(base) + np.float32(3))
    assert (found.record, found.kept) == ({"done": 3}, {"schedule": {"lr": 1e-4 / 3, "signal": "plateau"}})
    assert np.array_equal(found.kept_arrays["residual"], residual)
    assert read_policy(found.folder).policy_id == read_policy(base).policy_id


def test_writing_into_an_array_that_was_read_back_does_not_change_the_checkpoint(base):
    folder = write(base, 1, moment=np.zeros(50, np.float32))
    run_checkpoint.read(folder).kept_arrays["moment"][:] = 7
    run_checkpoint.verify(folder)


def test_an_array_that_is_a_file_is_not_written_again_and_outlives_its_first_name(base, tmp_path):
    path = tmp_path / "difference.npy"
    np.save(path, np.arange(1000, dtype=np.float32))
    folder = write(base, 1, difference=np.load(path, mmap_mode="r"))
    assert (folder / "zk0" / "difference.npy").stat().st_ino == path.stat().st_ino
    path.unlink()
    assert np.array_equal(run_checkpoint.read(folder).kept_arrays["difference"], np.arange(1000))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "zk0/record.json", "zk0/kept.json", "zk0/residual.npy"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_each_damaged_file_is_named(base, name, damage):
    folder = write(base, 1, residual=np.ones(10, np.float32))
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointDamaged, match=name):
        run_checkpoint.read(folder)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99, "files": {}}', "[]"])
def test_a_damaged_list_of_files_is_damage(base, text):
    folder = write(base, 1)
    (folder / "zk0" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointDamaged):
        run_checkpoint.read(folder)


def test_the_newest_whole_round_counts_and_each_damaged_one_is_told(base):
    for number in (1, 2, 10):
        write(base, number)
    run, told = base.parent / "run", []
    assert run_checkpoint.newest(run, lambda *_: None).record == {"done": 10}
    for number in (2, 10):
        (run / f"round-{number:04d}" / "config.json").write_text("{}")
    assert run_checkpoint.newest(run, lambda folder, why: told.append((folder.name, why))).record == {"done": 1}
    assert told == [("round-0010", "config.json is not what was written"), ("round-0002", "config.json is not what was written")]


def test_what_fails_on_the_way_leaves_nothing(base):
    class Unwritable(dict):
        def items(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run_checkpoint.write(
            base.parent / "run" / "round-0001", base, trainable_weights(base), record={}, kept={}, kept_arrays=Unwritable()
        )
    assert list((base.parent / "run").iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_rounds_stay(base):
    folder = write(base, 1)
    run = folder.parent
    (run / ".round-0002.abc.partial").mkdir()
    (run / ".round-0002.abc.partial" / "model.safetensors").write_bytes(b"half")
    (run / "run.jsonabc.partial").write_text("{")
    run_checkpoint.sweep(run)
    assert [path.name for path in run.iterdir()] == ["round-0001"]
