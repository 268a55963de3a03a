"""Flow-matching loss of a policy over all frames of held-out recordings: exact, and the same every time.

Each frame gets its own noise and time, drawn from the recording's content and the frame's number, so that the result
depends neither on the batch nor on what was evaluated before. Sums of losses and counts of valid entries are added up,
as LeRobot's loss is a mean over valid (time, dimension) entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.control import NodeControl
from zk0desk.settings import ChosenRecording
from zk0desk.training.forward import Forward, WholeForward
from zk0desk.training.frames import Batch, Frames, ahead
from zk0desk.training.noise import draw_noise

if TYPE_CHECKING:
    from zk0desk.training.policy import TrainablePolicy


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean over all valid entries of all `frames`; `recordings` maps each recording's name to its own."""

    loss: float
    frames: int
    recordings: dict[str, float] = field(default_factory=dict)


def evaluate(
    policy: TrainablePolicy,
    recordings: Sequence[ChosenRecording],
    *,
    batch: int,
    control: NodeControl | None = None,
) -> Evaluation:
    """Evaluate `policy` on all frames of `recordings`, `batch` frames at once (it does not change the result).

    The recordings are read once for a policy, as long as the same are asked for. Raises `Stopped` when `control` is asked to stop.
    """
    import torch

    frames = policy.frames_of(recordings)
    forward = WholeForward(policy, frames)
    sums, counts = np.zeros(len(frames.tables)), np.zeros(len(frames.tables))
    training = policy.policy.training
    policy.policy.eval()
    try:
        with ThreadPoolExecutor(1, "zk0desk-decode") as pool, torch.no_grad():
            for places, data in ahead(forward.batch, iter(_batches(frames, batch)), pool):
                if control:
                    control.check()
                losses, valid = _losses(policy, frames, forward, places, data)
                owner = np.searchsorted(frames.starts, places, side="right") - 1
                np.add.at(sums, owner, losses * valid)
                np.add.at(counts, owner, valid)
    finally:
        policy.policy.train(training)
    each = dict(zip(_names(frames), (sums / np.maximum(counts, 1)).tolist(), strict=True))
    total = float(sums.sum() / counts.sum()) if counts.sum() else math.nan
    return Evaluation(loss=total, frames=len(frames), recordings=each)


def _batches(frames: Frames, size: int) -> list[list[int]]:
    """All frames in order, cut so that a batch holds one kind of recording."""
    result = []
    for group in frames.alike(range(len(frames))):
        result += [group[start : start + size] for start in range(0, len(group), size)]
    return result


def _losses(policy: TrainablePolicy, frames: Frames, forward: Forward, places: list[int], data: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss over its valid entries, and their number, for each frame."""
    import torch

    drawn = []
    for place in places:
        table, row = frames.locate(place)
        drawn.append(draw_noise(policy, 1, table.content, row))
    noise, time = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    losses = forward.loss(data, places, noise, time, reduction="none")
    return losses.double().cpu().numpy(), frames.valid_entries(places)


def _names(frames: Frames) -> list[str]:
    names: list[str] = []
    for table in frames.tables:
        names.append(table.name if table.name not in names else f"{table.name} ({sum(n.split(' (')[0] == table.name for n in names) + 1})")
    return names
