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


def test_that_the_order_of_the_recordings_does_not_change_the_loss(local_node, chosen):
    policy = local_node().policy
    one, other = evaluate(policy, chosen, batch=5), evaluate(policy, chosen[::-1], batch=11)
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    for kind in ("recording", "task", "cameras"):
        assert {n: p.loss for n, p in other.parts[kind].items()} == pytest.approx({n: p.loss for n, p in one.parts[kind].items()}, rel=1e-5)


def test_that_tasks_and_camera_sets_have_means_of_their_own_which_add_up(local_node, chosen):
    policy = local_node().policy
    found = evaluate(policy, chosen, batch=8)
    assert found.standard_error == 0 and found.of == found.frames == 66
    assert {name: part.frames for name, part in found.parts["recording"].items()} == {"held-out": 30, "node1": 36}
    assert len(found.parts["cameras"]) == 2, "one recording has one camera, the other two"
    frames = policy.frames_of(chosen)
    valid = frames.valid_entries(range(66))
    for kind in ("recording", "task", "cameras"):
        owner = np.searchsorted(frames.starts, range(66), side="right") - 1
        names = list(found.parts[kind])
        of_frame = {
            "recording": [list(found.parts["recording"])[n] for n in owner],
            "task": [frames.locate(n)[0].tasks[frames.locate(n)[1]] for n in range(66)],
            "cameras": [names[n] if kind == "cameras" else "" for n in owner],
        }[kind]
        shares = {name: sum(v for v, other in zip(valid, of_frame, strict=True) if other == name) / valid.sum() for name in names}
        assert sum(shares[name] * found.parts[kind][name].loss for name in names) == pytest.approx(found.loss, rel=1e-9)


def test_that_a_sample_is_seeded_has_two_frames_of_each_episode_and_leaves_the_frames_own_losses_alone(local_node, chosen):
    policy = local_node().policy
    one = evaluate(policy, chosen, batch=8, sample=20)
    assert one.frames == 20 and one.of == 66 and one.standard_error > 0
    assert evaluate(policy, chosen, batch=3, sample=20).loss == pytest.approx(one.loss, rel=1e-5)
    assert evaluate(policy, chosen, batch=8, sample=20, seed=1).loss != one.loss
    assert evaluate(policy, chosen, batch=8, sample=1).frames == 8, "two frames of each of the four episodes"
    assert evaluate(policy, chosen, batch=8, sample=66) == evaluate(policy, chosen, batch=8)


def test_that_the_standard_error_is_right_about_how_far_samples_are_off():
    from zk0desk.training.sampling import Stratum, draw_sample, estimate

    draw = np.random.default_rng(1)
    sizes = (60, 25, 9)
    starts = np.cumsum([0, *sizes])
    strata = [Stratum(0, "t", np.arange(starts[n], starts[n + 1]), str(n)) for n in range(3)]
    losses, entries = draw.gamma(2.0, 1.0, starts[-1]) + np.repeat([0.0, 3.0, 9.0], sizes), draw.integers(3, 48, starts[-1]).astype(float)
    truth = float(losses @ entries / entries.sum())
    off, said = [], []
    for seed in range(600):
        drawn = draw_sample(strata, 30, seed)
        assert sum(map(len, drawn)) == 30 and all(len(set(each)) == len(each) for each in drawn)
        mean = estimate(sizes, [losses[each] for each in drawn], [entries[each] for each in drawn])
        off.append(mean.loss - truth)
        said.append(mean.standard_error)
    assert abs(np.mean(off)) < 0.2 * np.std(off), "no bias to speak of"
    assert np.mean(said) == pytest.approx(np.std(off), rel=0.1)
    assert np.mean(np.abs(off) < 1.96 * np.array(said)) > 0.9
    whole = estimate(sizes, [losses[s.frames] for s in strata], [entries[s.frames] for s in strata])
    assert whole.loss == pytest.approx(truth) and whole.standard_error == 0


def test_that_seen_frames_say_how_far_the_loss_on_other_frames_may_be():
    from zk0desk.training.sampling import SeenFrames

    draw = np.random.default_rng(3)
    entries = draw.integers(3, 48, (800, 40)).astype(float)
    off, said = [], []
    for row in entries:
        mean, error = SeenFrames(("a",), np.zeros(40, int), draw.gamma(2.0, 1.0, 40), row).mean()
        off.append(mean - 2.0)
        said.append(error)
    assert np.mean(said) == pytest.approx(np.std(off), rel=0.08)


def test_that_two_policies_on_the_same_frames_differ_with_a_smaller_error_than_either_has(local_node, chosen):
    policy = local_node().policy
    one = evaluate(policy, chosen, batch=8)
    policy.set_weights(policy.get_weights() * np.float32(0.99))
    other = evaluate(policy, chosen, batch=8)
    assert one.seen.mean()[0] == pytest.approx(one.loss) and one.seen.mean([0])[0] == pytest.approx(one.recordings["held-out"])
    difference, error = other.seen.difference(one.seen)
    assert difference == pytest.approx(other.loss - one.loss, abs=1e-9) and 0 < error < one.seen.mean()[1] / 2
    with pytest.raises(ValueError, match="different frames"):
        one.seen.difference(evaluate(policy, chosen[:1], batch=8).seen)


def test_that_an_evaluation_draws_nothing_from_the_process_own_generators(local_node, chosen):
    import random

    policy = local_node().policy
    before = torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()
    evaluate(policy, chosen[:1], batch=8)
    assert before == (torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate())
