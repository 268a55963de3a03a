"""What other computers reach of a running server, and for how long: a real SuperLink, its gateway, and calls from another address."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from tests.federation.coordinator_parts import Events, TestNode, make_server, steady
from tests.federation.gateway_parts import OBJECT, PULL, PUSH, answered, connected, exchanged, signed, written
from tests.federation.node_parts import wait_until
from zk0desk import settings as settings_file
from zk0desk.control import NodeControl
from zk0desk.errors import OperatorError
from zk0desk.federation.certificate import CertificateWatch, make_certificate
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.front import Front
from zk0desk.federation.gateway import Gateway
from zk0desk.federation.gateway_limits import Limits
from zk0desk.federation.node_registry import NodeRegistry, RegistryError
from zk0desk.federation.probe import InvitationOver, NotAdmitted, WrongCertificate, probe
from zk0desk.federation.server_app import run_rounds
from zk0desk.federation.superlink import RunningServer, revoke, start_server
from zk0desk.federation.supervisor import Server

pytestmark = pytest.mark.timeout(120)

ELSEWHERE = "127.0.0.2"
VALUES = 330


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = make_server(tmp_path_factory.mktemp("federation"), min_nodes=3)
    with start_server(folder.path, Events()) as running:
        yield running


@pytest.fixture(scope="module")
def key(server: RunningServer) -> NodeKey:
    """An admitted node's key."""
    made = NodeKey.make()
    server.admit(made.public_line)
    return made


@contextmanager
def front(server: RunningServer, **limits: object) -> Iterator[Front]:
    """One more gateway before the server's SuperLink, in this process, with other limits."""
    running = server.folder.running()
    app = Gateway(
        server.folder.nodes(), upstream=lambda: f"http://{running.superlink}", secret=running.secret, code=server.folder.code(),
        values=VALUES, limits=Limits(**limits),
    )  # fmt: skip
    paths = {"certificate": server.folder.certificate_path, "key": server.folder.key_path}
    made = Front(app, host="127.0.0.1", port=0, limits=app.limits, closing=app.close, **paths)
    made.start()
    try:
        yield made
    finally:
        made.stop()


# --- routes -------------------------------------------------------------------------------------------------------


def routes() -> list[tuple[str, str]]:
    """Method and path of every route of the SuperLink, from its own application, and some that are none."""
    import flwr.superlink.main as superlink
    from fastapi.routing import APIRoute, iter_route_contexts
    from starlette.routing import Route

    app = superlink.create_app()
    found = set()
    for context in iter_route_contexts(app.routes):
        route = context.route
        if isinstance(route, APIRoute | Route):
            path = getattr(context, "path", None) or route.path
            found |= {(method, path.replace("{", "").replace("}", "")) for method in route.methods or {"GET"}}
    return sorted(found)


def test_from_another_address_only_the_fleet_api_answers_whatever_credentials_are_shown(server, key):
    every = routes()
    fleet = {path for _, path in every if path.startswith("/v1/fleet/")}
    assert len(fleet) == 12 and sum("/v1/control/" in path for _, path in every) > 20
    running, code = server.folder.running(), server.folder.code()
    shown = {"nothing": dict, "all": lambda: signed(key, zk0_local="guess", zk0_admission_code=code)}
    more = [(method, path) for path in fleet for method in ("GET", "PUT", "DELETE", "CONNECT")]
    with front(server, refusals=(1e6, 1e6), connects=(1e6, 1e6)) as gateway:
        for method, path in [*every, *more]:
            for who, headers in shown.items():
                request = written(path, headers(), method=method)
                status = exchanged(gateway.port, request, address=ELSEWHERE)
                if method == "POST" and path in fleet:
                    assert status == 401 if who == "nothing" else status not in (404, 0), (path, who, status)
                else:
                    assert status == 404, (method, path, who, status)
                # The SuperLink's own port is on 127.0.0.1 alone, and asks for the folder's secret.
                assert exchanged(running.superlink_port, request, address=ELSEWHERE, tls=False) == 404
        for path in fleet:
            assert exchanged(gateway.port, written(path, signed(NodeKey.make())), address=ELSEWHERE) == 403
    assert exchanged(running.superlink_port, b"", address=ELSEWHERE, host=ELSEWHERE, tls=False) == -1
    assert exchanged(running.port, written(PULL, {}), address=ELSEWHERE) == 401, "the server's own gateway"


