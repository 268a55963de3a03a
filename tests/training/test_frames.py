from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from zk0desk.control import NodeControl
from zk0desk.settings import ChosenRecording
from zk0desk.training.evaluation import evaluate
from zk0desk.training.frames import Frames, ahead
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.rounds import RoundPlan
from zk0desk.training.trainer import LocalTrainer


@pytest.fixture
def policy(demo_policy: Path) -> TrainablePolicy:
    return TrainablePolicy.load(demo_policy)


def test_that_episodes_that_are_left_out_are_not_trained_on(policy, recordings: Path):
    whole = Frames(policy, [ChosenRecording(path=recordings / "node0")])
    part = Frames(policy, [ChosenRecording(path=recordings / "node0", leave_out=(0,))])
    assert (len(whole), len(part)) == (40, 20)
    for key, value in part.batch([0, 19]).items():
        assert torch.equal(value, whole.batch([20, 39])[key]), key


def test_that_a_chunk_of_actions_ends_with_its_episode(policy, recordings: Path):
    frames = Frames(policy, [ChosenRecording(path=recordings / "node0")])
    batch = frames.batch([0, 15, 19, 20])
    assert (~batch["action_is_pad"]).sum(1).tolist() == [16, 5, 1, 16]
    assert frames.valid_entries([0, 15, 19, 20]).tolist() == [48, 15, 3, 48]
    assert torch.equal(batch["action"][2], batch["action"][2][:1].expand(16, -1))


def test_that_pictures_are_the_same_kept_or_decoded_each_time_and_from_many_threads(policy, recordings: Path):
    chosen = [ChosenRecording(path=recordings / "node1")]
    kept, fresh = Frames(policy, chosen), Frames(policy, chosen, keep_bytes=0)
    wanted = [35, 0, 17, 18, 5, 5]
    with ThreadPoolExecutor(4) as pool:
        first, second, third = kept.batch(wanted, pool), kept.batch(wanted), fresh.batch(wanted, pool)
    for key in ("observation.images.camera1", "observation.images.camera2"):
        assert first[key].dtype is torch.uint8
        assert torch.equal(first[key], second[key]) and torch.equal(first[key], third[key])


def test_that_work_is_done_ahead_and_in_order():
    with ThreadPoolExecutor(1) as pool:
        assert list(ahead(lambda n: n * n, iter(range(4)), pool)) == [(0, 0), (1, 1), (2, 4), (3, 9)]
        assert list(ahead(lambda n: n, iter(()), pool)) == []


def test_that_robots_with_other_dimensions_share_a_batch_and_each_counts_its_own(policy, recordings: Path, shared_recordings: Path):
    chosen = [ChosenRecording(path=recordings / "node0"), ChosenRecording(path=shared_recordings / "cr5-cube", leave_out=(1, 2, 3, 4))]
    alone = [evaluate(policy, [each], batch=8).loss for each in chosen]
    assert list(evaluate(policy, chosen, batch=8).recordings.values()) == pytest.approx(alone, rel=1e-5)
    trainer = LocalTrainer(policy, chosen, node="a", device="cpu", threads=1, emit=lambda _: None, control=NodeControl())
    plan = RoundPlan(run="r", round=1, rounds=1, seed=1, lr=3e-3, mu=0.0, batch_size=8, local_steps=30)
    metrics = trainer.train(plan, policy.get_weights()).metrics
    assert metrics["loss-last"] < metrics["loss-first"]


def test_that_a_real_recording_reads_as_lerobot_reads_it(policy, shared_recordings: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = shared_recordings / "cr5-cube"
    chunk = {"action": [n / 10 for n in range(16)]}
    dataset = LeRobotDataset("local/cr5-cube", root=root, delta_timestamps=chunk, video_backend="pyav")
    batch = Frames(policy, [ChosenRecording(path=root)]).batch([0, 100, 529])
    stats = dataset.meta.stats["action"]
    for place, index in enumerate((0, 100, 529)):
        item = dataset[index]
        picture = (item["observation.images.top"] * 255).round().to(torch.uint8)
        assert torch.equal(batch["observation.images.camera1"][place], picture)
        assert torch.equal(batch["action_is_pad"][place], item["action_is_pad"])
        expected = (item["action"] - torch.tensor(stats["mean"])) / (torch.tensor(stats["std"]) + 1e-8)
        torch.testing.assert_close(batch["action"][place], expected.float(), rtol=1e-4, atol=1e-4)
