"""FedProx on the node: the proximal step and the client-side mu rule (the paper's section 3.4).

A node minimises F_k(w) + mu/2 * ||w - w_t||^2. The second term's gradient, mu * (w - w_t), is added to the gradients
once per optimiser step, before clipping: the same as through autograd, in a tenth of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pstdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WINDOW = 5
"""Epochs over which the losses' standard deviation is taken."""


def client_mu(
    mu: float, epoch_losses: Sequence[float], grad_norm: float, *, mu_max: float, alpha: float, loss_std: float, norm_limit: float
) -> float:
    """mu until the next epoch's end, decided at an epoch's end.

    `epoch_losses` are the mean losses of all epochs so far, earlier rounds included; `grad_norm` is the mean norm of the
    data gradient in the epoch that ended. When the last five losses scatter by more than `loss_std` (population standard
    deviation), or `grad_norm` is above `norm_limit`: max(mu, min(mu * (1 + alpha), mu_max)); else `mu`. The paper leaves
    the formula's symbols out of its text; this is our reading. A gradient that is not finite counts as too large.
    """
    calm = loss_spread(epoch_losses) <= loss_std and grad_norm <= norm_limit
    return mu if calm else raised_mu(mu, mu_max=mu_max, alpha=alpha)


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
