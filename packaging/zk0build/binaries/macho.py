"""The load commands of macOS's Mach-O files (Apple's mach-o/loader.h and fat.h): 64-bit, alone or in a universal file."""

from __future__ import annotations

import struct
from pathlib import Path

_DYLIB_COMMANDS = {0x0C, 0x80000018, 0x8000001F, 0x80000023}  # LOAD, LOAD_WEAK, REEXPORT, LOAD_UPWARD


def needed(path: Path) -> list[str]:
    """File names of the libraries that the first architecture in `path` loads, e.g. `QtCore`, `libc++.1.dylib`."""
    data = path.read_bytes()
    start = struct.unpack_from(">I", data, 16)[0] if data[:4] == b"\xca\xfe\xba\xbe" else 0
    if data[start : start + 4] != b"\xcf\xfa\xed\xfe":
        return []
    (count,) = struct.unpack_from("<I", data, start + 16)
    place, found = start + 32, []
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, place)
        if command in _DYLIB_COMMANDS:
            (offset,) = struct.unpack_from("<I", data, place + 8)
            found.append(data[place + offset : place + size].split(b"\0")[0].decode().rsplit("/", 1)[-1])
        place += size
    return found
