"""Which frames each step of a local round takes: passes over all frames, each in an order of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zk0desk.training.noise import seed_of
from zk0desk.training.rounds import RoundPlan


@dataclass(frozen=True)
class PlannedStep:
    """One planned optimiser step: `number` from 1, `epoch` from 1, the frames, and whether a pass ends with it."""

    number: int
    epoch: int
    frames: list[int]
    ends_epoch: bool


def planned_steps(plan: RoundPlan, frames: int) -> int:
    """Optimiser steps of a round over `frames` frames: the budget, or passes of ceil(frames / batch) steps each."""
    if plan.local_steps:
        return plan.local_steps
    a_pass = -(-frames // plan.batch_size)
    whole = int(plan.local_epochs)
    return max(1, whole * a_pass + int(np.ceil(round((plan.local_epochs - whole) * a_pass, 9))))


def steps_of(plan: RoundPlan, node: str, frames: int, steps: int) -> Iterator[PlannedStep]:
    """The round's `steps` steps over `frames` frames, from (seed, node, round) alone. A round's end ends a pass."""
    draw = np.random.default_rng(seed_of(plan.seed, node, plan.round, "order"))
    number = epoch = 0
    while number < steps:
        epoch += 1
        order = draw.permutation(frames)
        for start in range(0, frames, plan.batch_size):
            number += 1
            last = start + plan.batch_size >= frames or number == steps
            yield PlannedStep(number, epoch, order[start : start + plan.batch_size].tolist(), last)
            if number == steps:
                return
