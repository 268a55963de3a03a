"""The C library's memory allocator, told to give large blocks back to the system at once."""

from __future__ import annotations

import ctypes
import sys

LARGE_BLOCK = 2**20
"""Bytes from which a block is mapped on its own, and unmapped when it is freed."""
_M_MMAP_THRESHOLD = -3


def return_large_blocks() -> None:
    """Keep glibc from raising its threshold after the first large block is freed: each thread that receives updates would then hold on to
    what it once needed, and memory would grow with the nodes. Elsewhere than with glibc this does nothing."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
    except (OSError, AttributeError):
        return  # another C library
