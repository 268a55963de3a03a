"""Where a measurement keeps the frames that it prepares: a folder of its own inside the prefix cache's, so on the same disk always.

`PrefixCache` sees no shelf in it. It goes with the measurement. What a killed process left is removed by the next measurement, and by
the next one who opens a shelf of the cache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0desk import folders
from zk0desk.training.prefix_files import nobody_uses, open_for_both, say_in_use, still_at

_NAME, _LOCK = ".measuring-", "in-use"


@contextmanager
def measuring_folder(cache: Path) -> Iterator[Path]:
    """A new folder (mode 0700) in the cache's folder `cache`, removed at the end whatever happens. OSError where there can be none."""
    was_there = cache.exists()
    folders.private_folder(cache)
    remove_left_measurements(cache)
    folder, lock = _made(cache)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):  # somebody else uses it now
                cache.rmdir()


def remove_left_measurements(cache: Path) -> None:
    """Remove what measurements left in the cache's folder `cache`, whose processes have ended."""
    try:
        left = [Path(entry.path) for entry in os.scandir(cache) if entry.name.startswith(_NAME) and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for folder in left:
        with nobody_uses(folder / _LOCK) as free, contextlib.suppress(OSError):
            if free:
                (folder / _LOCK).unlink(missing_ok=True)  # Windows refuses it while it is open, and then all of it stays
                shutil.rmtree(folder, ignore_errors=True)


def forget(folder: Path) -> None:
    """Let the system's memory forget what is in `folder`, where it can be told to: the next reads come from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


def _made(cache: Path) -> tuple[Path, int]:
    """A new folder, and the open file in it that says that it is in use."""
    for _ in range(5):  # somebody may take it for what was left, before it is marked
        folder = Path(tempfile.mkdtemp(prefix=_NAME, dir=cache))
        try:
            lock = open_for_both(folder / _LOCK)
        except FileNotFoundError:
            continue
        say_in_use(lock)
        if still_at(lock, folder / _LOCK):
            return folder, lock
        os.close(lock)
    raise FileNotFoundError(f"{cache} is cleared again and again")
