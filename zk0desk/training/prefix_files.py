"""The files of a shelf of the prefix cache: read and written at a place, locked while they are open, never mapped into memory.

A mapped file that another process cuts short, or that meets a full disk, ends this process with SIGBUS. Reading with `pread` gives a short
count instead, costs one copy that a batch of scattered rows needs anyway, and the system keeps in memory what it read just the same.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Buffer, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_TRIES = 100
_place = threading.Lock()
_CLOEXEC_BINARY = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_for_both(path: Path) -> int:
    """A descriptor to read and write `path` with, which is made (mode 0600) where it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _CLOEXEC_BINARY, 0o600)


def open_to_read(path: Path) -> int:
    """A descriptor to read `path` with."""
    return os.open(path, os.O_RDONLY | _CLOEXEC_BINARY)


def read_at(descriptor: int, buffer: Buffer, offset: int) -> int:
    """Fill `buffer` (bytes, contiguous) from `offset` on; how many bytes there were, less where the file ends early."""
    view = memoryview(buffer).cast("B")
    done = 0
    while done < len(view):
        got = _read_once(descriptor, view[done:], offset + done)
        if not got:
            break
        done += got
    return done


def write_at(descriptor: int, content: Buffer, offset: int) -> None:
    """Write all of `content` at `offset`; OSError where the disk is full or fails."""
    view = memoryview(content).cast("B")
    done = 0
    while done < len(view):
        done += _write_once(descriptor, view[done:], offset + done)


def _read_once(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    with _place:  # Windows has no positioned reads: a descriptor's place is shared by all threads
        os.lseek(descriptor, offset, os.SEEK_SET)
        piece = os.read(descriptor, len(view))
        view[: len(piece)] = piece
        return len(piece)


def _write_once(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, offset)
    with _place:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, view)


def say_in_use(descriptor: int) -> None:
    """Mark an open file as in use until it is closed, or this process ends however it ends.

    Windows itself refuses to remove a file that is open. A file system without locks leaves it unmarked: then it can be removed while it
    is in use, which costs what it holds and nothing else.
    """
    if sys.platform == "win32":
        return
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.01)  # somebody looks whether it is in use, which takes no time, or removes it: `still_at` tells
        except OSError:
            return


@contextmanager
def nobody_uses(path: Path) -> Iterator[bool]:
    """Whether no process has `path` open for use; while this lasts, nobody begins to."""
    if sys.platform == "win32" or not path.exists():
        yield True
        return
    try:
        descriptor = open_to_read(path)
    except OSError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:  # a file system without locks
            yield True
        else:
            yield True
    finally:
        os.close(descriptor)


def still_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the file that is open, and was neither removed nor put elsewhere."""
    try:
        here, there = os.fstat(descriptor), path.stat()
    except OSError:
        return False
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def bytes_on_disk(path: Path) -> int:
    """What a file takes of the disk, holes left out; 0 where it is missing."""
    try:
        seen = path.stat()
    except OSError:
        return 0
    return seen.st_blocks * 512 if hasattr(seen, "st_blocks") else seen.st_size
