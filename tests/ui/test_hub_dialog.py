"""From the Hub, in the window: what it would take, progress, pause and going on, errors in words, and the token."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLineEdit

from tests.federation.hub_parts import BASE, CUBES, TOKEN, WEIGHTS, memory_keyring, nothing_chosen, the_hub
from tests.federation.hub_stand_in import Answer, HubStandIn
from tests.federation.node_parts import invitation
from tests.ui.page_parts import settle, words
from zk0desk import folders
from zk0desk.federation import hub
from zk0desk.federation.hub_token import read_token
from zk0desk.settings import Federation, Recordings, Settings
from zk0desk.ui.hub_fetch import Rate
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.computer import ComputerPage
from zk0desk.ui.pages.federation import FederationPage
from zk0desk.ui.pages.hub_dialog import HubDialog
from zk0desk.ui.pages.recordings import RecordingsPage

__all__ = ["memory_keyring", "nothing_chosen", "the_hub"]


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


def open_dialog(qtbot, kind: hub.Kind = "policy", name: str = BASE) -> HubDialog:
    dialog = HubDialog(kind, name)
    qtbot.addWidget(dialog, before_close_func=lambda each: each._work.end())
    dialog.show()
    settle(qtbot)
    return dialog


def press(qtbot, button) -> None:
    qtbot.waitUntil(button.isEnabled)
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def look(qtbot, dialog: HubDialog) -> None:
    press(qtbot, dialog.go)
    qtbot.waitUntil(lambda: not dialog._work.busy and dialog.go.isEnabled(), timeout=20_000)


def in_the_middle(the_hub: HubStandIn, qtbot) -> HubDialog:
    """A dialog that has fetched a part."""
    dialog = open_dialog(qtbot)
    look(qtbot, dialog)
    the_hub.slow = 0.2
    press(qtbot, dialog.go)
    qtbot.waitUntil(lambda: dialog.progress.value() > 100, timeout=20_000)
    return dialog


def failed(qtbot, dialog: HubDialog) -> str:
    qtbot.waitUntil(dialog.banner.isVisible, timeout=20_000)
    return f"{dialog.banner.what.text()} {dialog.banner.why.text()}"


def test_what_it_takes_is_told_before_anything_is_fetched(the_hub: HubStandIn, memory_keyring: Any, qtbot) -> None:
    dialog = open_dialog(qtbot)
    look(qtbot, dialog)
    assert (
        "It takes 0.2 MB in" in dialog.said.text() and "is free there" in dialog.said.text() and "Commit aaaaaaaaaaaa" in dialog.said.text()
    )
    assert dialog.go.text() == "&Fetch it" and not the_hub.asked_for("model.safetensors")
    dialog.name.setText("lab/other")
    dialog.name.textEdited.emit("lab/other")
    assert dialog.go.text() == "Loo&k it up" and not dialog.said.text(), "another name is another question"


def test_a_fetched_policy_is_told_and_used_at_once_the_next_time(the_hub: HubStandIn, memory_keyring: Any, qtbot) -> None:
    dialog = open_dialog(qtbot)
    look(qtbot, dialog)
    with qtbot.waitSignal(dialog.fetched, timeout=20_000) as told:
        press(qtbot, dialog.go)
    kind, folder = told.args
    assert kind == "policy" and (folder / "config.json").is_file() and not dialog.isVisible()
    again = open_dialog(qtbot)
    look(qtbot, again)
    assert "already" in again.said.text() and again.go.text() == "&Use it"
    with qtbot.waitSignal(again.fetched, timeout=20_000) as told:
        press(qtbot, again.go)
    assert told.args[1] == folder


def test_a_fetch_is_paused_in_the_middle_and_gone_on_with(the_hub: HubStandIn, memory_keyring: Any, qtbot) -> None:
    dialog = in_the_middle(the_hub, qtbot)
    assert " of 0.2 MB" in dialog.said.text()
    assert dialog.pause.isVisible() and not dialog.name.isEnabled()
    press(qtbot, dialog.pause)
    qtbot.waitUntil(lambda: dialog.said.text().startswith("Paused."), timeout=20_000)
    assert list(folders.policies_folder().rglob("*.incomplete")) and dialog.go.text() == "&Go on"
    the_hub.slow = 0.0
    asked = len(the_hub.requests)
    with qtbot.waitSignal(dialog.fetched, timeout=20_000) as told:
        press(qtbot, dialog.go)
    assert (told.args[1] / "model.safetensors").read_bytes() == WEIGHTS
    assert any(request.range for request in the_hub.requests[asked:]), "the rest alone was asked for"


def test_what_came_is_discarded_on_request(the_hub: HubStandIn, memory_keyring: Any, qtbot) -> None:
    dialog = in_the_middle(the_hub, qtbot)
    press(qtbot, dialog.pause)
    qtbot.waitUntil(dialog.cancel.isVisible, timeout=20_000)
    press(qtbot, dialog.cancel)
    assert not list(folders.policies_folder().rglob("*.incomplete")) and "removed" in dialog.said.text()
    assert dialog.go.text() == "Loo&k it up"


def test_closing_in_the_middle_stops_and_keeps_what_came(the_hub: HubStandIn, memory_keyring: Any, qtbot) -> None:
    dialog = in_the_middle(the_hub, qtbot)
    press(qtbot, dialog.close_button)
    assert not dialog.isVisible() and not [each for each in threading.enumerate() if each.name == "zk0desk-hub"]
    assert list(folders.policies_folder().rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {}, "shows no policy lab/base without a token"),
        (403, {"X-Error-Code": "GatedRepo"}, "is given to those who agreed to its conditions"),
        (403, {}, "does not let you read lab/base"),
        (404, {"X-Error-Code": "RepoNotFound"}, "knows no policy lab/base"),
        (429, {"Retry-After": "600"}, "too many requests came from here. It gives nothing for 10 minutes"),
        (503, {"Retry-After": "600"}, "has trouble at the moment"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(
    the_hub: HubStandIn, memory_keyring: Any, qtbot, status: int, headers: dict[str, str], said: str
) -> None:
    the_hub.fail("/revision/", 99, status, headers)
    dialog = open_dialog(qtbot)
    press(qtbot, dialog.go)
    assert said in failed(qtbot, dialog)
    assert dialog.token.field.isVisible() == (status in (401, 403, 429)), "a token may be the remedy"
    assert dialog.go.isEnabled() and dialog.name.isEnabled()


def test_offline_and_a_full_disk_are_sentences(the_hub: HubStandIn, memory_keyring: Any, qtbot, monkeypatch) -> None:
    monkeypatch.setattr(hub, "RESERVE", 2**60)
    dialog = open_dialog(qtbot)
    press(qtbot, dialog.go)
    assert "There is not enough space" in failed(qtbot, dialog)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ZK0DESK_QUIET", "")
    press(qtbot, dialog.go)
    qtbot.waitUntil(lambda: "HF_HUB_OFFLINE" in failed(qtbot, dialog), timeout=20_000)


def test_a_file_that_fails_in_the_middle_is_told_and_gone_on_with(the_hub: HubStandIn, memory_keyring: Any, qtbot) -> None:
    dialog = open_dialog(qtbot)
    look(qtbot, dialog)

    def gone(answer: Answer) -> bool:
        if not answer.is_store:
            return False
        answer.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return True

    the_hub.interfere = gone
    press(qtbot, dialog.go)
    assert "A file of lab/base is gone" in failed(qtbot, dialog) and dialog.go.text() == "&Go on"
    the_hub.interfere = lambda _answer: False
    with qtbot.waitSignal(dialog.fetched, timeout=20_000):
        press(qtbot, dialog.go)


def test_a_token_goes_into_the_keyring_and_out_of_the_field(the_hub: HubStandIn, memory_keyring: Any, qtbot) -> None:
    dialog = open_dialog(qtbot)
    token = dialog.token
    assert "No token is in the keyring" in token.said.text()
    press(qtbot, token.log_in)
    assert token.field.echoMode() == QLineEdit.EchoMode.Password
    token.field.setText(TOKEN)
    press(qtbot, token.keep)
    assert token.field.text() == ""
    settle(qtbot)
    qtbot.waitUntil(lambda: "A token is in the keyring" in token.said.text())
    assert read_token() == TOKEN and TOKEN not in words(dialog) and not token.field.isVisible()
    press(qtbot, token.log_out)
    qtbot.waitUntil(lambda: "No token" in token.said.text())
    assert read_token() is None
    press(qtbot, token.log_in)
    token.field.setText("no token at all")
    press(qtbot, token.keep)
    qtbot.waitUntil(lambda: "That is no token." in token.said.text())


def test_the_recordings_page_shows_a_recording_that_came(the_hub: HubStandIn, memory_keyring: Any, model: AppModel, qtbot) -> None:
    model.update_settings(Settings(recordings=Recordings()))
    page = RecordingsPage(model)
    qtbot.addWidget(page)
    page.show()
    qtbot.waitExposed(page)
    settle(qtbot)
    press(qtbot, page.from_hub)
    (dialog,) = page.findChildren(HubDialog)
    dialog.name.setText(CUBES)
    dialog.name.textEdited.emit(CUBES)
    look(qtbot, dialog)
    press(qtbot, dialog.go)
    qtbot.waitUntil(lambda: any(path.name == "cubes" for path in page.results), timeout=20_000)


def test_the_computer_page_takes_a_policy_that_came(the_hub: HubStandIn, memory_keyring: Any, model: AppModel, qtbot) -> None:
    page = ComputerPage(model)
    qtbot.addWidget(page)
    page.show()
    qtbot.waitExposed(page)
    qtbot.waitUntil(lambda: page.computer is not None, timeout=60_000)
    press(qtbot, page.from_hub)
    (dialog,) = page.findChildren(HubDialog)
    dialog.name.setText(BASE)
    dialog.name.textEdited.emit(BASE)
    look(qtbot, dialog)
    press(qtbot, dialog.go)
    qtbot.waitUntil(lambda: model.settings.policy.folder is not None, timeout=20_000)
    assert model.settings.policy.folder is not None and model.settings.policy.folder.is_relative_to(folders.policies_folder())
    settle(qtbot)


@pytest.mark.parametrize(
    ("named", "name", "revision"), [(f"{BASE}@{'a' * 40}", BASE, "a" * 40), (BASE, BASE, "main"), ("my-policy", "", "main")]
)
def test_the_federation_page_fetches_the_policy_that_the_invitation_names(
    model: AppModel, memory_keyring: Any, qtbot, named: str, name: str, revision: str
) -> None:
    model.update_settings(Settings(federation=Federation(invitation=invitation(policy_name=named).to_line(), key_storage="file")))
    page = FederationPage(model)
    qtbot.addWidget(page)
    page.show()
    qtbot.waitExposed(page)
    settle(qtbot)
    press(qtbot, page.fetch)
    (dialog,) = page.findChildren(HubDialog)
    assert (dialog.kind.value, dialog.name.text(), dialog.revision.text()) == ("policy", name, revision)
    settle(qtbot)
    dialog.reject()


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert rate.add(0) == 0
    for second in range(1, 21):
        now[0] = float(second)
        last = rate.add(second * 100 if second <= 10 else 1000 + (second - 10) * 10)
    assert last == pytest.approx(10), "not that of the fast beginning"
