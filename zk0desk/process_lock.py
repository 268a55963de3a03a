"""One process at a time: a lock that the system takes back when its holder ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0desk.errors import OperatorError
from zk0desk.folders import private_folder

LOOK_S = 1.0
"""Seconds that a lock is asked for at least: who only looks whether it is held has it for a moment."""


@contextmanager
def held(path: Path, otherwise: OperatorError, *, wait_s: float = LOOK_S) -> Iterator[None]:
    """Hold the lock of the file `path`; raise `otherwise` when another process still has it after `wait_s` seconds."""
    from filelock import FileLock, Timeout

    private_folder(path.parent)
    lock = FileLock(path, timeout=wait_s, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise otherwise from None
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of the file `path`."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return True  # it cannot even be opened: the disk became read-only, which ends no process
    lock.release()
    return False
