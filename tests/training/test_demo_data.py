from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zk0desk.settings import ChosenRecording
from zk0desk.training.demo_data import make_demo_held_out, make_demo_policy, make_demo_recording
from zk0desk.training.policy_files import read_policy, trainable_weights


def columns(folder: Path):
    import pyarrow.parquet as pq

    table = pq.read_table(next((folder / "data").rglob("*.parquet")))
    return {name: np.array(table[name].to_pylist()) for name in ("observation.state", "action", "episode_index")}


def test_that_the_policy_is_a_real_smolvla_of_a_few_hundred_thousand_parameters(demo_policy: Path):
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    policy = SmolVLAPolicy.from_pretrained(demo_policy)
    assert type(policy) is SmolVLAPolicy and len(policy.model.vlm_with_expert.lm_expert.layers) == 4
    assert sum(parameter.numel() for parameter in policy.parameters()) == read_policy(demo_policy).parameters < 250_000


def test_that_the_policy_is_the_same_wherever_and_whenever_it_is_made(demo_policy: Path, tmp_path: Path):
    again, other = make_demo_policy(tmp_path / "again"), make_demo_policy(tmp_path / "other", seed=1)
    assert read_policy(again).policy_id == read_policy(demo_policy).policy_id != read_policy(other).policy_id
    assert np.array_equal(trainable_weights(again), trainable_weights(demo_policy))


def test_that_a_recording_is_the_same_for_a_seed_whatever_memory_held_before(tmp_path: Path):
    first, second = (tmp_path / name / "node1" for name in "ab")
    make_demo_recording(first, 1, seed=3, episodes=2, frames=12)
    making = "import sys; from zk0desk.training.demo_data import make_demo_recording as make; make(sys.argv[1], 1, 3, 2, 12)"
    # glibc fills freed memory with this: an encoder that reads what nobody wrote makes another video.
    subprocess.run([sys.executable, "-c", making, str(second)], env={**os.environ, "MALLOC_PERTURB_": "85"}, check=True)
    files = sorted(path.relative_to(first) for path in first.rglob("*.mp4"))
    assert files
    assert [path for path in files if (first / path).read_bytes() != (second / path).read_bytes()] == []
    assert all(np.array_equal(a, b) for a, b in zip(columns(first).values(), columns(second).values(), strict=True))
    other = make_demo_recording(tmp_path / "c" / "node1", 1, seed=4, episodes=2, frames=12)
    assert not np.array_equal(columns(first)["action"], columns(other)["action"])


def test_that_recordings_of_nodes_differ_in_robot_task_and_camera_and_all_are_sound(tmp_path: Path):
    from zk0desk.training.recordings import quick_check, read_recording

    began = time.monotonic()
    made = [make_demo_recording(tmp_path / f"node{node}", node) for node in range(3)] + [make_demo_held_out(tmp_path / "held-out")]
    assert time.monotonic() - began < 60
    found = [read_recording(folder) for folder in made]
    assert len({recording.robot for recording in found}) == 4
    assert len({tuple(recording.tasks) for recording in found}) == 4
    assert {camera.key for camera in found[1].cameras} == {"observation.images.top", "observation.images.wrist"}
    assert all(quick_check(folder).status == "ok" for folder in made)
    assert all(recording.frames >= 80 for recording in found)


def test_that_actions_lead_the_states_they_follow_from(recordings: Path):
    data = columns(recordings / "node0")
    ahead = np.abs(data["action"][:-1] - data["observation.state"][1:])[np.diff(data["episode_index"]) == 0]
    assert ahead.mean() < 1.0, "the next state is where the action sent the arm, but for noise"


@pytest.mark.parametrize("name", ["node0", "node1"])
def test_that_pictures_show_the_arm_moving(local_node, recordings: Path, name: str):
    frames = local_node(name).policy.frames_of([ChosenRecording(path=recordings / name)])
    pictures = [frames.batch([index])["observation.images.camera1"].float() for index in (0, 9)]
    assert pictures[0].shape == (1, 3, 96, 96) and (pictures[0] - pictures[1]).abs().max() > 60
