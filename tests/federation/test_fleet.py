"""The Fleet connection: it comes back after an unclean end, and unpacks nothing that was not measured."""

from __future__ import annotations

import hashlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.federation.coordinator_parts import Events, make_server
from tests.federation.node_parts import admitted, certificate, invitation, wait_until
from zk0desk.control import NodeControl, Stopped
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.fleet import Fleet, InstructionGone, message_as_bytes, message_from_bytes, reply_to
from zk0desk.federation.interruptible import interruptible
from zk0desk.federation.messages import MessageRefused
from zk0desk.federation.probe import ConnectionTrouble, NotAdmitted, ServerTrouble, VersionMismatch
from zk0desk.federation.superlink import RunningServer, start_server

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(make_server(tmp_path_factory.mktemp("federation"), min_nodes=1).path, Events()) as running:
        yield running


@pytest.fixture
def grid(server: RunningServer) -> Iterator[Any]:
    from zk0desk.federation.grid import Grid

    running = server.folder.running()
    grid = Grid(running.superlink, running.secret)
    yield grid
    grid.close()


@pytest.fixture
def key(server: RunningServer) -> NodeKey:
    made = NodeKey.make()
    admitted(server.folder, made)
    return made


@pytest.fixture
def fleet(server: RunningServer, key: NodeKey) -> Iterator[Fleet]:
    made = Fleet(server.folder.invitation(), key, NodeControl())
    made.join()
    yield made
    made.leave()
    made.close()


def test_that_after_an_unclean_end_the_stored_id_brings_the_node_back_with_its_message(
    server: RunningServer, grid: Any, key: NodeKey
) -> None:
    first = Fleet(server.folder.invitation(), key, NodeControl())
    node_id = first.join()
    first.close()  # as after kill -9: the SuperLink still holds it online
    message = grid.send([node_id], "train", arrays=[np.ones(3, np.float32)], config={"a": 1}, ttl=60.0)[node_id]
    second = Fleet(server.folder.invitation(), key, NodeControl())
    try:
        with pytest.raises(NotAdmitted):
            second.join(0)
        assert second.join(node_id) == node_id
        incoming = second.poll()
        assert incoming is not None and incoming.message_id == message
    finally:
        second.leave()
        second.close()


def test_that_a_stored_id_of_another_superlink_is_no_obstacle(server: RunningServer, key: NodeKey) -> None:
    fleet = Fleet(server.folder.invitation(), key, NodeControl())
    try:
        assert fleet.join(12345) not in (0, 12345)
        assert fleet.leave()
    finally:
        fleet.close()


def test_that_a_message_survives_on_disk_and_can_still_be_answered(fleet: Fleet, grid: Any) -> None:
    sent = grid.send([fleet.node_id], "train", arrays=[np.ones(3, np.float32)], config={"a": 1}, ttl=60.0)[fleet.node_id]
    incoming = wait_until(fleet.poll)
    content = fleet.receive(incoming, limit=10_000, progress=lambda _done: None)
    assert content["config"]["a"] == 1
    again = message_from_bytes(message_as_bytes(incoming.message))
    fleet.send(reply_to(again, error="because"), seconds=0.0, progress=lambda _done: None)
    answer = wait_until(lambda: next(iter(grid.replies([sent])), None))
    assert answer.error == "because"
    with pytest.raises(InstructionGone):
        fleet.send(reply_to(again, error="twice"), seconds=0.0, progress=lambda _done: None)


def test_that_progress_is_told_piece_by_piece_and_a_large_message_is_cut_off(fleet: Fleet, grid: Any) -> None:
    arrays = [np.full(2**20, float(i), np.float32) for i in range(3)]
    grid.send([fleet.node_id], "train", arrays=arrays, config={}, ttl=60.0)
    incoming = wait_until(fleet.poll)
    told: list[int] = []
    with pytest.raises(MessageRefused, match="more than 6,000,000 bytes"):
        fleet.receive(incoming, limit=6_000_000, progress=told.append)
    assert told and max(told) <= 6_000_000 and told == sorted(told)


