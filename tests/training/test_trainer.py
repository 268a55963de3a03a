from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zk0desk.control import NodeControl, Stopped
from zk0desk.events import MuChanged, Notice, RoundStarted, RoundTrained, StepDone
from zk0desk.settings import ChosenRecording
from zk0desk.training.devices import choose_device
from zk0desk.training.frames import to_device
from zk0desk.training.hardware import Gpu
from zk0desk.training.noise import draw_noise
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.round_steps import planned_steps, steps_of
from zk0desk.training.rounds import RoundFailedError, RoundPlan
from zk0desk.training.trainer import LocalTrainer


def distance(delta: np.ndarray) -> float:
    return float(np.linalg.norm(delta.astype(np.float64)))


def lerobot_steps(node, count: int, plan: RoundPlan) -> np.ndarray:
    """The weights after `count` of LeRobot's own training steps, without its scheduler, on the batches of `plan`."""
    from accelerate import Accelerator
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    policy = node.policy.policy
    node.policy.set_weights(node.start)
    preset = policy.config.get_optimizer_preset()
    preset.lr = plan.lr
    optimiser = preset.build(policy.get_optim_params())
    meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
    tracker = MetricsTracker(plan.batch_size, node.trainer.frames, 1, meters)
    frames = node.trainer._frames
    forward = policy.forward
    for step in steps_of(plan, "a", node.trainer.frames, count):
        noise, moment = draw_noise(node.policy, len(step.frames), plan.seed, "a", plan.round, "noise", step.number)
        policy.forward = lambda batch, noise=noise, moment=moment: forward(batch, noise=noise, time=moment)
        batch = to_device(frames.batch(step.frames), torch.device("cpu"))
        update_policy(tracker, policy, batch, optimiser, preset.grad_clip_norm, Accelerator(cpu=True))
        optimiser.zero_grad()
    del policy.forward
    return node.policy.get_weights()


def test_that_with_mu_zero_twenty_steps_are_those_of_lerobots_own_training(local_node):
    node = local_node("node0")
    plan = RoundPlan(run="r", round=1, rounds=1, seed=5, lr=1e-3, mu=0.0, batch_size=8, local_steps=20)
    ours = node.start + node.trainer.train(plan, node.start).delta
    theirs = lerobot_steps(node, 20, plan)
    assert distance(ours - theirs) < 2e-5 * distance(ours - node.start)


def test_that_a_batch_is_what_lerobots_dataset_and_processors_give(local_node, recordings: Path):
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    node = local_node("node0")
    config: PreTrainedConfig = node.policy.policy.config
    chunk = {"action": [n / 10 for n in range(config.chunk_size)]}
    dataset = LeRobotDataset("local/node0", root=recordings / "node0", delta_timestamps=chunk, video_backend="pyav")
    preprocess, _ = make_smolvla_pre_post_processors(config, dataset.meta.stats)
    wanted = [3, 19, 33]
    items = [dataset[n] for n in wanted]
    raw = {key: torch.stack([item[key] for item in items]) for key in items[0] if isinstance(items[0][key], torch.Tensor)}
    raw["task"] = [item["task"] for item in items]
    theirs = preprocess(raw)
    ours = to_device(node.trainer._frames.batch(wanted), torch.device("cpu"))
    for mine, key in {"observation.images.camera1": "observation.images.top"}.items():
        torch.testing.assert_close(ours.pop(mine), theirs[key], rtol=0, atol=1e-6)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-5)


def test_that_the_distance_to_the_global_weights_falls_as_mu_grows(local_node):
    node = local_node("node0")
    lengths = [distance(node.train(mu=mu, mu_max=100.0, mu_alpha=0.0, local_steps=15).delta) for mu in (0.0, 1.0, 10.0, 100.0)]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < 0.8 * lengths[0]


def test_that_a_learning_rate_of_zero_leaves_the_weights_bitwise_alone(local_node):
    assert not local_node("node0").train(lr=0.0, mu=0.01).delta.any()


def test_that_training_lowers_the_loss(local_node):
    result = local_node("node0").train(local_steps=60, lr=3e-3)
    assert result.metrics["loss-last"] < 0.8 * result.metrics["loss-first"]