NAMESPACE = """
set -e
ip link set lo up
ip link add zk0a type veth peer name zk0b
unshare -n sleep 60 & sleeper=$!
trap 'kill $sleeper 2>/dev/null' EXIT
for _ in $(seq 100); do [ "$(readlink /proc/$sleeper/ns/net)" != "$(readlink /proc/$$/ns/net)" ] && break; sleep 0.02; done
ip link set zk0b netns $sleeper
ip addr add 198.51.100.1/24 dev zk0a; ip link set zk0a up
nsenter -t $sleeper -n ip addr add 198.51.100.2/24 dev zk0b
nsenter -t $sleeper -n ip link set zk0b up
"$2" "$1/tests/federation/gateway_namespace.py" "$3" "$sleeper"
"""


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["gateway", "server"])
def test_from_another_network_namespace_only_the_fleet_api_answers(tmp_path, checkout, whole):
    allowed = subprocess.run(["unshare", "-rn", "ip", "link", "add", "zk0a", "type", "veth", "peer", "name", "zk0b"], capture_output=True)
    if allowed.returncode:
        pytest.skip(f"this system permits no network namespace: {allowed.stderr.decode().strip()}")
    folder, asked = make_server(tmp_path), tmp_path / "asked.json"
    settings = folder.settings()
    settings_file.save(
        settings.model_copy(update={"network": settings.network.model_copy(update={"host": "0.0.0.0"})}), folder.settings_path
    )
    every = routes()
    asked.write_text(json.dumps({"routes": every, "folder": str(folder.path), "whole": whole}))
    done = subprocess.run(
        ["unshare", "-rn", "bash", "-c", NAMESPACE, "namespace", str(checkout), sys.executable, str(asked)],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[0])
    fleet = {path for _, path in every if path.startswith("/v1/fleet/")}
    assert found["superlink"] == (-1 if whole else None), "nothing listens there for others"
    assert {path for path, statuses in found["gateway"].items() if statuses != [404]} == fleet
    assert all(401 in found["gateway"][path] for path in fleet)


# --- TLS ----------------------------------------------------------------------------------------------------------


