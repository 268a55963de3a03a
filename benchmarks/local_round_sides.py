"""The two sides of `benchmarks/local_round.py`, each for a process of its own: LeRobot's loop and zk0desk's `LocalTrainer`."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from local_round_data import SLOTS, prepare

NODE, LR, MU = "benchmark", 1e-4, 0.01


class Meter:
    """Process CPU seconds of all threads, and wall seconds, since it was made."""

    def __init__(self) -> None:
        self._start = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Both, so far."""
        return {"cpu": time.process_time() - self._start[0], "wall": time.perf_counter() - self._start[1]}


def forget_peak() -> None:
    """Let the peak memory start anew, where the system can."""
    place = Path("/proc/self/clear_refs")
    if place.exists():
        place.write_text("5")


def peak() -> int:
    """Bytes: the process's peak memory since `forget_peak`, or since its start."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def plan_of(given: argparse.Namespace, number: int = 1) -> Any:
    """The round that both sides train."""
    from zk0desk.training.rounds import RoundPlan

    return RoundPlan(
        run="r",
        round=number,
        rounds=given.rounds,
        seed=given.seed,
        lr=LR,
        mu=MU,
        batch_size=given.batch,
        local_epochs=given.epochs,
    )


def steps_of_round(given: argparse.Namespace) -> int:
    """Optimiser steps of a round."""
    return given.epochs * -(-given.frames // given.batch)


def slots_of(given: argparse.Namespace) -> dict[str, str]:
    """Which camera fills which of the policy's slots."""
    return dict(list(SLOTS.items())[: given.cameras])


def load(given: argparse.Namespace, folder: Path) -> Any:
    """The policy in float32, on this process's number of threads."""
    import torch

    from zk0desk.training.policy import TrainablePolicy

    torch.set_num_threads(given.threads)
    return TrainablePolicy.load(folder / "policy")


def lerobot_side(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """LeRobot's loop as in `lerobot.scripts.lerobot_train`; then the gradients of one batch, its and ours."""
    import torch
    from accelerate import Accelerator
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
    from lerobot.utils.utils import cycle

    from zk0desk.training.noise import draw_noise
    from zk0desk.training.round_steps import steps_of

    about = prepare(given, folder)
    shared = load(given, folder)
    policy, config = shared.policy, shared.policy.config
    chunks = resolve_delta_timestamps(config, LeRobotDatasetMetadata("local/recording", root=folder / "recording"))
    dataset = LeRobotDataset("local/recording", root=folder / "recording", delta_timestamps=chunks)
    preprocess, _ = make_smolvla_pre_post_processors(config, dataset.meta.stats)
    preprocess.steps[0].rename_map = {camera: slot for slot, camera in slots_of(given).items()}
    preset = config.get_optimizer_preset()
    preset.lr = LR
    optimizer = preset.build(policy.get_optim_params())
    total = steps_of_round(given)
    planned = list(steps_of(plan_of(given), NODE, given.frames, total))
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=[step.frames for step in planned], num_workers=0)
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    policy, optimizer, loader = accelerator.prepare(policy, optimizer, loader)
    drawn = [draw_noise(shared, len(step.frames), given.seed, NODE, 1, "noise", step.number) for step in planned]
    times = iter([moment for _, moment in drawn])
    noises = iter([noise for noise, _ in drawn])
    # The same noise and times as ours, where LeRobot draws its own.
    policy.model.sample_noise = lambda shape, device: next(noises)
    policy.model.sample_time = lambda frames, device: next(times)
    tracker = MetricsTracker(given.batch, len(dataset), dataset.num_episodes, {
        name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")
    }, accelerator=accelerator)  # fmt: skip

    batches = cycle(loader)
    policy.train()
    count = total if not given.lerobot_steps else min(total, given.lerobot_steps + 1)
    forget_peak()
    meter, rows, loading = Meter(), [], []
    for _ in range(count):
        step = Meter()
        batch = preprocess(next(batches))
        loading.append(step.read())
        tracker, _ = update_policy(tracker, policy, batch, optimizer, preset.grad_clip_norm, accelerator)
        rows.append({**step.read(), "loss": float(tracker.loss.val), "at": meter.read()["wall"]})
    steady = rows[1:] if len(rows) > 1 else rows
    each = {kind: median(row[kind] for row in steady) for kind in ("cpu", "wall")}
    whole = count == total
    seconds = {kind: sum(row[kind] for row in rows) if whole else each[kind] * total for kind in ("cpu", "wall")}
    most = peak()
    del batch, optimizer, tracker
    return {
        "about": about,
        "round": seconds,
        "step": each,
        "load": {kind: median(each[kind] for each in loading[1:] or loading) for kind in ("cpu", "wall")},
        "steps": count if whole else len(steady),
        "extrapolated": not whole,
        "peak": most,
        "curve": [(row["at"], row["loss"]) for row in rows],
        "difference": gradient_differences(given, folder, shared),
    }


