"""Learning rate and mu of each round, from the held-out losses of the rounds before (the paper's section 3.4). Pure functions.

    state = start(rules, rounds, measured=True)          # state.decision is that of round 1
    state, decision = after(rules, state, loss, 1)       # what round 2 is asked with, and why

The history is L_1, L_2, ...: the base policy's loss L_0 is not in it. The paper leaves the symbols of its formulas out of its text, so this
is our reading of them. After each evaluation, the first of these that holds, with W = `window` and eps = `plateau`:

* spike: L_t is not finite, or above `spike` times the mean of the W before it. The rate is divided by `spike_division` until W evaluations
  have passed without a spike; no boost, no restart.
* rising: the mean of the last W is more than eps above the mean of the W before. No boost, no restart, mu stays; the rate goes on along its
  cosine, so that a federation that gets worse is never trained faster.
* plateau: L_{t-W} - min(L_{t-W+1..t}) < eps, at least W evaluations since a spike, T_cur >= max(W, T_i/2). The cosine starts again, T_i
  doubles, its highest rate grows by `lr_boost`, mu shrinks by `mu_decay`.
* end of the cycle: T_cur = T_i. The cosine starts again and T_i doubles.
* otherwise eta = eta_min + (eta_max - eta_min) (1 + cos(pi T_cur / T_i)) / 2.

T_cur is the place in its cycle of the round that was evaluated, 0 for the first: a cycle's last round, the one with T_cur = T_i, trains
with eta_min, and no plateau starts it again before a round has trained in the lower half of its rates. W counts evaluations, T_cur rounds.
Where the loss is known only every few rounds, or a spike or a rise holds a restart back, T_cur may pass T_i: the rate stays at eta_min.
Between two restarts there are always W evaluations. Losses that are not finite are left out of means and minima. Rates are between
eta_min / `spike_division` and the larger of `lr_highest` and the one that the run began with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zk0desk.settings import ServerRounds, ServerSchedule

SPIKE, CALM, RISING, PLATEAU, CYCLE_END, WORSE, BETTER = "spike", "calm", "rising", "plateau", "cycle-end", "worse", "better"
START, COSINE, FIXED = "start", "cosine", "fixed"
MARKED: dict[str, str] = {
    SPIKE: "The held-out loss jumped, so the learning rate was lowered until the loss is calm again.",
    CALM: "The held-out loss has been calm again for long enough: the learning rate is no longer lowered.",
    RISING: "The held-out loss rises, so neither a higher learning rate nor a smaller mu was tried.",
    PLATEAU: "The held-out loss no longer fell, so the learning rate began its cycle again from a higher rate, with a smaller mu.",
    CYCLE_END: "The learning rate's cycle was over, so it began again from its highest rate.",
    WORSE: "The held-out loss rose, so mu was raised.",
    BETTER: "The held-out loss fell several times in a row, so mu was lowered.",
}
"""The signals that are worth a mark in a plot, with words for an operator, who is told the signal alone."""
MU_LIMIT = 100.0
"""No mu is above this: the wire contract allows no more."""


@dataclass(frozen=True)
class Decision:
    """What a round is asked with: learning rate, mu, the signal that decided it, and why in words."""

    lr: float
    mu: float
    signal: str
    why: str

    @property
    def told(self) -> str:
        """The signal as it is told to nodes, who mark it; empty when there is nothing to mark."""
        return self.signal if self.signal in MARKED else ""


@dataclass(frozen=True)
class ScheduleState:
    """All that the schedule remembers after `round` rounds.

    `strategy` is the one in effect, `begun` the settings' learning rate and mu that it began with. `lr_max` is eta_max; `place` the T_cur
    of the coming round, `cycle` T_i in rounds. `losses` are the last evaluations, at most 2 W; `since_restart` and `since_spike` count
    evaluations (None: there was no spike); `falls` counts losses in a row that were lower than the one before.
    """

    strategy: str
    begun: tuple[float, float]
    decision: Decision
    lr_max: float
    mu: float
    cycle: int
    round: int = 0
    place: int = 0
    losses: tuple[float, ...] = ()
    since_restart: int = 0
    since_spike: int | None = None
    falls: int = 0

    def to_json(self) -> dict[str, Any]:
        """A JSON object; losses that are not finite become null. It is equal to what JSON makes of it."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        return {**asdict(self), "begun": list(self.begun), "losses": losses}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScheduleState:
        """The state that `to_json` gave."""
        losses = tuple(math.nan if loss is None else loss for loss in data["losses"])
        return cls(**{**data, "begun": tuple(data["begun"]), "decision": Decision(**data["decision"]), "losses": losses})


