"""Start with the computer: the entry by which the system starts zk0desk in the background when this user logs in.

The entry itself is the setting: a person may also take it out with the system's own tools. It is never made by a package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from zk0desk import folders
from zk0desk.desktop import entry
from zk0desk.errors import OperatorError

ID = "org.zk0.Desk"
BACKGROUND = "--background"
"""Starts without showing the window."""


class AutostartNotChanged(OperatorError):
    """The entry cannot be written or removed."""

    code = "autostart-not-changed"


class Autostart(Protocol):
    """The entry of one system. `where` tells a person where it is."""

    where: str

    def command(self) -> list[str]:
        """The program and arguments that start at login; empty when nothing does."""

    def write(self, command: Sequence[str]) -> None:
        """Start `command` at login from now on. OSError when that cannot be written."""

    def remove(self) -> None:
        """Start nothing any more."""


class LinuxAutostart:
    """A desktop entry in $XDG_CONFIG_HOME/autostart (freedesktop.org, Desktop Application Autostart Specification)."""

    def __init__(self, folder: Path | None = None) -> None:
        given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        self._path = (folder or (given if given.is_absolute() else Path.home() / ".config") / "autostart") / f"{ID}.desktop"
        self.where = str(self._path)

    def command(self) -> list[str]:
        """Empty, too, where a desktop's tool switched the entry off."""
        keys = entry.keys_of(self._path)
        off = keys.get("Hidden") == "true" or keys.get("X-GNOME-Autostart-enabled") == "false"
        return [] if off else entry.command_in(keys.get("Exec", ""))

    def write(self, command: Sequence[str]) -> None:
        """A program that is gone is not started (`TryExec`)."""
        lines = [
            "[Desktop Entry]",
            "Type=Application",
            "Version=1.4",
            "Name=zk0desk",
            "Comment=Starts zk0desk in the background",
            f"TryExec={entry.escaped(command[0])}",
            f"Exec={entry.exec_value(command)}",
            f"Icon={ID}",
            "Terminal=false",
            "StartupNotify=false",
            "X-GNOME-Autostart-enabled=true",
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        folders.write_atomically(self._path, "\n".join(lines) + "\n", 0o644)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class WindowsAutostart:
    """A value of this user's key `Run` in the registry. Windows notes beside it what a person switched off in its task manager."""

    KEY = r"Software\Microsoft\Windows\CurrentVersion\Run"
    APPROVED = r"Software\Microsoft\Windows\CurrentVersion\Explorer\StartupApproved\Run"
    NAME = "zk0desk"
    where = f"HKEY_CURRENT_USER\\{KEY}\\{NAME}"

    def command(self) -> list[str]:
        value, approved = self._read(self.KEY), self._read(self.APPROVED)
        off = isinstance(approved, bytes) and bool(approved) and approved[0] % 2 == 1
        return arguments_of(value) if isinstance(value, str) and not off else []

    def _read(self, path: str) -> object:
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, path) as key:  # type: ignore[attr-defined]
                value: object = winreg.QueryValueEx(key, self.NAME)[0]  # type: ignore[attr-defined]
        except FileNotFoundError:
            return None
        return value

    def write(self, command: Sequence[str]) -> None:
        import winreg

        self._delete(self.APPROVED)
        with winreg.CreateKey(winreg.HKEY_CURRENT_USER, self.KEY) as key:  # type: ignore[attr-defined]
            winreg.SetValueEx(key, self.NAME, 0, winreg.REG_SZ, subprocess.list2cmdline(command))  # type: ignore[attr-defined]

    def remove(self) -> None:
        self._delete(self.KEY)

    def _delete(self, path: str) -> None:
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, path, 0, winreg.KEY_SET_VALUE) as key:  # type: ignore[attr-defined]
                winreg.DeleteValue(key, self.NAME)  # type: ignore[attr-defined]
        except FileNotFoundError:
            return


class MacAutostart:
    """A LaunchAgent of this user (launchd.plist(5)): run once at each login with a screen."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = (folder or Path.home() / "Library" / "LaunchAgents") / f"{ID}.plist"
        self.where = str(self._path)

    def command(self) -> list[str]:
        import plistlib

        try:
            data = plistlib.loads(self._path.read_bytes())
        except (OSError, plistlib.InvalidFileException, ValueError):
            return []
        arguments = data.get("ProgramArguments") if isinstance(data, dict) else None
        return [str(each) for each in arguments] if isinstance(arguments, list) and not data.get("Disabled") else []

    def write(self, command: Sequence[str]) -> None:
        import plistlib

        data = {
            "Label": ID,
            "ProgramArguments": list(command),
            "RunAtLoad": True,
            "LimitLoadToSessionType": "Aqua",
            "ProcessType": "Interactive",
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        folders.write_atomically(self._path, plistlib.dumps(data).decode("utf-8"), 0o644)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def arguments_of(line: str) -> list[str]:
    """The arguments of a Windows command line, by the rules that `subprocess.list2cmdline` quotes by (Microsoft's C runtime)."""
    found: list[str] = []
    word, quoted, begun, index = "", False, False, 0
    while index < len(line):
        slashes = 0
        while index < len(line) and line[index] == "\\":
            slashes, index = slashes + 1, index + 1
        at_quote = index < len(line) and line[index] == '"'
        word += "\\" * (slashes // 2 if at_quote else slashes)
        begun = begun or slashes > 0
        if index == len(line):
            break
        sign, index = line[index], index + 1
        if sign == '"' and slashes % 2 == 0:
            quoted, begun = not quoted, True
        elif sign in " \t" and not quoted:
            if begun:
                found.append(word)
            word, begun = "", False
        else:
            word, begun = word + sign, True
    return [*found, word] if begun else found


def autostart() -> Autostart:
    """The entry of this system."""
    if sys.platform == "win32":
        return WindowsAutostart()
    return MacAutostart() if sys.platform == "darwin" else LinuxAutostart()


def switch_on(entry_of: Autostart, command: Sequence[str]) -> None:
    """Start `command` in the background at login. `AutostartNotChanged`."""
    try:
        entry_of.write([*command, BACKGROUND])
    except OSError as error:
        raise _not_changed(entry_of, error) from error


def switch_off(entry_of: Autostart) -> None:
    """Start nothing at login. `AutostartNotChanged`."""
    try:
        entry_of.remove()
    except OSError as error:
        raise _not_changed(entry_of, error) from error


def _not_changed(entry_of: Autostart, error: OSError) -> AutostartNotChanged:
    return AutostartNotChanged(
        "The start with the computer could not be changed.",
        f"{entry_of.where}: {error.strerror or error}.",
        "Check that you may write there and that the disk is not full.",
    )
