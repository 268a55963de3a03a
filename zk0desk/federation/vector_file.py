"""A flat array on disk that is written piece by piece and read memory-mapped: large ones need no memory of their own."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Write = Callable[[np.ndarray], None]


@contextmanager
def new_vector(path: Path, dtype: np.dtype[Any], size: int, *, sync: bool = True) -> Iterator[Write]:
    """Write the .npy file `path` of `size` values by calling what is yielded with one part after the other.

    It is there when the block ends, whole, and after an error not at all. `sync`: it also survives a power cut then.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(file, header)

            def write(part: np.ndarray) -> None:
                file.write(np.ascontiguousarray(part, dtype).data)

            yield write
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_vector(path: Path, dtype: np.dtype[Any], size: int) -> np.ndarray | None:
    """What `new_vector` wrote, memory-mapped and read-only; None when there is no such file, or of another dtype or size."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) and found.dtype == dtype and found.shape == (size,) else None


def let_go(vector: np.ndarray | None) -> None:
    """Take what was read or written of a mapped file out of this process's memory. It stays in the file, and comes back when it is asked
    for. Nothing happens to other arrays, nor to mapped ones whose changes are this process's own.
    """
    if isinstance(vector, np.memmap) and vector.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        mapped = getattr(vector, "_mmap", None)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
