"""Puts a wheel's files into an engine's `site`, each hashed on its way, and says what was put there."""

from __future__ import annotations

import errno
import hashlib
import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from zk0desk.control import NodeControl
from zk0desk.engine.errors import EngineDiskFull
from zk0desk.engine.lists import Wheel
from zk0desk.engine.renaming import replace
from zk0desk.engine.wheel import PIECE, Entry, OpenWheel, check_size, opened, wrong

FRESH = ".zk0-unpacking"
"""A file of this name in `site` is being written."""


@dataclass(frozen=True)
class Kept:
    """A file of an engine: path below `site` with forward slashes, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


class Places:
    """Which wheel put which file, so that no wheel changes another's. Capitals do not count, as on Windows and macOS."""

    def __init__(self) -> None:
        self._owner: dict[str, tuple[str, Kept]] = {}

    def add(self, wheel: str, files: Iterable[Kept]) -> None:
        """Remember the files of a wheel that is unpacked."""
        for kept in files:
            self._owner[_key(kept.path)] = (wheel, kept)

    def is_there(self, wheel: str, kept: Kept) -> bool:
        """Whether another wheel has put the very same file there. Raises `WheelError` when it put another one."""
        found = self._owner.get(_key(kept.path))
        if found is None or found[0] == wheel:
            return False
        if found[1] != kept:
            raise wrong(wheel, f"it would change a file of {found[0]}: {kept.path[:100]!r}")
        return True


def unpack(
    path: Path,
    wheel: Wheel,
    site: Path,
    places: Places,
    *,
    control: NodeControl,
    moved: Callable[[int], None],
    only: frozenset[str] | None = None,
) -> list[Kept]:
    """Unpack the wheel at `path` into `site`; its files, with its RECORD. `moved` is told bytes; `only`: paths that are written, all if
    None.

    A file that is there is replaced, never written into: it may be linked from another engine. Raises `WheelError`, `EngineDiskFull`,
    `Stopped`.
    """
    with opened(path, wheel.file) as content:
        check_size(wheel, content)
        record = Kept(content.record_path, len(content.record), hashlib.sha256(content.record).hexdigest())
        if wheel.record and record.sha256 != wheel.record:
            raise wrong(wheel.file, "its RECORD is not the one that the list names")
        kept = [Kept(entry.path, entry.size, entry.sha256) for entry in content.entries]
        wanted = [
            entry
            for entry, one in zip(content.entries, kept, strict=True)
            if not places.is_there(wheel.file, one) and (only is None or entry.path in only)
        ]
        try:
            _write(content, wanted, wheel.file, site, control, moved)
            if only is None or record.path in only:
                _replace(site, record.path, lambda handle: write_all(handle, content.record), program=False)
        except OSError as error:
            raise no_room(error, site) from error
        except (zipfile.BadZipFile, EOFError) as error:
            raise wrong(wheel.file, f"it is damaged ({error})") from error
    return [*kept, record]


def _write(content: OpenWheel, entries: list[Entry], name: str, site: Path, control: NodeControl, moved: Callable[[int], None]) -> None:
    folders: set[Path] = set()
    for entry in entries:
        control.hold()
        parent = (site / entry.path).parent
        if parent not in folders:
            parent.mkdir(parents=True, exist_ok=True)
            folders.add(parent)

        def pour(handle: int, entry: Entry = entry) -> None:
            digest = hashlib.sha256()
            with content.archive.open(entry.info) as stream:
                while piece := stream.read(PIECE):
                    control.check()
                    digest.update(piece)
                    write_all(handle, piece)
                    moved(len(piece))
            if digest.hexdigest() != entry.sha256:
                raise wrong(name, f"a file in it is not what its RECORD says: {entry.path[:100]!r}")

        _replace(site, entry.path, pour, program=entry.program)


def _replace(site: Path, path: str, pour: Callable[[int], None], *, program: bool) -> None:
    fresh = site / FRESH
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(fresh, flags, 0o755 if program else 0o644)
    try:
        try:
            pour(handle)
        finally:
            os.close(handle)
        replace(fresh, site / path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_all(handle: int, piece: bytes) -> None:
    """Write the whole of `piece`; a disk that fills up takes a part and then refuses."""
    view = memoryview(piece)
    while view:
        view = view[os.write(handle, view) :]


def no_room(error: OSError, place: Path) -> OSError | EngineDiskFull:
    """`error`, or what to say of it when the disk is full."""
    if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return error
    return EngineDiskFull(
        "The disk is full.",
        f"The engine is written to {place}; what has arrived is kept.",
        "Free some space, then do the same again: it goes on where it ended.",
    )


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
