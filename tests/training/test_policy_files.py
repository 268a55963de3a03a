from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zk0desk.training.policy_files import (
    PolicyError,
    PolicyMismatch,
    copy_policy,
    is_trainable,
    policy_id,
    read_policy,
    settle_policy,
    trainable_weights,
    write_policy,
)


def test_that_weights_that_are_written_are_read_again_and_the_frozen_part_stays(demo_policy: Path, tmp_path: Path):
    base = read_policy(demo_policy)
    weights = np.random.default_rng(0).normal(size=base.layout.size).astype(np.float32)
    written = read_policy(write_policy(tmp_path / "new", demo_policy, weights))
    assert np.array_equal(trainable_weights(tmp_path / "new"), weights)
    assert (written.backbone_sha256, written.layout, written.policy_id) == (base.backbone_sha256, base.layout, base.policy_id)
    assert policy_id(base.backbone_sha256, base.layout.sha256) == base.policy_id


def test_that_the_flat_array_is_in_the_order_of_the_layout(demo_policy: Path):
    tensors = load_file(demo_policy / "model.safetensors")
    flat = trainable_weights(demo_policy)
    for name, place in read_policy(demo_policy).layout.slices().items():
        assert is_trainable(name) and np.array_equal(flat[place], tensors[name].ravel())


def test_that_another_backbone_or_shape_is_another_policy(demo_policy: Path, tmp_path: Path):
    folder = copy_policy(tmp_path / "changed", demo_policy)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if not is_trainable(name))
    tensors[name] = tensors[name] + np.float32(1e-6)
    save_file(tensors, folder / "model.safetensors")
    ours, theirs = read_policy(folder), read_policy(demo_policy)
    assert ours.policy_id != theirs.policy_id and ours.layout == theirs.layout
    with pytest.raises(PolicyMismatch) as refused:
        ours.require(policy="the demo's", backbone_sha256=theirs.backbone_sha256, layout_sha256=theirs.layout.sha256)
    assert ours.backbone_sha256[:16] in str(refused.value) and theirs.backbone_sha256[:16] in str(refused.value)
    theirs.require(policy="the demo's", backbone_sha256=theirs.backbone_sha256, layout_sha256=theirs.layout.sha256)


def test_that_bfloat16_weights_are_read_as_float32(demo_policy: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    folder = copy_policy(tmp_path / "half", demo_policy)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_torch(folder / "model.safetensors").items()}
    save_torch(tensors, folder / "model.safetensors")
    flat = trainable_weights(folder)
    for name, place in read_policy(folder).layout.slices().items():
        assert np.array_equal(flat[place], tensors[name].float().numpy().ravel())


def test_that_a_moved_policy_names_its_own_backbone_after_it_is_settled(demo_policy: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(demo_policy, moved)
    settle_policy(moved)
    named = json.loads((moved / "config.json").read_text())["vlm_model_name"]
    steps = json.loads((moved / "policy_preprocessor.json").read_text())["steps"]
    tokenizers = [step["config"]["tokenizer_name"] for step in steps if step["registry_name"] == "tokenizer_processor"]
    assert named == str(moved / "vlm") and tokenizers == [named]


@pytest.mark.parametrize("damage", ["no config", "no weights", "cut short", "not json", "another policy", "header lies"])
def test_that_a_damaged_policy_is_refused_with_a_sentence(demo_policy: Path, tmp_path: Path, damage: str):
    folder = copy_policy(tmp_path / "damaged", demo_policy)
    config, weights = folder / "config.json", folder / "model.safetensors"
    match damage:
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "not json":
            config.write_text("{")
        case "another policy":
            config.write_text('{"type": "act"}')
        case "header lies":
            weights.write_bytes(b"\xff" * 64)
    with pytest.raises(PolicyError) as refused:
        read_policy(folder)
    assert refused.value.why and refused.value.remedy


def test_that_a_failed_write_leaves_what_was_there_and_nothing_else(demo_policy: Path, tmp_path: Path):
    weights = trainable_weights(demo_policy)
    target = write_policy(tmp_path / "kept", demo_policy, weights)
    with pytest.raises(FileNotFoundError):
        write_policy(target, demo_policy, weights + 1, processors_from=tmp_path / "absent")
    assert np.array_equal(trainable_weights(target), weights)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_that_a_folder_with_other_files_is_not_replaced(demo_policy: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(PolicyError, match="in use"):
        write_policy(tmp_path / "photos", demo_policy, trainable_weights(demo_policy))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_that_weights_of_another_size_or_type_are_not_written(demo_policy: Path, tmp_path: Path):
    for weights in (np.zeros(3, np.float32), trainable_weights(demo_policy).astype(np.float64)):
        with pytest.raises(ValueError, match="trainable set is float32"):
            write_policy(tmp_path / "new", demo_policy, weights)


def test_a_fingerprint_is_remembered_until_the_file_changes(demo_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    copied = copy_policy(tmp_path / "policy", demo_policy)
    known = read_policy(copied, remembered=True)
    assert known == read_policy(copied)
    memory = tmp_path / "home" / "state" / "fingerprints.json"
    memory.write_text(memory.read_text().replace(known.backbone_sha256, "0" * 64))
    assert read_policy(copied, remembered=True).backbone_sha256 == "0" * 64, "it is not read again"
    assert read_policy(copied).backbone_sha256 == known.backbone_sha256, "for training it is"
    weights = copied / "model.safetensors"
    state = weights.stat()
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert read_policy(copied, remembered=True).backbone_sha256 != "0" * 64, "its size and time are as before, and it is another file"
    memory.write_text("[")
    assert read_policy(copied, remembered=True).backbone_sha256 != "0" * 64
