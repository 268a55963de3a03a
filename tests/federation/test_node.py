"""The node against a real SuperLink behind its gateway. The tests are the coordinator; training is the stand-in's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.federation.coordinator_parts import Events, make_server
from tests.federation.node_parts import CHANGE, Desk, Round, StandInEngine, admitted, operator_settings, wait_until, without_torch
from tests.federation.reply_parts import Arrays
from zk0desk import folders
from zk0desk import settings as settings_file
from zk0desk.federation.asked_round import asked_round
from zk0desk.federation.consent import ConsentMissing
from zk0desk.federation.credentials import load_or_make_key
from zk0desk.federation.messages import FinalWeights, asks_for_whole, check_metrics, check_reply
from zk0desk.federation.node_checks import NotReady
from zk0desk.federation.probe import Revoked, VersionMismatch, WrongCertificate
from zk0desk.federation.superlink import RunningServer, revoke, start_server
from zk0desk.federation.updates import decode, encode, weights_sha256
from zk0desk.journal import Journal
from zk0desk.settings import Federation, ServerPolicy, Settings
from zk0desk.training.kept_runs import kept_runs
from zk0desk.training.policy_files import PolicyMismatch, read_policy, trainable_weights

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = make_server(tmp_path_factory.mktemp("federation"), min_nodes=1)
    with start_server(folder.path, Events()) as running:
        yield running


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInEngine, "step_seconds", 0.0)
    monkeypatch.setattr(StandInEngine, "hold_loading", None)
    without_torch(monkeypatch)


@pytest.fixture
def grid(server: RunningServer) -> Iterator[Any]:
    """The coordinator's side of a Flower run."""
    from zk0desk.federation.grid import Grid

    running = server.folder.running()
    grid = Grid(running.superlink, running.secret)
    yield grid
    grid.close()


def policy_of(server: RunningServer) -> Path:
    return server.folder.policy(server.folder.settings())


def desk(server: RunningServer, *, admit: bool = True, once: bool = False, **federation: Any) -> Desk:
    settings = operator_settings(server.folder.invitation(), policy_of(server))
    settings = settings.model_copy(update={"federation": settings.federation.model_copy(update=federation)})
    made = Desk(settings, once=once)
    if admit:
        admitted(server.folder, made.key)
    return made


def ask(grid: Any, node_id: int, asked: Round, *, kind: str = "train", config: dict[str, Any] | None = None, arrays: Any = None) -> str:
    weights = encode(asked.weights, "fp32") if arrays is None else arrays
    return str(grid.send([node_id], kind, arrays=weights, config={**asked.request.to_config(), **(config or {})}, ttl=100.0)[node_id])


def reply(grid: Any, message: str, seconds: float = 30.0) -> Any:
    return wait_until(lambda: next(iter(grid.replies([message], lambda _: Arrays())), None), seconds)


def test_that_a_round_is_trained_answered_and_in_the_ledger(server: RunningServer, grid: Any) -> None:
    asked = Round(policy_of(server), last={"last-round": 0, "last-nodes": 1, "last-eval-loss": 0.5})
    with desk(server) as node:
        message = ask(grid, node.until_event("connected").node_id, asked)
        answer = reply(grid, message)
        sent = node.until_event("update-sent")
        told = node.until_event("federation-metrics")
        wait_until(lambda: len(node.states()) >= 7, 30.0)
        ledger = {entry.kind: entry for entry in node.journal.ledger()}
        states = node.states()
        judged = asked_round(node.settings, node.journal.path)
    assert judged.asked_by == "last round" and judged.transfer_s > 0, "what the round asked for and how fast it travelled is kept"
    check_reply(answer.config, asked.request)
    check_metrics(answer.metrics)
    assert np.allclose(decode(answer.received, "fp16", asked.weights.size), CHANGE, rtol=1e-3)
    assert states[:7] == ["checking", "connecting", "waiting-for-round", "downloading", "training", "uploading", "waiting-for-round"]
    assert (told.round, told.eval_loss) == (0, 0.5)
    entry = ledger["train-reply"]
    assert (entry.direction, entry.outcome, entry.run, entry.round, entry.sha256) == ("sent", "ok", "run-1", 1, sent.sha256)
    assert entry.contents is not None and entry.contents["metrics"] == answer.metrics and entry.contents["tensors"][0][2] == "float16"
    assert entry.bytes == sent.bytes == sum(array.nbytes for array in answer.received)
    assert ledger["train"].outcome == "ok" and ledger["activate"].outcome == "ok" and entry.flwr_run == str(np.uint64(grid.run_id))


