from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.training.fedprox import add_proximal_gradient, client_mu, loss_spread

RULE = {"mu_max": 0.02, "alpha": 1.0, "loss_std": 1.2, "norm_limit": 1.0}


def test_that_the_gradient_is_autograds_of_the_written_objective(local_node):
    node = local_node("node0")
    mu = 0.3
    parameters = node.policy.parameters
    anchors = [parameter.detach() + 0.1 * torch.randn(parameter.shape) for parameter in parameters]
    batch = {k: v.float() / 255 if v.dtype is torch.uint8 else v for k, v in node.trainer._frames.batch([1, 2, 30]).items()}
    drawn = {"noise": torch.randn(3, 16, 32), "time": torch.rand(3)}

    loss, _ = node.policy.policy.forward(dict(batch), **drawn)
    objective = loss + mu / 2 * sum((p - a).square().sum() for p, a in zip(parameters, anchors, strict=True))
    objective.backward()
    written = [parameter.grad.clone() for parameter in parameters]

    node.policy.policy.zero_grad()
    loss, _ = node.policy.policy.forward(dict(batch), **drawn)
    loss.backward()
    term = add_proximal_gradient(parameters, anchors, mu)
    for parameter, expected in zip(parameters, written, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    assert term == pytest.approx(float((objective - loss).detach()), rel=1e-4)


def test_that_the_anchor_is_not_the_live_weight(local_node):
    proximal = []
    node = local_node("node0", on_event=lambda event: proximal.append(getattr(event, "proximal", 0.0)))
    node.train(mu=0.5)
    assert max(proximal) > 0, "the weights moved away from w_t"


def test_that_a_calm_node_keeps_the_servers_mu():
    assert client_mu(0.01, [1.0, 1.1, 1.2], 0.5, **RULE).mu == 0.01


@pytest.mark.parametrize(("losses", "norm"), [([1.0, 9.0], 0.1), ([1.0, 1.0], 1.1), ([], float("nan"))])
def test_that_scattered_losses_or_a_large_gradient_double_mu(losses, norm):
    assert client_mu(0.01, losses, norm, **RULE).mu == 0.02


def test_that_only_the_last_five_epochs_count():
    assert loss_spread([100.0, 1, 1, 1, 1, 1]) == 0
    assert loss_spread([3.0]) == 0


@given(mu=st.floats(0, 10), losses=st.lists(st.floats(0, 50), max_size=9), norm=st.floats(0, 5))
def test_that_mu_is_never_below_the_servers_nor_raised_above_the_limit(mu, losses, norm):
    assert mu <= client_mu(mu, losses, norm, **RULE).mu <= max(mu, RULE["mu_max"])
