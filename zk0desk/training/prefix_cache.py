"""The prefix cache on disk: what the frozen part of the policy computed for each frame, kept for all rounds and federations.

A *shelf* holds the entries of one recording at one level. Shelves have one budget; when it is used up, the shelf that was not used for
longest goes, never one that is open in a live process. Entries are derived from pictures: they stay in a folder that only the operator
can open, and never travel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from zk0desk import folders
from zk0desk.events import Event, Sink
from zk0desk.training.measuring_folder import remove_left_measurements
from zk0desk.training.prefix_files import bytes_on_disk, nobody_uses
from zk0desk.training.prefix_index import HEADER_BYTES, Layout
from zk0desk.training.prefix_shelf import Shelf
from zk0desk.training.prefix_shelf_files import ABOUT, ENTRIES, INDEX, read_description

KEEP_FREE = 2_000_000_000
"""Bytes of the disk that the cache never takes: the round's checkpoint needs them more."""
_GOING = ".going-"
_SHELF = 64
"""Letters of a shelf's folder name, hex."""


@dataclass(frozen=True)
class ShelfFacts:
    """A shelf as it is on the disk. `about` holds what `PrefixCache.shelf` was told: "recording", "path", "level", ...

    `damaged`: its description cannot be read, so that nothing of it can be used, and the other facts are empty.
    """

    name: str
    about: dict[str, Any]
    entries: int
    filled: int
    entry_bytes: int
    bytes: int
    last_used: float
    in_use: bool
    damaged: bool = False

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object, keys in kebab-case."""
        return {key.replace("_", "-"): value for key, value in self.__dict__.items()}


@dataclass(frozen=True)
class Usage:
    """What the cache takes of the disk: `bytes` of `budget`, in `shelves`; `disk_free` is free beside it."""

    folder: str
    bytes: int
    budget: int
    shelves: int
    disk_free: int

    def to_json(self) -> dict[str, Any]:
        """The usage as a JSON object, keys in kebab-case."""
        return {key.replace("_", "-"): value for key, value in self.__dict__.items()}


@dataclass(frozen=True)
class Cleared:
    """Shelves that were removed and the bytes that this freed, and those that stay because they are in use."""

    removed: tuple[ShelfFacts, ...]
    in_use: tuple[ShelfFacts, ...]

    @property
    def bytes(self) -> int:
        """What was freed."""
        return sum(each.bytes for each in self.removed)


@dataclass(frozen=True)
class Verified:
    """What reading all entries of a shelf found: `checked` of them, `damaged` of which are now empty and will be computed again."""

    shelf: ShelfFacts
    checked: int
    damaged: int


class PrefixCache:
    """All shelves under `folder` (default: the operator's cache folder), which together take at most `budget_bytes`.

    Use it as a context manager, or call `close`. Nothing is made on the disk before the first shelf is asked for.
    """

    def __init__(
        self, folder: Path | None = None, budget_bytes: int = 20_000_000_000, *, emit: Sink | None = None, keep_free: int = KEEP_FREE
    ) -> None:
        self.folder = folder or folders.prefix_cache_folder()
        self.budget = budget_bytes
        self._keep_free = keep_free
        self._emit = emit or _nobody
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="zk0desk-cache")
        self._open: list[Shelf] = []

    def __enter__(self) -> PrefixCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all shelves that were given out."""
        for shelf in self._open:
            shelf.close()
        self._open.clear()
        self._readers.shutdown(wait=True, cancel_futures=True)

    def shelf(self, key: Mapping[str, Any], entries: int, shape: tuple[int, ...], dtype: str, about: Mapping[str, Any]) -> Shelf:
        """The shelf for this key (JSON), so many entries, their shape and storage type. It is filled as its entries are visited.

        Any difference in key, entries, shape or type is another shelf. `about` is what a person is told of it, and is not part of the
        key: "recording" (name), "path", "content-sha256", "level", "policy". Never raises for what the disk does.
        """
        layout = Layout(key, entries, shape, dtype)
        self._finish_removals()
        folder = self.folder / layout.name
        made = Shelf(folder, layout, about, room=lambda wanted: self._room(wanted, layout.name), emit=self._emit, readers=self._readers)
        self._open.append(made)
        return made

    def shelves(self) -> list[ShelfFacts]:
        """All shelves, the one that was used last first."""
        return sorted((_facts(folder) for folder in self._folders()), key=lambda each: -each.last_used)

    def usage(self) -> Usage:
        """What the cache takes now."""
        sizes = [_shelf_bytes(folder) for folder in self._folders()]
        return Usage(str(self.folder), sum(sizes), self.budget, len(sizes), self._disk_free())

    def clear(self, recording: str | Path | None = None) -> Cleared:
        """Remove all shelves, or those of a recording (its folder, its name, or its content's SHA-256). One that is in use stays."""
        removed: list[ShelfFacts] = []
        stays: list[ShelfFacts] = []
        for folder in self._folders():
            facts = _facts(folder)
            if recording is None or _is_about(facts, recording):
                (removed if _remove(folder) else stays).append(facts)
        self._finish_removals()
        return Cleared(tuple(removed), tuple(stays))

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Verified]:
        """Read every entry and compare it with its checksum; one that is wrong is emptied. `progress(done, all)` counts entries.

        A shelf whose description is damaged can never be read: it is removed, and counts as one damaged entry.
        """
        found = self.shelves()
        total, done = sum(each.filled for each in found), 0
        results = []
        for facts in found:
            known = read_description(self.folder / facts.name)
            if known is None:
                results.append(Verified(facts, 0, int(_remove(self.folder / facts.name))))
                continue
            shelf = Shelf(self.folder / facts.name, *known, room=lambda wanted: 0, emit=_nobody, readers=self._readers, touch=False)
            try:
                checked = damaged = 0
                for wrong in shelf.verify():
                    checked, damaged, done = checked + 1, damaged + wrong, done + 1
                    if progress:
                        progress(done, max(done, total))
            finally:
                shelf.close()
            results.append(Verified(facts, checked, damaged))
        return results

    # --- the budget -----------------------------------------------------------------------------------------------

    def _room(self, wanted: int, name: str) -> int:
        """How many of `wanted` bytes shelf `name` may add, after shelves that were not used for long made room."""
        room = self._room_now()
        if room < wanted:
            others = [folder for folder in self._folders() if folder.name != name]
            for folder in sorted(others, key=_last_used):
                if _remove(folder):
                    room = self._room_now()
                if room >= wanted:
                    break
        return max(0, min(wanted, room))

    def _room_now(self) -> int:
        return min(self.budget - sum(_shelf_bytes(folder) for folder in self._folders()), self._disk_free() - self._keep_free)

    def _disk_free(self) -> int:
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            return shutil.disk_usage(place).free
        except OSError:
            return 0

    def _folders(self) -> list[Path]:
        return [path for path in self._inside() if len(path.name) == _SHELF and not path.name.strip("0123456789abcdef")]

    def _inside(self) -> list[Path]:
        try:
            return [Path(entry.path) for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return []

    def _finish_removals(self) -> None:
        """What a process that ended in the middle of a removal, or of a measurement, left."""
        remove_left_measurements(self.folder)
        for path in self._inside():
            if path.name.startswith(_GOING):
                shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> bool:
    """Remove a shelf unless a process has it open. It is put aside first: nobody ever finds half of it."""
    aside = folder.with_name(_GOING + uuid.uuid4().hex)
    with nobody_uses(folder / ENTRIES) as free:
        if not free:
            return False
        try:
            folder.rename(aside)
        except OSError:
            return not folder.exists()
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _facts(folder: Path) -> ShelfFacts:
    size, used = _shelf_bytes(folder), _last_used(folder)
    with nobody_uses(folder / ENTRIES) as free:
        in_use = not free
    known = read_description(folder)
    if known is None:
        return ShelfFacts(folder.name, {}, 0, 0, 0, size, used, in_use, damaged=True)
    layout, about = known
    return ShelfFacts(folder.name, about, layout.entries, _filled(folder, layout), layout.entry_bytes, size, used, in_use)


def _filled(folder: Path, layout: Layout) -> int:
    try:
        with open(folder / INDEX, "rb") as file:
            if file.read(HEADER_BYTES) != layout.header():
                return 0
            words = file.read(8 * layout.entries)
    except OSError:
        return 0
    return int(np.count_nonzero(np.frombuffer(words[: len(words) // 8 * 8], "<u8")))


def _shelf_bytes(folder: Path) -> int:
    return sum(bytes_on_disk(folder / name) for name in (ABOUT, ENTRIES, INDEX))


def _last_used(folder: Path) -> float:
    for name in (ABOUT, ENTRIES):
        with contextlib.suppress(OSError):
            return (folder / name).stat().st_mtime
    return 0.0


def _is_about(facts: ShelfFacts, recording: str | Path) -> bool:
    """Whether a shelf is of `recording`: as a path it is compared where it leads to, as a name or hash as it stands."""
    said = {str(facts.about.get(each)) for each in ("recording", "content-sha256")}
    path = facts.about.get("path")
    if str(recording) in said and not isinstance(recording, Path):
        return True
    return isinstance(path, str) and Path(path).expanduser().resolve() == Path(recording).expanduser().resolve()


def _nobody(_event: Event) -> None:
    return None
