"""Puts the engine on the path of every interpreter of an artefact, its child processes included.

The artefact's `zk0desk-engine.pth` calls `activate` when an interpreter starts, so it has to be quick, and must never keep an interpreter
from starting. What the artefact ships itself stays first on the path.
"""

from __future__ import annotations

import os
import site
import sys

CHOSEN = "ZK0DESK_ENGINE"
"""Environment: the id of another engine than the current one, or "none" for none."""
IN_USE = "in-use"
"""A file of an engine that every process which uses it holds a shared lock on, so that nobody takes the engine away."""

_held: list[int] = []


def activate() -> None:
    """Put the current engine on `sys.path`. Does nothing in a checkout, after `pip install`, or where there is no engine. Never raises."""
    try:
        if os.path.exists(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_resources", "artefact.json")):
            _activate()
    except Exception as error:  # noqa: BLE001 - an interpreter starts without an engine rather than not at all
        if os.environ.get("PYTHONVERBOSE"):
            print(f"zk0desk: the engine is not on the path: {error!r}", file=sys.stderr)


def _activate() -> None:
    folder = engines_folder()
    chosen = os.environ.get(CHOSEN) or _current(folder)
    if chosen and chosen != "none" and os.path.basename(chosen) == chosen:
        use(os.path.join(folder, chosen))


def engines_folder() -> str:
    """What `folders.engines_folder` says. On Linux without the libraries that it asks, which take longer than all of this."""
    if given := os.environ.get("ZK0DESK_ENGINES"):
        return os.path.expanduser(given)
    home = os.environ.get("ZK0DESK_HOME")
    if home:
        return os.path.join(os.path.expanduser(home), "data", "engines")
    if sys.platform == "linux":
        data = os.environ.get("XDG_DATA_HOME", "")
        return os.path.join(data if data.strip() else os.path.expanduser("~/.local/share"), "zk0desk", "engines")
    from zk0desk import folders

    return os.fspath(folders.engines_folder())


def _current(folder: str) -> str:
    try:
        with open(os.path.join(folder, "current"), encoding="ascii") as file:
            return file.readline(64).strip()
    except (OSError, ValueError):
        return ""


def use(engine: str) -> bool:
    """Put the engine in the folder `engine` on the path of this process, for good. False when it is not whole, or is there already."""
    packages = os.path.join(engine, "site")
    if packages in sys.path or not os.path.exists(os.path.join(engine, "valid")):
        return False
    _hold(os.path.join(engine, IN_USE))
    site.addsitedir(packages)
    if sys.platform == "win32":
        _link_before_qt(packages)
    return True


def _hold(path: str) -> None:
    try:
        import fcntl
    except ImportError:
        return  # on Windows a folder with open files cannot be taken away anyway
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _held.append(handle)
    except OSError:
        return  # a file system without locks, or an engine that is just being taken away


def _link_before_qt(packages: str) -> None:
    """On Windows torch fails to load once Qt has loaded an older runtime (WinError 1114): its first library comes first."""
    libraries = os.path.join(packages, "torch", "lib")
    if os.path.isdir(libraries):
        import ctypes

        os.add_dll_directory(libraries)  # type: ignore[attr-defined,unused-ignore]
        try:
            ctypes.CDLL(os.path.join(libraries, "c10.dll"))
        except OSError:
            return  # what it lacks is told when torch is imported