def test_that_the_same_seed_node_and_round_give_the_same_update_bitwise(local_node):
    one, other = local_node("node0", "node1"), local_node("node0", "node1")
    before = torch.random.get_rng_state()
    first = one.train(mu=0.01)
    assert torch.equal(before, torch.random.get_rng_state()), "the process's own generator is left alone"
    assert np.array_equal(first.delta, other.train(mu=0.01).delta)
    assert np.array_equal(first.delta, one.train(mu=0.01).delta), "a round that is asked for again"
    assert not np.array_equal(first.delta, one.train(mu=0.01, seed=6).delta)
    assert not np.array_equal(first.delta, one.train(mu=0.01, round=2).delta)
    assert not np.array_equal(first.delta, local_node("node0", "node1", node="b").train(mu=0.01).delta)


def test_that_micro_batches_give_the_whole_batchs_update_though_episodes_end_in_it(local_node):
    whole, cut = local_node("node0", "node1"), local_node("node0", "node1", micro_batch=3)
    valid = whole.trainer._frames.valid_entries(range(whole.trainer.frames))
    assert len(set(valid)) > 5, "frames near an episode's end have fewer valid entries"
    first, second = whole.train(batch_size=16), cut.train(batch_size=16)
    assert distance(first.delta - second.delta) < 1e-4 * distance(first.delta)
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_that_memory_running_out_halves_the_micro_batch_says_so_and_changes_nothing(local_node, error):
    plenty, scarce = local_node("node0"), local_node("node0")
    forward = scarce.policy.policy.forward

    def limited(batch, **drawn):
        if len(batch["action"]) > 3:
            raise error
        return forward(batch, **drawn)

    scarce.policy.policy.forward = limited
    first, second = plenty.train(batch_size=16), scarce.train(batch_size=16)
    assert distance(first.delta - second.delta) < 1e-4 * distance(first.delta)
    notices = scarce.told(Notice)
    assert [notice.code for notice in notices] == ["micro-batch-halved"] * 3, "16, 8, 4, and then 2 for all steps that follow"


def test_that_too_little_memory_for_one_frame_ends_the_round_with_a_sentence(local_node):
    node = local_node("node0", micro_batch=1)

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    node.policy.policy.forward = full
    with pytest.raises(RoundFailedError, match="not enough memory"):
        node.train()


def spoil(node, steps: set[int]) -> None:
    """Make the loss of these steps (from 1) not finite."""
    forward, number = node.policy.policy.forward, 0

    def spoiled(batch, **drawn):
        nonlocal number
        number += 1
        loss, more = forward(batch, **drawn)
        return (loss * math.nan if number in steps else loss), more

    node.policy.policy.forward = spoiled


def test_that_a_step_whose_loss_is_not_finite_is_skipped_and_said(local_node):
    node = local_node("node0")
    spoil(node, {2, 3, 5})
    result = node.train(local_steps=6)
    assert [event.step for event in node.told(StepDone)] == [1, 4, 6]
    assert [notice.code for notice in node.told(Notice)] == ["step-skipped"] * 3
    assert np.isfinite(result.delta).all() and result.metrics["steps-done"] == 3


def test_that_three_losses_in_a_row_that_are_not_finite_end_the_round_without_an_update(local_node):
    node = local_node("node0")
    spoil(node, {2, 3, 4})
    with pytest.raises(RoundFailedError, match="not a finite number"):
        node.train()
    assert not node.told(RoundTrained)


def test_that_a_deadline_gives_what_was_done(local_node):
    node = local_node("node0")
    result = node.train(local_steps=100_000, deadline=time.time() + 1.5)
    assert result.partial == "deadline" and result.metrics["steps-done"] == len(node.told(StepDone)) > 0
    assert distance(result.delta) > 0 and node.told(RoundTrained)[0].partial == "deadline"


def test_that_a_deadline_before_the_first_step_is_an_error_and_not_an_empty_update(local_node):
    with pytest.raises(RoundFailedError, match="before the deadline"):
        local_node("node0").train(deadline=time.time() - 1)


def test_that_pause_holds_between_steps_and_resume_goes_on_to_the_same_update(local_node):
    undisturbed = local_node("node0").train()
    held = threading.Event()

    def pause_once(event):
        if isinstance(event, StepDone) and event.step == 2:
            node.control.pause()
            held.set()

    node = local_node("node0", on_event=pause_once)
    results = []
    thread = threading.Thread(target=lambda: results.append(node.train()))
    thread.start()
    assert held.wait(60)
    thread.join(0.3)
    assert thread.is_alive() and len(node.told(StepDone)) == 2
    node.control.resume()
    thread.join(60)
    assert np.array_equal(results[0].delta, undisturbed.delta)


