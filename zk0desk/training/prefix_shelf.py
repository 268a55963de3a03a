"""One shelf of the prefix cache: entries of one size, read and written by row, by several threads and processes at once.

A shelf never raises for what a disk does. What cannot be read, or is not what was written, is a miss: the caller computes it, and the
next write repairs it. Every read is checked against the entry's checksum, which takes a tenth of the time that the read takes.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk.events import Notice, Sink
from zk0desk.training.prefix_files import read_at, write_at
from zk0desk.training.prefix_index import Layout
from zk0desk.training.prefix_shelf_files import ShelfFiles
from zk0desk.training.prefix_values import ARRAY_TYPES, stored

AHEAD = 4
"""Batches that are read ahead at most; an older one that nobody asked for is dropped."""
REST_S = 30.0
"""After a write that failed, or when the budget was used up, the shelf tries again after this many seconds."""
_FULL = "Free some space, or make the cache's budget smaller in Settings."
_TOLD = {
    errno.ENOSPC: ("cache-disk-full", "The disk is full.", _FULL),
    errno.EDQUOT: ("cache-disk-full", "Your quota of this disk is used up.", _FULL),
    errno.EFBIG: ("cache-disk-full", "A file may not become as large here.", "Choose another folder for the cache in Settings."),
}


@dataclass
class ShelfUse:
    """What was done with a shelf since it was opened. `waited_s`: seconds that `read` kept its caller, `read_s` those of all reading."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    read_s: float = 0.0
    waited_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Hits of all rows that were asked for, 0 to 1; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)


