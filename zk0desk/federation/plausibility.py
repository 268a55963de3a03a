"""Whether what a node says of its round can be true: what was asked, the time that passed, and what it said before. Pure, no numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping

from zk0desk.federation.messages import MessageRefused, TrainRequest

STEPS_A_SECOND = 1000.0
"""No computer makes optimiser steps of SmolVLA faster; the demo's tiny one takes 15 ms for each."""
SLACK_S = 5.0
"""Seconds that a node's clock and the coordinator's may differ over a round."""
GROWTH = 2.0
"""A node's number of frames may grow so many times from what it said in earlier rounds: operators add recordings."""


def check_plausible(metrics: Mapping[str, float], request: TrainRequest, *, declared: float = 0.0, elapsed: float | None = None) -> None:
    """Raise `MessageRefused` for the first of the checked `metrics` that cannot be true.

    `declared` is the most frames that the node ever said it has, 0 when it never did; `elapsed` the seconds since the round was first
    asked of it, None when that is not known (it went on with a round of before this process).
    """
    examples, steps = metrics["num-examples"], metrics["steps-done"]
    most = most_steps(request, max(examples, declared))
    if steps > most:
        raise MessageRefused("steps-done", f"{steps:g} is more than the {most} that were asked.")
    if (epochs := metrics.get("epochs-done", 0.0)) > request.local_epochs + 1 and not request.local_steps:
        raise MessageRefused("epochs-done", f"{epochs:g} is more than the {request.local_epochs:g} that were asked.")
    seen = metrics.get("frames-seen", steps * request.batch_size)
    if seen > steps * request.batch_size:
        raise MessageRefused("frames-seen", f"{seen:g} is more than {steps:g} steps of {request.batch_size} frames hold.")
    if examples > seen:
        raise MessageRefused("num-examples", f"{examples:g} is more than the {seen:g} frames that were visited.")
    if declared and examples > GROWTH * declared:
        raise MessageRefused("num-examples", f"{examples:g} is more than {GROWTH:g} times the {declared:g} frames of its earlier rounds.")
    if "lr-used" in metrics and not math.isclose(metrics["lr-used"], request.lr, rel_tol=1e-6, abs_tol=1e-12):
        raise MessageRefused("lr-used", f"is {metrics['lr-used']:g} where {request.lr:g} was asked.")
    if elapsed is None:
        return
    if metrics.get("seconds", 0.0) > elapsed + SLACK_S:
        raise MessageRefused("seconds", f"{metrics['seconds']:.0f} is more than the {elapsed:.0f} that have passed since it was asked.")
    if steps > 1 + STEPS_A_SECOND * elapsed:
        raise MessageRefused("steps-done", f"{steps:g} steps in {elapsed:.1f} s are more than a computer can make.")


def most_steps(request: TrainRequest, frames: float) -> int:
    """Optimiser steps that a node with so many frames makes at most."""
    if request.local_steps:
        return request.local_steps
    return math.ceil(request.local_epochs * math.ceil(frames / request.batch_size)) + 1