def start(rules: ServerSchedule, rounds: ServerRounds, *, measured: bool, done: int = 0) -> ScheduleState:
    """Before the first round, or after `done` rounds that do not count.

    Without a held-out loss (`measured` False) a strategy that needs one is FedProx with a fixed mu.
    """
    strategy = effective(rules.strategy, measured)
    mu = 0.0 if strategy == "fedavg" else rounds.proximal_mu
    decision = Decision(rounds.lr, mu, START, "The settings' learning rate and mu.")
    return ScheduleState(strategy, (rounds.lr, rounds.proximal_mu), decision, rounds.lr, mu, rules.cycle, done)


def effective(strategy: str, measured: bool) -> str:
    """The strategy that can be followed: with no held-out loss, `fedprox` for `adaptive` and `dynamic`."""
    return strategy if measured or strategy in ("fedavg", "fedprox") else "fedprox"


def still_holds(state: ScheduleState, begun: ScheduleState) -> bool:
    """Whether `state` began with the strategy, learning rate and mu of `begun`; else the settings were changed since."""
    return (state.strategy, state.begun) == (begun.strategy, begun.begun)


def after(rules: ServerSchedule, state: ScheduleState, loss: float | None, number: int) -> tuple[ScheduleState, Decision]:
    """The state and the decision after round `number`, whose held-out loss is `loss` (None: it was not evaluated).

    `number` is that of the round after `state.round`; ValueError otherwise, since a loss must not count twice.
    """
    if number != state.round + 1:
        raise ValueError(f"round {number} does not follow round {state.round}")
    if loss is not None and not math.isfinite(loss):
        loss = math.nan
    losses = state.losses if loss is None else (*state.losses, loss)[-2 * rules.window :]
    state = replace(state, round=number, losses=losses)
    if state.strategy == "dynamic":
        state = _dynamic(rules, state, loss)
    elif state.strategy == "adaptive":
        state = _adaptive(rules, state, loss)
    else:
        state = replace(state, decision=Decision(state.lr_max, state.mu, FIXED, "Learning rate and mu are fixed."))
    return state, state.decision


# --- the paper's schedule


def _dynamic(rules: ServerSchedule, state: ScheduleState, loss: float | None) -> ScheduleState:
    was_lowered = _lowered(rules, state)
    if loss is None:
        return _along(rules, replace(state, place=state.place + 1), COSINE, "")
    state = replace(state, since_restart=state.since_restart + 1, since_spike=None if state.since_spike is None else state.since_spike + 1)
    if why := _spike(rules, state.losses):
        return _along(rules, replace(state, since_spike=0, place=state.place + 1), SPIKE, why)
    if why := _rising(rules, state.losses):
        return _along(rules, replace(state, place=state.place + 1), RISING, why)
    calm = state.since_spike is None or state.since_spike >= rules.window
    if calm and state.since_restart >= rules.window:
        enough = state.place >= max(rules.window, state.cycle / 2)
        if enough and (why := _plateau(rules, state.losses)):
            lr_max = max(state.lr_max, min(state.lr_max * rules.lr_boost, rules.lr_highest))
            mu = min(state.mu, max(state.mu * rules.mu_decay, rules.mu_lowest))
            why += f" The highest rate is now {lr_max:.3g}, mu {mu:.3g}."
            return _along(rules, replace(_restarted(rules, state), lr_max=lr_max, mu=mu), PLATEAU, why)
        if state.place >= state.cycle:
            restarted = _restarted(rules, state)
            return _along(rules, restarted, CYCLE_END, f"The cycle of {state.cycle} rounds is over; the next has {restarted.cycle}.")
    state = replace(state, place=state.place + 1)
    if was_lowered and calm:
        return _along(rules, state, CALM, f"{rules.window} evaluations passed without a spike.")
    return _along(rules, state, COSINE, "")


def _restarted(rules: ServerSchedule, state: ScheduleState) -> ScheduleState:
    # A cycle that the settings begin longer than the longest stays as it is.
    return replace(state, place=0, cycle=max(state.cycle, min(2 * state.cycle, rules.longest_cycle)), since_restart=0)


