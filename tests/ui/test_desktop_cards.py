"""Settings' cards about this computer: start with it, be among its applications, back up the identity, remove all data."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from tests.ui.page_parts import settle, words
from zk0desk import folders
from zk0desk.desktop import launcher as launchers
from zk0desk.desktop import menu
from zk0desk.desktop.autostart import LinuxAutostart
from zk0desk.desktop.launcher import Launcher
from zk0desk.federation.credentials import load_or_make_key
from zk0desk.settings import Federation, Settings, Updates
from zk0desk.ui.keyring_banner import KeyringBanner
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.identity_dialog import BackupDialog, RestoreDialog
from zk0desk.ui.pages.remove_data_dialog import RemoveDataDialog
from zk0desk.ui.pages.settings_page import SettingsPage
from zk0desk.ui.update_watch import DAY_S, LOOKED

PASSPHRASE = "four words ärm 机器人"


@pytest.fixture
def model(tmp_path: Path, qapp, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppModel]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data home"))
    made = AppModel()
    made.update_settings(Settings(federation=Federation(key_storage="file")))
    yield made
    made.close()


@pytest.fixture
def page(model: AppModel, qtbot) -> SettingsPage:
    widget = SettingsPage(model)
    qtbot.addWidget(widget)
    widget.resize(804, 580)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


def from_(monkeypatch: pytest.MonkeyPatch, place: Path, format: str = "appimage") -> Launcher:
    place.mkdir(exist_ok=True)
    (place / "zk0desk").touch()
    made = Launcher((str(place / "zk0desk"),), format)
    monkeypatch.setattr(launchers, "launcher", lambda: made)
    return made


def press(qtbot, button) -> None:
    qtbot.waitUntil(lambda: button.height() > 10)
    assert button.isVisible() and button.isEnabled(), button.text()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


# --- start with the computer, and the menu


def test_the_start_with_the_computer_is_switched_on_and_off(page: SettingsPage, qtbot, tmp_path: Path, monkeypatch) -> None:
    ours = from_(monkeypatch, tmp_path / "Röbot Ärm")
    start = page.desktop.start
    assert not start.isChecked()
    start.click()
    assert LinuxAutostart().command() == [*ours.command, "--background"] and start.isChecked()
    LinuxAutostart().remove()  # with the desktop's own tool
    page.desktop.refresh()
    assert not start.isChecked()
    start.click()
    start.click()
    assert LinuxAutostart().command() == [] and not start.isChecked()


def test_another_copy_that_starts_is_named_and_can_be_replaced(page: SettingsPage, qtbot, tmp_path: Path, monkeypatch) -> None:
    first = from_(monkeypatch, tmp_path / "first")
    page.desktop.start.click()
    second = from_(monkeypatch, tmp_path / "second")
    page.desktop.refresh()
    assert page.desktop.start.isChecked() and f"starts another zk0desk: {first.command[0]}" in page.desktop.other.text()
    press(qtbot, page.desktop.start_this)
    assert LinuxAutostart().command()[0] == second.command[0] and not page.desktop.other.isVisible()


def test_it_is_added_to_the_applications_and_taken_out(page: SettingsPage, qtbot, tmp_path: Path, monkeypatch) -> None:
    ours = from_(monkeypatch, tmp_path / "place")
    page.desktop.refresh()
    press(qtbot, page.desktop.add)
    settle(qtbot)
    assert menu.started() == list(ours.command) and "is among your applications" in words(page.desktop)
    assert not page.desktop.add.isVisible()
    press(qtbot, page.desktop.take_out)
    settle(qtbot)
    assert menu.started() == [] and page.desktop.add.isVisible()


def test_a_package_has_its_own_entry(page: SettingsPage, tmp_path: Path, monkeypatch) -> None:
    from_(monkeypatch, tmp_path / "usr", "deb")
    page.desktop.refresh()
    assert not page.desktop.add.isVisible() and not page.desktop.menu_state.isVisible() and page.desktop.start.isVisible()


def test_what_cannot_be_written_is_told_and_the_box_says_how_it_is(page: SettingsPage, tmp_path: Path, monkeypatch) -> None:
    from_(monkeypatch, tmp_path / "place")
    (tmp_path / "config home").write_text("a file in the way")
    page.desktop.start.click()
    assert "could not be changed" in page.desktop.problem.text() and not page.desktop.start.isChecked()


# --- identity


def test_the_identity_is_backed_up_and_put_in_again(page: SettingsPage, model: AppModel, qtbot, tmp_path: Path) -> None:
    key = load_or_make_key(model.settings.federation)
    page.data.back_up.click()
    dialog = page.data.findChild(BackupDialog)
    assert not dialog.go.isEnabled()
    dialog.file.setText(str(tmp_path / "backup.pem"))
    for field, text in ((dialog.passphrase, PASSPHRASE), (dialog.again, "something else")):
        field.setText(text)
        field.textEdited.emit(text)
    assert not dialog.go.isEnabled(), "the second time it is another one"
    dialog.again.setText(PASSPHRASE)
    dialog.again.textEdited.emit(PASSPHRASE)
    press(qtbot, dialog.go)
    settle(qtbot)
    assert key.fingerprint in page.data.said.text()
    default = folders.settings_file().parent / "node-key.pem"
    default.unlink()
    other = load_or_make_key(model.settings.federation)
    page.data.put_in.click()
    restore = page.data.findChild(RestoreDialog)
    for field, text in ((restore.file, str(tmp_path / "backup.pem")), (restore.passphrase, PASSPHRASE)):
        field.setText(text)
        field.textEdited.emit(text)
    press(qtbot, restore.go)
    settle(qtbot)
    assert f"another identity already: {other.fingerprint}" in restore.problem.text()
    restore.replace.click()
    press(qtbot, restore.go)
    settle(qtbot)
    assert load_or_make_key(model.settings.federation).fingerprint == key.fingerprint and key.fingerprint in page.data.said.text()


# --- all data


def test_sizes_come_first_and_nothing_goes_without_the_box(page: SettingsPage, model: AppModel, qtbot) -> None:
    load_or_make_key(model.settings.federation)
    _ = model.journal
    page.data.remove.click()
    dialog = page.data.findChild(RemoveDataDialog)
    settle(qtbot)
    said = words(dialog)
    assert "Settings" in said and "KB" in said and "Your recordings are not among it" in said
    assert "this node's identity" in said and dialog.back_up.isVisible() and not dialog.go.isEnabled()
    press(qtbot, dialog.close_button)
    assert folders.settings_file().exists()


def test_all_of_it_goes_and_the_window_ends_without_writing_again(page: SettingsPage, model: AppModel, qtbot) -> None:
    load_or_make_key(model.settings.federation)
    _ = model.journal
    model.window_state.keep(page="settings")
    page.data.remove.click()
    dialog = page.data.findChild(RemoveDataDialog)
    settle(qtbot)
    dialog.agree.click()
    press(qtbot, dialog.go)
    settle(qtbot)
    assert "Nothing of zk0desk's data is left." in words(dialog)
    with qtbot.waitSignal(model.quitAsked):
        press(qtbot, dialog.close_button)
    model.window_state.keep(page="training")
    home = folders.settings_file().parent.parent
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_nothing_is_removed_under_a_running_node(page: SettingsPage, model: AppModel) -> None:
    model._thread = object()  # type: ignore[assignment]
    page.data.remove.click()
    assert "Stop it first" in page.data.said.text() and page.data.findChild(RemoveDataDialog) is None
    model._thread = None


# --- the keyring


def test_a_keyring_that_cannot_be_used_is_told_and_can_be_checked_again(model: AppModel, qtbot) -> None:
    banner = KeyringBanner(model)
    qtbot.addWidget(banner)
    assert banner.isHidden()
    model.update_settings(Settings())
    with qtbot.waitSignal(model.keyringChecked, timeout=20_000):
        model.check_keyring()
    assert banner.isVisible() and "cannot keep secrets" in banner.what.text() and "Key storage in Settings" in banner.why.text()
    with qtbot.waitSignal(model.showPage) as asked:
        press(qtbot, banner.elsewhere)
    assert asked.args == ["settings"]
    with qtbot.waitSignal(model.keyringChecked, timeout=20_000):
        press(qtbot, banner.again)
    assert banner.isVisible()
    with qtbot.waitSignal(model.keyringChecked, timeout=20_000):
        model.update_settings(Settings(federation=Federation(key_storage="file")))
    assert banner.isHidden(), "a key in a file needs no keyring"


# --- updates


def test_updates_are_looked_for_once_a_day_where_the_person_said_so_and_never_while_a_node_runs(model: AppModel, monkeypatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(model.updates, "_look", lambda *, tell: asked.append(tell))
    model.updates.due()
    assert asked == [], "nobody said so"
    model.update_settings(model.settings.model_copy(update={"updates": Updates(look_daily=True)}))
    model._thread = object()  # type: ignore[assignment]
    model.updates.due()
    assert asked == [], "a node runs"
    model._thread = None
    model.window_state.keep(**{LOOKED: time.time() - 60})
    model.updates.due()
    assert asked == [], "a minute ago"
    model.window_state.keep(**{LOOKED: time.time() - DAY_S - 1})
    model.updates.due()
    assert asked == [False]
    model.updates._timer.stop()


# --- beginning anew

ANEW = """
import sys
from zk0desk.desktop import launcher
from zk0desk.ui import main
launcher.launcher = lambda: launcher.Launcher((sys.argv[1],))
sys.exit(main.run([], on_ready=lambda window: window.model.restartAsked.emit()))
"""


def test_a_restart_begins_anew_when_the_window_is_gone(tmp_path: Path, monkeypatch, checkout: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    began = tmp_path / "began"
    subprocess.run(["mkfifo", str(began)], check=True)
    launcher = tmp_path / "zk0 desk"
    launcher.write_text(f"#!/bin/sh\necho again >'{began}'\n")
    launcher.chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", ANEW, str(launcher)], cwd=checkout) as first:
        assert began.read_text() == "again\n"
        assert first.wait(timeout=30) == 0
