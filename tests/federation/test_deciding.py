"""How a run asks its schedule: once for each round, from its own losses, the same after a restart."""

import json
from types import SimpleNamespace

import pytest

from zk0desk.federation.deciding import Deciding
from zk0desk.federation.evaluator import NOT_FINITE
from zk0desk.federation.run_record import RunRecord
from zk0desk.settings import ServerSettings

LOSSES = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9, NOT_FINITE, 0.9, 0.8, 0.7, 0.6, 0.5]


class Run:
    """What `Deciding` looks at of a run."""

    def __init__(self, losses=(), held_out=True, **schedule) -> None:
        policy = {"held-out": [{"path": "held-out"}]} if held_out else {}
        self.told: list = []
        self.state = SimpleNamespace(record=RunRecord("run", 30, "tiny", 0), kept={}, emit=self.told.append, settings=None, rules=None)
        self.use(ServerSettings.model_validate({"policy": policy, "schedule": schedule}))
        self.measured(losses)
        self.deciding = Deciding(self.state)

    def use(self, settings: ServerSettings) -> None:
        self.state.settings, self.state.rules = settings, settings.rounds

    def measured(self, losses) -> None:
        self.state.record.eval_losses = {"0": 99.0} | {str(number): loss for number, loss in enumerate(losses, 1) if loss is not None}

    def restarted(self) -> "Run":
        again = Run()
        again.use(self.state.settings)
        again.state.record, again.state.kept = self.state.record, json.loads(json.dumps(self.state.kept, allow_nan=False))
        return again


def decisions(run, last):
    return [run.deciding.decision(number) for number in range(1, last + 1)]


def test_each_round_is_decided_from_the_losses_before_it_and_told_once():
    run = Run(LOSSES)
    found = decisions(run, 17)
    assert [each.signal for each in found] == ["start", *["cosine"] * 8, "plateau", "cosine", "spike", *["cosine"] * 4, "calm"]
    assert decisions(run, 0) == [] and run.deciding.decision(17) == found[-1]
    assert [event.round for event in run.told] == list(range(1, 18))
    assert [(event.lr, event.mu, event.signal) for event in run.told] == [(each.lr, each.mu, each.signal) for each in found]


@pytest.mark.parametrize("stop", [1, 5, 9, 11, 12, 16])
def test_a_run_that_was_stopped_decides_the_same_as_one_that_was_not(stop):
    whole, run = decisions(Run(LOSSES), 17), Run(LOSSES)
    decisions(run, stop)
    again = run.restarted()
    assert [again.deciding.decision(number) for number in range(stop, 18)] == whole[stop - 1 :]
    assert [event.round for event in again.told] == list(range(stop + 1, 18)), "what was told before is not told again"


def test_a_run_that_kept_nothing_finds_its_way_from_its_losses():
    run = Run(LOSSES)
    assert run.deciding.decision(17) == decisions(Run(LOSSES), 17)[-1]
    assert [event.round for event in run.told] == [17]


def test_a_round_that_was_not_evaluated_is_passed_over():
    assert [each.signal for each in decisions(Run([1.0, None, 1.0, None]), 5)] == ["start", *["cosine"] * 4]


def test_another_rate_in_the_settings_begins_the_schedule_anew_from_that_round():
    run = Run(LOSSES)
    decisions(run, 12)
    settings = run.state.settings
    again = run.restarted()
    again.use(settings.model_copy(update={"rounds": settings.rounds.model_copy(update={"lr": 5e-5})}))
    assert (again.deciding.decision(12).lr, again.deciding.decision(12).signal) == (5e-5, "start")
    assert again.deciding.decision(13).lr < 5e-5
    assert [(event.round, event.lr) for event in again.told][0] == (12, 5e-5)


@pytest.mark.parametrize("strategy", ["dynamic", "adaptive"])
def test_without_held_out_recordings_nothing_changes_and_that_is_said_once(strategy):
    run = Run(held_out=False, strategy=strategy)
    assert {(each.lr, each.mu) for each in decisions(run, 9)} == {(1e-4, 0.01)}
    assert [event.name for event in run.told] == ["notice", "schedule-decided"]
    assert strategy in run.told[0].what and "held-out" in run.told[0].why


def test_a_strategy_that_needs_no_loss_says_nothing():
    run = Run(held_out=False, strategy="fedprox")
    decisions(run, 3)
    assert [event.name for event in run.told] == ["schedule-decided"]