def gradient_differences(given: argparse.Namespace, folder: Path, policy: Any) -> dict[str, dict[str, float]]:
    """For each level and storage type the difference of loss and gradient to LeRobot's forward, on the round's first batch."""
    from zk0desk.settings import ChosenRecording
    from zk0desk.training.frames import to_device
    from zk0desk.training.frozen_prefix import FrozenPrefix, difference
    from zk0desk.training.noise import draw_noise
    from zk0desk.training.round_steps import steps_of

    policy.policy.zero_grad(set_to_none=True)
    frames = policy.frames_of([ChosenRecording(path=folder / "recording", cameras=slots_of(given))])
    step = next(steps_of(plan_of(given), NODE, given.frames, steps_of_round(given)))
    batch = to_device(frames.batch(step.frames), policy.device)
    drawn = draw_noise(policy, len(step.frames), given.seed, NODE, 1, "noise", 1)
    theirs = gradients(policy, policy.policy.forward({key: value.clone() for key, value in batch.items()}, *drawn)[0])
    found: dict[str, dict[str, float]] = {}
    for level in ("N", "V", "P"):
        exact = FrozenPrefix(policy, level, storage="float32")
        entries = None if level == "N" else exact.vision(batch) if level == "V" else exact.prefix(batch)
        found[level] = {"float32": difference(gradients(policy, exact.loss(batch, *drawn, entries=entries)), theirs)}
        if entries is not None:
            stored = [entry.half() for entry in entries]
            rounded = FrozenPrefix(policy, level, storage="float16")
            found[level]["float16"] = difference(gradients(policy, rounded.loss(batch, *drawn, entries=stored)), theirs)
    return found


def gradients(policy: Any, loss: Any) -> Any:
    """The loss, and the gradient of the trainable set."""
    import torch

    return float(loss.detach()), list(torch.autograd.grad(loss, policy.parameters, allow_unused=True))


def our_side(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rounds of `LocalTrainer`, from an empty cache on."""
    from zk0desk.control import NodeControl
    from zk0desk.events import Event, Notice, PrefixChosen, RoundTimes, StepDone
    from zk0desk.settings import Cache, ChosenRecording
    from zk0desk.training.trainer import LocalTrainer

    policy = load(given, folder)
    steps: list[tuple[int, float, float, float]] = []
    times: list[RoundTimes] = []
    said: dict[str, Any] = {"notices": []}
    meter = Meter()

    def emit(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append((event.round, time.process_time(), meter.read()["wall"], event.loss))
        elif isinstance(event, PrefixChosen):
            said.update(level=event.level, bytes=event.bytes, choose=meter.read())
        elif isinstance(event, RoundTimes):
            times.append(event)
        elif isinstance(event, Notice):
            said["notices"].append(f"{event.what} {event.why}")

    with tempfile.TemporaryDirectory(dir=folder, prefix="cache-") as cache:
        trainer = LocalTrainer(
            policy,
            [ChosenRecording(path=folder / "recording", cameras=slots_of(given))],
            node=NODE,
            device="cpu",
            precision="fp32",
            micro_batch=given.micro_batch,
            threads=given.threads,
            cache=Cache(level=given.level, folder=Path(cache), budget_gb=20),
            emit=emit,
            control=NodeControl(),
        )
        weights, rounds = policy.get_weights(), []
        meter = Meter()
        for number in range(1, given.rounds + 1):
            forget_peak()
            now = Meter()
            result = trainer.train(plan_of(given, number), weights)
            rounds.append({**now.read(), "peak": peak()})
            weights += result.delta
        trainer.close(restore=False)
    if said.get("level") != given.level:
        raise SystemExit(f"level {given.level} was not used: {' '.join(said['notices']) or said.get('level')}")
    later = [(a, b) for a, b in zip(steps, steps[1:], strict=False) if a[0] == b[0] > 1 or given.rounds == 1 and a[0] == b[0]]
    return {
        "rounds": rounds,
        "step": median(b[1] - a[1] for a, b in later),
        "choose": said["choose"],
        "bytes": said["bytes"],
        "times": times[-1].seconds,
        "curve": [(wall, loss) for _, _, wall, loss in steps],
        "micro": trainer.micro_batch,
    }
