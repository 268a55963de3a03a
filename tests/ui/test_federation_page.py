"""The federation page: an invitation is explained, consent is asked, an address that does not answer is told apart."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, Qt, QUrl
from PySide6.QtWidgets import QDialog, QPlainTextEdit

from tests.federation.coordinator_parts import make_server
from tests.ui.page_parts import drop, settle, words
from zk0desk import settings as files
from zk0desk.federation import probe as probing
from zk0desk.federation.consent import consent_digest, never_leaves
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.node_state import NodeState
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.federation import FederationPage


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return make_server(tmp_path / "coordinator", name="localhost")


@pytest.fixture
def invitation(server: ServerFolder) -> Invitation:
    return server.invitation(9443)


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


def change(model: AppModel, **sections: object) -> None:
    model.update_settings(model.settings.model_copy(update=sections))


def ready(model: AppModel, server: ServerFolder, tmp_path: Path) -> None:
    """All steps but the consent."""
    policy = tmp_path / "coordinator" / "policy"
    change(model, recordings=Recordings(chosen=(ChosenRecording(path=tmp_path / "arm"),)), policy=Policy(folder=policy))


def test_a_pasted_invitation_is_explained_and_nothing_is_agreed_to(page: FederationPage, invitation: Invitation, qtbot) -> None:
    page.paste.setPlainText(f"Hello!\n{invitation.to_line()}\n")
    if page.read.isVisible():
        qtbot.mouseClick(page.read, Qt.MouseButton.LeftButton)
    settle(qtbot)
    said = words(page)
    for fact in ("Test arms", "localhost:9443", "330 of 450 parameters", "2 rounds of 1 step", "at most 20 s a round", never_leaves()[0]):
        assert fact in said
    assert not page.agree.isChecked() and not page.join.isEnabled()
    assert page.model.settings.federation.invitation == invitation.to_line()
    assert page.model.settings.federation.consent == ""


def test_an_invitation_is_dropped_as_a_file_and_as_text(page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot) -> None:
    path = tmp_path / "arms.zk0invite"
    invitation.write(path)
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    drop(page, data)
    assert page.model.settings.federation.invitation == invitation.to_line()
    other = invitation.model_copy(update={"federation": "Other arms"})
    text = QMimeData()
    text.setText(other.to_line())
    drop(page, text)
    settle(qtbot)
    assert page.model.settings.federation.invitation == other.to_line() and "Other arms" in words(page)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("https://example.org", "This is not an invitation."),
        ("zk0desk:join?abc", "This invitation is damaged."),
        ("zk0desk:join?", "This invitation is empty."),
    ],
)
def test_a_bad_invitation_is_told_and_not_kept(page: FederationPage, text: str, sentence: str) -> None:
    page.take(text)
    assert sentence in page.paste_problem.text() and page.paste_problem.isVisible()
    assert page.model.settings.federation.invitation == ""


def test_a_file_that_cannot_be_read_is_told(page: FederationPage, tmp_path: Path) -> None:
    page.take_file(tmp_path / "none.zk0invite")
    assert "cannot be read" in page.paste_problem.text()


def test_join_waits_for_every_step_and_says_which_is_missing(
    page: FederationPage, server: ServerFolder, invitation: Invitation, tmp_path: Path, qtbot
) -> None:
    page.take(invitation.to_line())
    page.agree.setChecked(True)
    assert not page.join.isEnabled()
    assert "Choose at least one recording." in page.blocked.text() and "policy" in page.blocked.text()
    ready(page.model, server, tmp_path)
    assert page.join.isEnabled() and page.blocked.text() == ""
    page.agree.setChecked(False)
    assert not page.join.isEnabled() and "tick the box" in page.blocked.text()
    settle(qtbot)


def test_join_keeps_what_was_agreed_to_and_shows_the_training(
    page: FederationPage, server: ServerFolder, invitation: Invitation, tmp_path: Path, qtbot, monkeypatch
) -> None:
    joined: list[str] = []
    monkeypatch.setattr(AppModel, "join", lambda self: joined.append(self.settings.federation.consent))
    ready(page.model, server, tmp_path)
    page.take(invitation.to_line())
    settle(qtbot)
    page.agree.setFocus()
    qtbot.keyClick(page.agree, Qt.Key.Key_Space)
    with qtbot.waitSignal(page.model.showPage) as shown:
        qtbot.mouseClick(page.join, Qt.MouseButton.LeftButton)
    assert joined == [consent_digest(invitation)] and shown.args == ["training"]
    assert files.load(page.model.settings_path).federation.consent == consent_digest(invitation)


def test_another_invitation_asks_for_consent_again(page: FederationPage, server: ServerFolder, invitation: Invitation, qtbot) -> None:
    page.take(invitation.to_line())
    page.agree.setChecked(True)
    agreed = page.model.settings.federation.model_copy(update={"consent": consent_digest(invitation)})
    change(page.model, federation=agreed)
    page.take(server.invitation(9444).to_line())
    settle(qtbot)
    assert page.model.settings.federation.consent == "" and not page.agree.isChecked() and not page.join.isEnabled()


def test_an_invitation_that_waits_is_shown_when_the_page_is_opened(model: AppModel, invitation: Invitation, qtbot) -> None:
    model.pending_invitation = invitation.to_line()
    widget = FederationPage(model)
    qtbot.addWidget(widget)
    widget.show()
    settle(qtbot)
    assert "Test arms" in words(widget)


def test_in_a_federation_the_invitation_cannot_be_exchanged(page: FederationPage, invitation: Invitation, qtbot) -> None:
    page.take(invitation.to_line())
    page.model._thread = object()  # type: ignore[assignment]
    page.take(invitation.model_copy(update={"federation": "Other arms"}).to_line())
    page.model._thread = None
    settle(qtbot)
    assert "Leave it first" in page.banner.why.text()
    assert page.model.settings.federation.invitation == invitation.to_line()
    assert page.model.state is NodeState.IDLE


def test_the_nodes_key_can_be_copied_for_the_coordinator(page: FederationPage, invitation: Invitation, qapp, qtbot) -> None:
    page.take(invitation.to_line())
    qtbot.waitUntil(lambda: page._key_known != "", timeout=20_000)
    assert page._key_known in words(page)
    qtbot.mouseClick(page.copy_key, Qt.MouseButton.LeftButton)
    assert qapp.clipboard().text().startswith("zk0-node:")
    assert "Copied" in page.key_hint.text()


def test_the_example_names_every_figure_and_no_recording_is_in_it(page: FederationPage, invitation: Invitation, qtbot) -> None:
    page.take(invitation.to_line())
    page._example(invitation)
    (box,) = page.findChildren(QDialog)
    (text,) = box.findChildren(QPlainTextEdit)
    assert "grad-norm" in text.toPlainText() and "330" in text.toPlainText()
    box.accept()
    settle(qtbot)


# --- the address


def told(page: FederationPage, invitation: Invitation, qtbot) -> str:
    """What the page says of the address in `invitation`."""
    page.take(invitation.to_line())
    qtbot.mouseClick(page.check, Qt.MouseButton.LeftButton)
    assert not page.check.isEnabled() and "No key and no name is sent" in page.banner.why.text()
    qtbot.waitUntil(page.check.isEnabled, timeout=20_000)
    settle(qtbot)
    assert "Nothing of yours was sent." in page.banner.why.text() and page.banner.isVisible()
    return page.banner.what.text()


@contextlib.contextmanager
def listening(server: ServerFolder | None, answer: bytes = b"") -> Iterator[int]:
    """A port on loopback: silent without a server, else with the certificate of `server` and one answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                assert server is not None
                (key,) = [p for p in server.certificate_path.parent.iterdir() if b"PRIVATE KEY" in p.read_bytes()]
                context.load_cert_chain(server.certificate_path, key)
                with plain, context.wrap_socket(plain, server_side=True) as secure:
                    secure.recv(65_536)
                    secure.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        if server is not None:
            thread.start()
        yield listener.getsockname()[1]
        if server is not None:
            thread.join(10)


