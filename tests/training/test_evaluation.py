from __future__ import annotations

import numpy as np
import pytest
import torch

from zk0desk.control import NodeControl, Stopped
from zk0desk.settings import ChosenRecording
from zk0desk.training.evaluation import evaluate
from zk0desk.training.frames import to_device
from zk0desk.training.noise import draw_noise


@pytest.fixture
def chosen(recordings):
    return [ChosenRecording(path=recordings / "held-out"), ChosenRecording(path=recordings / "node1")]


def test_that_the_loss_depends_neither_on_the_batch_nor_on_the_call(local_node, chosen):
    policy = local_node().policy
    first = evaluate(policy, chosen, batch=7)
    assert first.frames == 66 and set(first.recordings) == {"held-out", "node1"}
    for batch in (1, 16, 100):
        other = evaluate(policy, chosen, batch=batch)
        assert other.loss == pytest.approx(first.loss, rel=1e-5)
        assert other.recordings == pytest.approx(first.recordings, rel=1e-5)
    assert evaluate(policy, chosen, batch=7) == first


def test_that_the_loss_is_the_mean_over_all_valid_entries_of_all_frames(local_node, chosen):
    policy = local_node().policy
    frames = policy.frames_of(chosen[:1])
    total = entries = 0.0
    for index in range(len(frames)):
        table, row = frames.locate(index)
        noise, time = draw_noise(policy, 1, table.content, row)
        batch = to_device(frames.batch([index]), torch.device("cpu"))
        with torch.no_grad():
            loss, _ = policy.policy.forward(batch, noise=noise, time=time)
        valid = int((~batch["action_is_pad"]).sum()) * 3
        total, entries = total + float(loss) * valid, entries + valid
    assert evaluate(policy, chosen[:1], batch=8).loss == pytest.approx(total / entries, rel=1e-5)


def test_that_a_recording_counts_the_same_alone_and_among_others(local_node, chosen):
    policy = local_node().policy
    together = evaluate(policy, chosen, batch=8).recordings["held-out"]
    assert evaluate(policy, chosen[:1], batch=8).loss == pytest.approx(together, rel=1e-6)


def test_that_training_lowers_the_held_out_loss_and_a_rate_of_zero_does_not(local_node, chosen):
    node = local_node("node0", "node1")
    before = evaluate(node.policy, chosen[:1], batch=8).loss
    node.train(lr=0.0)
    assert evaluate(node.policy, chosen[:1], batch=8).loss == before
    result = node.train(lr=3e-3, local_steps=60)
    node.policy.set_weights(np.asarray(node.start + result.delta, np.float32))
    assert evaluate(node.policy, chosen[:1], batch=8).loss < 0.95 * before


def test_that_an_evaluation_stops_when_asked_to(local_node, chosen):
    control = NodeControl()
    control.stop_now()
    with pytest.raises(Stopped):
        evaluate(local_node().policy, chosen, batch=8, control=control)
