"""The start with the computer, on three systems: what is written can be read back, and a moved zk0desk is followed."""

from __future__ import annotations

import plistlib
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.desktop import entry, menu, moved
from zk0desk.desktop.autostart import (
    AutostartNotChanged,
    LinuxAutostart,
    MacAutostart,
    WindowsAutostart,
    arguments_of,
    switch_off,
    switch_on,
)
from zk0desk.desktop.launcher import Launcher


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str | bytes]:
    """What Windows' registry keeps, by key and name: the module `winreg` is there on Windows alone."""
    values: dict[tuple[str, str], str | bytes] = {}

    class Key(str):
        def __enter__(self) -> Key:
            return self

        def __exit__(self, *_error: object) -> None:
            return

    def read(key: Key, name: str) -> tuple[str | bytes, int]:
        if (str(key), name) not in values:
            raise FileNotFoundError(name)
        return values[str(key), name], 1

    def delete(key: Key, name: str) -> None:
        if values.pop((str(key), name), None) is None:
            raise FileNotFoundError(name)

    module = types.ModuleType("winreg")
    module.__dict__.update(HKEY_CURRENT_USER=1, REG_SZ=1, KEY_SET_VALUE=2, QueryValueEx=read, DeleteValue=delete)
    module.__dict__.update(OpenKey=lambda _user, path, *_more: Key(path), CreateKey=lambda _user, path: Key(path))
    module.__dict__["SetValueEx"] = lambda key, name, _zero, _kind, value: values.__setitem__((str(key), name), value)
    monkeypatch.setitem(sys.modules, "winreg", module)
    return values


@pytest.mark.parametrize("kind", [LinuxAutostart, MacAutostart, WindowsAutostart])
def test_the_entry_is_written_read_back_and_removed(kind: type, place: Path, registry: dict[tuple[str, str], str | bytes]) -> None:
    entry_of = WindowsAutostart() if kind is WindowsAutostart else kind(place / "entries")
    assert entry_of.command() == []
    switch_on(entry_of, [str(place / "zk0desk")])
    assert entry_of.command() == [str(place / "zk0desk"), "--background"]
    switch_off(entry_of)
    assert entry_of.command() == []
    switch_off(entry_of)


def test_windows_minds_what_its_task_manager_switched_off(registry: dict[tuple[str, str], str | bytes]) -> None:
    entry_of = WindowsAutostart()
    switch_on(entry_of, [r"C:\Users\Jürgen Öl\zk0desk.exe"])
    registry[entry_of.APPROVED, entry_of.NAME] = bytes([3, 0, 0, 0])
    assert entry_of.command() == []
    switch_on(entry_of, [r"C:\Users\Jürgen Öl\zk0desk.exe"])
    assert entry_of.command() == [r"C:\Users\Jürgen Öl\zk0desk.exe", "--background"]


def test_linux_starts_no_program_that_is_gone_and_minds_what_the_desktop_switched_off(place: Path) -> None:
    entry_of = LinuxAutostart(place)
    switch_on(entry_of, [str(place / "zk0desk")])
    path = Path(entry_of.where)
    assert entry.keys_of(path)["TryExec"] == entry.escaped(str(place / "zk0desk"))
    path.write_text(path.read_text().replace("X-GNOME-Autostart-enabled=true", "X-GNOME-Autostart-enabled=false"))
    assert entry_of.command() == []


def test_macos_runs_it_once_at_login_where_there_is_a_screen(place: Path) -> None:
    entry_of = MacAutostart(place)
    switch_on(entry_of, ["/Applications/zk0desk.app/Contents/MacOS/zk0desk"])
    data = plistlib.loads(Path(entry_of.where).read_bytes())
    assert data["RunAtLoad"] is True and data["LimitLoadToSessionType"] == "Aqua" and "KeepAlive" not in data
    assert data["Label"] == Path(entry_of.where).stem


@given(st.lists(st.text(st.characters(blacklist_characters="\0\r\n", blacklist_categories=["Cs"]), max_size=30), min_size=1, max_size=4))
def test_a_command_line_of_windows_is_read_back_as_it_was(command: list[str]) -> None:
    assert arguments_of(subprocess.list2cmdline(command)) == command


def test_a_folder_that_cannot_be_written_is_told(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(AutostartNotChanged, match="could not be changed"):
        switch_on(LinuxAutostart(place / "file"), ["/opt/zk0desk"])


# --- after zk0desk was moved


def launcher_in(folder: Path) -> Launcher:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zk0desk").touch()
    return Launcher((str(folder / "zk0desk"),), "tar")


def test_a_moved_zk0desk_gets_its_entries_back(place: Path) -> None:
    before, start = launcher_in(place / "old"), LinuxAutostart()
    switch_on(start, before.command)
    menu.install(before.command)
    assert moved.follow_the_move(before, start) == []
    (place / "old").rename(place / "new")
    now = launcher_in(place / "new")
    assert moved.follow_the_move(now, start) == ["the start with the computer", "the menu entry"]
    assert start.command() == [*now.command, "--background"] and menu.started() == list(now.command)
    assert moved.follow_the_move(now, start) == []


def test_a_second_copy_takes_no_entry_from_one_that_is_still_there(place: Path) -> None:
    first, start = launcher_in(place / "first"), LinuxAutostart()
    switch_on(start, first.command)
    menu.install(first.command)
    assert moved.follow_the_move(launcher_in(place / "second"), start) == []
    assert start.command()[0] == first.command[0] == menu.started()[0]


def test_nothing_is_made_that_a_person_did_not_ask_for(place: Path) -> None:
    start = LinuxAutostart()
    assert moved.follow_the_move(launcher_in(place), start) == []
    assert not Path(start.where).exists() and not menu.entry_file().exists()