def test_that_the_global_weights_and_the_best_of_them_are_kept(server: RunningServer, grid: Any) -> None:
    policy = policy_of(server)
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        for number, loss in ((1, 0.5), (2, 0.7)):
            asked = Round(
                policy, server_round=number, run_uid="kept", last={"last-round": number - 1, "last-nodes": 1, "last-eval-loss": loss}
            )
            asked.weights = asked.weights + np.float32(number)
            asked.request.__dict__.update(weights_sha256=weights_sha256(asked.weights), base_sha256=weights_sha256(asked.weights))
            reply(grid, ask(grid, node_id, asked))
    kept = folders.runs_folder() / "kept"
    base = trainable_weights(policy)
    assert np.array_equal(np.load(kept / "global-last.npy"), base + np.float32(2))
    assert np.array_equal(np.load(kept / "global-best.npy"), base + np.float32(1))
    assert not list(kept.glob("*.partial"))


def test_that_a_verdict_is_for_its_node_alone_and_a_refusal_is_told_once(server: RunningServer, grid: Any) -> None:
    asked = Round(policy_of(server), run_uid="judged", server_round=2)
    verdict = "update-unfit: A value is not finite."
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        for _ in range(2):
            sent = grid.send(
                [node_id], "train", arrays=encode(asked.weights, "fp32"), config=asked.request.to_config(),
                own={node_id: {"last-verdict": verdict}, node_id + 1: {"last-verdict": "accepted"}}, ttl=100.0,
            )  # fmt: skip
            reply(grid, sent[node_id])
        held = "quarantine: 3 replies in a row were refused."
        reply(grid, grid.send([node_id], "query", arrays=(), config={"run-uid": "judged", "last-verdict": held}, ttl=60.0)[node_id])
        notices = [event for event in node.events.named("notice") if event.code == "update-not-used"]  # type: ignore[attr-defined]
        received = next(entry for entry in node.journal.ledger() if entry.kind == "train")
    assert [notice.why for notice in notices] == [verdict, held] and "admits" in notices[1].remedy
    assert received.contents is not None and received.contents["config"]["last-verdict"] == verdict


def test_that_a_node_in_quarantine_is_told_so_in_its_own_window(server: RunningServer, grid: Any) -> None:
    why = "quarantine: 3 replies in a row were refused. The last: message-refused: `seconds`: 100 is more than the 5 that have passed."
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        config = {"run-uid": "judged", "last-verdict": why}
        assert not reply(grid, grid.send([node_id], "query", arrays=(), config=config, ttl=100.0)[node_id]).error
        told = node.until_event("notice", code="quarantined")
    assert told.why == why and "admit" in told.remedy


def final_of(policy: Path, run: str, number: int, change: float, loss: float) -> tuple[dict[str, Any], np.ndarray]:
    """The config and the weights of the query that ends a run."""
    files, weights = read_policy(policy), trainable_weights(policy) + np.float32(change)
    last = {"last-round": number, "last-nodes": 1, "last-eval-loss": loss}
    final = FinalWeights(
        run_uid=run, server_round=number, num_rounds=9, backbone_sha256=files.backbone_sha256, layout_sha256=files.layout.sha256,
        weights_sha256=weights_sha256(weights), base_sha256=weights_sha256(weights), last=last,
    )  # fmt: skip
    return dict(final.to_config()), weights


@pytest.mark.parametrize(("loss", "best"), [(0.25, 4), (0.75, 3)])
def test_that_the_weights_of_a_runs_end_are_kept_without_training(server: RunningServer, grid: Any, loss: float, best: int) -> None:
    policy, run = policy_of(server), f"end-{best}"
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        reply(
            grid,
            ask(grid, node_id, Round(policy, server_round=4, num_rounds=9, run_uid=run, last={"last-round": 3, "last-eval-loss": 0.5})),
        )
        config, weights = final_of(policy, run, 4, 2.0, loss)
        asked = grid.send([node_id], "query", arrays=encode(weights, "fp32"), config=config, ttl=100.0)[node_id]
        answer = reply(grid, asked)
        node.until_event("federation-metrics", round=4, eval_loss=loss)
        entry = next(entry for entry in node.journal.ledger() if entry.kind == "query" and entry.run == run)
        assert node.states().count("training") == 1
    assert not answer.error and "frames" in str(answer.config)
    assert (entry.direction, entry.outcome, entry.round) == ("received", "ok", 4)
    assert entry.contents is not None and entry.contents["tensors"][0][2] == "float32" and entry.bytes > weights.nbytes
    (kept,) = [kept for kept in kept_runs() if kept.run == run]
    assert kept.rounds == {"last": 4, "best": best} and kept.losses["last"] == loss
    assert np.array_equal(kept.weights("last"), weights)
    assert np.array_equal(kept.weights("best"), weights if best == 4 else trainable_weights(policy))


