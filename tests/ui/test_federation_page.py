"""The federation page: an invitation is explained, consent is asked, an address that does not answer is told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, Qt, QUrl
from PySide6.QtWidgets import QPushButton

from tests.federation.coordinator_parts import make_server
from tests.ui.page_parts import drop, settle, words
from zk0desk import events
from zk0desk import settings as files
from zk0desk.federation.consent import consent_digest, never_leaves
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.messages import TRAIN_METRICS
from zk0desk.federation.node_state import NodeState
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings
from zk0desk.training import hardware
from zk0desk.training.recordings import read_recording
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.example_message import ExampleDialog
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


def ready(page: FederationPage, tmp_path: Path, qtbot) -> None:
    """All steps but the consent, once this computer was looked at."""
    policy = tmp_path / "coordinator" / "policy"
    change(page.model, recordings=Recordings(chosen=(ChosenRecording(path=tmp_path / "arm"),)), policy=Policy(folder=policy))
    qtbot.waitUntil(lambda: page.model.hardware is not None, timeout=30_000)
    settle(qtbot)


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
    settle(qtbot)
    assert page.model.settings.federation.invitation == invitation.to_line()
    page.model.update_settings(Settings(federation=Federation(key_storage="file", key_file=tmp_path / "key.pem")))
    text = QMimeData()
    text.setText(invitation.to_line())
    drop(page, text)
    settle(qtbot)
    assert page.model.settings.federation.invitation == invitation.to_line() and "Test arms" in words(page)


def test_an_invitation_from_outside_takes_the_place_of_another_only_when_a_person_says_so(
    page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot
) -> None:
    page.take(invitation.to_line())
    ready(page, tmp_path, qtbot)
    page.agree.setChecked(True)
    other = invitation.model_copy(update={"federation": "Other arms", "host": "evil.example"})
    before = page.model.settings
    path = tmp_path / "Öl und Arme.zk0invite"
    other.write(path)
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    for opened in (
        lambda: page.model.open_invitation(other.to_line()),
        lambda: page.model.open_invitation(str(path)),
        lambda: drop(page, data),
    ):
        opened()
        settle(qtbot)
        assert page.offer.isVisible() and "to Other arms at evil.example:9443" in words(page) and "nothing was sent" in words(page)
        assert page.model.settings == before and page.agree.isChecked() and not page.model.running
        qtbot.mouseClick(page.offer.findChildren(QPushButton)[1], Qt.MouseButton.LeftButton)
        assert not page.offer.isVisible() and page.model.settings == before
    page.model.open_invitation(other.to_line())
    qtbot.mouseClick(page.offer.findChildren(QPushButton)[0], Qt.MouseButton.LeftButton)
    assert page.model.settings.federation.invitation == other.to_line() and page.model.settings.federation.consent == ""
    assert not page.agree.isChecked() and not page.join.isEnabled() and not page.offer.isVisible()


def test_a_dropped_text_that_is_no_invitation_is_told(page: FederationPage) -> None:
    text = QMimeData()
    text.setText("Dear all, the meeting is at nine.")
    drop(page, text)
    assert "This is not an invitation." in page.paste_problem.text() and page.model.settings.federation.invitation == ""


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


def test_a_file_that_cannot_be_read_is_told(page: FederationPage, tmp_path: Path, qtbot) -> None:
    page.take_file(tmp_path / "none.zk0invite")
    settle(qtbot)
    assert "cannot be read" in page.paste_problem.text()


def test_join_waits_for_every_step_and_says_which_is_missing(page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot) -> None:
    page.take(invitation.to_line())
    page.agree.setChecked(True)
    assert not page.join.isEnabled()
    assert "Choose at least one recording." in page.footer.waits_for.text() and "policy" in page.footer.waits_for.text()
    ready(page, tmp_path, qtbot)
    assert page.join.isEnabled() and page.footer.waits_for.text() == ""
    page.agree.setChecked(False)
    assert not page.join.isEnabled() and "tick the box" in page.footer.waits_for.text()
    settle(qtbot)


def test_join_keeps_what_was_agreed_to_and_shows_the_training(
    page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot, monkeypatch
) -> None:
    joined: list[str] = []
    monkeypatch.setattr(AppModel, "join", lambda self: joined.append(self.settings.federation.consent))
    ready(page, tmp_path, qtbot)
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


def example(page: FederationPage, qtbot) -> ExampleDialog:
    """What the button on the page shows, once it has counted."""
    (button,) = [each for each in page.lists.leaves_card.findChildren(QPushButton) if "example" in each.accessibleName()]
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    (dialog,) = page.findChildren(ExampleDialog)
    qtbot.waitUntil(lambda: not dialog.answer.text().startswith("Counting"), timeout=30_000)
    return dialog


def test_the_example_shows_this_operators_own_figures(page: FederationPage, invitation: Invitation, demo_recording: Path, qtbot) -> None:
    change(page.model, recordings=Recordings(chosen=(ChosenRecording(path=demo_recording, leave_out=(1,)),)))
    page.take(invitation.to_line())
    qtbot.waitUntil(lambda: page._key_known != "", timeout=20_000)
    frames = read_recording(demo_recording).frames // 2
    dialog = example(page, qtbot)
    said = words(dialog)
    assert page._key_known in said and f"{frames} of 1 recording" in said
    assert "660 bytes" in said and "330 values as fp16" in said
    for name in TRAIN_METRICS:
        assert name in said
    assert f"{frames}, the frames that you train on" in said and "1 at most" in said
    assert "not known before a round; such as 0.8" in said
    assert demo_recording.name not in said
    dialog.accept()
    settle(qtbot)


def test_the_example_takes_what_training_gave_the_last_time(
    page: FederationPage, invitation: Invitation, demo_recording: Path, qtbot
) -> None:
    change(page.model, recordings=Recordings(chosen=(ChosenRecording(path=demo_recording),)))
    begun = events.RoundStarted(run="r", round=3, rounds=5, lr=1e-4, mu=0.01, steps=1, epochs=1.0, batch_size=4, frames=80)
    page.model.journal.record(begun)
    page.model.journal.record(events.RoundTrained(run="r", round=3, metrics={"grad-norm": 0.7311, "seconds": 12.5}))
    page.take(invitation.to_line())
    dialog = example(page, qtbot)
    assert "0.7311 in your latest round" in words(dialog) and "12.5 in your latest round" in words(dialog)
    dialog.accept()
    settle(qtbot)


def test_the_example_says_what_is_not_known(page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot) -> None:
    page.take(invitation.to_line())
    dialog = example(page, qtbot)
    assert "not known yet: no recording is chosen yet" in words(dialog)
    dialog.accept()
    change(page.model, recordings=Recordings(chosen=(ChosenRecording(path=tmp_path / "gone"),)))
    settle(qtbot)
    again = example(page, qtbot)
    assert "not known yet: " in words(again) and "the frames that you train on" not in words(again)
    again.accept()
    settle(qtbot)


# --- what was seen of this computer

GB = 10**9
SMALL = hardware.Computer(
    system="Linux 6.8 x86_64", cpu="Some processor", cores=2, instructions=("avx", "avx2"), memory=GB // 4, memory_free=GB // 50,
    disk_free=200 * GB, versions={"torch": "2.11.0", "lerobot": "0.6.1", "flwr": "1.41.0"},
)  # fmt: skip


def test_a_computer_that_cannot_train_blocks_join_with_reason_and_remedy(
    page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot, monkeypatch
) -> None:
    monkeypatch.setattr(hardware, "inspect_computer", lambda: SMALL)
    page.take(invitation.to_line())
    page.agree.setChecked(True)
    ready(page, tmp_path, qtbot)
    assert not page.join.isEnabled()
    said = page.footer.waits_for.text()
    assert "This computer cannot train the policy. Training needs" in said and "Use a computer with more memory, or a GPU." in said
    assert page.footer.sign.isVisible() and page.footer.sign.color == "error"
    with qtbot.waitSignal(page.model.showPage) as shown:
        qtbot.mouseClick(page.footer.mend, Qt.MouseButton.LeftButton)
    assert shown.args == ["computer"]
    # mended meanwhile: it is looked at anew when the page is shown again
    monkeypatch.setattr(hardware, "inspect_computer", lambda: replace(SMALL, memory=32 * GB, memory_free=24 * GB))
    page.hide()
    page.show()
    qtbot.waitUntil(page.join.isEnabled, timeout=30_000)
    settle(qtbot)


def test_a_computer_with_limits_warns_and_lets_join(
    page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot, monkeypatch
) -> None:
    monkeypatch.setattr(hardware, "inspect_computer", lambda: replace(SMALL, memory=32 * GB))
    page.take(invitation.to_line())
    page.agree.setChecked(True)
    ready(page, tmp_path, qtbot)
    assert page.join.isEnabled() and page.footer.sign.isVisible() and page.footer.sign.color == "warning"
    assert "with limits" in page.footer.waits_for.text() and "Close other programs before you join." in page.footer.waits_for.text()


def test_until_this_computer_was_looked_at_join_waits(page: FederationPage, invitation: Invitation, tmp_path: Path, qtbot) -> None:
    page.take(invitation.to_line())
    page.agree.setChecked(True)
    change(page.model, recordings=Recordings(chosen=(ChosenRecording(path=tmp_path / "arm"),)))
    change(page.model, policy=Policy(folder=tmp_path / "coordinator" / "policy"))
    assert not page.join.isEnabled() and page.footer.waits_for.text() == "This computer is being looked at."
    qtbot.waitUntil(page.join.isEnabled, timeout=30_000)
    settle(qtbot)


def test_in_a_federation_the_page_says_what_leaving_does(page: FederationPage, invitation: Invitation, qtbot) -> None:
    page.take(invitation.to_line())
    qtbot.waitUntil(lambda: page._key_known != "", timeout=20_000)
    assert "to be admitted by the coordinator" in words(page) and page.key_hint.isVisible()
    page.model._thread = object()  # type: ignore[assignment]
    for state, what in ((NodeState.TRAINING, "Training"), (NodeState.RECONNECTING, "The SuperLink does not answer.")):
        page.model.take([events.NodeStateChanged(state=state, what=what, why="A reason.", then="It goes on.")])
        said = words(page)
        assert f"{what.rstrip('.')}. A reason. It goes on." in said
        assert "Leaving stops at once" in said and "to be admitted" not in said and not page.key_hint.isVisible()
        assert page.footer.leave.isVisible() and not page.join.isVisible() and page.footer.leave.width() < 300
    page.model._thread = None
    settle(qtbot)
