"""zk0desk in the menu of a Linux desktop, for this user: entry, icons, file type and links. Nothing needs root rights.

`python -m zk0desk.desktop.menu install|uninstall` does it without a window; `packaging/desktop.sh` calls that for a checkout. Taking it
out needs the standard library alone: it works with any Python 3 after the environment is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from zk0desk import folders
from zk0desk.desktop import entry
from zk0desk.errors import OperatorError
from zk0desk.resources import resource

ID = "org.zk0.Desk"
SIZES = (16, 24, 32, 48, 64, 128, 256, 512)
REFRESH_S = 30.0


class MenuNotChanged(OperatorError):
    """The menu's files cannot be written or removed."""

    code = "menu-not-changed"


def data_home() -> Path:
    """This user's folder for what applications share ($XDG_DATA_HOME)."""
    given = Path(os.environ.get("XDG_DATA_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".local" / "share"


def entry_file() -> Path:
    """Where this user's menu entry is, if there is one."""
    return data_home() / "applications" / f"{ID}.desktop"


def started() -> list[str]:
    """The command that this user's menu entry starts; empty where there is none."""
    return entry.command_in(entry.keys_of(entry_file()).get("Exec", ""))


def install(command: Sequence[str]) -> None:
    """Put an entry that starts `command` into the menu, with icons, the file type .zk0invite and links zk0desk:. `MenuNotChanged`."""
    try:
        for source, target in _copies():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        entry_file().parent.mkdir(parents=True, exist_ok=True)
        folders.write_atomically(entry_file(), _entry_text(command), 0o644)
    except OSError as error:
        raise MenuNotChanged(
            "zk0desk could not be put into the menu.",
            f"{error.filename or data_home()}: {error.strerror}.",
            "Check that you may write there and that the disk is not full.",
        ) from error
    _refresh()


def uninstall() -> bool:
    """Take out of the menu what `install` put there; whether there was an entry. `MenuNotChanged`."""
    there = entry_file().exists()
    try:
        for path in (entry_file(), *(target for _source, target in _copies())):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise MenuNotChanged(
            "zk0desk could not be taken out of the menu.", f"{error.filename}: {error.strerror}.", "Check that you may write there."
        ) from error
    _refresh()
    return there


def _copies() -> list[tuple[Path, Path]]:
    """What is copied besides the entry: the shipped file, and where it goes."""
    data = data_home()
    icons = [f"hicolor/{size}x{size}/apps/{ID}.png" for size in SIZES]
    return [
        *((resource(f"icons/{name}"), data / "icons" / name) for name in icons),
        (resource(f"icons/{ID}.svg"), data / "icons" / "hicolor" / "scalable" / "apps" / f"{ID}.svg"),
        (resource(f"{ID}.metainfo.xml"), data / "metainfo" / f"{ID}.metainfo.xml"),
        (resource(f"{ID}.mime.xml"), data / "mime" / "packages" / f"{ID}.xml"),
    ]


def _entry_text(command: Sequence[str]) -> str:
    """The shipped entry with this command. An entry whose program is gone is not shown (`TryExec`)."""
    lines = []
    for line in resource(f"{ID}.desktop").read_text(encoding="utf-8").splitlines():
        if line.startswith("Exec="):
            line = f"Exec={entry.exec_value(command)} %u"
        elif line.startswith("TryExec="):
            line = f"TryExec={entry.escaped(command[0])}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _refresh() -> None:
    """Renew what a desktop keeps about its files. Each tool is optional, and none decides whether the menu works."""
    data = data_home()
    for tool, *arguments in (
        ("update-desktop-database", "-q", str(data / "applications")),
        ("update-mime-database", str(data / "mime")),
        ("gtk-update-icon-cache", "-qtf", str(data / "icons" / "hicolor")),
    ):
        found = shutil.which(tool)
        if found is None or not Path(arguments[-1]).is_dir():
            continue
        try:
            subprocess.run([found, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=REFRESH_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue


def main(arguments: Sequence[str]) -> int:
    """`install` or `uninstall`; the exit status."""
    try:
        if list(arguments) == ["install"]:
            from zk0desk.desktop.launcher import launcher

            install(launcher().command)
            print("zk0desk is in the menu.")
        elif list(arguments) == ["uninstall"]:
            uninstall()
            print("zk0desk is out of the menu. Settings, journal and the node's key stay; `zk0desk --remove-data` removes them.")
        else:
            print("usage: python -m zk0desk.desktop.menu install|uninstall", file=sys.stderr)
            return 2
    except OperatorError as error:
        print(error, file=sys.stderr)
        return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
