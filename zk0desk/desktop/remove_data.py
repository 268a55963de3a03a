"""What zk0desk keeps on this computer, by kind and size, and removing all of it. Recordings are a person's own, and are never touched.

Removing refuses while a window is open or a node runs: they would write again what is taken from under them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk import folders
from zk0desk.desktop import menu
from zk0desk.desktop.autostart import Autostart, autostart, switch_off
from zk0desk.errors import ExitStatus, OperatorError

if TYPE_CHECKING:
    from zk0desk.settings import Settings

KINDS = {
    "settings": "Settings",
    "identity": "The node's key in a file",
    "journal": "Journal: runs, rounds, and what left this computer",
    "runs": "Runs: the shared weights, and a round in progress",
    "policies": "Policies that were saved or fetched",
    "frames": "Prepared frames",
    "engines": "Training engines",
    "cache": "Thumbnails and other caches",
    "state": "Logs, measurements, and what differential privacy has spent",
}
"""Every kind of file, in the order in which it is shown."""


class StillRunning(OperatorError):
    """A window is open or a node runs."""

    code = "still-running"
    exit_status = ExitStatus.FAILED


@dataclass(frozen=True)
class KindKept:
    """What is kept of one kind: bytes on disk (a hard link counts once), number of files, and where."""

    kind: str
    bytes: int
    files: int
    places: tuple[str, ...]

    @property
    def title(self) -> str:
        """For a person."""
        return KINDS[self.kind]


@dataclass(frozen=True)
class Kept:
    """All of it. `identity` says whether there is a key in the keyring or a file (None: the keyring was not asked, or does not answer)."""

    kinds: tuple[KindKept, ...]
    identity: bool | None
    fingerprint: str
    secrets: tuple[str, ...]
    entries: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all kinds together."""
        return sum(each.bytes for each in self.kinds)

    @property
    def nothing(self) -> bool:
        """Whether there is nothing at all."""
        return not (self.kinds or self.secrets or self.entries)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with keys `bytes`, `kinds`, `identity`, `fingerprint`, `secrets`, `entries`."""
        return {
            "bytes": self.bytes,
            "kinds": [{**asdict(each), "title": each.title} for each in self.kinds],
            "identity": self.identity,
            "fingerprint": self.fingerprint,
            "secrets": list(self.secrets),
            "entries": list(self.entries),
        }


@dataclass(frozen=True)
class Removed:
    """What is gone, and what could not be removed, in sentences."""

    bytes: int
    left: tuple[str, ...]


def look(settings: Settings, start: Autostart | None = None) -> Kept:
    """What is there, with sizes. It walks through folders and asks the keyring: call it in the background."""
    from zk0desk.federation.credentials import default_key_file, stored_key

    seen: set[tuple[int, int]] = set()
    kinds = []
    named = _places(settings)
    for kind in KINDS:
        found = [_size(path, [each for other in KINDS if other != kind for each in named[other]], seen) for path in named[kind]]
        places = [str(path) for path in named[kind] if path.exists()]
        if kind == "frames" and settings.cache.folder is not None:
            size, shelves = _frames_elsewhere(settings.cache.folder.expanduser())
            found.append((size, shelves))
            places += [str(settings.cache.folder)] * bool(shelves)
        total, files = sum(size for size, _ in found), sum(count for _, count in found)
        if files:
            kinds.append(KindKept(kind, total, files, tuple(places)))
    fingerprint, identity = "", None
    with contextlib.suppress(OperatorError):
        key = stored_key(settings.federation)
        identity, fingerprint = key is not None, key.fingerprint if key else ""
    in_file = settings.federation.key_storage == "file" or default_key_file().exists()
    return Kept(tuple(kinds), identity or (in_file or None), fingerprint, tuple(_secrets(settings)), tuple(_entries(start or autostart())))


def _places(settings: Settings) -> dict[str, list[Path]]:
    """Where each kind is. A place within another kind's belongs to the inner one: folders may be one and the same on some systems."""
    from zk0desk.federation.credentials import default_key_file

    journal = folders.journal_file()
    key_files = {default_key_file(), (settings.federation.key_file or default_key_file()).expanduser()}
    return {
        "settings": [folders.settings_file()],
        "identity": sorted(key_files),
        "journal": [journal, journal.with_name(f"{journal.name}-wal"), journal.with_name(f"{journal.name}-shm")],
        "runs": [folders.runs_folder()],
        "policies": [folders.policies_folder()],
        "frames": [folders.prefix_cache_folder()],
        "engines": [folders.engines_folder()],
        "cache": [folders.cache_folder()],
        "state": [folders.state_folder()],
    }


def _size(path: Path, others: Sequence[Path], seen: set[tuple[int, int]]) -> tuple[int, int]:
    """Bytes and number of files under `path`, without what is under `others`. Each file counts once, links to it not."""
    total = count = 0
    inside = {each for each in others if path in each.parents}
    stack = [path]
    while stack:
        here = stack.pop()
        if here in inside:
            continue
        try:
            about = here.lstat()
            if here.is_dir() and not here.is_symlink():
                stack.extend(here.iterdir())
                continue
        except OSError:
            continue
        count += 1
        if (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino))
            total += about.st_size
    return total, count


