"""A running server: what is reachable, who is admitted, and that it leaves nothing behind."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from tests.federation.coordinator_parts import Events, TestNode, make_server, steady
from tests.federation.gateway_parts import signed
from zk0desk.control import NodeControl
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.gateway import SECRET_HEADER
from zk0desk.federation.probe import NotAdmitted, Revoked
from zk0desk.federation.server_folder import NodeUnknownError, ServerFolderError, ServerNotRunningError, init_server
from zk0desk.federation.superlink import PAGE_BYTES, OwnersOnly, RunningServer, SuperLink, SuperLinkFailed, admit, revoke, start_server
from zk0desk.settings import ServerSettings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = make_server(tmp_path_factory.mktemp("federation"))
    with start_server(folder.path, Events()) as running:
        yield running


def family(server: RunningServer) -> list[psutil.Process]:
    return [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]


def join(server: RunningServer, key: NodeKey, **changes: object) -> int:
    from zk0desk.federation.fleet import Fleet

    fleet = Fleet(server.folder.invitation().model_copy(update=changes), key, NodeControl())
    try:
        return fleet.join()
    finally:
        fleet.leave()
        fleet.close()


def test_it_listens_and_speaks_on_loopback_only(server):
    for process in family(server):
        for connection in process.net_connections("inet"):
            assert connection.laddr.ip == "127.0.0.1"
            assert not connection.raddr or connection.raddr.ip == "127.0.0.1"


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/health", "/openapi.json", "/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task",
             "/v1/runtime/get-nodes", "/v1/fleet/",
             "/v1/fleet/pull-messages/../../control/list-nodes", "/v1/fleet/unknown", "//v1/fleet/get-run"],
)  # fmt: skip
def test_the_gateway_answers_404_to_all_but_the_fleet_api(server, path):
    with httpx.Client(verify=_context(server), transport=None) as client:
        for method in ("GET", "POST"):
            assert client.request(method, f"https://localhost:{server.port}{path}").status_code == 404


def test_the_gateway_answers_the_fleet_api_only_to_requests_with_a_key(server):
    with httpx.Client(verify=_context(server)) as client:
        assert client.post(f"https://localhost:{server.port}/v1/fleet/pull-messages").status_code == 401
        assert client.get(f"https://localhost:{server.port}/v1/fleet/pull-messages").status_code == 404


def test_control_and_runtime_are_not_reachable_from_another_address(server):
    port = server.folder.running().superlink_port
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as client:
        with pytest.raises(httpx.ConnectError):
            client.post(f"http://127.0.0.2:{port}/v1/control/list-nodes")
        for path in ("/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/pull-messages", "/health"):
            assert client.post(f"http://127.0.0.1:{port}{path}").status_code == 404


def test_the_superlinks_port_opens_to_the_folders_owner(server):
    running = server.folder.running()
    headers = {"zk0-local": running.secret}
    assert httpx.get(f"http://{running.superlink}/health", headers=headers).status_code == 200
    assert httpx.get(f"http://{running.superlink}/health", headers={"zk0-local": "guess"}).status_code == 404
    assert server.folder.running_path.stat().st_mode & 0o077 == 0


def test_a_node_waits_until_it_is_admitted_and_is_out_when_revoked(server):
    key = NodeKey.make()
    with pytest.raises(NotAdmitted):
        join(server, key)
    assert [node.status for node in server.folder.nodes().nodes() if node.public_key == key.public_key_bytes] == ["waiting"]
    admit(server.folder, key.fingerprint)
    assert join(server, key) > 0
    revoke(server.folder, key.fingerprint)
    with pytest.raises(Revoked):
        join(server, key)


def test_a_wrong_code_does_not_even_wait(server):
    key = NodeKey.make()
    with pytest.raises(NotAdmitted):
        join(server, key, code="guess")
    assert all(node.public_key != key.public_key_bytes for node in server.folder.nodes().nodes())


def test_a_key_that_the_sender_does_not_hold_is_not_shown_to_the_coordinator(server):
    import base64

    key = NodeKey.make()
    headers = {"flwr-public-key": base64.b64encode(key.public_key_bytes).decode(), "flwr-signature": base64.b64encode(b"no").decode(),
               "flwr-timestamp": "2030-01-01T00:00:00+00:00", "zk0-admission-code": server.folder.code()}  # fmt: skip
    with httpx.Client(verify=_context(server)) as client:
        assert client.post(f"https://localhost:{server.port}/v1/fleet/activate-node", headers=headers).status_code == 401
    assert all(node.public_key != key.public_key_bytes for node in server.folder.nodes().nodes())


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    key = NodeKey.make()
    server.admit(key.public_line)
    headers = signed(key)
    with httpx.Client(verify=_context(server)) as client:
        url = f"https://localhost:{server.port}/v1/fleet/pull-messages"
        assert client.post(url, headers=headers, content=b"x" * (5 * 2**20)).status_code == 413
        assert client.post(url, headers=headers, content=iter([b"x" * 2**20] * 5)).status_code == 413


def test_the_database_has_large_pages_also_once_flwr_has_opened_it(tmp_path):
    folder = make_server(tmp_path)
    superlink = SuperLink(folder, on_disk=True)
    superlink.launch()
    try:
        superlink.wait_ready()
    finally:
        superlink.stop()
    with closing(sqlite3.connect(f"file:{folder.state / 'superlink.sqlite'}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA page_size").fetchone() == (PAGE_BYTES,)
        assert database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0] > 5


def test_a_body_in_parts_is_passed_on_in_one_and_a_caller_who_leaves_is_told_of():
    def caller(*messages):
        left = list(messages)

        async def receive():
            return left.pop(0)

        return receive

    part = {"type": "http.request", "more_body": True}
    gone = {"type": "http.disconnect"}
    seen = []

    async def app(scope, receive, send):
        seen.append([await receive(), await receive()])

    guarded = OwnersOnly(app, "right")
    right = {"type": "http", "headers": [(SECRET_HEADER.encode(), b"right")]}
    whole = caller({**part, "body": b"one"}, {**part, "body": b" two"}, {"type": "http.request"}, gone)
    asyncio.run(guarded(right, whole, None))
    assert seen.pop() == [{"type": "http.request", "body": b"one two", "more_body": False}, gone]
    asyncio.run(guarded(right, caller({**part, "body": b"one"}, gone, gone), None))
    assert seen.pop() == [gone, gone]


def test_a_fingerprint_that_nobody_has_is_told(server):
    with pytest.raises(NodeUnknownError, match="No node is known"):
        admit(server.folder, "aaaa bbbb cccc dddd")


def test_a_second_server_in_the_same_folder_is_refused(server):
    with pytest.raises(SuperLinkFailed, match="runs already|did not start"):
        start_server(server.folder.path, Events())
    assert server.folder.running().pid == server.pid


def test_with_open_admission_the_code_is_enough(tmp_path):
    folder = make_server(tmp_path, admission="open")
    with start_server(folder.path, Events()) as server:
        assert join(server, NodeKey.make()) > 0
        with pytest.raises(NotAdmitted):
            join(server, NodeKey.make(), code="guess")


WATCH = """
import os, sys

