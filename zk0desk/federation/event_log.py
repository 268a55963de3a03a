"""The coordinator's events on disk, as the lines of JSON that its commands print: what `server status` and `server plot` read.

What belongs to a run is in the run's journal (`chain`); all else in `state/events.jsonl`, which begins anew when it is large. Each line
is written at once, so that a killed process loses none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zk0desk.events import Event, Sink
from zk0desk.federation import chain
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.folders import private_folder

ROTATE_AT = 2 * 2**20
"""Bytes after which `state/events.jsonl` becomes `state/events.jsonl.1` and begins anew."""
NAME = "events.jsonl"


def logged(server: ServerFolder, emit: Sink) -> Sink:
    """A sink that writes each event that belongs to no run to the server's folder, and passes all on to `emit`.

    A disk that refuses costs the line only.
    """

    def sink(event: Event) -> None:
        try:
            if not hasattr(event, "run"):
                _write(private_folder(server.state) / NAME, event.to_json())
        except OSError:
            pass  # the rounds are worth more than their log, and a full disk has a sentence of its own
        emit(event)

    return sink


def _write(path: Path, event: dict[str, Any]) -> None:
    # Opened for each line, to append: several processes write here, and a rotated file is let go of.
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        line = json.dumps(event) + "\n"
        # A line that a killed process or a full disk cut short ends here, so that this one is whole.
        os.write(handle, (line if _ends_whole(path) else f"\n{line}").encode())
        size = os.fstat(handle).st_size
    finally:
        os.close(handle)
    if size > ROTATE_AT:
        _rotate(path)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _rotate(path: Path) -> None:
    from filelock import FileLock

    with FileLock(path.with_suffix(".lock"), timeout=5):
        if path.stat().st_size > ROTATE_AT:  # another process may have been faster
            path.replace(path.with_name(f"{NAME}.1"))


class EventReader:
    """Reads the events of a file as they come: each call of `new` gives those that were added since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = path.with_name(f"{NAME}.1")
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Events since the last call, as their JSON objects. What is no event is passed over."""
        # A file that began anew: what it held before is in the one beside it, and was perhaps not read to its end.
        if self._file != _identity(self._path) and self._file in (None, _identity(self._before)):
            yield from self._read(self._before)
        yield from self._read(self._path)

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                if (state.st_dev, state.st_ino) != self._file or state.st_size < self._offset:
                    self._file, self._offset = (state.st_dev, state.st_ino), 0
                file.seek(self._offset)
                lines = file.readlines()
        except OSError:
            return
        for line in lines:
            if not line.endswith(b"\n"):
                return  # the rest of it is still to come
            self._offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("time"), int | float):
                yield event


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def run_events(server: ServerFolder, run: str) -> Iterator[dict[str, Any]]:
    """All events of a run, oldest first."""
    return EventReader(server.runs / run / chain.NAME).new()