class Shelf:
    """Entries of a layout in `folder`. Made by `PrefixCache.shelf`; any thread may call any method.

    `room` is asked before new entries are written: how many of so many bytes may be added to the disk. `emit` gets a `Notice` once for
    each kind of trouble.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        about: Mapping[str, Any],
        *,
        room: Callable[[int], int],
        emit: Sink,
        readers: ThreadPoolExecutor,
        touch: bool = True,
    ) -> None:
        self.folder, self.layout = folder, layout
        self.use = ShelfUse()
        self._about, self._room, self._emit, self._readers = about, room, emit, readers
        self._touch = touch
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._told: set[str] = set()
        self._rest_until = 0.0
        self._damaged: dict[int, int] = {}
        """Row to the checksum that its content did not agree with: such a row may be written again."""
        self._ahead: dict[bytes, Future[tuple[np.ndarray, np.ndarray]]] = {}
        self._closed = False
        self._files: ShelfFiles | None = None
        self._open()

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The entries of `rows`: an array (n, *shape) in the storage type, zeros where there is none, and which were hits, (n,) bool.

        `out` is filled and returned if it is given: an array of that shape and type, contiguous (a pinned buffer, or one that is used
        again, which saves the system from making new memory for each batch). Rows that were prefetched are taken from there.
        """
        began = time.perf_counter()
        wanted = self._rows(rows)
        with self._lock:
            ahead = self._ahead.pop(wanted.tobytes(), None)
        if ahead is None or ahead.cancel():
            array, hits = self._read(wanted, out)
        else:
            array, hits = ahead.result()
            late = np.flatnonzero(~hits)
            if late.size:  # written since it was read ahead, perhaps
                array[late], hits[late] = self._read(wanted[late], None)
            if out is not None and out is not array:
                np.copyto(out, array)
                array = out
        with self._lock:
            self.use.hits += int(hits.sum())
            self.use.misses += int((~hits).sum())
            self.use.waited_s += time.perf_counter() - began
        return array, hits

    def prefetch(self, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> None:
        """Begin to read `rows` on another thread; the `read` of the same rows in the same order takes them from there.

        `out` as in `read`: give the same buffer to both, and let it alone between them.
        """
        wanted = self._rows(rows)
        with self._lock:
            if wanted.tobytes() in self._ahead:
                return
            while len(self._ahead) >= AHEAD:
                self._ahead.pop(next(iter(self._ahead))).cancel()
            try:
                self._ahead[wanted.tobytes()] = self._readers.submit(self._read, wanted, out)
            except RuntimeError:
                return  # the cache was closed

    def read_through(
        self, rows: Sequence[int] | np.ndarray, compute: Callable[[np.ndarray], np.ndarray], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `read`, but what is missing is computed, written and put in its place: `compute(indices)` gives (len(indices), *shape).

        `indices` (int64) are places in `rows`, not rows. What comes back is what a later read of the same rows gives, bit for bit.
        """
        array, hits = self.read(rows, out)
        missing = np.flatnonzero(~hits)
        if missing.size:
            array[missing] = self.write(self._rows(rows)[missing], compute(missing))
        return array, hits

    @property
    def filled(self) -> int:
        """How many entries are kept, by the index."""
        return int(np.count_nonzero(self._index()))

    def kept(self) -> np.ndarray:
        """Which entries are kept, by the index: (entries,) bool."""
        return self._index() != 0

    def verify(self) -> Iterator[bool]:
        """Whether each entry that is kept is damaged, one after the other. A damaged one is emptied, where the folder can be written."""
        for row in np.flatnonzero(self._index()):
            files = self._files
            if files is None:
                return
            with files.used() as usable:
                if not usable:
                    return
                entry = np.empty(self.layout.entry_bytes, np.uint8)
                wrong = not self._read_one(files, int(row), entry)
                if wrong and files.writable:
                    with contextlib.suppress(OSError):
                        files.set_word(int(row), 0)
                yield wrong

    def _read(self, rows: np.ndarray, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        began = time.perf_counter()
        array = self._room_for(len(rows), out)
        hits = np.zeros(len(rows), bool)
        files = self._files
        if files is not None:
            with files.used() as usable:
                if usable:
                    entries = self._as_bytes(array)
                    for place in np.argsort(rows, kind="stable"):  # in the disk's order
                        hits[place] = self._read_one(files, int(rows[place]), entries[place])
        array[~hits] = 0
        with self._lock:
            self.use.bytes_read += int(hits.sum()) * self.layout.entry_bytes
            self.use.read_s += time.perf_counter() - began
        return array, hits

    def _read_one(self, files: ShelfFiles, row: int, entry: np.ndarray) -> bool:
        try:
            word = files.word(row)
            if not word:
                return False
            whole = read_at(files.entries, entry, row * self.layout.entry_bytes) == self.layout.entry_bytes
            if whole and self.layout.checksum(row, entry) == word:
                self._damaged.pop(row, None)  # somebody wrote it again
                return True
            if files.word(row) == word:  # else another process is just writing it
                self._found_damage(row, word)
        except OSError as error:
            self._tell("cache-unreadable", "The cache of prepared frames cannot be read.", f"{error}.", "Check the disk.")
        return False

    def _found_damage(self, row: int, word: int) -> None:
        with self._lock:
            if self._damaged.get(row) == word:
                return
            self._damaged[row] = word
            self.use.damaged += 1
        self._tell(
            "cache-damaged",
            "An entry of the cache of prepared frames is not what was written.",
            "A write was cut off, or the disk changed it.",
            "It is computed again; there is nothing to do unless this comes often: then check the disk.",
            severity="note",
        )

    def _room_for(self, count: int, out: np.ndarray | None) -> np.ndarray:
        shape, dtype = (count, *self.layout.shape), ARRAY_TYPES[self.layout.dtype]
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise ValueError(f"the buffer must be contiguous, {dtype} {shape}; it is {out.dtype} {out.shape}")
        return out

    def _as_bytes(self, array: np.ndarray) -> np.ndarray:
        """The same memory as (n, entry_bytes) uint8."""
        return array.reshape(len(array), -1 if len(array) else self.layout.entry_bytes).view(np.uint8)

    def _rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.ascontiguousarray(rows, dtype=np.int64)
        if wanted.ndim != 1 or (wanted.size and (wanted.min() < 0 or wanted.max() >= self.layout.entries)):
            raise IndexError(f"rows are 0 to {self.layout.entries - 1}")
        return wanted

    def _index(self) -> np.ndarray:
        files = self._files
        if files is not None:
            with files.used() as usable, contextlib.suppress(OSError):
                if usable:
                    return files.words()
        return np.zeros(self.layout.entries, np.uint64)

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, rows: Sequence[int] | np.ndarray, values: np.ndarray) -> np.ndarray:
        """Keep `values` (n, *shape) as the entries of `rows`, and return them as stored: train on what is returned.

        An entry that is there already stays. Where the disk or the budget does not take them, the values come back all the same.
        `StorageRangeError` where a value does not fit into the storage type; then nothing was written.
        """
        wanted = self._rows(rows)
        if values.shape != (len(wanted), *self.layout.shape):
            raise ValueError(f"{len(wanted)} entries of shape {self.layout.shape} are written, not {values.shape}")
        result = stored(values, self.layout.dtype)
        with self._writing:
            written = self._write(wanted, result)
        with self._lock:
            self.use.written += written
            self.use.bytes_written += written * self.layout.entry_bytes
        return result

    def _write(self, rows: np.ndarray, values: np.ndarray) -> int:
        files = self._writable()
        if files is None:
            return 0
        done = 0
        entries = self._as_bytes(values)
        with files.used() as usable:
            if not usable:
                return 0
            try:
                todo = [int(place) for place in np.argsort(rows, kind="stable") if self._may_write(files, int(rows[place]))]
                fit = self._room(len(todo) * self.layout.entry_bytes) // self.layout.entry_bytes if todo else 0
                for place in todo[:fit]:
                    self._write_one(files, int(rows[place]), entries[place])
                    done += 1
            except OSError as error:
                self._failed(error)
            else:
                if fit < len(todo):
                    self._rest()
                    self._tell_full()
        return done

    def _may_write(self, files: ShelfFiles, row: int) -> bool:
        word = files.word(row)
        return not word or self._damaged.get(row) == word

    def _write_one(self, files: ShelfFiles, row: int, entry: np.ndarray) -> None:
        """The old checksum goes first and the new one comes last: whenever this is cut off, what is left is a miss."""
        if row in self._damaged:
            files.set_word(row, 0)
        write_at(files.entries, entry, row * self.layout.entry_bytes)
        files.set_word(row, self.layout.checksum(row, entry))
        self._damaged.pop(row, None)

    def _writable(self) -> ShelfFiles | None:
        """The files, if they can be written now. A shelf whose files were removed under it is made anew."""
        if self._closed or time.monotonic() < self._rest_until:
            return None
        files = self._files
        if files is not None and files.writable and not files.in_place:
            self._tell(
                "cache-removed",
                "The cache of prepared frames was removed while it was in use.",
                "Its folder or one of its files is no longer there.",
                "It is filled again; to be rid of it, stop the node first.",
            )
            files.close()
            files = None
        if files is None or not files.writable:
            files = self._open()
        return files if files is not None and files.writable else None

    # --- opening, closing, telling ------------------------------------------------------------------------------------

    def _open(self) -> ShelfFiles | None:
        before = self._files
        try:
            self._files = ShelfFiles(self.folder, self.layout, self._about, touch=self._touch)
        except OSError as error:
            self._files = None
            self._failed(error)
        else:
            if self._files.trouble is not None:
                self._failed(self._files.trouble, readable=True)
        if before is not None:
            before.close()
        return self._files

    def close(self) -> None:
        """Let go of the files. Reads are misses from then on."""
        self._closed = True
        with self._lock:
            ahead, self._ahead = list(self._ahead.values()), {}
        for each in ahead:
            each.cancel()
        if self._files is not None:
            self._files.close()

    def _rest(self) -> None:
        self._rest_until = time.monotonic() + REST_S

    def _failed(self, error: OSError, *, readable: bool = False) -> None:
        self._rest()
        unknown = ("cache-unwritable", f"{error}.", "Mend its permissions, or choose another folder for the cache in Settings.")
        code, why, remedy = _TOLD.get(error.errno or 0, unknown)
        then = "What is in it is used." if readable else "Training goes on without it."
        self._tell(code, "The cache of prepared frames cannot be written.", why, f"{then} {remedy}")

    def _tell_full(self) -> None:
        self._tell(
            "cache-full",
            "The cache of prepared frames is as large as it may be.",
            "Its budget is used up, or the disk has little room left.",
            "Frames that are not in it are computed at each visit. A larger budget in Settings makes training faster.",
            severity="note",
        )

    def _tell(self, code: str, what: str, why: str, remedy: str, *, severity: str = "warning") -> None:
        with self._lock:
            if code in self._told:
                return
            self._told.add(code)
        self._emit(Notice(severity=severity, code=code, what=what, why=why, remedy=remedy))