def test_that_a_pause_until_the_deadline_gives_partial_work(local_node):
    node = local_node("node0", on_event=lambda event: node.control.pause() if isinstance(event, StepDone) else None)
    result = node.train(deadline=time.time() + 1.5)
    assert result.partial == "deadline" and result.metrics["steps-done"] == 1


@pytest.mark.parametrize("moment", ["forward", "backward"])
def test_that_stop_takes_effect_within_a_step(local_node, moment):
    node = local_node("node0")
    if moment == "forward":
        layer = node.policy.policy.model.vlm_with_expert.lm_expert.layers[0].mlp.gate_proj
        handle = layer.register_forward_hook(lambda *_: node.control.stop_now())
    else:
        handle = node.policy.policy.model.action_out_proj.weight.register_hook(lambda _: node.control.stop_now())
    with pytest.raises(Stopped):
        node.train()
    handle.remove()
    assert not node.told(StepDone)
    assert all(parameter.grad is None for parameter in node.policy.parameters)


def test_that_finish_round_trains_the_round_to_its_end(local_node):
    node = local_node("node0", on_event=lambda event: node.control.finish_round())
    assert node.train().metrics["steps-done"] == 6


def test_that_epochs_are_passes_over_the_frames_and_are_counted(local_node):
    node = local_node("node0")
    result = node.train(local_steps=0, local_epochs=1.5, batch_size=16)
    assert node.trainer.frames == 40 and [event.epoch for event in node.told(StepDone)] == [1, 1, 1, 2, 2]
    assert result.metrics["num-examples"] == 40 and result.metrics["frames-seen"] == 72 and result.metrics["epochs-done"] == 1.8
    started = node.told(RoundStarted)[0]
    assert (started.steps, started.frames, started.batch_size) == (5, 40, 16)


def test_that_the_metrics_are_those_of_the_wire_contract_and_average_32_frames(local_node):
    from zk0desk.federation.messages import TRAIN_METRICS, check_metrics

    result = local_node("node0").train(mu=0.01)
    assert set(result.metrics) == set(TRAIN_METRICS) and check_metrics(result.metrics) == result.metrics
    assert result.metrics["loss-first"] == pytest.approx(np.mean(result.losses[:4]), rel=1e-6)
    assert result.metrics["loss-last"] == pytest.approx(np.mean(result.losses[-4:]), rel=1e-6)
    assert result.metrics["update-norm"] == pytest.approx(distance(result.delta), rel=1e-5)


def test_that_a_node_raises_mu_while_its_gradient_is_large_and_keeps_it_into_the_next_round(local_node):
    node = local_node("node0")
    node.train(mu=0.01, local_steps=10, mu_grad_norm=0.0)
    assert [event.mu for event in node.told(StepDone)] == [0.01] * 5 + [0.02] * 5
    node.events.clear()
    node.train(round=2, mu=0.01, local_steps=10, mu_grad_norm=1e9, mu_loss_std=1e9)
    assert [event.mu for event in node.told(StepDone)] == [0.02] * 5 + [0.01] * 5


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (0.01, 1), (20.0, 60), (0.5, 2), (1 / 3, 1)])
def test_that_planned_steps_cover_the_asked_passes(epochs, steps):
    plan = RoundPlan(run="r", round=1, rounds=1, seed=0, lr=0.1, mu=0, batch_size=16, local_epochs=epochs)
    assert planned_steps(plan, 40) == steps


def test_that_bf16_autocast_trains_nearly_as_float32_does_and_weights_stay_float32(demo_policy: Path, recordings: Path):
    results = []
    for precision in ("fp32", "bf16"):
        policy = TrainablePolicy.load(demo_policy)
        chosen = [ChosenRecording(path=recordings / "node0")]
        trainer = LocalTrainer(
            policy, chosen, node="a", device="cpu", precision=precision, threads=1, emit=lambda _: None, control=NodeControl()
        )
        plan = RoundPlan(run="r", round=1, rounds=1, seed=5, lr=1e-3, mu=0.01, batch_size=8, local_steps=4)
        results.append(trainer.train(plan, policy.get_weights()))
        assert policy.parameters[0].dtype is torch.float32
    assert results[0].losses != results[1].losses
    np.testing.assert_allclose(results[1].losses, results[0].losses, rtol=2e-2)


