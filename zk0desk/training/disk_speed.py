"""How fast a disk reads what the system does not have in memory: measured with a file of its own, for a second or so."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

PIECE = 1_000_000
"""Bytes that are read at once, at random places: between the sizes of the cache's entries."""


def disk_speed(folder: Path, size: int = 128_000_000) -> float:
    """Bytes a second of random reads in `folder` (which is there), or 0 where it cannot be measured.

    A file of `size` bytes is written there, dropped from the system's memory, read back once, and removed. A system that cannot be told
    to forget a file (Windows, macOS) would only show how fast its memory is: there it is 0.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0.0
    places = [PIECE * number for number in range(max(1, size // PIECE))]
    random.Random(0).shuffle(places)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            content = os.urandom(PIECE)  # a disk that compresses would make zeros look fast
            for _ in places:
                file.write(content)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            buffer = bytearray(PIECE)
            began = time.perf_counter()
            for place in places:
                os.preadv(file.fileno(), [buffer], place)
            return len(places) * PIECE / (time.perf_counter() - began)
    except OSError:
        return 0.0
