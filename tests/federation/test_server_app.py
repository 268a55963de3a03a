"""The rounds, with a real SuperLink, gateway, TLS and node keys."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.federation.coordinator_parts import Events, TestNode, make_server, steady
from zk0desk.control import NodeControl, Stopped
from zk0desk.federation import aggregation, server_app, updates
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.run_record import records
from zk0desk.federation.server_app import AlreadyConducted, run_rounds
from zk0desk.federation.superlink import RunningServer, start_server
from zk0desk.training.policy_files import read_policy, trainable_weights

pytestmark = pytest.mark.timeout(180)
KEYS = [NodeKey.make() for _ in range(2)]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = make_server(tmp_path_factory.mktemp("federation"))
    with start_server(folder.path, Events()) as server:
        for key in KEYS:
            server.admit(key.public_line)
        yield server


@pytest.fixture
def server(started: RunningServer) -> RunningServer:
    """Without the runs of other tests."""
    import shutil

    for run in started.folder.runs.iterdir():
        shutil.rmtree(run)
    return started


def nodes(server: RunningServer, *answers, **options):
    invitation = server.folder.invitation()
    return [TestNode(invitation, key, answer, **options) for key, answer in zip(KEYS, answers, strict=False)]


def with_rules(server: RunningServer, **rules: object) -> None:
    from zk0desk.settings import save

    settings = server.folder.settings()
    save(settings.model_copy(update={"rounds": settings.rounds.model_copy(update=rules)}), server.folder.settings_path)


def test_two_rounds_give_exactly_the_weighted_sum_of_the_updates(server):
    events, base = Events(), trainable_weights(server.folder.policy(server.folder.settings()))
    first, second = nodes(server, steady(0.25, 300), steady(-0.5, 100))
    with_rules(server, deadline_s=20.0, max_share=0.75)
    with first, second:
        policy = run_rounds(server.folder.path, events)
    expected = base.copy()
    ordered = sorted([(KEYS[0].public_key_bytes, 0.75, 0.25), (KEYS[1].public_key_bytes, 0.25, -0.5)])
    for _ in range(2):
        delta = np.zeros_like(base)
        for _, share, change in ordered:
            delta = delta + np.float32(share) * np.full_like(base, change)
        expected = expected + delta
    assert np.array_equal(trainable_weights(policy), expected)
    assert read_policy(policy).backbone_sha256 == read_policy(server.folder.policy(server.folder.settings())).backbone_sha256
    told = [event.name for event in events if event.name not in ("server-state-changed", "schedule-decided", "notice")]
    one_round = ["round-opened", "reply-accepted", "reply-accepted", "round-aggregated", "checkpoint-saved"]
    assert told == ["run-started", *one_round, *one_round, "run-finished"]
    assert events[-1].reason == "complete"
    assert first.requests[1].last == {"last-round": 1, "last-nodes": 2, "last-train-loss": 1.0}
    assert first.told[0]["last-round"] == 2
    assert first.final is not None and np.array_equal(first.final, expected)
    assert first.told[0]["weights-sha256"] == updates.weights_sha256(expected)


def test_the_same_seed_gives_the_same_events(server):
    import shutil

    runs = []
    for _ in range(2):
        events = Events()
        first, second = nodes(server, steady(0.25, 300), steady(-0.5, 100))
        with first, second:
            run_rounds(server.folder.path, events)
        runs.append([{**event.to_json(), "time": 0} for event in events])
        for run in server.folder.runs.iterdir():
            shutil.rmtree(run)
    assert runs[0] == runs[1]


def test_a_run_goes_on_after_its_last_checkpoint(server):
    first, second = nodes(server, steady(0.25), steady(0.25))
    with first, second:
        run_rounds(server.folder.path, Events(), rounds=1)
        events = Events()
        run_rounds(server.folder.path, events, rounds=3)
    assert [event.round for event in events.named("round-opened")] == [2, 3]
    assert len(records(server.folder)) == 1
    assert [request.server_round for request in first.requests] == [1, 2, 3]


def test_an_update_that_is_not_finite_is_refused_and_the_other_counts(server):
    def broken(request, weights):
        delta, metrics = steady(0.5)(request, weights)
        delta[3] = np.nan
        return delta, metrics

    events, base = Events(), trainable_weights(server.folder.policy(server.folder.settings()))
    first, second = nodes(server, steady(0.25), broken)
    with first, second:
        policy = run_rounds(server.folder.path, events, rounds=1)
    refused = events.named("reply-refused")
    assert [event.node for event in refused] == [KEYS[1].fingerprint]
    assert "finite" in refused[0].why
    assert np.array_equal(trainable_weights(policy), base + np.float32(0.25))


@pytest.mark.parametrize("metrics", [{"num-examples": 1e12}, {"num-examples": float("nan")}, {"height": 2.0}])
def test_metrics_outside_the_contract_are_refused(server, metrics):
    def boastful(request, weights):
        delta, usual = steady(0.5)(request, weights)
        return delta, {**usual, **metrics}

    events = Events()
    first, second = nodes(server, steady(0.25), boastful)
    with first, second:
        run_rounds(server.folder.path, events, rounds=1)
    assert next(iter(metrics)) in events.named("reply-refused")[0].why


def test_a_node_that_never_answers_holds_the_round_no_longer_than_its_deadline(server):
    events = Events()
    first, second = nodes(server, steady(0.25), lambda request, weights: None)
    with_rules(server, deadline_s=2.0)
    with first, second:
        run_rounds(server.folder.path, events, rounds=1)
    opened, aggregated = events.named("round-opened")[0], events.named("round-aggregated")[0]
    assert 1.9 < aggregated.time - opened.time < 5.0
    assert aggregated.missing == [KEYS[1].fingerprint]
    with_rules(server, deadline_s=20.0)


def test_a_node_that_stalls_in_its_upload_holds_neither_the_round_nor_the_end(server):
    events, invitation = Events(), server.folder.invitation()
    with_rules(server, deadline_s=2.0)
    with TestNode(invitation, KEYS[0], steady(0.25)), TestNode(invitation, KEYS[1], steady(0.25), stalls=True):
        run_rounds(server.folder.path, events, rounds=1)
    opened, aggregated = events.named("round-opened")[0], events.named("round-aggregated")[0]
    assert aggregated.time - opened.time < 5.0
    assert aggregated.missing == [KEYS[1].fingerprint]
    with_rules(server, deadline_s=20.0)


def test_a_round_without_a_valid_update_is_repeated_after_a_pause_and_the_run_goes_on(server, monkeypatch):
    monkeypatch.setattr(aggregation, "PAUSE_S", 0.05)
    events, calls = Events(), []

    def broken_at_first(request, weights):
        calls.append(request.server_round)
        delta, metrics = steady(0.25)(request, weights)
        return (delta if len(calls) > 4 else delta * np.nan), metrics

    first, second = nodes(server, broken_at_first, broken_at_first)
    with first, second:
        run_rounds(server.folder.path, events, rounds=1)
    repeated = [event for event in events.named("notice") if event.code == "round-repeated"]
    assert len(repeated) == 2
    assert events.named("round-aggregated")[0].missing == [] and events[-1].reason == "complete"


def test_stop_now_ends_a_waiting_run_within_two_seconds(server):
    events, control = Events(), NodeControl()

    def run():
        with pytest.raises(Stopped):
            run_rounds(server.folder.path, events, control=control)

    thread = threading.Thread(target=run)
    thread.start()
    events.wait_for(lambda event: getattr(event, "state", "") == "waiting-for-nodes")
    asked = time.monotonic()
    control.stop_now()
    thread.join(5)
    assert time.monotonic() - asked < 2.0
    assert events[-1].reason == "stopped"


def test_a_superlink_that_dies_in_a_round_comes_back_and_the_run_completes(server):
    events, killed = Events(), threading.Event()

    def while_it_dies(request, weights):
        if request.server_round == 2 and not killed.is_set():
            killed.set()
            (superlink,) = [child for child in psutil.Process(server.pid).children() if "_superlink" in child.cmdline()]
            os.kill(superlink.pid, signal.SIGKILL)
        return steady(0.25)(request, weights)

    first, second = nodes(server, while_it_dies, steady(0.25))
    with first, second:
        policy = run_rounds(server.folder.path, events)
    assert killed.is_set()
    assert any(getattr(event, "state", "") == "reconnecting" for event in events)
    assert events[-1].reason == "complete"
    assert updates.weights_sha256(trainable_weights(policy)) == events.named("round-aggregated")[-1].weights_sha256


def test_a_checkpoint_that_was_changed_is_not_trained_on_and_its_round_is_trained_again(server):
    first, second = nodes(server, steady(0.25), steady(0.25))
    with first, second:
        policy = run_rounds(server.folder.path, Events(), rounds=1)
        data = bytearray((Path(policy) / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (Path(policy) / "model.safetensors").write_bytes(bytes(data))
        events = Events()
        policy = run_rounds(server.folder.path, events, rounds=2)
    assert [event.code for event in events.named("notice") if event.severity == "warning"][0] == "checkpoint-damaged"
    assert [event.round for event in events.named("round-opened")] == [1, 2]
    base = trainable_weights(server.folder.policy(server.folder.settings()))
    assert np.array_equal(trainable_weights(policy), base + np.float32(0.25) + np.float32(0.25))
    assert list((Path(policy).parent).glob("round-0001.damaged"))


def test_rounds_that_are_conducted_already_are_not_conducted_twice(server):
    events, control = Events(), NodeControl()

    def run():
        with pytest.raises(Stopped):
            run_rounds(server.folder.path, events, control=control)

    thread = threading.Thread(target=run)
    thread.start()
    events.wait_for(lambda event: getattr(event, "state", "") == "waiting-for-nodes")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(AlreadyConducted, match="conducted already"):
        patched.setattr(server_app, "TAKE_OVER_S", 0.1)
        run_rounds(server.folder.path, Events())
    control.stop_now()
    thread.join(5)