@pytest.mark.parametrize(
    ("change", "arrays", "key"),
    [
        ({"layout-sha256": "cd" * 32}, None, "layout-sha256"),
        ({"backbone-sha256": "cd" * 32}, None, "backbone-sha256"),
        ({"weights-sha256": "cd" * 32}, None, "weights-sha256"),
        ({"last-round": 3}, None, "last-round"),
        ({"run-uid": "../out"}, None, "run-uid"),
        ({}, [np.zeros(3, np.float32)], "arrays"),
        ({}, [np.full(330, np.nan, np.float32)], "arrays"),
        ({}, [], "arrays"),
    ],
)
def test_that_weights_of_a_runs_end_that_are_not_what_they_say_are_not_kept(
    server: RunningServer, grid: Any, change: dict[str, Any], arrays: Any, key: str
) -> None:
    config, weights = final_of(policy_of(server), "forged", 4, 2.0, 0.1)
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        sent = encode(weights, "fp32") if arrays is None else arrays
        answer = reply(grid, grid.send([node_id], "query", arrays=sent, config={**config, **change}, ttl=100.0)[node_id])
    assert key in answer.error
    assert not (folders.runs_folder() / "forged").exists()


@pytest.mark.parametrize(
    ("config", "arrays", "key"),
    [
        ({"lr": 5.0}, None, "lr"),
        ({"run-uid": "../out"}, None, "run-uid"),
        ({"code-url": "https://example.org"}, None, "code-url"),
        ({"layout-sha256": "cd" * 32}, None, "layout-sha256"),
        ({"weights-sha256": "cd" * 32, "base-sha256": "cd" * 32}, None, "weights-sha256"),
        ({}, [np.zeros(3, np.float32)], "arrays"),
        ({}, [np.zeros((330, 1), np.float64)], "arrays"),
        ({}, [np.zeros(2**20, np.float32)], "arrays"),
        ({}, [], "arrays"),
    ],
)
def test_that_what_is_not_allowed_is_refused_with_its_key_and_told(
    server: RunningServer, grid: Any, config: dict[str, Any], arrays: Any, key: str
) -> None:
    asked = Round(policy_of(server))
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        answer = reply(grid, ask(grid, node_id, asked, config=config, arrays=arrays))
        assert answer.error.startswith("message-refused") and key in answer.error
        notice = node.until_event("notice", code="message-refused")
        assert key in notice.why
        outcomes = [entry.outcome for entry in node.journal.ledger() if entry.kind == "train"]
        assert [outcome.startswith("refused") for outcome in outcomes] == [True]
        assert not reply(grid, ask(grid, node_id, asked)).error, "the node goes on"
        assert "training" in node.states()


def test_that_nan_weights_are_refused(server: RunningServer, grid: Any) -> None:
    asked = Round(policy_of(server))
    broken = asked.weights.copy()
    broken[3] = np.nan
    with desk(server) as node:
        answer = reply(grid, ask(grid, node.until_event("connected").node_id, asked, arrays=[broken]))
    assert "not finite" in answer.error


def test_that_evaluation_is_refused_unless_the_operator_allows_it(server: RunningServer, grid: Any) -> None:
    asked = Round(policy_of(server))
    with desk(server) as node:
        answer = reply(grid, ask(grid, node.until_event("connected").node_id, asked, kind="evaluate"))
        assert "does not allow evaluation" in answer.error
        assert "training" not in node.states()


def test_that_evaluation_gives_the_loss_and_nothing_else_where_it_is_allowed(server: RunningServer, grid: Any) -> None:
    with desk(server, allow_evaluation=True) as node:
        answer = reply(grid, ask(grid, node.until_event("connected").node_id, Round(policy_of(server)), kind="evaluate"))
        assert not answer.error
        assert answer.metrics == {"loss": 0.75, "num-examples": 40}
        assert not answer.received
        assert [entry.kind for entry in node.journal.ledger()][:2] == ["evaluate-reply", "evaluate"]