def _frames_elsewhere(folder: Path) -> tuple[int, int]:
    """Bytes and number of shelves of prepared frames in a folder that a person chose: only these are ours there."""
    from zk0desk.training.prefix_cache import PrefixCache

    if not folder.is_dir():
        return 0, 0
    with PrefixCache(folder) as cache:
        usage = cache.usage()
    return usage.bytes, usage.shelves


def _secrets(settings: Settings) -> list[str]:
    """What the keyring holds of ours, in words; empty where it does not answer."""
    from zk0desk.federation.credentials import KeyringUnavailable, stored_key
    from zk0desk.federation.hub_token import read_token

    found = []
    in_keyring = settings.federation.model_copy(update={"key_storage": "keyring"})
    with contextlib.suppress(KeyringUnavailable):
        if stored_key(in_keyring) is not None:
            found.append("The node's key")
        if read_token() is not None:
            found.append("The token for the Hugging Face Hub")
    return found


def _entries(start: Autostart) -> list[str]:
    found = ["The start with the computer"] if start.command() else []
    return [*found, "The entry in the applications' menu"] if menu.started() else found


def refuse_while_running() -> None:
    """Raise `StillRunning` where another process shows the window, or a node has the journal open."""
    journal = folders.journal_file()
    if _window_elsewhere() or journal.exists() and _in_use(journal):
        raise StillRunning(
            "zk0desk is running, so nothing was removed.",
            "A window or a node would write again what is removed.",
            "Close the window and stop the node, then try again.",
        )


def _window_elsewhere() -> bool:
    """Whether the mark of a window that lives is there: `ui.crash` writes it."""
    import psutil

    try:
        pid = json.loads((folders.state_folder() / "running.json").read_text(encoding="utf-8"))["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(pid, int) and pid != os.getpid() and psutil.pid_exists(pid)


def _in_use(journal: Path) -> bool:
    """SQLite takes a database out of the write-ahead mode only while no other connection to it is open."""
    try:
        with contextlib.closing(sqlite3.connect(journal, timeout=0.5, isolation_level=None)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode == "delete":
                connection.execute("PRAGMA journal_mode = WAL")
            return bool(mode != "delete")
    except sqlite3.OperationalError:
        return True
    except sqlite3.DatabaseError:
        return False  # damaged: nobody can work with it


def remove(settings: Settings, start: Autostart | None = None, *, told: Callable[[str], object] = lambda _title: None) -> Removed:
    """Remove everything of `look`, the key in the keyring included. What cannot be removed stays and is told; the rest goes on.

    `told` is given the title of each kind before it goes. `StillRunning` when a window or node runs. A folder for prepared frames that a
    person chose is emptied of ours only.
    """
    refuse_while_running()
    left: list[str] = []
    before = sum(each.bytes for each in look(settings, start).kinds)
    told("Secrets in the keyring")
    _forget_secrets(settings, left)
    for action in (lambda: switch_off(start or autostart()), lambda: menu.started() and menu.uninstall()):
        try:
            action()
        except OperatorError as error:
            left.append(str(error))
    if settings.cache.folder is not None:
        _clear_frames(settings, left)
    for kind, places in _places(settings).items():
        told(KINDS[kind])
        for path in places:
            _remove(path, left)
    for folder in {folders.settings_file().parent, folders.journal_file().parent, folders.cache_folder(), folders.state_folder()}:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing else is in it
    after = sum(_size(path, (), set())[0] for places in _places(settings).values() for path in places)
    return Removed(max(0, before - after), tuple(left))


def _forget_secrets(settings: Settings, left: list[str]) -> None:
    from zk0desk.federation.credentials import forget_key
    from zk0desk.federation.hub_token import forget_token
    from zk0desk.federation.keyring_record import elsewhere, keyring_names

    in_keyring = settings.federation.model_copy(update={"key_storage": "keyring"})
    for forget in (lambda: forget_key(in_keyring), forget_token):
        try:
            forget()
        except OperatorError as error:
            if keyring_names() or elsewhere() is not None:
                left.append(f"{error.what} {error.why}".strip())
            return  # both are in the one keyring; where there is none at all, it holds nothing of ours


def _clear_frames(settings: Settings, left: list[str]) -> None:
    from zk0desk.training.prefix_cache import PrefixCache

    assert settings.cache.folder is not None
    folder = settings.cache.folder.expanduser()
    if not folder.is_dir():
        return
    with PrefixCache(folder) as cache:
        cleared = cache.clear(None)
    if cleared.in_use:
        left.append(f"Prepared frames in {folder} are in use and stay.")


def size_words(count: int) -> str:
    """Bytes for a person: `2.1 KB`, `16.1 MB`, `4.3 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit / 10:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e3:,.1f} KB"


def _remove(path: Path, left: list[str]) -> None:
    """Remove a file or folder; a link is removed and not followed."""

    def trouble(_function: object, name: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError) and len(left) < 20:
            left.append(f"{name} stays: {getattr(error, 'strerror', None) or error}.")

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onexc=trouble)
        return
    try:
        os.unlink(path)
    except OSError as error:
        trouble(None, str(path), error)
