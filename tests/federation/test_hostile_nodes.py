"""Nodes that break the contract, with a real SuperLink, gateway, TLS and node keys: each costs itself its round, and nobody the run."""

import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.federation.coordinator_parts import Events, TestNode, make_server, steady
from tests.federation.reply_parts import Arrays
from zk0desk.control import NodeControl
from zk0desk.federation import collecting, robust
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.quarantine import Quarantine
from zk0desk.federation.server_app import run_rounds
from zk0desk.federation.superlink import RunningServer, admit, start_server

pytestmark = pytest.mark.timeout(120)
KEYS = [NodeKey.make() for _ in range(2)]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = make_server(tmp_path_factory.mktemp("federation"), encoding="fp16")
    with start_server(folder.path, Events()) as server:
        for key in KEYS:
            server.admit(key.public_line)
        yield server


@pytest.fixture
def server(started: RunningServer) -> RunningServer:
    """Without the runs and the quarantine of other tests."""
    import shutil

    for run in started.folder.runs.iterdir():
        shutil.rmtree(run)
    for key in KEYS:
        Quarantine(started.folder.nodes_path).clear(key.public_key_bytes)
    return started


def with_rules(server: RunningServer, aggregation: dict[str, Any], **rounds: Any) -> None:
    from zk0desk.settings import ServerSettings, save

    data = server.folder.settings().model_dump(mode="json", by_alias=True)
    data["aggregation"] = {"clip": 1e6, **aggregation}
    data["rounds"] |= {"min-nodes": 2, "deadline-s": 20.0, **rounds}
    save(ServerSettings.model_validate(data), server.folder.settings_path)


class Running:
    """A run in a thread, with its events. A context manager that waits for its end, and stops it after an error."""

    def __init__(self, server: RunningServer, rounds: int) -> None:
        self.events, self._control = Events(), NodeControl()
        self._thread = threading.Thread(
            target=run_rounds, args=(server.folder.path, self.events), kwargs={"rounds": rounds, "control": self._control}
        )

    def __enter__(self) -> Events:
        self._thread.start()
        return self.events

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self._control.stop_now()
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_that_a_node_that_is_refused_again_and_again_is_not_asked_until_it_is_admitted_again(server):
    with_rules(server, {"quarantine-after": 2})
    mended = threading.Event()

    def broken(request, weights):
        delta, metrics = steady(0.5)(request, weights)
        return (delta if mended.is_set() else delta * np.nan), metrics

    invitation = server.folder.invitation()
    with TestNode(invitation, KEYS[0], steady(0.25)), TestNode(invitation, KEYS[1], broken) as hostile:
        with Running(server, rounds=3) as events:
            event = events.wait_for(lambda event: "quarantine" in getattr(event, "why", "") and event.name == "server-state-changed")
            assert event.what == "Round 3 waits for 2 nodes to be online."
            nodes = json.loads(_status(server))["nodes"]
            assert {node["fingerprint"]: node["round"] for node in nodes}[KEYS[1].fingerprint] == "quarantined"
            assert [request.server_round for request in hostile.requests] == [1, 2]
            mended.set()
            admit(server.folder, KEYS[1].fingerprint)
        assert events[-1].reason == "complete"
        assert [request.server_round for request in hostile.requests] == [1, 2, 3]
    assert [event.node for event in events.named("node-quarantined")] == [KEYS[1].fingerprint]
    told = [config["last-verdict"] for config in hostile.told if "server-round" not in config]
    assert len(told) == 1 and told[0].startswith("quarantine: 2 replies in a row") and "finite" in told[0]
    assert "finite" in hostile.requests[1].last_verdict


def _status(server: RunningServer) -> str:
    from zk0desk.federation.server_status import StatusReader

    return json.dumps(StatusReader(server.folder).read().to_json())


def test_that_a_late_reply_and_a_replayed_one_are_named(server, monkeypatch):
    monkeypatch.setattr(collecting, "grace", lambda deadline_s: 0.1)
    with_rules(server, {}, **{"deadline-s": 1.0})
    late = threading.Event()

    def slow_at_first(request, weights):
        if request.server_round == 1:
            assert late.wait(30)
        return steady(0.5)(request, weights)

    invitation = server.folder.invitation()
    with (
        TestNode(invitation, KEYS[0], steady(0.25)),
        TestNode(invitation, KEYS[1], slow_at_first, config={"server-round": 1}) as other,
        Running(server, rounds=2) as events,
    ):
        events.wait_for(lambda event: event.name == "round-aggregated")
        with_rules(server, {}, **{"deadline-s": 20.0})
        late.set()
    refused = {event.code: event for event in events.named("reply-refused")}
    assert refused["late"].round == 1 and "after round 1 had ended" in refused["late"].why
    assert refused["replayed"].round == 2
    assert other.requests[1].last_verdict.startswith("late: ")