def test_that_a_device_that_is_not_there_is_said(demo_policy: Path):
    if torch.cuda.is_available():
        pytest.skip("this computer has CUDA")
    with pytest.raises(RoundFailedError, match="cuda cannot be used"):
        choose_device("cuda")


def test_that_of_several_gpus_the_one_is_taken_that_the_verdict_names(monkeypatch: pytest.MonkeyPatch):
    from zk0desk.training import devices as module

    small = Gpu("cuda", "small", 12 * 10**9, 11 * 10**9, "580.65", (8, 9))
    gpus = [replace(small, memory_free=10**9), small, replace(small, capability=(7, 5), memory_free=40 * 10**9)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(module, "find_gpus", lambda *_: tuple(gpus))
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda") == torch.device("cuda", 0), "what cannot be told apart is not guessed at"


def test_that_a_node_says_why_mu_was_raised_and_why_it_was_lowered(local_node):
    node = local_node("node0")
    node.train(mu=0.01, local_steps=10, mu_grad_norm=0.0, mu_loss_std=1e9)
    (raised,) = node.told(MuChanged)
    assert (raised.step, raised.epoch, raised.before, raised.mu, raised.cause) == (5, 1, 0.01, 0.02, "gradient")
    norms = [event.grad_norm for event in node.told(StepDone)][:5]
    assert raised.grad_norm == pytest.approx(np.mean(norms)) and raised.grad_norm_limit == 0
    assert (
        raised.what == "The proximal mu was raised from 0.01 to 0.02."
        and f"{raised.grad_norm:.3g} in the last epoch, above 0" in raised.why
    )
    node.events.clear()
    node.train(round=2, mu=0.01, local_steps=10, mu_grad_norm=1e9, mu_loss_std=1e9)
    (lowered,) = node.told(MuChanged)
    assert (lowered.step, lowered.mu, lowered.cause) == (5, 0.01, "calm") and "lowered from 0.02 to 0.01" in lowered.what
    assert f"scatter by {lowered.loss_std:.3g} (limit 1e+09)" in lowered.why and lowered.loss_std > 0


def test_that_mu_stays_raised_into_a_round_whose_mu_the_server_lowered(local_node):
    node = local_node("node0")
    node.train(mu=0.02, local_steps=5, mu_grad_norm=0.0)  # at its limit, so that nothing shows
    node.events.clear()
    node.train(round=2, mu=0.01, local_steps=5, mu_grad_norm=0.0)
    assert {event.mu for event in node.told(StepDone)} == {0.02}


def test_that_a_pause_frees_the_devices_memory_and_the_round_goes_on_to_the_same_update(local_node, monkeypatch):
    """The processor stands in for a GPU: only what moves tensors is replaced, and counts what is on the device."""
    from zk0desk.training import devices, trainer

    undisturbed = local_node("node0").train(mu=0.01)
    node = local_node("node0", on_event=lambda event: pause(event))
    aside: dict[int, torch.Tensor] = {}
    released: list[int] = []

    def to_main_memory(data: torch.Tensor) -> torch.Tensor:
        copy = data.clone()
        data.zero_()  # the device's memory is another program's from now on
        aside[copy.data_ptr()] = copy
        return copy

    def to_device_memory(data: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert device.type == "cpu" and aside.pop(data.data_ptr()) is not None
        return data.clone()

    monkeypatch.setattr(devices, "to_main_memory", to_main_memory)
    monkeypatch.setattr(devices, "to_device_memory", to_device_memory)
    monkeypatch.setattr(devices, "release_unused", lambda _: released.append(sum(each.nbytes for each in aside.values())))
    monkeypatch.setattr(trainer, "has_own_memory", lambda _: True)

    def pause(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            node.control.pause()
            threading.Timer(0.3, node.control.resume).start()

    assert np.array_equal(node.train(mu=0.01).delta, undisturbed.delta)
    assert not released, "an operator has to ask for it"
    node.trainer._pause_frees_memory = True
    assert np.array_equal(node.train(mu=0.01).delta, undisturbed.delta)
    policy, trained = node.policy.policy, 4 * node.start.size
    whole = sum(each.nbytes for each in (*policy.parameters(), *policy.buffers()))
    # The policy, AdamW's two moments and w_t; and a step number for each parameter.
    assert whole + 3 * trained <= released[0] <= whole + 3 * trained + 8 * len(node.policy.parameters)
    assert not aside
