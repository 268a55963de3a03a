"""What a local round has done so far, and how that is kept on disk and brought back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zk0desk.training.checkpoint import RoundCheckpoint
from zk0desk.training.round_steps import PlannedStep

if TYPE_CHECKING:
    import torch

    from zk0desk.training.optimiser import LocalOptimiser


@dataclass
class Progress:
    """What a round has done so far: up to `step`, skipped ones counted. Losses, sizes, norms and mus are of each step that was made.

    `mu` holds until the epoch's end, `raised` says whether the node's own rule raised it; `epochs` are the mean losses of this
    round's epochs; `seconds` passed before an interruption.
    """

    mu: float
    raised: bool = False
    step: int = 0
    losses: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    mus: list[float] = field(default_factory=list)
    visited: set[int] = field(default_factory=set)
    epochs: list[float] = field(default_factory=list)
    proximal: float = 0.0
    epoch_began: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def count(self, step: PlannedStep, loss: float, norm: float, proximal: float) -> None:
        """Count a step that was made."""
        self.losses.append(loss)
        self.sizes.append(len(step.frames))
        self.norms.append(norm)
        self.mus.append(self.mu)
        self.visited.update(step.frames)
        self.proximal = proximal


class Keeper:
    """Keeps a round's progress, weights and optimiser on disk. `identity` is what makes it this round and no other."""

    def __init__(
        self, kept: RoundCheckpoint, identity: Mapping[str, Any], parameters: Sequence[torch.Tensor], optimiser: LocalOptimiser
    ) -> None:
        self._kept, self._identity, self._parameters, self._optimiser = kept, dict(identity), parameters, optimiser
        self._began = time.monotonic()
        self._before = 0.0
        self._saved = 0

    @property
    def due(self) -> bool:
        """Whether it is time to keep."""
        return self._kept.due

    @property
    def interval_s(self) -> float:
        """Seconds of training that an unclean end may cost now."""
        return self._kept.interval_s

    def trouble(self) -> str:
        """Why the round could not be kept the last time, once; or nothing."""
        return self._kept.trouble()

    def tensors(self, progress: Progress) -> dict[str, torch.Tensor]:
        """All that a round goes on from, by name. Not a copy."""
        import torch

        weights = {f"weight.{number}": parameter for number, parameter in enumerate(self._parameters)}
        return {"visited": torch.tensor(sorted(progress.visited)), **weights, **self._optimiser.tensors()}

    def worth(self, progress: Progress) -> bool:
        """Whether there is something to keep that is not kept yet."""
        return progress.step != self._saved and bool(progress.losses)

    def keep(self, progress: Progress, memory: Mapping[str, Any], check: Callable[[], None]) -> None:
        """Keep `progress` with `memory`, which is JSON; writing goes on behind. A disk without room costs only the safety."""
        self._saved = progress.step
        facts = {key: value for key, value in vars(progress).items() if key != "visited"}
        facts["seconds"] = self._before + time.monotonic() - self._began
        self._kept.save_behind(progress.step, {**self._identity, "progress": facts, "memory": memory}, self.tensors(progress), check)

    def restore(self) -> tuple[Progress, dict[str, Any]] | None:
        """Bring weights and optimiser back; the progress and the memory kept with it.

        None, and nothing changed, when there is none; what is kept of another round or policy is removed.
        """
        import torch

        found = self._kept.load(self._identity)
        if found is None:
            self._kept.clear()
            return None
        facts, tensors = found
        try:
            progress = Progress(**facts["progress"], visited=set(tensors["visited"].tolist()))
            weights = [tensors[f"weight.{number}"] for number in range(len(self._parameters))]
            memory = facts["memory"]
        except (KeyError, TypeError):
            return None  # the round starts anew
        if not self._optimiser.load(tensors):
            return None
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.copy_(weight)
        self._before, self._saved = progress.seconds, progress.step
        self._kept.goes_on(progress.seconds)
        return progress, memory

    def close(self, *, finish: bool) -> None:
        """Nothing is written any more when this returns; what is being written is finished or left."""
        self._kept.close(finish=finish)