def test_that_a_round_asks_a_fraction_of_the_nodes(server):
    with_rules(server, {}, **{"min-nodes": 1, "fraction": 0.5, "wait-s": 2.0})
    invitation = server.folder.invitation()
    with TestNode(invitation, KEYS[0], steady(0.25)), TestNode(invitation, KEYS[1], steady(0.25)), Running(server, rounds=1) as events:
        pass
    (asked,) = (event.nodes for event in events.named("round-opened"))
    assert len(asked) == 1 and list(events.named("round-aggregated")[0].shares) == asked
    with_rules(server, {}, **{"fraction": 1.0, "wait-s": 0.0})


def test_that_a_method_that_cannot_do_with_so_few_nodes_refuses_at_the_start(server):
    with_rules(server, {"method": "multi-krum"})
    with pytest.raises(robust.TooFewForMethod, match="multi-krum"):
        run_rounds(server.folder.path, Events())
    with_rules(server, {})


# --- the form of a reply


@pytest.fixture
def wire(started: RunningServer) -> Iterator[tuple[Any, Any]]:
    """A node's connection and the coordinator's, of a run of their own."""
    from zk0desk.federation.fleet import Fleet
    from zk0desk.federation.grid import Grid

    running = started.folder.running()
    fleet, grid = Fleet(started.folder.invitation(), KEYS[0], NodeControl()), Grid(running.superlink, running.secret)
    try:
        fleet.join(0)
        yield fleet, grid
    finally:
        fleet.leave()
        fleet.close()
        grid.close()


def exchanged(wire: tuple[Any, Any], record: Any) -> Any:
    """What the coordinator gets when the node answers with `record`."""
    from tests.federation.node_parts import wait_until
    from zk0desk.federation.fleet import reply_to

    fleet, grid = wire
    sent = grid.send([fleet.node_id], "train", arrays=[np.ones(3, np.float32)], config={}, ttl=60.0)[fleet.node_id]
    incoming = wait_until(fleet.poll)
    fleet.send(reply_to(incoming.message, record), seconds=0.0, progress=lambda _done: None)
    return wait_until(lambda: next(iter(grid.replies([sent], lambda _: Arrays())), None))


def records(**arrays: Any) -> Any:
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    return RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord({"a": 1}), "metrics": MetricRecord({"b": 2.0})})


def test_that_a_reply_comes_in_pieces_in_their_order_with_what_it_says(wire):
    from flwr.app import Array

    pieces = [np.full(5, float(number), np.float32) for number in range(3)]
    answer = exchanged(
        wire, records(**{f"{number:06d}": Array(piece) for number, piece in reversed(list(enumerate([*pieces, pieces[0]])))})
    )
    assert answer.refused is None and not answer.error and answer.config == {"a": 1} and answer.metrics == {"b": 2.0}
    assert [piece.tolist() for piece in answer.received] == [[0.0] * 5, [1.0] * 5, [2.0] * 5, [0.0] * 5]


@pytest.mark.parametrize("values", [np.arange(60, dtype=np.float32), np.zeros(300, np.int8)], ids=["different chunks", "equal chunks"])
def test_that_an_array_which_flwr_cut_into_chunks_comes_whole(wire, values, monkeypatch):
    from flwr.app import Array

    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 100)
    answer = exchanged(wire, records(**{"000000": Array(values)}))
    assert answer.refused is None and not answer.error
    assert answer.received[0].dtype == values.dtype and answer.received[0].tolist() == values.tolist()


@pytest.mark.parametrize("form", ["pickled", "many parts", "not npy", "wrong length", "unknown record", "huge settings", "nothing"])
def test_that_a_reply_of_another_form_is_refused_and_not_opened(wire, form, monkeypatch):
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    from zk0desk.federation import grid

    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 1000 if form == "pickled" else 100)
    monkeypatch.setattr(grid, "SMALL", 4096)
    plain, pickled = io.BytesIO(), io.BytesIO()
    np.save(plain, np.ones(4, np.int8))
    np.save(pickled, np.array([None], dtype=object), allow_pickle=True)

    def raw(data: bytes) -> Any:
        return records(**{"000000": Array(dtype="int8", shape=(4,), stype="numpy.ndarray", data=data)})

    record = {
        "pickled": lambda: raw(pickled.getvalue()),
        "many parts": lambda: raw(plain.getvalue() * 20),
        "not npy": lambda: raw(b"x" * 100),
        "wrong length": lambda: raw(plain.getvalue()[:90]),
        "unknown record": lambda: RecordDict({"more": ArrayRecord({"000000": Array(np.ones(4, np.int8))})}),
        "huge settings": lambda: RecordDict({"config": ConfigRecord({"a": "x" * 5000})}),
        "nothing": lambda: RecordDict({"config": ConfigRecord({}), "arrays": ConfigRecord({})}),
    }[form]()  # fmt: skip
    answer = exchanged(wire, record)
    assert answer.received is None and answer.refused is not None and answer.refused.code == "message-refused"
    if form in ("many parts", "pickled", "not npy", "huge settings"):
        assert {"many parts": "too many", "pickled": "object", "not npy": "cannot be read", "huge settings": "bytes"}[
            form
        ] in answer.refused.why
