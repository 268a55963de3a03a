"""The schedule of learning rate and mu: its table, and what has to hold of it whatever the losses are."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.federation import schedule
from zk0desk.settings import ServerRounds, ServerSchedule

PAPER, ROUNDS = ServerSchedule(), ServerRounds()
W = PAPER.window

losses_ = st.lists(
    st.one_of(st.floats(0.0, 3.0), st.sampled_from([0.5, 0.5, 0.51, 5.0, 1e30, math.inf, math.nan])) | st.none(), min_size=1, max_size=120
)
rules_ = st.builds(
    ServerSchedule,
    window=st.integers(1, 7), cycle=st.integers(1, 20), longest_cycle=st.integers(1, 60), lr_lowest=st.floats(0, 2e-4),
    lr_boost=st.floats(1, 3), lr_highest=st.floats(1e-6, 1e-3), mu_decay=st.floats(0, 1), mu_lowest=st.floats(0, 0.1),
    spike=st.floats(1, 4), spike_division=st.floats(1, 5), plateau=st.floats(0, 0.5),
)  # fmt: skip


def run(losses, rules=PAPER, rounds=ROUNDS, strategy="dynamic"):
    """The states after each of the rounds, the one before the first included."""
    rules = rules.model_copy(update={"strategy": strategy})
    states = [schedule.start(rules, rounds, measured=True)]
    for number, loss in enumerate(losses, 1):
        states.append(schedule.after(rules, states[-1], loss, number)[0])
    return states


def signals(states):
    return [state.decision.signal for state in states[1:]]


def rates(states):
    return [state.decision.lr for state in states]


def falling(count, first=1.0):
    return [first * 0.9**n for n in range(count)]


# --- the table, row by row


def test_while_the_loss_falls_the_rate_follows_the_cosine_to_its_end_and_starts_again_without_a_boost():
    states = run([2.0 - 0.05 * n for n in range(40)])
    expected = [2.5e-6 + (1e-4 - 2.5e-6) * (1 + math.cos(math.pi * place / 15)) / 2 for place in range(16)]
    assert rates(states)[:16] == pytest.approx(expected, rel=1e-12)
    assert signals(states)[:16] == ["cosine"] * 15 + ["cycle-end"]
    assert rates(states)[15] == pytest.approx(2.5e-6), "the last round of a cycle trains with the lowest rate"
    assert rates(states)[16] == 1e-4
    assert (states[16].cycle, states[16].lr_max, states[16].mu) == (30, 1e-4, 0.01)


def test_cycles_double_up_to_their_longest():
    states = run([100.0 - n for n in range(99)] + [1.0 * 0.9**n for n in range(200)], ServerSchedule(plateau=0.0))
    ends = [n for n, signal in enumerate(signals(states)) if signal == "cycle-end"]
    assert [after - before - 1 for before, after in zip([-1, *ends], ends, strict=False)] == [15, 30, 60, 120]
    assert states[-1].cycle == 120


def test_a_plateau_restarts_with_a_higher_rate_and_a_smaller_mu_once_half_the_cycle_is_over():
    states = run([0.5] * 30)
    first = signals(states).index("plateau") + 1
    assert first == 9, "T_cur is 8 then, the first place that is not before the middle of 15"
    assert states[first].decision.lr == states[first].lr_max == pytest.approx(1.15e-4)
    assert states[first].mu == states[first].decision.mu == pytest.approx(0.008)
    assert (states[first].cycle, states[first].place) == (30, 0)
    assert "0.5" in states[first].decision.why and "0.000115" in states[first].decision.why
    assert signals(states).index("plateau", first) + 1 == first + 1 + 15


def test_a_loss_that_falls_by_just_less_than_the_limit_is_a_plateau_and_by_just_more_is_none():
    def steps(fall):
        return signals(run([1.0 - fall / W * n for n in range(9)]))[-1]

    assert (steps(0.0099), steps(0.0101)) == ("plateau", "cosine")


def test_boosts_end_at_the_highest_rate_and_mu_at_its_lowest():
    states = run([0.5] * 1500)
    assert signals(states).count("plateau") > 12
    assert max(rates(states)) == states[-1].lr_max == 2e-4
    assert states[-1].mu == pytest.approx(0.001)
    assert min(state.mu for state in states) >= 0.001


@pytest.mark.parametrize("spike", [2.01, math.inf, math.nan])
def test_a_spike_divides_the_rate_by_two_until_a_window_has_passed_without_one(spike):
    calm = [1.0, 1.02, 0.98, 1.0, 1.0]
    with_spike, without = run([*calm, spike, *falling(8)]), run([*calm, *falling(9)])
    ratios = [a / b for a, b in zip(rates(with_spike), rates(without), strict=True)]
    assert ratios == [1.0] * 6 + [0.5] * 5 + [1.0] * 4, "exactly half, for exactly five rounds"
    assert signals(with_spike)[5] == "spike"
    assert signals(with_spike)[10] == "calm"
    assert all(state.lr_max == 1e-4 and state.mu == 0.01 for state in with_spike)


def test_another_spike_lengthens_the_time_and_divides_no_further():
    states = run([1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0, 1.0])
    halved = [schedule.cosine(2.5e-6, s.lr_max, s.place, s.cycle) / s.decision.lr for s in states]
    assert halved == [1.0] * 6 + [2.0] * 8 + [1.0]


def test_a_loss_at_exactly_twice_the_mean_is_no_spike_and_none_is_judged_before_a_window():
    assert "spike" not in signals(run([1.0, 1.0, 1.0, 1.0, 1.0, 2.0]))
    assert "spike" not in signals(run([1.0, 1.0, 9.0, 1.0]))
    assert signals(run([math.nan])) == ["spike"]


@pytest.mark.parametrize(("spike", "meanwhile"), [(9.0, "rising"), (math.nan, "cosine")])
def test_no_restart_while_a_spike_is_recent_and_the_rate_stays_at_its_lowest_meanwhile(spike, meanwhile):
    states = run([*(2.0 - 0.01 * n for n in range(14)), spike, *(1.8 - 0.1 * n for n in range(8))])
    assert signals(states)[14] == "spike"
    assert rates(states)[15:20] == pytest.approx([1.25e-6] * 5)
    assert signals(states)[15:21] == [meanwhile] * 4 + ["cycle-end", "cosine"]


def test_a_loss_that_was_lower_for_a_moment_is_no_plateau():
    assert signals(run([1.0] * 9))[-1] == "plateau"
    assert signals(run([*[1.0] * 6, 0.9, 1.0, 1.0]))[-1] == "cosine"


def test_a_rising_loss_holds_restarts_and_mu_and_trains_ever_more_slowly():
    states = run([0.3 + 0.004 * n for n in range(40)])
    assert "rising" in signals(states)
    since = signals(states).index("rising") + 1
    assert signals(states)[since - 1 :] == ["rising"] * (len(states) - since)
    assert all(after <= before for before, after in zip(rates(states)[since:], rates(states)[since + 1 :], strict=False))


def test_rounds_without_an_evaluation_move_along_the_cosine_and_count_for_no_window():
    every_third = [0.5 if n % 3 == 2 else None for n in range(60)]
    states = run(every_third)
    assert signals(states).index("plateau") + 1 == 18, "the sixth evaluation is the first with five before it"
    assert signals(states)[:17] == ["cosine"] * 17
    assert rates(states)[17] == pytest.approx(2.5e-6), "the cycle was over before: the rate waits at its lowest"


# --- what holds whatever the losses are


@given(losses_, rules_)
def test_there_is_at_most_one_restart_in_a_window_of_evaluations(losses, rules):
    states = run(losses, rules)
    evaluated = [signal for signal, loss in zip(signals(states), losses, strict=True) if loss is not None]
    restarts = [n for n, signal in enumerate(evaluated) if signal in ("plateau", "cycle-end")]
    assert all(after - before >= rules.window for before, after in zip(restarts, restarts[1:], strict=False))


@given(losses_, rules_)
def test_only_a_plateau_raises_the_highest_rate_or_lowers_mu(losses, rules):
    states = run(losses, rules)
    for before, after in zip(states, states[1:], strict=False):
        if after.decision.signal != "plateau":
            assert (after.lr_max, after.mu) == (before.lr_max, before.mu)
        assert after.lr_max >= before.lr_max and after.mu <= before.mu


@given(st.lists(st.floats(0.011, 0.4), min_size=12, max_size=60), st.floats(0.1, 2.0))
def test_a_rising_loss_never_raises_the_highest_rate_nor_lowers_mu(rises, first):
    losses = [first]
    for rise in rises:
        losses.append(losses[-1] + rise)
    states = run(losses)
    steady = states[2 * W :]
    assert {(state.lr_max, state.mu) for state in steady} == {(states[2 * W].lr_max, states[2 * W].mu)}


@given(st.floats(0.01, 3.0), st.integers(W, 40), st.integers(1, 120))
def test_on_a_flat_curve_the_rate_falls_to_the_middle_of_its_range_between_two_restarts(level, cycle, longest):
    states = run([level] * 300, ServerSchedule(cycle=cycle, longest_cycle=longest))
    restarts = [0, *(n for n, signal in enumerate(signals(states), 1) if signal in ("plateau", "cycle-end"))]
    assert len(restarts) > 2
    for begin, end in zip(restarts, restarts[1:], strict=False):
        used = rates(states)[begin:end]  # the decision at `end` is for the round after it
        assert min(used) <= (2.5e-6 + states[begin].lr_max) / 2 + 1e-18


@given(losses_, rules_, st.floats(0, 0.1), st.floats(0, 10))
def test_rate_and_mu_keep_their_bounds(losses, rules, lr, mu):
    rounds = ServerRounds(lr=lr, proximal_mu=mu)
    for state in run(losses, rules, rounds):
        lowest = min(lr, rules.lr_lowest) / rules.spike_division
        assert lowest * (1 - 1e-12) <= state.decision.lr <= max(lr, rules.lr_highest) * (1 + 1e-12)
        assert min(mu, rules.mu_lowest) <= state.decision.mu <= mu
        assert state.cycle <= max(rules.cycle, rules.longest_cycle)


@given(losses_, rules_)
def test_the_rate_is_divided_exactly_while_a_spike_is_recent_and_never_else(losses, rules):
    states = run(losses, rules)
    evaluations = W + 10**6
    for state, loss in zip(states[1:], losses, strict=True):
        evaluations = 0 if state.decision.signal == "spike" else evaluations + (loss is not None)
        whole = schedule.cosine(rules.lr_lowest, state.lr_max, state.place, state.cycle)
        assert state.decision.lr == (whole / rules.spike_division if evaluations < rules.window else whole)


@given(losses_, rules_, st.sampled_from(["fedavg", "fedprox", "adaptive", "dynamic"]))
def test_a_state_goes_through_json_and_decides_the_same_afterwards(losses, rules, strategy):
    rules = rules.model_copy(update={"strategy": strategy})
    through = plain = schedule.start(rules, ROUNDS, measured=True)
    for number, loss in enumerate(losses, 1):
        plain, wanted = schedule.after(rules, plain, loss, number)
        text = json.dumps(through.to_json(), allow_nan=False)
        assert json.loads(text) == through.to_json()
        through, found = schedule.after(rules, schedule.ScheduleState.from_json(json.loads(text)), loss, number)
        assert found == wanted
    assert through.to_json() == plain.to_json()
    assert len(plain.losses) <= 2 * rules.window


@given(losses_, rules_, st.sampled_from(["fedavg", "fedprox", "adaptive", "dynamic"]))
def test_every_decision_says_why(losses, rules, strategy):
    for state in run(losses, rules, strategy=strategy):
        assert state.decision.why.endswith(".")
        assert state.decision.signal in {*schedule.MARKED, "start", "cosine", "fixed"}


def test_a_loss_cannot_count_twice():
    state = run([0.5, 0.5])[-1]
    with pytest.raises(ValueError, match="round 2 does not follow round 2"):
        schedule.after(PAPER, state, 0.5, 2)


# --- the other strategies


def test_fedavg_has_no_proximal_term_and_a_fixed_rate():
    assert {(s.decision.lr, s.decision.mu) for s in run([0.5, 0.6, 9.0, math.nan, None] * 5, strategy="fedavg")} == {(1e-4, 0.0)}


def test_fedprox_keeps_the_settings_rate_and_mu():
    assert {(s.decision.lr, s.decision.mu) for s in run([0.5, 0.6, 9.0, math.nan, None] * 5, strategy="fedprox")} == {(1e-4, 0.01)}


def test_the_adaptive_mu_grows_with_each_rise_and_shrinks_after_five_falls_in_a_row():
    losses = [1.0, 1.1, 1.2, *(1.2 - 0.1 * n for n in range(1, 11)), 0.5, 0.4, 0.4, 0.3, 0.2, 0.1, 0.05]
    found = [round(state.mu, 3) for state in run(losses, rounds=ServerRounds(proximal_mu=0.0), strategy="adaptive")]
    assert found == [0.0, 0.0, 0.1, 0.2, *[0.2] * 4, *[0.1] * 5, 0.0, 0.1, *[0.1] * 6]
    assert found[8] == 0.1 and found[13] == 0.0


def test_the_adaptive_mu_is_never_negative_and_grows_when_the_loss_is_not_finite():
    assert run(falling(30), rounds=ServerRounds(proximal_mu=0.05), strategy="adaptive")[-1].mu == 0.0
    assert run([math.nan], rounds=ServerRounds(proximal_mu=0.0), strategy="adaptive")[-1].mu == pytest.approx(0.1)


@pytest.mark.parametrize(("strategy", "found"), [("dynamic", "fedprox"), ("adaptive", "fedprox"), ("fedavg", "fedavg")])
def test_without_held_out_recordings_a_strategy_that_needs_a_loss_is_fedprox(strategy, found):
    assert schedule.start(ServerSchedule(strategy=strategy), ROUNDS, measured=False).strategy == found


def test_a_state_holds_until_strategy_rate_or_mu_of_the_settings_change():
    def holds(rules=PAPER, rounds=ROUNDS, measured=True):
        return schedule.still_holds(run([0.5] * 20)[-1], schedule.start(rules, rounds, measured=measured))

    assert holds() and holds(rules=ServerSchedule(window=7))
    assert not holds(measured=False)
    assert not holds(rules=ServerSchedule(strategy="adaptive"))
    assert not holds(rounds=ServerRounds(lr=2e-4)) and not holds(rounds=ServerRounds(proximal_mu=0.02))
