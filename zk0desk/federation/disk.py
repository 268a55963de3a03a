"""A disk that refuses to be written to: a sentence, and another try until it takes what was to be written. Nothing is lost meanwhile."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0desk.errors import OperatorError
from zk0desk.events import Notice, ServerStateChanged, Sink

RETRY_S = 2.0
"""Seconds between two tries."""

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class DiskTrouble(OperatorError):
    """A file could not be written."""

    code = "disk-trouble"


def refused(error: OSError) -> bool:
    """Whether it is the disk that refused: it is full, or read-only, or broken."""
    return error.errno in _FULL | _CLOSED | {errno.EIO}


def trouble(error: OSError, folder: Path) -> DiskTrouble:
    """What a person is told when something below `folder` could not be written."""
    what = f"{folder} cannot be written to."
    if error.errno in _FULL:
        return DiskTrouble(what, "The disk, or what may be used of it, is full.", "Make room on that disk.")
    if error.errno in _CLOSED:
        return DiskTrouble(what, f"{error.strerror}.", "Make the folder writable for the user who runs the server.")
    return DiskTrouble(what, f"{error.strerror}.", "Look at the disk: it may be failing.")


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn a disk's refusal into `DiskTrouble`."""
    try:
        yield
    except OSError as error:
        if not refused(error):
            raise
        raise trouble(error, folder) from error


class PatientDisk:
    """Does what writes below `folder` until the disk takes it. `wait` sleeps, and raises when the run is asked to stop."""

    def __init__(self, folder: Path, emit: Sink, wait: Callable[[float], None]) -> None:
        self._folder, self._emit, self._wait = folder, emit, wait

    def insist[Result](self, act: Callable[[], Result]) -> Result:
        """The result of `act`, which writes files and may be done again. What the disk refuses is said once and tried until it works."""
        said = False
        while True:
            try:
                result = act()
            except OSError as error:
                if not refused(error):
                    raise
                if not said:
                    self._say(error)
                said = True
                self._wait(RETRY_S)
                continue
            if said:
                self._emit(Notice(severity="note", code="disk-again", what=f"{self._folder} can be written to again. The run goes on."))
            return result

    def wait_for(self, count: int) -> None:
        """Wait until the disk takes `count` bytes, and a moment at least: something on it could not be written just now."""
        self._wait(RETRY_S)
        self.insist(lambda: self._probe(count))

    def _probe(self, count: int) -> None:
        with tempfile.TemporaryFile(dir=self._folder) as file:
            zeros = bytes(min(count, 2**20))
            for _ in range(-(-count // 2**20)):
                file.write(zeros)
            file.flush()

    def _say(self, error: OSError) -> None:
        found = trouble(error, self._folder)
        self._emit(Notice(severity="error", code=found.code, what=found.what, why=found.why, remedy=found.remedy))
        what = "The run waits until its files can be written; nothing is lost meanwhile."
        self._emit(ServerStateChanged(state="waiting-for-disk", what=what, why=found.why))
