"""Flow-matching loss of a policy on held-out recordings, on all frames or on a sample: the same every time.

Each frame gets its own noise and time, drawn from the recording's content and the frame's number, so that the result
depends neither on the batch nor on what was evaluated before. Sums of losses and counts of valid entries are added up,
as LeRobot's loss is a mean over valid (time, dimension) entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.control import NodeControl
from zk0desk.settings import ChosenRecording
from zk0desk.training.forward import Forward, WholeForward
from zk0desk.training.frames import Batch, Frames, ahead
from zk0desk.training.noise import draw_noise
from zk0desk.training.sampling import Mean, SeenFrames, draw_sample, estimate, strata_of

if TYPE_CHECKING:
    from zk0desk.training.policy import TrainablePolicy


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean over all valid entries; `recordings` maps each recording's name to its own. `frames` were seen, of `of`.

    `standard_error` says how far the sample's loss may be from that of all frames; it is 0 when all were seen. `frames_error` is the
    standard error as a statement on other frames like these. `parts` has the same for each recording, each task and each set of
    cameras, by name. `seen` are the frames themselves.
    """

    loss: float
    frames: int
    recordings: dict[str, float] = field(default_factory=dict)
    standard_error: float = 0.0
    frames_error: float = 0.0
    of: int = 0
    parts: dict[str, dict[str, Mean]] = field(default_factory=dict)
    seen: SeenFrames = field(default_factory=SeenFrames, compare=False, repr=False)


def evaluate(
    policy: TrainablePolicy,
    recordings: Sequence[ChosenRecording],
    *,
    batch: int,
    control: NodeControl | None = None,
    sample: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    forward: Forward | None = None,
) -> Evaluation:
    """Evaluate `policy` on `recordings`, `batch` frames at once (it does not change the result).

    All frames, or with `sample` about so many, drawn by recording, task and episode with `seed` (at least two of each).
    `progress` is given the frames that are done, and all. The recordings are read once for a policy, as long as the same are
    asked for. `forward` (default: LeRobot's own) must be one of these recordings. Raises `Stopped` when `control` is asked to stop.
    """
    import torch

    frames = policy.frames_of(recordings)
    forward = forward or WholeForward(policy, frames)
    strata = strata_of(frames)
    drawn = draw_sample(strata, sample, seed)
    wanted = np.sort(np.concatenate(drawn)).tolist() if drawn else []
    losses, entries = np.zeros(len(frames)), np.zeros(len(frames))
    done = 0
    training = policy.policy.training
    policy.policy.eval()
    try:
        with ThreadPoolExecutor(1, "zk0desk-decode") as pool, torch.no_grad():
            for places, data in ahead(forward.batch, iter(_batches(frames, wanted, batch)), pool):
                if control:
                    control.check()
                losses[places], entries[places] = _losses(policy, frames, forward, places, data)
                done += len(places)
                if progress:
                    progress(done, len(wanted))
    finally:
        policy.policy.train(training)

    def mean(chosen: Iterable[int]) -> Mean:
        numbers = list(chosen)
        sizes = [len(strata[number].frames) for number in numbers]
        return estimate(sizes, [losses[drawn[number]] for number in numbers], [entries[drawn[number]] for number in numbers])

    names, cameras = _names(frames), [_cameras(frames, number) for number in range(len(frames.tables))]
    kinds = {
        "recording": [names[stratum.recording] for stratum in strata],
        "task": [stratum.task for stratum in strata],
        "cameras": [cameras[stratum.recording] for stratum in strata],
    }
    parts = {
        kind: {name: mean(number for number, other in enumerate(of) if other == name) for name in dict.fromkeys(of)}
        for kind, of in kinds.items()
    }
    whole = mean(range(len(strata)))
    each = {name: part.loss for name, part in parts["recording"].items()}
    owner = np.searchsorted(frames.starts, wanted, side="right") - 1
    seen = SeenFrames(tuple(names), owner, losses[wanted], entries[wanted])
    return Evaluation(whole.loss, whole.frames, each, whole.standard_error, whole.frames_error, whole.of, parts, seen)


def _cameras(frames: Frames, number: int) -> str:
    """The cameras of a recording that the policy sees: "top + wrist"."""
    return " + ".join(camera.removeprefix("observation.images.") for _, camera in sorted(frames.tables[number].pictures.slots.items()))


def _batches(frames: Frames, wanted: list[int], size: int) -> list[list[int]]:
    """The wanted frames in order, cut so that a batch holds one kind of recording."""
    result = []
    for group in frames.alike(wanted):
        indices = [wanted[place] for place in group]
        result += [indices[start : start + size] for start in range(0, len(indices), size)]
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