def test_that_a_line_lost_in_the_middle_costs_only_what_was_under_way(fleet: Fleet, grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.full(2**20, float(i), np.float32) for i in range(3)]
    grid.send([fleet.node_id], "train", arrays=arrays, config={}, ttl=60.0)
    incoming = wait_until(fleet.poll)
    pulled: list[str] = []
    client = fleet._client
    pull = client.PullObject

    def pull_two_then_fail(request: Any) -> Any:
        pulled.append(request.object_id)
        if len(pulled) == 3:
            raise ConnectionResetError("cut")
        return pull(request)

    monkeypatch.setattr(client, "PullObject", pull_two_then_fail)
    with pytest.raises(Exception, match="broke"):
        fleet.receive(incoming, limit=2**25, progress=lambda _done: None)
    content = fleet.receive(incoming, limit=2**25, progress=lambda _done: None)
    assert len(pulled) == len(set(pulled)) + 1
    assert content.array_records["arrays"]["000002"].numpy()[0] == 2.0


def test_that_an_object_whose_bytes_are_not_its_hash_is_refused(fleet: Fleet, grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grid.send([fleet.node_id], "train", arrays=[np.ones(3, np.float32)], config={}, ttl=60.0)
    incoming = wait_until(fleet.poll)
    pull = fleet._client.PullObject

    def tampered(request: Any) -> Any:
        response = pull(request)
        response.object_content = response.object_content[:-1] + b"x"
        return response

    monkeypatch.setattr(fleet._client, "PullObject", tampered)
    with pytest.raises(MessageRefused, match="SHA-256"):
        fleet.receive(incoming, limit=10_000, progress=lambda _done: None)


def test_that_an_array_that_names_one_chunk_a_million_times_is_not_unpacked() -> None:
    from zk0desk.federation.fleet import _unpack

    def framed(kind: str, children: list[str], body: bytes) -> bytes:
        return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body

    contents: dict[str, bytes] = {}

    def add(kind: str, children: list[str], body: bytes) -> str:
        content = framed(kind, children, body)
        name = hashlib.sha256(content).hexdigest()
        contents[name] = content
        return name

    chunk = add("ArrayChunk", [], b"\0" * 100_000)
    body = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 1_000_000}
    root = add("Array", [chunk], json.dumps(body).encode())
    with pytest.raises(MessageRefused, match="unpacks to more than"):
        _unpack(root, contents, 10**7)
    root = add("Array", [chunk], b"not json")
    with pytest.raises(MessageRefused, match="do not make a message"):
        _unpack(root, contents, 10**7)
    root = add("Surprise", [], b"")
    with pytest.raises(MessageRefused):
        _unpack(root, contents, 10**7)


class _Answer(http.server.BaseHTTPRequestHandler):
    answer: tuple[int, dict[str, str]] = (200, {})
    seen: list[str] = []

    def do_POST(self) -> None:
        type(self).seen.append(self.path)
        status, headers = type(self).answer
        self.send_response(status)
        for name, value in {"content-length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[int]:
    """A TLS server with the invitation's certificate that answers as it is told."""
    pem, private = certificate("localhost")
    (tmp_path / "c.pem").write_text(pem)
    (tmp_path / "k.pem").write_text(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    httpd = http.server.HTTPServer(("127.0.0.1", 0), _Answer)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    _Answer.seen = []
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield httpd.server_address[1]
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def join_impostor(port: int) -> None:
    fleet = Fleet(invitation(port=port, code="secret"), NodeKey.make(), NodeControl())
    try:
        fleet.join()
    finally:
        fleet.close()


def test_that_a_redirect_is_not_followed(impostor: int) -> None:
    _Answer.answer = (307, {"location": f"https://127.0.0.1:{impostor}/elsewhere"})
    with pytest.raises(ServerTrouble, match="307"):
        join_impostor(impostor)
    assert "/elsewhere" not in _Answer.seen


@pytest.mark.parametrize("headers", [{"content-encoding": "gzip", "content-length": "10"}, {"content-length": str(2**30)}])
def test_that_an_answer_that_would_fill_memory_is_not_read(impostor: int, headers: dict[str, str]) -> None:
    _Answer.answer = (200, headers)
    with pytest.raises(ConnectionTrouble, match="compressed|more than any"):
        join_impostor(impostor)


def test_that_an_answer_that_calls_versions_incompatible_names_both(impostor: int) -> None:
    _Answer.answer = (200, {"flwr-version-incompatibility-message": "SuperLink version 1.50.0 ... SuperNode version 1.41.0"})
    with pytest.raises(VersionMismatch, match=r"1\.50\.0.*1\.41\.0"):
        join_impostor(impostor)


def test_that_a_call_that_hangs_is_left_behind_at_once_when_stopped() -> None:
    control, release = NodeControl(), threading.Event()
    threading.Timer(0.05, control.stop_now).start()
    with pytest.raises(Stopped):
        interruptible(control, lambda: release.wait(20))
    release.set()
