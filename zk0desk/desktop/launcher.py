"""What starts this zk0desk: the file that a menu entry, the start with the computer and a restart call."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGED = "deb"
"""The format whose menu entry comes with the package, and is the system's."""


@dataclass(frozen=True)
class Launcher:
    """`command` opens the window (absolute paths); `format` is the artefact's (deb, tar, appimage, ...), or "" in an environment."""

    command: tuple[str, ...]
    format: str = ""

    @property
    def adds_to_menu(self) -> bool:
        """Whether the menu entry is ours to make: on Linux, where no package brought one."""
        return sys.platform.startswith("linux") and self.format != PACKAGED


def launcher() -> Launcher:
    """What starts this process's zk0desk.

    An AppImage is started by its own file, which its runtime names in `APPIMAGE`; every other artefact by its launcher, which names itself
    in `ZK0DESK_LAUNCHER`. An environment has a script beside its interpreter. Both variables are passed on to whatever a terminal in
    them starts, so they count only within an artefact.
    """
    from zk0desk.engine.artefact import artefact

    ours = artefact()
    if ours is not None:
        for name in ("APPIMAGE", "ZK0DESK_LAUNCHER") if ours.format == "appimage" else ("ZK0DESK_LAUNCHER",):
            given = os.environ.get(name, "")
            if given and Path(given).is_file():
                return Launcher((str(Path(given).absolute()),), ours.format)
        return Launcher(_beside_interpreter(), ours.format)
    return Launcher(_beside_interpreter())


def _beside_interpreter() -> tuple[str, ...]:
    python = Path(sys.executable)
    script = python.with_name("zk0desk-window.exe" if os.name == "nt" else "zk0desk-window")
    return (str(script),) if script.is_file() else (str(python), "-m", "zk0desk")


def moved_from(before: Sequence[str], now: Sequence[str]) -> bool:
    """Whether `before`, which an entry starts, is the same zk0desk as `now` at a place where it no longer is.

    Another zk0desk that is still there keeps its entry: it is not for a second copy to take it over.
    """
    return bool(before) and list(before[: len(now)]) != list(now) and not Path(before[0]).exists()