def test_that_a_difference_is_added_to_the_weights_of_the_last_round(server: RunningServer, grid: Any) -> None:
    policy = policy_of(server)
    first = Round(policy, run_uid="steps")
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        assert not reply(grid, ask(grid, node_id, first)).error
        pieces = encode(np.full_like(first.weights, 0.25), "fp16")
        then = decode(pieces, "fp16", first.weights.size) + first.weights
        second = Round(
            policy, run_uid="steps", server_round=2, arrays_kind="difference", base_sha256=weights_sha256(first.weights),
            weights_sha256=weights_sha256(then), encoding="fp16",
        )  # fmt: skip
        assert not reply(grid, ask(grid, node_id, second, arrays=pieces)).error
        # A node that does not hold the base asks for the whole.
        unknown = Round(policy, run_uid="other", server_round=2, arrays_kind="difference", encoding="fp16")
        assert asks_for_whole(reply(grid, ask(grid, node_id, unknown, arrays=pieces)).error)
        assert node.until_event("notice", code="whole-needed").severity == "note"
    assert np.array_equal(np.load(folders.runs_folder() / "steps" / "global-last.npy"), then)


def test_that_a_query_is_told_versions_and_the_number_of_frames_only(server: RunningServer, grid: Any) -> None:
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        message = grid.send([node_id], "query", arrays=(), config={"run-uid": "q", "last-round": 2, "last-eval-loss": 0.25}, ttl=60.0)[
            node_id
        ]
        answer = reply(grid, message)
        assert node.until_event("federation-metrics").eval_loss == 0.25
    assert set(answer.config) == {"zk0desk-version", "flwr-version", "policy-id", "frames"}
    assert answer.config["frames"] == 40


def test_that_a_node_waits_to_be_admitted_and_then_goes_on_by_itself(server: RunningServer) -> None:
    with desk(server, admit=False) as node:
        waiting = node.until("waiting-for-approval")
        assert node.key.fingerprint in waiting.why
        server.admit(node.key.fingerprint)
        node.until("waiting-for-round")
        entries = [entry for entry in node.journal.ledger() if entry.kind == "activate"]
        assert [entry.outcome for entry in entries] == ["ok"]


def test_that_a_revoked_node_ends_and_says_so(server: RunningServer) -> None:
    with desk(server) as node:
        node.until("waiting-for-round")
        revoke(server.folder, node.key.fingerprint)
        failed = node.until("failed")
        node.thread.join(5)
    assert isinstance(node.error, Revoked) and "excluded" in failed.what


def test_that_nothing_is_sent_without_consent_invitation_policy_or_recording(server: RunningServer, tmp_path: Path) -> None:
    from tests.federation.coordinator_parts import make_policy

    cases: list[tuple[dict[str, Any], type]] = [({"federation": Federation()}, NotReady)]
    whole = desk(server, admit=False).settings
    cases.append(({"federation": whole.federation.model_copy(update={"consent": "0" * 64})}, ConsentMissing))
    cases.append(({"policy": whole.policy.model_copy(update={"folder": None})}, NotReady))
    cases.append(({"recordings": whole.recordings.model_copy(update={"chosen": ()})}, NotReady))
    other = make_policy(tmp_path / "other")
    data = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(data[:-4] + b"\0\0\0\0")
    cases.append(({"policy": whole.policy.model_copy(update={"folder": other})}, PolicyMismatch))
    for change, kind in cases:
        with Desk(whole.model_copy(update=change)) as node:
            node.until("failed")
            node.thread.join(5)
            assert isinstance(node.error, kind), node.error
            assert node.journal.ledger() == []
            assert node.states() == ["checking", "failed"]


def test_that_lasting_troubles_end_a_first_connection(server: RunningServer) -> None:
    from tests.federation.node_parts import certificate, invitation

    real = server.folder.invitation()
    wrong = invitation(
        **{**real.model_dump(), "certificate": certificate("localhost")[0], "certificate_sha256": invitation().certificate_sha256}
    )
    old = real.model_copy(update={"flwr_version": "1.30.0"})
    for invited, kind in ((wrong, WrongCertificate), (old, VersionMismatch)):
        with Desk(operator_settings(invited, policy_of(server))) as node:
            node.until("failed")
            node.thread.join(5)
            assert isinstance(node.error, kind), node.error