def hook(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        with open(os.environ["ZK0DESK_TEST_WATCH"], "a") as file:
            file.write(f"{event} {details[1] if event != 'socket.getaddrinfo' else details[0]!r}\\n")

sys.addaudithook(hook)
"""


def test_no_process_of_a_whole_run_asks_for_anything_but_loopback(tmp_path, monkeypatch):
    watch = tmp_path / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", str(watch))
    monkeypatch.setenv("ZK0DESK_TEST_WATCH", str(watch / "seen"))
    folder, key, events = make_server(tmp_path, min_nodes=1, rounds=1), NodeKey.make(), Events()
    with start_server(folder.path, events, run=True) as server:
        server.admit(key.public_line)
        with TestNode(folder.invitation(), key, steady(0.5)):
            events.wait_for(lambda event: event.name == "run-finished")
    seen = (watch / "seen").read_text().splitlines()
    assert any(line.startswith("socket.connect ('127.0.0.1', ") for line in seen)
    assert [line for line in seen if not any(own in line for own in ("'127.0.0.1'", "'localhost'", "'::1'"))] == []


@pytest.mark.parametrize("end", ["close", "kill"])
def test_nothing_is_left_when_it_ends(tmp_path, end):
    folder = make_server(tmp_path)
    server = start_server(folder.path, Events())
    processes = family(server)
    assert len(processes) == 2
    if end == "kill":
        os.kill(server.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=2)
        # Where nobody reaps orphans, one that ended stays as a zombie.
        alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        server.close()
    else:
        server.close()
        _, alive = psutil.wait_procs(processes, timeout=0.2)
    assert not alive
    with pytest.raises(ServerNotRunningError):
        folder.running()


def test_a_folder_is_not_initialised_twice(tmp_path):
    init_server(tmp_path / "s", ServerSettings())
    with pytest.raises(ServerFolderError, match="already"):
        init_server(tmp_path / "s", ServerSettings())


def test_secrets_are_readable_by_the_owner_only(tmp_path):
    folder = make_server(tmp_path)
    assert folder.path.stat().st_mode & 0o077 == 0
    for path in (folder.key_path, folder.code_path, folder.settings_path):
        assert Path(path).stat().st_mode & 0o077 == 0


def _context(server: RunningServer):
    import ssl

    return ssl.create_default_context(cadata=server.folder.certificate_path.read_text())