def test_only_tls_with_forward_secrecy_is_spoken(server):
    def spoken(newest: ssl.TLSVersion, ciphers: str = "") -> str:
        context = ssl.create_default_context(cadata=server.folder.certificate_path.read_text())
        context.maximum_version = newest
        if ciphers:
            context.set_ciphers(ciphers)
        with (
            socket.create_connection(("127.0.0.1", server.port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return f"{secure.version()} {secure.cipher()[0]}"

    assert spoken(ssl.TLSVersion.TLSv1_3).startswith("TLSv1.3")
    assert spoken(ssl.TLSVersion.TLSv1_2).startswith("TLSv1.2 ECDHE-")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        spoken(ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256:AES256-GCM-SHA384")


# --- time ---------------------------------------------------------------------------------------------------------


def ends_within(connection, low: float, high: float, data: bytes = b"") -> None:
    began = time.monotonic()
    assert answered(connection, 10) == 0
    assert low <= time.monotonic() - began <= high


def test_a_handshake_headers_a_body_and_a_quiet_connection_have_their_time(server, key):
    with front(server, handshake_s=1.0, headers_s=0.7, stranger_idle_s=0.5, idle_s=1.0, body_s=0.8, slowest=1000) as gateway:
        with connected(gateway.port, tls=False) as slow:
            slow.sendall(b"\x16\x03\x01")
            ends_within(slow, 0.7, 2.5)
        with connected(gateway.port) as quiet:
            ends_within(quiet, 0.3, 1.5)
        with connected(gateway.port) as dripping:
            began = time.monotonic()
            with pytest.raises(OSError):
                for byte in written(PULL, signed(key)):
                    dripping.sendall(bytes([byte]))
                    time.sleep(0.02)
            assert 0.6 < time.monotonic() - began < 3.0
        with connected(gateway.port) as dripping:
            dripping.sendall(written(PUSH, signed(key, content_length="60000")))
            began = time.monotonic()
            with pytest.raises(OSError):
                while True:
                    dripping.sendall(b"x" * 10)
                    time.sleep(0.02)
            assert 0.7 < time.monotonic() - began < 3.0, "500 bytes a second are slower than the slowest"
        with connected(gateway.port) as steady:
            steady.sendall(written(PULL, signed(key, content_length="3000")))
            for _ in range(15):
                steady.sendall(b"x" * 200)
                time.sleep(0.1)
            assert answered(steady) == 401, "2000 bytes a second are not; the SuperLink says what it thinks of them"
            ends_within(steady, 0.5, 2.5)


def test_a_body_is_not_read_before_its_key_is_admitted_and_not_after_it_was_revoked(server):
    key = NodeKey.make()
    server.admit(key.public_line)
    with front(server) as gateway:
        with connected(gateway.port) as connection:
            connection.sendall(written(PUSH, signed(NodeKey.make(), content_length="60000")))
            assert answered(connection, 3) == 403, "before a byte of it"
        with connected(gateway.port) as connection:
            forged = signed(key)["flwr-public-key"]
            connection.sendall(written(PUSH, {**signed(NodeKey.make(), content_length="60000"), "flwr-public-key": forged}))
            assert answered(connection, 3) == 401, "who only knows an admitted key is not let in either"
        with connected(gateway.port) as connection:
            connection.sendall(written(PUSH, signed(key, content_length="60000")) + b"x" * 1000)
            wait_until(lambda: any(gateway.doors._nodes))
            revoke(server.folder, key.fingerprint)
            connection.sendall(b"x" * 10_000)
            assert answered(connection, 3) == 0
        assert exchanged(gateway.port, written(PULL, signed(key))) == 403


# --- size and number ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (lambda key: written(PULL, signed(key, x="y" * 20_000)), 431),
        (lambda key: written(PULL, signed(key), b"x" * 20_000), 413),
        (lambda key: written(OBJECT, signed(key), b"x" * 80_000), 413),
        (lambda key: written(OBJECT, signed(key, transfer_encoding="chunked"), (b"4000\r\n" + b"x" * 16_384 + b"\r\n") * 6), 413),
        (lambda key: written(OBJECT, signed(key, content_length="-5")), 400),
        (lambda key: written(OBJECT, signed(key, content_length="5", transfer_encoding="chunked"), b"0\r\n\r\n"), 400),
        (lambda key: written(PULL, signed(key)).replace(b"\r\nflwr-timestamp", b"\r\nflwr-timestamp: 1\r\nflwr-timestamp", 1), 400),
        (lambda key: written(PULL, signed(key, content_encoding="gzip"), b"x"), 415),
        (lambda key: written(PULL, signed(key, transfer_encoding="gzip"), b"x"), 501),
        (lambda key: written(PULL, {**signed(key), "flwr-signature": "bm8="}), 401),
        (lambda key: b"\x00" * 500 + b"\r\n\r\n", 400),
    ],
)
def test_what_is_too_large_or_not_http_as_agreed_is_refused(server, key, request_, status):
    assert exchanged(server.port, request_(key)) == status


def test_two_requests_at_once_are_answered_one_after_the_other(server, key):
    with connected(server.port) as connection:
        connection.sendall(written(PULL, signed(key)) * 3)
        assert [answered(connection) for _ in range(1)] == [401], "a node id of 0 is nobody's"


def test_an_address_that_holds_many_connections_does_not_keep_others_out(server, key):
    with front(server, strangers=20, strangers_per_address=10, connects=(1000, 1000)) as gateway:
        held = [connected(gateway.port, address=f"127.0.0.{3 + n % 3}", tls=False) for n in range(60)]
        try:
            with connected(gateway.port, address=ELSEWHERE) as node:
                node.sendall(written(PULL, signed(key)))
                assert answered(node, 5) == 401
                more = [connected(gateway.port, address=f"127.0.0.{3 + n % 3}", tls=False) for n in range(40)]
                held += more
                node.sendall(written(PULL, signed(key)))
                assert answered(node, 5) == 401, "the node's connection is not one of theirs"
            wait_until(lambda: gateway.doors.sent_away >= 80 - 1)
            assert len(gateway.doors) <= 21
        finally:
            for each in held:
                each.close()


def test_an_address_or_a_key_that_calls_too_often_is_slowed_down_alone(server, key):
    other = NodeKey.make()
    server.admit(other.public_line)
    with front(server, connects=(1.0, 5.0), refusals=(1.0, 3.0), requests=(5.0, 3.0), wait_s=0.3) as gateway:
        refused = [exchanged(gateway.port, written("/", {}), address="127.0.0.3") for _ in range(8)]
        assert refused[:3] == [404] * 3 and refused[3:] == [0] * 5
        with connected(gateway.port, address=ELSEWHERE) as node, connected(gateway.port, address="127.0.0.4") as second:
            statuses = []
            for _ in range(12):
                node.sendall(written(PULL, signed(key)))
                statuses.append(answered(node, 5))
                if statuses[-1] == 429:
                    break
            second.sendall(written(PULL, signed(other)))
            assert answered(second, 5) == 401
        began = time.monotonic()
        assert statuses.count(401) >= 3 and time.monotonic() - began < 5


# --- who ----------------------------------------------------------------------------------------------------------


def joined(server: RunningServer, invitation, key: NodeKey) -> int:
    from zk0desk.federation.fleet import Fleet

    fleet = Fleet(invitation, key, NodeControl())
    try:
        return fleet.join()
    finally:
        fleet.leave()
        fleet.close()


def test_a_node_that_is_revoked_in_a_round_is_waited_for_no_longer_and_what_it_sent_does_not_count(server):
    first, second, silent = sorted((NodeKey.make() for _ in range(3)), key=lambda key: key.public_key_bytes)
    for each in (first, second, silent):
        server.admit(each.public_line)
    events, invited = Events(), server.folder.invitation()

    def revoking(request, weights):
        events.wait_for(lambda event: event.name == "reply-accepted")
        for each in (first, silent):
            revoke(server.folder, each.fingerprint)
        return steady(0.25)(request, weights)

    with (
        TestNode(invited, first, steady(0.5)),
        TestNode(invited, second, revoking),
        TestNode(invited, silent, lambda request, weights: None),
    ):
        run_rounds(server.folder.path, events, rounds=1)
    (combined,) = events.named("round-aggregated")
    assert combined.shares.keys() == {second.fingerprint} and not combined.missing
    refused = {event.node: event.code for event in events.named("reply-refused")}
    assert refused == {first.fingerprint: "revoked", silent.fingerprint: "revoked"}
    assert combined.time - events.named("round-opened")[0].time < 15, "the deadline is 20 s"
    revoke(server.folder, second.fingerprint)


def test_a_limited_invitation_lets_so_many_in_and_then_says_so_to_the_operator(server):
    once = server.folder.invitation(uses=1)
    first, second = NodeKey.make(), NodeKey.make()
    for _ in range(2):
        with pytest.raises(NotAdmitted, match="not admitted yet"):
            joined(server, once, first)
    with pytest.raises(InvitationOver, match="As many other nodes"):
        joined(server, once, second)
    server.admit(second.public_line)
    assert joined(server, once, second) > 0, "by hand it can be admitted still"
    ended = server.folder.invitation(ends=time.time() - 1)
    with pytest.raises(InvitationOver, match="time is over"):
        joined(server, ended, NodeKey.make())


def test_without_the_list_of_nodes_everybody_is_refused_and_the_coordinator_is_told_once(tmp_path, server, key):
    copy = tmp_path / "nodes.sqlite"
    copy.write_bytes(server.folder.nodes_path.read_bytes())
    running, told = server.folder.running(), []
    app = Gateway(
        NodeRegistry(copy), upstream=lambda: f"http://{running.superlink}", secret=running.secret, code="code1234", values=VALUES,
        admit=lambda public: told.append("admitted"), troubled=told.append,
    )  # fmt: skip
    gateway = Front(
        app, host="127.0.0.1", port=0, certificate=server.folder.certificate_path, key=server.folder.key_path, closing=app.close
    )
    gateway.start()
    try:
        assert exchanged(gateway.port, written(PULL, signed(key))) == 401
        kept = copy.read_bytes()
        for harm in (copy.unlink, lambda: copy.write_bytes(b""), lambda: copy.write_bytes(b"x" * 3000)):
            harm()
            for who in (key, NodeKey.make()):
                assert exchanged(gateway.port, written(PULL, signed(who, zk0_admission_code="wrong"))) == 503
        assert [type(each) for each in told] == [RegistryError]
        copy.write_bytes(kept)
        assert exchanged(gateway.port, written(PULL, signed(key))) == 401
    finally:
        gateway.stop()


@pytest.mark.parametrize(
    "name", ["admission-code", "tls/key.pem", "tls/certificate.pem", "nodes.sqlite"],
)  # fmt: skip
@pytest.mark.parametrize("harm", ["missing", "empty"])
def test_a_server_does_not_start_without_a_file_that_keeps_others_out(tmp_path, name, harm):
    folder = make_server(tmp_path, admission="open")
    path = folder.path / name
    path.unlink() if harm == "missing" else path.write_bytes(b"")
    with pytest.raises(OperatorError) as caught:
        Server(folder, Events())
    assert path.name in str(caught.value) and caught.value.remedy


# --- the certificate ----------------------------------------------------------------------------------------------


def test_a_node_comes_back_without_a_word_after_the_certificate_was_renewed(server, key):
    old = server.folder.invitation()
    private = server.folder.certificate().key()
    with front(server) as gateway:
        here = old.model_copy(update={"port": gateway.port})
        assert probe(here).certificate_sha256 == old.certificate_sha256

        def show(name: str, **age: float) -> str:
            path = server.folder.path / name
            path.write_text(make_certificate("localhost", private, now=datetime.now(UTC) - timedelta(days=3650, **age))[0])
            gateway.renew(path, server.folder.key_path)
            return path.read_text()

        before = here.model_copy(update={"certificate": show("ending.pem", hours=-1)})
        assert joined(server, before, key) > 0, "it has an hour left"
        ended = here.model_copy(update={"certificate": show("ended.pem", seconds=1)})
        for invited in (before, ended):
            with pytest.raises(WrongCertificate, match="has expired"):
                joined(server, invited, key)
        show("renewed.pem", hours=-70_000)
        for invited in (here, before, ended):
            assert joined(server, invited, key) > 0
            assert probe(invited).certificate_sha256 != old.certificate_sha256
        other, other_key = make_certificate("localhost")
        (server.folder.path / "other.pem").write_text(other)
        (server.folder.path / "other-key.pem").write_text(other_key)
        gateway.renew(server.folder.path / "other.pem", server.folder.path / "other-key.pem")
        with pytest.raises(WrongCertificate, match="another certificate"):
            joined(server, before, key)


def test_a_server_whose_certificate_ends_soon_renews_it_at_its_start(tmp_path):
    folder = make_server(tmp_path)
    old = folder.certificate_path.read_text()
    private = folder.certificate().key()
    folder.certificate_path.write_text(make_certificate("localhost", private, now=datetime.now(UTC) - timedelta(days=3645))[0])
    events = Events()
    assert CertificateWatch(folder.certificate(), events).look()
    assert folder.certificate_path.read_text() != old and events.named("notice")[0].code == "certificate-renewed"
