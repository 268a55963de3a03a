"""Finding recordings, and noticing by itself that one came, changed or went. Reads names, sizes and times of change, never content.

A look at a folder takes a list of names only where the folder's own time of change is another one than before, and looks
are the rarer, the longer they take. Folders wait for each other only when three of them hang: a network that is gone
holds its own thread, never the window's.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_DEPTH = 5
"""How deep below a given folder a recording is looked for."""
MAX_FOLDERS = 20_000
"""How many folders are looked at; a whole disk is no place to search."""
MAX_FILES = 5000
"""Files and folders of a recording that are looked at one by one."""
EVERY_S, SETTLE_S = 2.0, 0.7
"""Seconds between two looks, and before one that has to confirm a change: what is being copied is told when it rests."""
SHARE = 0.05
"""A thread spends at most so much of its time looking."""
THREADS = 3
FRESH_NS = 2_000_000_000
"""A folder that changed so lately may change again without another time of change."""
_PASSED_OVER = ("blobs", "refs", ".git")


class Tree:
    """Finds the recordings below a folder, and remembers the names that it read there."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[int, list[str]]] = {}

    def recordings(self, start: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
        """The folders at or below `start` that hold meta/info.json. `seen` are the folders that were looked at: links end there."""
        yield from self._search(str(start), 0, seen)

    def _search(self, folder: str, depth: int, seen: set[tuple[int, int]]) -> Iterator[Path]:
        try:
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in seen or len(seen) > MAX_FOLDERS:
                return
            seen.add((stat.st_dev, stat.st_ino))
            if os.path.isfile(os.path.join(folder, "meta", "info.json")):
                yield Path(folder)
                return
            below = self._below(folder, stat.st_mtime_ns)
        except (OSError, ValueError):
            return
        for name in below if depth < MAX_DEPTH else ():
            yield from self._search(os.path.join(folder, name), depth + 1, seen)

    def _below(self, folder: str, changed: int) -> list[str]:
        known = self._names.get(folder)
        if known is not None and known[0] == changed:
            return known[1]
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name not in _PASSED_OVER and entry.is_dir())
        if time.time_ns() - changed > FRESH_NS:
            self._names[folder] = changed, names
        return names


def mark_of(recording: Path) -> str:
    """Names, sizes and times of change of a recording's files as a short word; empty where there is no recording."""
    digest, files, waiting = hashlib.blake2b(digest_size=12), 0, [str(recording)]
    try:
        if not os.path.isfile(os.path.join(recording, "meta", "info.json")):
            return ""
        while waiting:
            folder = waiting.pop()
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if files > MAX_FILES:
                        break
                    folder_here = entry.is_dir(follow_symlinks=False)  # a link to a folder could lead back
                    if folder_here:
                        waiting.append(entry.path)
                    stat, files = entry.stat(), files + 1
                    size = 0 if folder_here else stat.st_size
                    digest.update(f"{entry.path[len(str(recording)) :]}\0{size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    except (OSError, ValueError):
        pass  # what cannot be read is the check's to tell
    return digest.hexdigest()


def changed_at(recording: Path) -> float:
    """When the recording's description was changed last, seconds since 1970; 0 where that cannot be read."""
    try:
        return max((entry.stat().st_mtime for entry in os.scandir(recording / "meta")), default=0.0)
    except (OSError, ValueError):
        return 0.0


@dataclass(frozen=True)
class Look:
    """What is in a folder: its recordings with their marks, and whether the folder is there at all."""

    marks: dict[Path, str]
    there: bool


@dataclass(order=True)
class _Turn:
    due: float
    number: int
    folder: Path = field(compare=False)
    tree: Tree = field(compare=False, default_factory=Tree)
    last: Look | None = field(compare=False, default=None)
    told: Look | None = field(compare=False, default=None)


class Watch:
    """Looks into `folders` again and again; `seen` is told, in a thread of the watch, what is there at first and after each change."""

    def __init__(self, folders: Iterable[Path], seen: Callable[[Path, Look], object], *, every_s: float = EVERY_S) -> None:
        self._seen, self._every = seen, every_s
        self._changed = threading.Condition()
        self._closed = False
        count = itertools.count()
        self._turns = [_Turn(0.0, next(count), Path(folder).expanduser()) for folder in dict.fromkeys(folders)]
        heapq.heapify(self._turns)
        number = min(THREADS, len(self._turns))
        # Daemons: a thread that hangs in a lost network must not keep the process.
        self._threads = [threading.Thread(target=self._work, name=f"watch-{n}", daemon=True) for n in range(number)]
        for thread in self._threads:
            thread.start()

    def close(self, wait_s: float = 1.0) -> None:
        """Tell nothing more, and end the threads; one that hangs is waited for no longer than `wait_s`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            began = time.monotonic()
            look = _look(turn)
            took = time.monotonic() - began
            rests = turn.last is None or look == turn.last
            turn.last = look
            if rests and look != turn.told:
                turn.told = look
                self._tell(turn.folder, look)
            pause = max(self._every if rests else min(SETTLE_S, self._every), took / SHARE)
            turn.due = time.monotonic() + pause
            with self._changed:
                heapq.heappush(self._turns, turn)
                self._changed.notify()

    def _next(self) -> _Turn | None:
        with self._changed:
            while not self._closed:
                wait = self._turns[0].due - time.monotonic() if self._turns else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._turns)
                self._changed.wait(wait)
            return None

    def _tell(self, folder: Path, look: Look) -> None:
        with self._changed:
            if self._closed:
                return
        self._seen(folder, look)


def _look(turn: _Turn) -> Look:
    there = turn.folder.is_dir()
    found = turn.tree.recordings(turn.folder, set()) if there else ()
    return Look({path: mark_of(path) for path in found}, there)
