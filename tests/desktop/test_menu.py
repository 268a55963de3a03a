"""The menu entry: a command in any folder, what a desktop reads of it, and taking all of it out again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.desktop import entry, menu, opening
from zk0desk.desktop.menu import MenuNotChanged

ARGUMENT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=40)


@given(st.lists(ARGUMENT.filter(str.strip), min_size=1, max_size=4))
def test_a_command_is_read_back_from_exec_as_it_was(command: list[str]) -> None:
    assert entry.command_in(f"{entry.exec_value(command)} %u") == command


def test_exec_is_quoted_as_the_specification_says() -> None:
    assert entry.exec_value(["/a b/zk0desk", "--background"]) == '"/a b/zk0desk" --background'
    assert entry.exec_value(['/a"$`\\/z', "1 %"]) == '"/a\\\\"\\\\$\\\\`\\\\\\\\/z" "1 %%"'


def test_the_entry_starts_the_command_from_any_folder_and_opens_links_and_invitations(place: Path) -> None:
    launcher = place / "zk0desk"
    launcher.touch()
    menu.install([str(launcher)])
    keys = entry.keys_of(menu.entry_file())
    assert menu.started() == [str(launcher)]
    assert keys["Exec"].endswith(" %u") and "x-scheme-handler/zk0desk" in keys["MimeType"] and keys["Icon"] == menu.ID
    for name in (f"icons/hicolor/512x512/apps/{menu.ID}.png", f"mime/packages/{menu.ID}.xml", f"metainfo/{menu.ID}.metainfo.xml"):
        assert (menu.data_home() / name).stat().st_size > 0
    assert menu.uninstall() and not menu.uninstall()
    assert not [path for path in menu.data_home().rglob("*") if "zk0" in path.name and path.is_file()]


@pytest.mark.skipif(shutil.which("desktop-file-validate") is None, reason="desktop-file-validate is not installed")
def test_the_entry_is_valid_with_a_command_in_any_folder(place: Path) -> None:
    menu.install([str(place / "zk0desk")])
    done = subprocess.run(["desktop-file-validate", str(menu.entry_file())], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and not done.stdout, done.stdout


@pytest.mark.skipif(shutil.which("gio") is None, reason="gio is not installed")
def test_a_desktop_really_starts_it_with_the_file_that_was_opened(place: Path) -> None:
    """GLib's own parser, as GNOME and others use it."""
    launcher, said, opened = place / "zk0desk", place / "said", place / "Einladung für Öl.zk0invite"
    launcher.write_text('#!/bin/sh\nprintf %s "$1" >"$SAID"\n')
    launcher.chmod(0o755)
    opened.touch()
    os.mkfifo(said)
    menu.install([str(launcher)])
    with subprocess.Popen(["gio", "launch", str(menu.entry_file()), str(opened)], env={**os.environ, "SAID": str(said)}) as gio:
        handed = said.read_text()
        assert gio.wait(timeout=30) == 0
    assert opening.opened(handed) == str(opened)


def test_a_folder_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(MenuNotChanged, match="could not be put into the menu"):
        menu.install(["/opt/zk0desk"])


def test_it_is_taken_out_with_any_python_after_the_environment_is_gone(checkout: Path, place: Path) -> None:
    menu.install([str(place / "zk0desk")])
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    done = subprocess.run(
        [python, "-S", "-m", "zk0desk.desktop.menu", "uninstall"], cwd=checkout, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not menu.entry_file().exists() and "out of the menu" in done.stdout
