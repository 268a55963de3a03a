"""Each trouble on the way to a federation, in words on the page: before joining, and after. Real sockets on loopback."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PySide6.QtCore import Qt

from tests.federation.coordinator_parts import make_server
from tests.federation.node_parts import without_torch
from tests.ui.page_parts import settle, words
from zk0desk.federation import probe as probing
from zk0desk.federation.consent import consent_digest
from zk0desk.federation.invitation import Invitation, certificate_sha256
from zk0desk.federation.node_state import NodeState
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.federation import FederationPage

pytestmark = pytest.mark.timeout(120)
ANSWER = "HTTP/1.1 {status}\r\nContent-Length: 0\r\n{headers}Connection: close\r\n\r\n"


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return make_server(tmp_path / "coordinator", name="localhost")


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    made.update_settings(Settings(federation=Federation(key_storage="file", key_file=tmp_path / "key.pem")))
    yield made
    made.close()


@pytest.fixture
def page(model: AppModel, qtbot) -> FederationPage:
    widget = FederationPage(model)
    qtbot.addWidget(widget)
    widget.resize(804, 580)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


def pem_files(server: ServerFolder) -> tuple[Path, Path]:
    """The certificate of `server` and its key."""
    (key,) = [path for path in server.certificate_path.parent.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    return server.certificate_path, key


@contextlib.contextmanager
def answering(files: tuple[Path, Path], status: str = "200 OK", headers: str = "", *, hangs_up: bool = False) -> Iterator[int]:
    """A TLS server on loopback that gives every request one answer, or hangs up instead. Gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with plain, contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secure:
                secure.recv(65_536)
                if not hangs_up:
                    secure.sendall(ANSWER.format(status=status, headers=headers).encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def expired(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that ended yesterday, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30)).not_valid_after(now - timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder.mkdir()
    (folder / "c.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / "k.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return folder / "c.pem", folder / "k.pem"


# --- before joining: the person asks about the address


def told(page: FederationPage, invitation: Invitation, qtbot) -> str:
    """What the page says of the address in `invitation`; always that nothing was sent, never that something goes on by itself."""
    page.take(invitation.to_line())
    qtbot.mouseClick(page.check, Qt.MouseButton.LeftButton)
    assert not page.check.isEnabled() and "No key and no name is sent" in page.banner.why.text()
    qtbot.waitUntil(page.check.isEnabled, timeout=20_000)
    settle(qtbot)
    said = words(page.banner)
    assert page.banner.isVisible() and said.count("Nothing of yours was sent.") == 1
    assert "tries again" not in said and "by itself" not in said
    return said


def test_an_address_that_answers_tells_the_time_it_took(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with answering(pem_files(server)) as port:
        said = told(page, server.invitation(port), qtbot)
    assert "answers in" in said and "certificate is the invitation's" in said


def test_a_name_that_nobody_knows_is_told(page: FederationPage, server: ServerFolder, qtbot) -> None:
    said = told(page, server.invitation(9443).model_copy(update={"host": "arms.invalid"}), qtbot)
    assert "The name arms.invalid was not found." in said and "ask the coordinator for the address" in said


def test_a_port_where_nothing_listens_is_told_with_what_the_person_can_do(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    said = told(page, server.invitation(port), qtbot)
    assert f"localhost:{port} refuses the connection." in said
    assert "Ask the coordinator to start it, and for the right port; then check the address again." in said


def test_silence_is_told(page: FederationPage, server: ServerFolder, qtbot, monkeypatch) -> None:
    whole = probing.probe
    monkeypatch.setattr(probing, "probe", lambda invitation: whole(invitation, timeout=0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = told(page, server.invitation(port), qtbot)
    assert f"localhost:{port} does not answer." in said and "firewall" in said


def test_another_certificate_is_told(page: FederationPage, server: ServerFolder, tmp_path: Path, qtbot) -> None:
    with answering(pem_files(make_server(tmp_path / "impostor"))) as port:
        said = told(page, server.invitation(port), qtbot)
    assert "shows another certificate than the invitation's" in said and "Ask the coordinator" in said


def test_an_expired_certificate_is_told_with_the_clock(page: FederationPage, server: ServerFolder, tmp_path: Path, qtbot) -> None:
    files = expired(tmp_path / "expired")
    pem = files[0].read_text()
    with answering(files) as port:
        changes = {"certificate": pem, "certificate_sha256": certificate_sha256(pem), "port": port}
        said = told(page, server.invitation(port).model_copy(update=changes), qtbot)
    assert f"The certificate of localhost:{port} has expired." in said
    assert "This computer's clock says" in said and "ask the coordinator for a new invitation" in said


def test_a_clock_that_is_off_is_told(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with answering(pem_files(server), headers="Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n") as port:
        said = told(page, server.invitation(port), qtbot)
    assert "This computer's clock is off." in said and "s ahead of the federation's" in said
    assert "Turn on setting the time by the network." in said


def test_a_line_that_breaks_is_told(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with answering(pem_files(server), hangs_up=True) as port:
        said = told(page, server.invitation(port), qtbot)
    assert f"The connection to localhost:{port} broke." in said and "Check the network, then check the address again." in said


def test_a_server_in_trouble_is_told(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with answering(pem_files(server), "502 Bad Gateway") as port:
        said = told(page, server.invitation(port), qtbot)
    assert "answers, but not as it should" in said and "502" in said and "wait a minute" in said


def test_another_version_of_flower_is_told_with_both_versions(page: FederationPage, server: ServerFolder, qtbot) -> None:
    from importlib.metadata import version

    said = told(page, server.invitation(9443).model_copy(update={"flwr_version": "9.9.0"}), qtbot)
    assert "another version of Flower" in said and f"Flower 9.9.0 runs there, Flower {version('flwr')} here." in said


# --- after joining: the node meets it


@contextlib.contextmanager
def joined(page: FederationPage, server: ServerFolder, port: int, tmp_path: Path, qtbot, monkeypatch) -> Iterator[None]:
    """A node, whose training alone is a stand-in, calls the server at `port`."""
    without_torch(monkeypatch)
    model, invitation = page.model, server.invitation(port)
    federation = model.settings.federation.model_copy(update={"invitation": invitation.to_line(), "consent": consent_digest(invitation)})
    model.update_settings(
        Settings(
            recordings=Recordings(chosen=(ChosenRecording(path=tmp_path / "arm"),)),
            policy=Policy(folder=tmp_path / "coordinator" / "policy"),
            federation=federation,
        )
    )
    model.join()
    try:
        yield
    finally:
        model.stop_now()
        qtbot.waitUntil(lambda: not model.running, timeout=30_000)
        settle(qtbot)


def until(page: FederationPage, state: NodeState, qtbot) -> str:
    """What the page says once the node is in `state`."""
    qtbot.waitUntil(lambda: page.model.state is state, timeout=60_000)
    settle(qtbot)
    return page.header.answer.text()


def test_a_node_that_is_not_admitted_yet_is_told_to_send_its_key(
    page: FederationPage, server: ServerFolder, tmp_path: Path, qtbot, monkeypatch
) -> None:
    refused = answering(pem_files(server), "403 Forbidden", "zk0-refusal: unknown\r\n")
    with refused as port, joined(page, server, port, tmp_path, qtbot, monkeypatch):
        said = until(page, NodeState.WAITING_FOR_APPROVAL, qtbot)
    assert "to be admitted by the coordinator" in words(page) and page.key_hint.isVisible()
    assert "Waiting to be admitted" in said and "The coordinator has not admitted the key" in said
    assert "Send that fingerprint to the coordinator" in said and "tries again by itself" in said


def test_a_node_that_was_revoked_stops_and_says_whom_to_ask(
    page: FederationPage, server: ServerFolder, tmp_path: Path, qtbot, monkeypatch
) -> None:
    refused = answering(pem_files(server), "403 Forbidden", "zk0-refusal: revoked\r\n")
    with refused as port, joined(page, server, port, tmp_path, qtbot, monkeypatch):
        said = until(page, NodeState.FAILED, qtbot)
    assert "Test arms has excluded this node." in said and "revoked the key" in said and "Ask the coordinator" in said


def test_a_version_that_the_server_does_not_take_is_told_with_both(
    page: FederationPage, server: ServerFolder, tmp_path: Path, qtbot, monkeypatch
) -> None:
    from flwr.supercore.constant import VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY as KEY

    header = f"{KEY}: SuperLink 1.50.0 and SuperNode 1.41.0 do not fit.\r\n"
    with answering(pem_files(server), "400 Bad Request", header) as port, joined(page, server, port, tmp_path, qtbot, monkeypatch):
        said = until(page, NodeState.FAILED, qtbot)
    assert "another version of Flower" in said and "1.50.0" in said and "1.41.0" in said and "Update zk0desk" in said


def test_a_lost_line_is_tried_again_and_says_that_nothing_is_lost(
    page: FederationPage, server: ServerFolder, tmp_path: Path, qtbot, monkeypatch
) -> None:
    with answering(pem_files(server), hangs_up=True) as port, joined(page, server, port, tmp_path, qtbot, monkeypatch):
        said = until(page, NodeState.RECONNECTING, qtbot)
    assert "Reconnecting" in said and "broke" in said and "Tried again by itself; training done so far is kept." in said