# --- pausing, finishing, stopping ---------------------------------------------------------------------------------


def test_that_a_pause_shows_and_ends(server: RunningServer, grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInEngine, "step_seconds", 0.05)
    with desk(server) as node:
        message = ask(grid, node.until_event("connected").node_id, Round(policy_of(server), local_steps=20))
        node.until_event("step-done")
        node.control.pause()
        node.until("paused")
        steps = len(node.events.named("step-done"))
        threading.Event().wait(0.3)
        assert len(node.events.named("step-done")) <= steps + 1
        node.control.resume()
        assert not reply(grid, message).error
        assert len(node.events.named("step-done")) == 20


def test_that_a_pause_between_rounds_takes_no_round_until_it_ends(server: RunningServer, grid: Any) -> None:
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        node.control.pause()
        node.until("paused")
        message = ask(grid, node_id, Round(policy_of(server)))
        threading.Event().wait(0.6)
        assert "downloading" not in node.states()
        node.control.resume()
        assert not reply(grid, message).error


def test_that_finishing_delivers_the_round_first(server: RunningServer, grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInEngine, "step_seconds", 0.1)
    with desk(server) as node:
        message = ask(grid, node.until_event("connected").node_id, Round(policy_of(server), local_steps=5))
        node.until_event("step-done")
        node.control.finish_round()
        assert not reply(grid, message).error
        node.until("stopped")
        assert node.states()[-3:] == ["uploading", "finishing", "stopped"]
        assert len(node.events.named("step-done")) == 5


def test_that_once_leaves_after_one_update(server: RunningServer, grid: Any) -> None:
    with desk(server, once=True) as node:
        node_id = node.until_event("connected").node_id
        ask(grid, node_id, Round(policy_of(server)))
        node.until("stopped")
        assert wait_until(lambda: node_id not in {each.node_id for each in grid.nodes() if each.online})
        assert [entry.kind for entry in node.journal.ledger()][0] == "deactivate"
        (signs,) = [entry for entry in node.journal.ledger() if entry.kind == "signs-of-life"]
        assert re.fullmatch(r"[1-9]\d* heartbeats, asked [1-9]\d* times for work", signs.outcome)


