"""FedProx on the node: the proximal step and the client-side mu rule (the paper's section 3.4).

A node minimises F_k(w) + mu/2 * ||w - w_t||^2. The second term's gradient, mu * (w - w_t), is added to the gradients
once per optimiser step, before clipping: the same as through autograd, in a tenth of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import pstdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WINDOW = 5
"""Epochs over which the losses' standard deviation is taken."""


@dataclass(frozen=True)
class MuVerdict:
    """mu until the next epoch's end, and what decided it: each figure with its limit. `epochs` losses were looked at."""

    mu: float
    loss_std: float
    loss_std_limit: float
    grad_norm: float
    grad_norm_limit: float
    epochs: int

    @property
    def scattered(self) -> bool:
        """Whether the epochs' losses scatter by more than the limit."""
        return not self.loss_std <= self.loss_std_limit

    @property
    def steep(self) -> bool:
        """Whether the gradient is larger than the limit. One that is not finite is."""
        return not self.grad_norm <= self.grad_norm_limit

    @property
    def raised(self) -> bool:
        """Whether mu is to be raised."""
        return self.scattered or self.steep

    @property
    def cause(self) -> str:
        """`loss`, `gradient`, `both`, or `calm` when neither is above its limit."""
        return {(True, False): "loss", (False, True): "gradient", (True, True): "both"}.get((self.scattered, self.steep), "calm")

    @property
    def why(self) -> str:
        """The reason in words, with the figures."""
        scatter = f"the losses of the last {self.epochs} epochs scatter by {self.loss_std:.3g}"
        norm = f"the gradient's norm was {self.grad_norm:.3g} in the last epoch"
        reasons = [f"{scatter}, above {self.loss_std_limit:g}"] if self.scattered else []
        reasons += [f"{norm}, above {self.grad_norm_limit:g}"] if self.steep else []
        if not reasons:
            reasons = [f"{scatter} (limit {self.loss_std_limit:g})", f"{norm} (limit {self.grad_norm_limit:g})"]
        words = ", and ".join(reasons)
        return f"{words[0].upper()}{words[1:]}."


def client_mu(
    mu: float, epoch_losses: Sequence[float], grad_norm: float, *, mu_max: float, alpha: float, loss_std: float, norm_limit: float
) -> MuVerdict:
    """mu until the next epoch's end, decided at an epoch's end.

    `epoch_losses` are the mean losses of all epochs so far, earlier rounds included; `grad_norm` is the mean norm of the
    data gradient in the epoch that ended. When the last five losses scatter by more than `loss_std` (population standard
    deviation), or `grad_norm` is above `norm_limit`: max(mu, min(mu * (1 + alpha), mu_max)); else `mu`. The paper leaves
    the formula's symbols out of its text; this is our reading. A gradient that is not finite counts as too large.
    """
    verdict = MuVerdict(mu, loss_spread(epoch_losses), loss_std, grad_norm, norm_limit, min(WINDOW, len(epoch_losses)))
    return replace(verdict, mu=raised_mu(mu, mu_max=mu_max, alpha=alpha)) if verdict.raised else verdict


def raised_mu(mu: float, *, mu_max: float, alpha: float) -> float:
    """max(mu, min(mu * (1 + alpha), mu_max)): never below the server's mu, even where that is above `mu_max`."""
    return max(mu, min(mu * (1 + alpha), mu_max))


def loss_spread(epoch_losses: Sequence[float]) -> float:
    """Population standard deviation of the last five epochs' mean losses; 0 with fewer than two."""
    recent = list(epoch_losses[-WINDOW:])
    return pstdev(recent) if len(recent) > 1 else 0.0


def add_proximal_gradient(parameters: Sequence[torch.nn.Parameter], anchors: Sequence[torch.Tensor], mu: float) -> float:
    """Add mu * (w - w_t) to each `.grad` and return mu/2 * ||w - w_t||^2.

    `anchors` hold w_t, in the order of `parameters`. One tensor at a time on a CPU (little memory), all at once on a GPU.
    """
    import torch

    if mu == 0:
        return 0.0
    with torch.no_grad():
        if parameters[0].device.type == "cpu":
            squares = 0.0
            for parameter, anchor in zip(parameters, anchors, strict=True):
                apart = parameter.detach() - anchor
                squares += float(torch.dot(apart.flatten(), apart.flatten()))
                _gradient(parameter).add_(apart, alpha=mu)
            return 0.5 * mu * squares
        together = torch._foreach_sub([parameter.detach() for parameter in parameters], list(anchors))
        torch._foreach_add_([_gradient(parameter) for parameter in parameters], together, alpha=mu)
        return 0.5 * mu * float(torch.stack(torch._foreach_norm(together)).square().sum())


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    import torch

    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
