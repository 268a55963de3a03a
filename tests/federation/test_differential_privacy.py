"""Differential privacy on the coordinator and on the node: what leaves is clipped, noisy, counted before, and says nothing else."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.federation.coordinator_parts import Events, TestNode, make_server, steady
from tests.federation.node_parts import CHANGE, Desk, admitted, operator_settings, without_torch
from zk0desk import settings as settings_file
from zk0desk.control import NodeControl, Stopped
from zk0desk.events import PrivacySpent
from zk0desk.federation import local_round, messages, updates
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.error_feedback import ErrorFeedback
from zk0desk.federation.messages import MessageRefused, TrainRequest
from zk0desk.federation.node_privacy import NodePrivacy
from zk0desk.federation.private_sum import PrivateSum
from zk0desk.federation.server_app import run_rounds
from zk0desk.federation.spool import Spool, Spooled
from zk0desk.federation.superlink import RunningServer, start_server
from zk0desk.settings import Privacy, ServerAggregation, ServerPrivacy, ServerRounds, ServerSettings
from zk0desk.training.privacy import Release, epsilon
from zk0desk.training.privacy_account import AccountUnreadable, BudgetSpent, PrivacyAccount
from zk0desk.training.rounds import RoundResult

pytestmark = pytest.mark.timeout(120)
VALUES = 300_000
CENTRAL = ServerPrivacy(mechanism="central", noise_multiplier=2.0, clip=0.5, expected_nodes=4, epsilon=1e6)


class Silent:
    """Noise of nothing, to see what it is added to."""

    def normal(self, _mean: float, _deviation: float, size: int) -> np.ndarray:
        return np.zeros(size)


def spooled(spool: Spool, vector: np.ndarray) -> Spooled:
    writer = spool.open("fp32", vector.size)
    for piece in updates.encode_pieces(vector, "fp32"):
        writer.add(piece)
    return writer.done()


def test_the_sum_is_of_clipped_updates_over_a_constant_whoever_answers(tmp_path: Path) -> None:
    spool, events = Spool(tmp_path / "spool"), Events()
    rng = np.random.default_rng(0)
    short, long = (rng.standard_normal(VALUES).astype(np.float32) for _ in range(2))
    short *= np.float32(0.1 / np.linalg.norm(short))
    private = PrivateSum(CENTRAL, 2, tmp_path / "privacy.json", events)
    came = [("a", spooled(spool, short)), ("b", spooled(spool, long))]
    found = private.combine(spool, came, "run", 3, Silent())  # type: ignore[arg-type]
    clipped = long * np.float32(0.5 / np.linalg.norm(long))
    assert np.allclose(found.delta, (short + clipped) / 4, rtol=1e-4, atol=1e-9), "4 are expected, and 2 answered"
    assert set(found.clipped) == {"b"} and found.shares == {"a": 0.25, "b": 0.25}
    (spent,) = events
    assert isinstance(spent, PrivacySpent) and (spent.round, spent.of, spent.epsilon) == (3, "federation", epsilon([Release(2.0)], 1e-5))


def test_the_noise_is_as_long_as_the_settings_say(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    private = PrivateSum(CENTRAL, 2, tmp_path / "privacy.json", Events())
    one, other = (np.array(private.combine(spool, [("a", spooled(spool, np.zeros(VALUES, np.float32)))], "run", 1).delta) for _ in range(2))
    for noise in (one, other):
        assert noise.std() == pytest.approx(2.0 * 0.5 / 4, rel=5 / math.sqrt(2 * VALUES))
    assert abs(float(one @ other)) / (np.linalg.norm(one) * np.linalg.norm(other)) < 0.02


def test_an_account_outlives_its_process_counts_first_and_never_fails_open(tmp_path: Path) -> None:
    path = tmp_path / "private" / "privacy.json"
    budget = epsilon([Release(3.0, 2)], 1e-5) * 1.001
    for left in (2, 1):
        assert PrivacyAccount(path).left(3.0, budget, 1e-5) == left
        PrivacyAccount(path).count(3.0, budget, 1e-5)
    with pytest.raises(BudgetSpent, match="budget is spent"):
        PrivacyAccount(path).count(3.0, budget, 1e-5)
    assert PrivacyAccount(path).releases() == [Release(3.0, 2)] and path.stat().st_mode & 0o777 == 0o600
    for text in ("", "{}", '{"releases": {"3.0": -1}}', '{"releases": {"x": 1}}', "[1]"):
        path.write_text(text)
        with pytest.raises(AccountUnreadable, match="cannot be read"):
            PrivacyAccount(path)


def test_settings_that_would_break_it_are_refused() -> None:
    with pytest.raises(ValidationError, match="a robust method depends on single updates"):
        ServerSettings(privacy=CENTRAL, aggregation=ServerAggregation(method="median"))
    with pytest.raises(ValidationError, match="keeps updates without noise"):
        ServerSettings(privacy=CENTRAL, rounds=ServerRounds(keep_updates=True))


def request(**changes: Any) -> TrainRequest:
    values = {"run_uid": "run-1", "server_round": 1, "num_rounds": 9, "seed": 1, "lr": 1e-4, "proximal_mu": 0.01, "batch_size": 8}
    hashes = dict.fromkeys(("policy_id", "backbone_sha256", "layout_sha256", "weights_sha256", "base_sha256"), "ab" * 32)
    return TrainRequest(**{**values, **hashes, "encoding": "int8", **changes})


def test_on_the_node_noise_comes_before_the_encoding_and_nothing_else_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    events = Events()
    privacy = NodePrivacy(Privacy(noise_multiplier=1.0, clip=0.25, epsilon=100), events)
    protected: list[np.ndarray] = []
    protect = privacy.protect
    monkeypatch.setattr(privacy, "protect", lambda *asked: protected.append(protect(*asked)) or protected[-1])
    change = np.zeros(VALUES, np.float32)
    change[7] = 1000.0  # what only this node's data says
    result = RoundResult(
        delta=change, metrics={"num-examples": 40.0, "frames-seen": 640.0, "steps-done": 3.0, "loss-mean": 1.0}, partial=""
    )
    folder = tmp_path / "run"
    folder.mkdir()
    answer = local_round.answer(request(), result, ErrorFeedback(folder), privacy)
    (sent,) = protected
    assert answer.metrics == {} and sent.std() == pytest.approx(0.25, rel=0.02) and abs(sent[7]) < 0.25 * 10
    decoded = updates.decode(answer.arrays, "int8", VALUES)
    owed = np.load(folder / "residual-000001.npy")
    assert np.allclose(decoded + owed, sent, atol=1e-6), "what is owed is of what was protected"
    assert np.abs(owed).max() < 0.05, "and not of the change itself"
    assert [event.of for event in events if isinstance(event, PrivacySpent)] == ["node"]
    assert change[7] == 1000.0, "the kept change stays"


def test_a_node_that_is_asked_for_none_sends_no_metrics_and_others_are_refused() -> None:
    asked = request(metrics=messages.NONE)
    assert TrainRequest.from_config(asked.to_config()).metrics == messages.NONE
    assert messages.check_metrics({}) == {}
    with pytest.raises(MessageRefused):
        TrainRequest.from_config({**asked.to_config(), "metrics": "all"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    folder = make_server(tmp_path, rounds=5)
    budget = epsilon([Release(2.0, 2)], 1e-5) * 1.001
    privacy = CENTRAL.model_copy(update={"epsilon": budget})
    settings_file.save(folder.settings().model_copy(update={"privacy": privacy}), folder.settings_path)
    with start_server(folder.path, Events()) as running:
        yield running


def test_a_federation_ends_at_its_budget_and_asks_for_no_metrics(server: RunningServer) -> None:
    keys, events = [NodeKey.make() for _ in range(3)], Events()
    for key in keys:
        admitted(server.folder, key)
    invitation = server.folder.invitation()
    quiet = lambda _request, weights: (np.full_like(weights, 0.001), {})  # noqa: E731
    telling = lambda _request, weights: (np.full_like(weights, 0.001), {"num-examples": 9.0, "steps-done": 1.0})  # noqa: E731
    with TestNode(invitation, keys[0], quiet) as first, TestNode(invitation, keys[1], quiet), TestNode(invitation, keys[2], telling):
        run_rounds(server.folder.path, events)
    assert len(events.named("round-aggregated")) == 2
    (ends,) = [event for event in events.named("notice") if event.code == "privacy-budget"]
    assert "after round 2" in ends.what
    assert {event.code for event in events.named("reply-refused")} <= {"message-refused"}
    assert all(event.metrics == {} for event in events.named("reply-accepted"))
    assert all(event.train_loss is None for event in events.named("round-aggregated"))
    told = first.requests[-1]
    assert told.metrics == messages.NONE and told.last["last-nodes"] == 4 and told.last["privacy-epsilon"] > 0


def test_a_node_with_noise_takes_part_among_others_until_its_own_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    without_torch(monkeypatch)
    folder, events, control = make_server(tmp_path, rounds=2, min_nodes=2), Events(), NodeControl()
    with start_server(folder.path, Events()):
        invitation, key = folder.invitation(), NodeKey.make()
        settings = operator_settings(invitation, folder.policy(folder.settings()))
        budget = epsilon([Release(5.0, 1)], 1e-5) * 1.001
        noisy = Desk(settings.model_copy(update={"privacy": Privacy(noise_multiplier=5.0, clip=0.5, epsilon=budget)}))
        for each in (key, noisy.key):
            admitted(folder, each)
        plain = steady(CHANGE, 40)
        with TestNode(invitation, key, plain), noisy:
            rounds = threading.Thread(target=lambda: suppress_stop(lambda: run_rounds(folder.path, events, control=control)))
            rounds.start()
            try:
                ends = noisy.until_event("notice", code="privacy-budget")
                noisy.until("failed")
            finally:
                control.stop_now()
                rounds.join(30)
    assert "budget of this computer is spent" in ends.what
    assert [(event.of, event.round) for event in noisy.events.named("privacy-spent")] == [("node", 1)]
    aggregated = events.named("round-aggregated")[0]
    assert sorted(aggregated.shares.values()) == [0.5, 0.5], "who tells nothing weighs as is usual"
    assert sorted(len(event.metrics) for event in events.named("reply-accepted") if event.round == 1) == [0, 3]
    answers = [entry for entry in noisy.journal.ledger() if entry.kind == "train-reply"]
    assert len(answers) == 1 and not answers[0].contents["metrics"]


def suppress_stop(act: Callable[[], object]) -> None:
    with suppress(Stopped):
        act()