def _along(rules: ServerSchedule, state: ScheduleState, signal: str, why: str) -> ScheduleState:
    """`state` with the decision for its place on the cosine."""
    lr = cosine(rules.lr_lowest, state.lr_max, state.place, state.cycle)
    where = f"Round {min(state.place, state.cycle) + 1} of {state.cycle + 1} on the cosine"
    if _lowered(rules, state):
        lr /= rules.spike_division
        where += f", divided by {rules.spike_division:g}"
    return replace(state, decision=Decision(lr, state.mu, signal, f"{why} {where}.".strip()))


def cosine(lowest: float, highest: float, place: int, cycle: int) -> float:
    """eta_min + (eta_max - eta_min)(1 + cos(pi * T_cur/T_i))/2: `highest` at place 0, `lowest` from place `cycle` on.

    A `lowest` that is above `highest` acts as `highest`.
    """
    lowest = min(lowest, highest)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * min(place, cycle) / cycle)) / 2


def _lowered(rules: ServerSchedule, state: ScheduleState) -> bool:
    return state.since_spike is not None and state.since_spike < rules.window


def _spike(rules: ServerSchedule, losses: Sequence[float]) -> str:
    """Why the last loss is a spike; empty when it is none."""
    last = losses[-1]
    if not math.isfinite(last):
        return "The held-out loss is not finite."
    mean = _mean(losses[-1 - rules.window : -1]) if len(losses) > rules.window else None
    if mean is None or not last > rules.spike * mean:
        return ""
    return f"The held-out loss {last:.4g} is above {rules.spike:g} times the mean of the {rules.window} before it, {mean:.4g}."


def _rising(rules: ServerSchedule, losses: Sequence[float]) -> str:
    """Why the losses rise; empty when they do not."""
    if len(losses) < 2 * rules.window:
        return ""
    mean, before = _mean(losses[-rules.window :]), _mean(losses[-2 * rules.window : -rules.window])
    if mean is None or before is None or not mean > before + rules.plateau:
        return ""
    return f"The mean held-out loss of the last {rules.window} evaluations is {mean:.4g}, of those before {before:.4g}: it rises."


def _plateau(rules: ServerSchedule, losses: Sequence[float]) -> str:
    """Why the losses no longer fall; empty when they do."""
    if len(losses) <= rules.window:
        return ""
    first, rest = losses[-1 - rules.window], _finite(losses[-rules.window :])
    if not rest or not first - min(rest) < rules.plateau:  # also when `first` is not a number
        return ""
    return f"The held-out loss was {first:.4g}, and {min(rest):.4g} at best in the {rules.window} evaluations since."


def _mean(losses: Sequence[float]) -> float | None:
    finite = _finite(losses)
    return sum(finite) / len(finite) if finite else None


def _finite(losses: Sequence[float]) -> list[float]:
    return [loss for loss in losses if math.isfinite(loss)]


# --- FedProx's own adaptive mu


def _adaptive(rules: ServerSchedule, state: ScheduleState, loss: float | None) -> ScheduleState:
    """mu grows by `mu_step` when the loss rises and shrinks by it after `mu_falls` falls in a row (Li et al. 2020, section 5.3.2)."""
    before = state.losses[-2] if loss is not None and len(state.losses) > 1 else math.nan
    mu, falls, signal = state.mu, state.falls, FIXED
    if loss is None:
        why = "The round was not evaluated."
    elif not math.isfinite(loss) or loss > before:
        mu, falls, signal = max(mu, min(mu + rules.mu_step, MU_LIMIT)), 0, WORSE
        why = f"The held-out loss rose from {before:.4g} to {loss:.4g}." if math.isfinite(loss) else "The held-out loss is not finite."
    elif not loss < before:
        falls, why = 0, "The held-out loss did not change, or there is none before to compare with."
    elif falls + 1 < rules.mu_falls:
        falls += 1
        why = f"The held-out loss fell from {before:.4g} to {loss:.4g}."
    else:
        mu, falls, signal = max(mu - rules.mu_step, 0.0), 0, BETTER
        why = f"The held-out loss fell {rules.mu_falls} times in a row, to {loss:.4g}."
    return replace(state, mu=mu, falls=falls, decision=Decision(state.lr_max, mu, signal, why))