ANSWER = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def test_an_address_that_answers_tells_the_time_it_took(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with listening(server, ANSWER % b"200 OK") as port:
        said = told(page, server.invitation(port), qtbot)
    assert "answers in" in said and "certificate is the invitation's" in said


def test_a_port_where_nothing_listens_is_told(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert told(page, server.invitation(port), qtbot) == f"localhost:{port} refuses the connection."


def test_another_certificate_is_told(page: FederationPage, server: ServerFolder, tmp_path: Path, qtbot) -> None:
    with listening(make_server(tmp_path / "impostor")) as port:
        assert "shows another certificate than the invitation's" in told(page, server.invitation(port), qtbot)


def test_silence_is_told(page: FederationPage, server: ServerFolder, qtbot, monkeypatch) -> None:
    whole = probing.probe
    monkeypatch.setattr(probing, "probe", lambda invitation: whole(invitation, timeout=0.2))
    with listening(None) as port:
        assert told(page, server.invitation(port), qtbot) == f"localhost:{port} does not answer."


def test_a_name_that_nobody_knows_is_told(page: FederationPage, invitation: Invitation, qtbot) -> None:
    assert told(page, invitation.model_copy(update={"host": "arms.invalid"}), qtbot) == "The name arms.invalid was not found."


def test_a_server_in_trouble_is_told(page: FederationPage, server: ServerFolder, qtbot) -> None:
    with listening(server, ANSWER % b"502 Bad Gateway") as port:
        assert "answers, but not as it should" in told(page, server.invitation(port), qtbot)


def test_a_clock_that_is_off_is_told(page: FederationPage, server: ServerFolder, qtbot) -> None:
    dated = (ANSWER % b"200 OK").replace(b"Content-Length", b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length")
    with listening(server, dated) as port:
        assert told(page, server.invitation(port), qtbot) == "This computer's clock is off."


def test_another_version_of_flower_is_told(page: FederationPage, invitation: Invitation, qtbot) -> None:
    assert "another version of Flower" in told(page, invitation.model_copy(update={"flwr_version": "9.9.0"}), qtbot)
