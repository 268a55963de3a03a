"""The local optimiser is new in each round, or keeps its moments from round to round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.conftest import LocalNode, a_plan
from zk0desk.events import Notice, StepDone
from zk0desk.training.checkpoint import RoundCheckpoint
from zk0desk.training.noise import draw_noise
from zk0desk.training.optimiser import BETAS, CLIP_NORM, EPS, WEIGHT_DECAY, LocalOptimiser, clip
from zk0desk.training.round_steps import steps_of

MakeNode = Callable[..., LocalNode]


def keeping(local_node: MakeNode, on_event: Callable[[object], None] | None = None) -> LocalNode:
    node = local_node(on_event=on_event)
    identity = node.trainer._identity
    node.trainer._optimiser = LocalOptimiser(node.policy.parameters, keep=True, identity=identity)
    return node


def shelf(folder: Path) -> RoundCheckpoint:
    return RoundCheckpoint(folder / "round", 600)


def two_rounds(node: LocalNode, kept: RoundCheckpoint | None = None) -> list[np.ndarray]:
    """The weights after each of two rounds; the second starts from where the first ended."""
    weights = [node.start]
    for number in (1, 2):
        weights.append(weights[-1] + node.trainer.train(a_plan(round=number, lr=1e-3 / number), weights[-1], kept).delta)
    return weights[1:]


def test_that_a_round_starts_with_a_new_optimiser(local_node: MakeNode) -> None:
    first, second = two_rounds(local_node())
    alone = local_node()
    assert np.array_equal(second, first + alone.trainer.train(a_plan(round=2, lr=5e-4), first).delta)


def test_that_kept_moments_are_those_of_one_adamw_through_both_rounds(local_node: MakeNode) -> None:
    ours = two_rounds(keeping(local_node))[1]
    node = local_node()
    policy, gradients, frames = node.policy, node.trainer._gradients, node.trainer._frames
    adam = torch.optim.AdamW(policy.parameters, lr=1e-3, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)
    policy.policy.train()
    torch.set_num_threads(1)
    for number in (1, 2):
        plan = a_plan(round=number)
        adam.param_groups[0]["lr"] = 1e-3 / number
        for step in steps_of(plan, "a", node.trainer.frames, plan.local_steps):
            adam.zero_grad()
            noise, moment = draw_noise(policy, len(step.frames), plan.seed, "a", number, "noise", step.number)
            groups = [(list(range(len(step.frames))), frames.batch(step.frames))]
            gradients.of(step.frames, groups, noise, moment)
            torch.nn.utils.clip_grad_norm_(policy.parameters, CLIP_NORM)
            adam.step()
    theirs = policy.get_weights()
    fresh = two_rounds(local_node())[1]
    assert np.linalg.norm(ours - theirs) < 1e-6 * np.linalg.norm(theirs - node.start)
    assert np.linalg.norm(fresh - theirs) > 1e-2 * np.linalg.norm(theirs - node.start)


def test_that_a_node_that_is_started_again_goes_on_with_the_kept_moments(local_node: MakeNode, tmp_path: Path) -> None:
    first, second = two_rounds(keeping(local_node))
    node = keeping(local_node)
    node.trainer.train(a_plan(round=1, lr=1e-3), node.start, shelf(tmp_path))
    again = keeping(local_node)
    assert np.array_equal(second, first + again.trainer.train(a_plan(round=2, lr=5e-4), first, shelf(tmp_path)).delta)


@pytest.mark.parametrize("after", [0, 3])
def test_that_a_round_that_was_cut_off_ends_as_it_would_have(local_node: MakeNode, tmp_path: Path, after: int) -> None:
    class Killed(BaseException):
        pass

    def die(event: object) -> None:
        if isinstance(event, StepDone) and event.round == 2 and event.step == after + 1:
            raise Killed

    first, second = two_rounds(keeping(local_node))
    node = keeping(local_node, on_event=die)
    with pytest.raises(Killed):
        two_rounds(node, RoundCheckpoint(tmp_path / "round", 1e-9 if after else 600))
    for again in (node, keeping(local_node)):  # in the same process, and in another
        start = RoundCheckpoint(tmp_path / "round", 600)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node.trainer, "_emit", lambda _: None)
            assert np.array_equal(second, first + again.trainer.train(a_plan(round=2, lr=5e-4), first, start).delta)


def test_that_a_round_that_is_asked_for_again_starts_from_where_it_started(local_node: MakeNode, tmp_path: Path) -> None:
    node = keeping(local_node)
    first, second = two_rounds(node, shelf(tmp_path))
    assert np.array_equal(second, first + node.trainer.train(a_plan(round=2, lr=5e-4), first, shelf(tmp_path)).delta)


def test_that_another_run_starts_anew_and_a_later_round_without_moments_says_so(local_node: MakeNode, tmp_path: Path) -> None:
    node = keeping(local_node)
    first, _ = two_rounds(node, shelf(tmp_path))
    fresh = local_node().trainer.train(a_plan(run="another", round=2), first).delta
    assert np.array_equal(fresh, node.trainer.train(a_plan(run="another", round=2), first, shelf(tmp_path)).delta)
    assert [notice.code for notice in node.told(Notice)] == ["optimiser-fresh"]


@pytest.mark.parametrize("norm", [0.5, 9.9999985, 10.0, 10.0000005, 25.0])
def test_clipping_is_pytorchs_to_the_bit(norm: float):
    draw = torch.Generator().manual_seed(4)
    gradients = [torch.randn(shape, generator=draw) for shape in ((3, 4), (5,))]
    scale = norm / float(torch.nn.utils.get_total_norm(gradients))
    ours, theirs = ([torch.nn.Parameter(torch.zeros_like(each)) for each in gradients] for _ in "ab")
    for parameters in (ours, theirs):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * scale
    clip(ours)
    torch.nn.utils.clip_grad_norm_(theirs, CLIP_NORM)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))
