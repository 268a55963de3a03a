"""What starts this zk0desk, in each form in which it comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zk0desk.desktop.launcher import Launcher, launcher, moved_from
from zk0desk.engine import artefact
from zk0desk.engine.artefact import Artefact


def packaged_as(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    monkeypatch.setattr(artefact, "artefact", lambda: Artefact("0.1.0", format, True))


def test_a_checkout_is_started_by_the_script_of_its_environment(place: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, script = place / "python", place / "zk0desk-window"
    monkeypatch.setattr(sys, "executable", str(python))
    assert launcher() == Launcher((str(python), "-m", "zk0desk"))
    script.touch()
    assert launcher() == Launcher((str(script),))
    monkeypatch.setenv("APPIMAGE", "/somebody/elses.AppImage")
    monkeypatch.setenv("ZK0DESK_LAUNCHER", str(script))
    assert launcher() == Launcher((str(script),)), "a terminal in an AppImage passes its variables on"


def test_an_appimage_is_started_by_its_own_file_and_not_by_where_it_is_mounted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged_as(monkeypatch, "appimage")
    file, mounted = place / "zk0desk-0.1.0.AppImage", place / "mount" / "AppRun"
    file.touch()
    monkeypatch.setenv("APPIMAGE", str(file))
    monkeypatch.setenv("ZK0DESK_LAUNCHER", str(mounted))
    assert launcher() == Launcher((str(file),), "appimage") and launcher().adds_to_menu


def test_every_other_artefact_is_started_by_its_launcher(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged_as(monkeypatch, "tar")
    script = place / "zk0desk"
    script.touch()
    monkeypatch.setenv("APPIMAGE", "/somebody/elses.AppImage")
    monkeypatch.setenv("ZK0DESK_LAUNCHER", str(script))
    assert launcher() == Launcher((str(script),), "tar") and launcher().adds_to_menu
    packaged_as(monkeypatch, "deb")
    assert not launcher().adds_to_menu, "the package brings its entry"


def test_an_entry_follows_only_where_its_program_is_gone(place: Path) -> None:
    there = place / "zk0desk"
    there.touch()
    assert not moved_from([], ["/new/zk0desk"])
    assert not moved_from([str(there), "--background"], ["/new/zk0desk"])
    assert moved_from(["/gone/zk0desk", "--background"], ["/new/zk0desk"])
    assert not moved_from(["/new/zk0desk", "--background"], ["/new/zk0desk"])


def test_the_command_line_opens_the_window_for_what_a_desktop_hands_over(tmp_path: Path) -> None:
    """`--background`, a link, a file and a file: URL are the window's; everything else is a command."""
    program = """
import sys
from zk0desk import cli
cli._open_window = lambda given: print("window", given) or 0
cli._command_line = lambda given: print("command", given) or 0
sys.exit(cli.main(sys.argv[1:]))
"""
    for given, way in (
        (["--background"], "window"),
        (["ZK0DESK:join?a"], "window"),
        (["file:///a%20b/C.ZK0INVITE"], "window"),
        ([], "window"),
        (["demo"], "command ['demo']"),
        (["--remove-data", "--yes"], "command ['data', '--remove', '--yes']"),
    ):
        done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith(way), (given, done.stdout, done.stderr)