@pytest.mark.parametrize(
    "state", ["waiting-for-round", "training", "paused", "waiting-for-approval", "reconnecting", "downloading", "uploading", "loading"]
)
def test_that_a_stop_takes_effect_within_two_seconds(server: RunningServer, grid: Any, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr(StandInEngine, "step_seconds", 0.05 if state == "paused" else 10.0)
    asked = Round(policy_of(server), local_steps=100)
    release = threading.Event()
    if state == "loading":
        monkeypatch.setattr(StandInEngine, "hold_loading", release)
    if state == "downloading":
        from zk0desk.federation.fleet import FleetHttpClient

        monkeypatch.setattr(FleetHttpClient, "PullObject", lambda *_: release.wait(20))
    if state == "uploading":
        from zk0desk.federation.fleet import FleetHttpClient

        monkeypatch.setattr(StandInEngine, "step_seconds", 0.0)
        monkeypatch.setattr(FleetHttpClient, "PushObject", lambda *_: release.wait(20))
    node = desk(server, admit=state != "waiting-for-approval")
    if state == "reconnecting":
        nowhere = server.folder.invitation().model_copy(update={"port": 9})
        node = Desk(operator_settings(nowhere, policy_of(server)))
    with node:
        message = ""
        if state in ("training", "downloading", "uploading", "loading", "paused"):
            message = ask(grid, node.until_event("connected").node_id, asked)
        if state == "paused":
            node.until_event("step-done")
            node.control.pause()
        node.until("training" if state == "loading" else state)
        sent = len(node.journal.ledger())
        took = node.stop()
        assert took < 2.0
        assert node.states()[-2:] == ["finishing", "stopped"] and node.error is None
        after = node.journal.ledger()[: len(node.journal.ledger()) - sent]
        assert {entry.kind for entry in after if entry.direction == "sent"} <= {"deactivate"}
        release.set()
    if message:
        assert not grid.replies([message]) or grid.replies([message])[0].error


# --- coming back --------------------------------------------------------------------------------------------------


def test_that_a_round_that_is_sent_again_is_answered_without_training_twice(server: RunningServer, grid: Any) -> None:
    asked = Round(policy_of(server), run_uid="again")
    with desk(server) as node:
        node_id = node.until_event("connected").node_id
        first = reply(grid, ask(grid, node_id, asked))
        second = reply(grid, ask(grid, node_id, asked))
        assert len(node.events.named("round-started")) == 1
    assert np.array_equal(first.received[0], second.received[0]) and first.metrics == second.metrics


def test_that_a_restarted_node_keeps_its_identity(server: RunningServer) -> None:
    ids = []
    for _ in range(2):
        with desk(server) as node:
            ids.append((node.until_event("connected").node_id, node.key.fingerprint))
            node.until("waiting-for-round")
    assert ids[0] == ids[1]


def test_that_a_superlink_that_dies_finds_its_node_again(tmp_path: Path) -> None:
    folder = make_server(tmp_path, min_nodes=1)
    with start_server(folder.path, Events()) as running, desk(running) as node:
        first = node.until_event("connected").node_id
        node.until("waiting-for-round")
        link = next(p for p in psutil.Process(running.pid).children(recursive=True) if "_superlink" in p.cmdline())
        os.kill(link.pid, signal.SIGKILL)
        node.until("reconnecting")
        wait_until(lambda: len(node.events.named("connected")) > 1, 60)
        node.until("waiting-for-round")
        assert node.events.named("connected")[-1].node_id > 0 and first > 0  # type: ignore[attr-defined]
        from zk0desk.federation.grid import Grid

        found = folder.running()
        grid = Grid(found.superlink, found.secret)
        try:
            again = node.events.named("connected")[-1].node_id  # type: ignore[attr-defined]
            assert not reply(grid, ask(grid, again, Round(policy_of(running)))).error
        finally:
            grid.close()


class NodeProcess:
    """A node in a process of its own, killed at the end; `until` reads its events."""

    def __init__(self, settings: Settings, engine: str) -> None:
        settings_file.save(settings, folders.settings_file())
        program = [sys.executable, str(Path(__file__).with_name("node_parts.py")), str(folders.settings_file()), engine]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)

    def until(self, name: str, **values: Any) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == name and all(event[key] == value for key, value in values.items()):
                return dict(event)
        raise AssertionError(f"no {name}")

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_that_a_killed_node_comes_back_into_the_same_round(server: RunningServer, grid: Any) -> None:
    prepared = desk(server)
    prepared.journal.close()
    with NodeProcess(prepared.settings, "5.0") as first:
        message = ask(grid, first.until("connected")["node-id"], Round(policy_of(server), run_uid="killed"))
        first.until("round-started")
    with NodeProcess(prepared.settings, "0.0") as second:
        assert second.until("notice")["code"] == "round-resumed"
        answer = reply(grid, message)
        assert not answer.error and answer.config["run-uid"] == "killed"
        assert second.process.wait(20) == 0


@pytest.mark.timeout(240)
def test_that_a_killed_node_goes_on_with_the_step_where_it_was(tmp_path: Path, demo_policy: Path, demo_recording: Path) -> None:
    from zk0desk.federation.grid import Grid

    folder = make_server(tmp_path, min_nodes=1)
    settings_file.save(folder.settings().model_copy(update={"policy": ServerPolicy(folder=demo_policy)}), folder.settings_path)
    with start_server(folder.path, Events()):
        settings = operator_settings(folder.invitation(), demo_policy, demo_recording)
        admitted(folder, load_or_make_key(settings.federation))
        running = folder.running()
        grid = Grid(running.superlink, running.secret)
        try:
            with NodeProcess(settings, "real") as first:
                node_id = first.until("connected")["node-id"]
                message = ask(grid, node_id, Round(demo_policy, run_uid="killed", local_steps=40, deadline_s=200.0))
                first.until("step-done", step=12)
            with NodeProcess(settings, "real") as second:
                done = second.until("round-started")["done"]
                assert 10 <= done < 40, "one state is written while the next step is made"
                assert second.until("step-done")["step"] == done + 1
                answer = reply(grid, message, 60)
                assert not answer.error and answer.metrics["steps-done"] == 40
                assert second.process.wait(20) == 0
            with Journal() as journal:
                assert [row["step"] for row in journal.steps("killed")] == list(range(1, 41))
            assert not (folders.runs_folder() / "killed" / "round").exists()
        finally:
            grid.close()
