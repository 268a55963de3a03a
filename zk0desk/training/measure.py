"""Times a few real steps of training, on the real recordings, when a person asks for it: what an `Estimate` is made of.

The level of the prefix cache is the one that a run would have, but entries go into a folder of the measurement's own: the operator's are
neither used nor changed, so a frame's first visit is always measured. torch is loaded by `measure` alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zk0desk import folders
from zk0desk.control import NodeControl
from zk0desk.events import Sink
from zk0desk.settings import Cache, ChosenRecording, Training
from zk0desk.training.container_limits import usable_cores
from zk0desk.training.estimate import KEEPING, Estimate
from zk0desk.training.frames import RUN
from zk0desk.training.measuring_folder import measuring_folder
from zk0desk.training.peak_memory import PeakMemory
from zk0desk.training.prefix_level import LevelChoice, choose_level
from zk0desk.training.round_steps import planned_steps
from zk0desk.training.rounds import RoundPlan
from zk0desk.training.timed_steps import MeasureError, Rounds, Steps, timed_at

if TYPE_CHECKING:
    from zk0desk.training.frames import Frames
    from zk0desk.training.policy import TrainablePolicy

BUDGET_GB = 100_000.0
"""Of the measurement's own entries: the disk alone limits them, and few are made."""


def measure(
    policy_folder: Path,
    recordings: Sequence[ChosenRecording],
    training: Training,
    cache: Cache,
    plan: RoundPlan,
    *,
    control: NodeControl,
    emit: Sink,
) -> Estimate:
    """Load the policy and time real steps of training on `recordings`; the estimate is kept. It takes a minute or two at full size.

    The level is chosen with the settings `cache` for rounds of `plan`. The policy, the recordings and the operator's cache stay as they
    are. `emit` is given each `StepDone` and each `Notice`. Raises `Stopped` when `control` is asked to stop, `MeasureError` where the disk
    takes no prepared frames, and what loading and training raise: `PolicyError`, `RecordingError`, `EngineMissingError`,
    `RoundFailedError`.
    """
    from zk0desk.training.kept_estimates import expected_choice, keep, key_of
    from zk0desk.training.loading import load_engine

    load_engine()
    from zk0desk.training.devices import choose_device, wants_bf16
    from zk0desk.training.memory_reserve import fits_on
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.trainer import LocalTrainer

    policy = TrainablePolicy.load(Path(policy_folder))
    control.check()
    device = choose_device(
        training.device,
        lambda gpu: fits_on(gpu, policy.files, training.memory_free, bf16=wants_bf16(training.precision, gpu), emit=lambda _event: None),
    )
    policy.policy.to(device).train()
    frames = policy.frames_of(recordings)
    chosen, in_memory = _chosen(policy, frames, cache, plan, wants_bf16(training.precision, device), control)
    decode_s = _decoding(frames)
    control.check()
    with ExitStack() as stack:
        own = cache.model_copy(update={"level": chosen.level})
        if chosen.level in KEEPING:
            own = own.model_copy(update={"folder": _folder(stack, cache), "budget_gb": BUDGET_GB})
        steps = Steps(emit)
        trainer = LocalTrainer(
            policy, recordings, node="estimate", device=training.device, precision=training.precision, micro_batch=training.micro_batch,
            memory_free=training.memory_free, threads=training.threads, cache=own, emit=steps, control=control,
        )  # fmt: skip
        stack.callback(trainer.close, restore=False)
        with PeakMemory(policy.device) as peak:
            rounds = Rounds(trainer, policy.get_weights(), steps)
            batch = min(plan.batch_size, trainer.frames)
            found = timed_at(rounds, chosen, own, batch, stay=frames.stay, in_memory=in_memory)
        key = key_of(policy, trainer, recordings)
        micro_batch = min(found.batch, trainer.micro_batch or found.batch)
    expected = expected_choice(policy_folder, recordings, training, cache)
    estimate = Estimate(
        **key._asdict(),
        expected=expected.level if expected else "",
        frames=len(frames),
        share=chosen.share if key.level in KEEPING else 0.0,
        batch=found.batch,
        micro_batch=micro_batch,
        steps=found.steps,
        compute_s=found.compute_s,
        frame_s=found.frame_s,
        wait_s=found.wait_s,
        decode_s=decode_s,
        prepare_s=found.prepare_s,
        start_s=steps.start_s,
        picture_bytes=frames.picture_bytes,
        peak_memory=peak.bytes,
        date=time.time(),
    )
    keep(estimate)
    return estimate


def _chosen(
    policy: TrainablePolicy, frames: Frames, cache: Cache, plan: RoundPlan, bf16: bool, control: NodeControl
) -> tuple[LevelChoice, bool]:
    """The level that a run would have, and whether its entries fit the memory."""
    from zk0desk.training.forward_choice import ForwardChoice
    from zk0desk.training.recording_content import pictures_digest

    choice = ForwardChoice(policy, frames, cache, bf16=bf16, emit=lambda _event: None, check=control.check)
    visits = plan.rounds * planned_steps(plan, len(frames)) * plan.batch_size / len(frames)
    try:
        case = choice.case(visits)
        chosen = choose_level(case)
        for table in frames.tables if chosen.level in KEEPING else ():  # remembered from here on: no run's start takes as long again
            pictures_digest(table.pictures.root, table.pictures.slots.values(), control.check)
    except OSError as error:
        return LevelChoice("off", f"off: {error}."), True
    return chosen, chosen.bytes <= case.memory_free


def _folder(stack: ExitStack, cache: Cache) -> Path:
    """A folder for entries, on the operator's disk for them, until `stack` ends."""
    place = (cache.folder or folders.prefix_cache_folder()).expanduser()
    try:
        return stack.enter_context(measuring_folder(place))
    except OSError as error:
        raise MeasureError(
            "A round's time cannot be measured.",
            f"Nothing can be written into the folder of prepared frames: {error}.",
            "Mend its permissions, or choose another folder for prepared frames in Settings.",
        ) from error


def _decoding(frames: Frames) -> float:
    """Seconds a frame of decoding pictures that were not seen before, on the threads that the trainer uses."""
    threads = min(4, usable_cores())
    with ThreadPoolExecutor(threads, "zk0desk-decode") as pool:
        indices = list(range(len(frames)))
        if len(frames) > 2 * RUN:
            frames.batch([0], pool)  # what is loaded at the first time
            indices = list(range(RUN, min(len(frames), RUN + threads * RUN)))
        # In an order that gives each thread something else to decode; without room to keep them, each picture for itself.
        indices = np.random.default_rng(0).permutation(indices).tolist()[: None if frames.stay else 8 * threads]
        group = [indices[place] for place in frames.alike(indices)[0]]
        began = time.monotonic()
        frames.batch(group, pool)
        return (time.monotonic() - began) / len(group)
