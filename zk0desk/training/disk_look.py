"""The disk where runs are kept: what is free, and how fast it writes and reads, measured with a file that is removed at once."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zk0desk.amounts import gigabytes
from zk0desk.training.hardware_look import runs_place

SIZE, PIECE = 64 * 2**20, 2**20
"""Bytes that are written and read, and bytes at once."""


@dataclass(frozen=True)
class DiskLook:
    """A folder's disk: bytes that are free, bytes a second written (and on the disk, not only in memory) and read.

    `read` is 0 where the system cannot be told to forget the file, so that only its memory would be read; both are 0 where `trouble`
    says why nothing could be measured.
    """

    folder: str
    free: int
    write: float = 0.0
    read: float = 0.0
    trouble: str = ""

    @property
    def sentence(self) -> str:
        """All of it for a person."""
        said = f"{gigabytes(self.free)} free for {self.folder}"
        if self.trouble:
            return f"{said}; its speed could not be measured: {self.trouble}"
        reads = f" and reads {self.read / 1e6:,.0f} MB/s" if self.read else ""
        return f"{said}; it writes {self.write / 1e6:,.0f} MB/s{reads}."

    def to_json(self) -> dict[str, Any]:
        """The look as a JSON object."""
        return {**asdict(self), "sentence": self.sentence}


def look_at_disk(folder: Path | None = None, size: int = SIZE) -> DiskLook:
    """Write and read `size` bytes in `folder` (default: where runs are kept, or the nearest folder above it that is there)."""
    folder = folder or runs_place()
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        return DiskLook(str(folder), free, trouble="too little is free.")
    content = os.urandom(PIECE)  # a disk that compresses would make zeros look fast
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            began = time.perf_counter()
            for _ in range(size // PIECE):
                file.write(content)
            os.fsync(file.fileno())
            write = size / (time.perf_counter() - began)
            if not hasattr(os, "posix_fadvise"):
                return DiskLook(str(folder), free, write)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            began = time.perf_counter()
            while file.read(PIECE):
                pass
            return DiskLook(str(folder), free, write, size / (time.perf_counter() - began))
    except OSError as error:
        return DiskLook(str(folder), free, trouble=f"{error.strerror or type(error).__name__}.")
