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

OPTIMISER = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter."""


@dataclass
class Progress:
    """What a round has done so far: up to `step`, skipped ones counted. Losses, sizes, norms and mus are of each step that was made.

    `mu` holds until the epoch's end; `epochs` are the mean losses of this round's epochs; `seconds` passed before an interruption.
    """

    mu: float
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
        self, kept: RoundCheckpoint, identity: Mapping[str, Any], parameters: Sequence[torch.Tensor], optimiser: torch.optim.Optimizer
    ) -> None:
        self._kept, self._identity, self._parameters, self._optimiser = kept, dict(identity), parameters, optimiser
        self._began = time.monotonic()
        self._before = 0.0
        self._saved = 0

    @property
    def due(self) -> bool:
        """Whether it is time to keep."""
        return self._kept.due

    def keep(self, progress: Progress, memory: Mapping[str, Any], check: Callable[[], None]) -> None:
        """Keep `progress` unless it is kept already, with `memory`, which is JSON. A disk without room costs only the safety."""
        import torch

        if progress.step == self._saved or not progress.losses:
            return
        self._saved = progress.step
        tensors: dict[str, torch.Tensor] = {"visited": torch.tensor(sorted(progress.visited))}
        for number, parameter in enumerate(self._parameters):
            tensors[f"weight.{number}"] = parameter
            state = self._optimiser.state.get(parameter, {})
            tensors |= {f"{name}.{number}": state[name] for name in OPTIMISER if name in state}
        facts = {key: value for key, value in vars(progress).items() if key != "visited"}
        facts["seconds"] = self._before + time.monotonic() - self._began
        self._kept.save(progress.step, {**self._identity, "progress": facts, "memory": memory}, tensors, check)

    def restore(self) -> tuple[Progress, dict[str, Any]] | None:
        """Bring weights and optimiser back; the progress and the memory kept with it. None, and nothing changed, when there is none."""
        import torch

        found = self._kept.load(self._identity)
        if found is None:
            return None
        facts, tensors = found
        try:
            progress = Progress(**facts["progress"], visited=set(tensors["visited"].tolist()))
            weights = [tensors[f"weight.{number}"] for number in range(len(self._parameters))]
            state = {
                number: {name: tensors[f"{name}.{number}"] for name in OPTIMISER}
                for number in range(len(weights))
                if f"step.{number}" in tensors
            }
            memory = facts["memory"]
        except (KeyError, TypeError):
            return None  # the round starts anew
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.copy_(weight)
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})
        self._before, self._saved = progress.seconds, progress.step
        return progress, memory
