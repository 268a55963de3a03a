"""The local optimiser: AdamW of LeRobot's SmolVLA preset, without LeRobot's scheduler, as the rate is the server's.

As FedProx has it, each round starts with a new one. An operator may keep its two moments from round to round instead;
they are then kept on disk too, so that a node that is started again goes on with them. Another run or policy starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zk0desk.training.devices import out_of_memory
from zk0desk.training.rounds import RoundFailedError, RoundPlan

if TYPE_CHECKING:
    import torch

    from zk0desk.training.checkpoint import RoundCheckpoint

BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 1e-8, 1e-10, 10.0
"""LeRobot's preset for SmolVLA."""
STATE = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter."""


def clip(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Scale the gradients together so that their norm is at most `CLIP_NORM`: as PyTorch does, but for multiplying by one."""
    import torch

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not float(norm) + 1e-6 <= CLIP_NORM:  # with what PyTorch adds to the norm that it divides by
        torch.nn.utils.clip_grads_with_norm_(parameters, CLIP_NORM, norm)


class LocalOptimiser:
    """The optimiser of `parameters`. `identity` is what makes kept moments fit: JSON values. One thread uses it."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], *, keep: bool, identity: Mapping[str, Any]) -> None:
        self._parameters, self._keep, self._identity = parameters, keep, dict(identity)
        self.adam: torch.optim.AdamW
        self._after: tuple[str, int] | None = None
        """Run and round after which `adam` stands; None while a round changes it."""

    @property
    def keeps(self) -> bool:
        """Whether the moments are kept between rounds."""
        return self._keep

    def begin(self, plan: RoundPlan, shelf: RoundCheckpoint | None) -> bool:
        """Start a round: fresh, or with the moments of the last round before it, from memory or `shelf`. Whether those were found."""
        after, self._after = self._after, None
        if self._keep and after is not None and after[0] == plan.run and after[1] < plan.round:
            for group in self.adam.param_groups:
                group["lr"] = plan.lr
            return True
        self.adam = self._fresh(plan.lr)
        if not self._keep or shelf is None:
            return False
        found = shelf.load({**self._identity, "run": plan.run}, before=plan.round)
        return found is not None and self.load(found[1])

    def finish(self, plan: RoundPlan, shelf: RoundCheckpoint | None, check: Callable[[], None]) -> None:
        """The round is trained to its end. With `shelf` the moments are written there; those of the round before stay beside them."""
        if not self._keep:
            return
        if shelf is not None:
            shelf.save(plan.round, {**self._identity, "run": plan.run}, self.tensors(), check)
        self._after = (plan.run, plan.round)

    def step(self) -> None:
        """One step. `RoundFailedError` when memory runs out."""
        try:
            self.adam.step()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise RoundFailedError(
                "There is not enough memory for the optimiser.",
                "It keeps two numbers for each trained parameter.",
                "Close other programs, or train on a computer with more memory.",
            ) from error

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its state by name: `exp_avg.3` is that of the fourth parameter. Not a copy."""
        named: dict[str, torch.Tensor] = {}
        if not hasattr(self, "adam"):
            return named
        for number, parameter in enumerate(self._parameters):
            state = self.adam.state.get(parameter, {})
            named |= {f"{name}.{number}": state[name] for name in STATE if name in state}
        return named

    def load(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Take the state that `tensors` gave. False, and nothing changed, when it is not that of these parameters."""
        state = {
            number: {name: tensors[f"{name}.{number}"] for name in STATE}
            for number in range(len(self._parameters))
            if all(f"{name}.{number}" in tensors for name in STATE)
        }
        if any(each["exp_avg"].shape != self._parameters[number].shape for number, each in state.items()):
            return False
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
        return True

    def _fresh(self, lr: float) -> torch.optim.AdamW:
        import torch

        # Fused is three times as fast on a CPU; on a GPU PyTorch's default (foreach) is.
        fused = True if self._parameters[0].device.type == "cpu" else None
        return torch.optim.AdamW(self._parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=fused)
