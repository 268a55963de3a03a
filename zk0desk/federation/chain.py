"""A run's journal: a line of JSON for each thing that happened, and in each the SHA-256 of the line before.

    {"entry": 0, "previous": "000...", "event": "provenance", ...}
    {"entry": 1, "previous": "5f2c...", "event": "run-started", ...}

So a line that was changed, taken out, added or moved shows; and because run.json and every checkpoint say how long the journal was and
what its last hash was, so does one that was cut short. Whoever can write all of these files can also write them anew: it is no proof
against the coordinator.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
FIRST = "0" * 64
"""What the first line names as the hash of the line before it."""


@dataclass(frozen=True)
class Entry:
    """A line: its place, the hash of the line before, what it tells, and its own hash."""

    number: int
    previous: str
    data: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class Break:
    """Where a journal is not what was written: `code` is `changed`, `missing`, `moved`, `cut` or `unreadable`; `what` in words."""

    entry: int
    code: str
    what: str


class ChainedJournal:
    """Appends to the journal in `path`. Threads may share it, two processes may not.

    A last line that a killed process or a full disk left half written is taken away: nobody was told that it was there.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        lines, self._size = _whole_lines(path)
        os.ftruncate(self._handle, self._size)
        self.length = len(lines)
        """How many entries there are."""
        self.head = _sha256(lines[-1]) if lines else FIRST
        """SHA-256 of the last line."""

    def append(self, data: dict[str, Any]) -> None:
        """Add an entry. OSError when the disk does not take it; then nothing was added."""
        with self._lock:
            line = _line(self.length, self.head, data)
            written = os.write(self._handle, line + b"\n")
            if written != len(line) + 1:
                os.ftruncate(self._handle, self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            self._size += written
            self.length, self.head = self.length + 1, _sha256(line)

    def sync(self) -> None:
        """Make what was added outlast a power cut."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def entries(path: Path) -> Iterator[Entry]:
    """The entries of the journal in `path`, oldest first, as far as they can be read. FileNotFoundError when there is none."""
    for line in _whole_lines(path)[0]:
        entry = _parse(line)
        if entry is not None:
            yield entry


def breaks(path: Path, anchors: dict[str, tuple[int, str]]) -> list[Break]:
    """Where the journal in `path` is not what was written, in order.

    `anchors` maps the name of a file to the length and the last hash that the journal had when it was written.
    """
    lines, size = _whole_lines(path)
    parsed = [_parse(line) for line in lines]
    hashes = {entry.number: entry.sha256 for entry in parsed if entry is not None}
    found: list[Break] = []
    expected = 0
    for place, entry in enumerate(parsed):
        if entry is None:
            found.append(Break(expected, "unreadable", f"Line {place + 1} cannot be read, where entry {expected} belongs."))
            expected += 1
            continue
        if entry.number < expected:
            found.append(Break(entry.number, "moved", f"Entry {entry.number} stands in line {place + 1}, where entry {expected} belongs."))
        elif gone := [number for number in range(expected, entry.number) if number not in hashes]:
            missing = f"Entry {gone[0]} is" if len(gone) == 1 else f"Entries {gone[0]} to {gone[-1]} are"
            found.append(Break(gone[0], "missing", f"{missing} missing before entry {entry.number}."))
        if entry.previous != hashes.get(entry.number - 1, entry.previous if entry.number else FIRST):
            before = entry.number - 1
            found.append(Break(before, "changed", f"Entry {before} is not what it was when entry {entry.number} was written."))
        expected = max(expected, entry.number + 1)
    if size != path.stat().st_size:
        found.append(Break(expected, "cut", f"Entry {expected} is cut short."))
    for name, (length, head) in sorted(anchors.items()):
        if length > len(lines):
            found.append(Break(len(lines), "cut", f"The journal ends after entry {len(lines) - 1}; {name} knew {length} entries."))
        elif length and hashes.get(length - 1) != head:
            found.append(Break(length - 1, "changed", f"Entry {length - 1} is not the one that {name} knew as the last."))
    return found


def _line(number: int, previous: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"entry": number, "previous": previous, **data}, separators=(",", ":"), allow_nan=False).encode()


def _parse(line: bytes) -> Entry | None:
    try:
        data = json.loads(line)
        return Entry(int(data.pop("entry")), str(data.pop("previous")), data, _sha256(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _whole_lines(path: Path) -> tuple[list[bytes], int]:
    """The lines that end, without their end, and how many bytes they take."""
    data = path.read_bytes()
    whole = data.rpartition(b"\n")[0]
    return (whole.split(b"\n"), len(whole) + 1) if whole or data.startswith(b"\n") else ([], 0)


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
