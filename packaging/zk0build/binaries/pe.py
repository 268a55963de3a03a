"""The parts of Windows' PE files that a package depends on (Microsoft's PE format): imports, linker, version, signature."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

_IMPORTS, _SECURITY, _DELAYED = 1, 4, 13
_FIXED_FILE_INFO = struct.pack("<II", 0xFEEF04BD, 0x00010000)


@dataclass
class Pe:
    """`imports` with the delayed ones; `linker` and `version` as (major, minor); `signed`: an Authenticode signature is attached."""

    imports: list[str] = field(default_factory=list)
    linker: tuple[int, int] = (0, 0)
    version: tuple[int, int] = (0, 0)
    signed: bool = False


def read(path: Path) -> Pe:
    """Read the file `path`."""
    return parse(path.read_bytes())


def parse(data: bytes) -> Pe:
    """Read a PE file's bytes; ValueError when they are none."""
    if data[:2] != b"MZ":
        raise ValueError("no PE file")
    (header,) = struct.unpack_from("<I", data, 60)
    if data[header : header + 4] != b"PE\0\0":
        raise ValueError("no PE file")
    count, optional_size = struct.unpack_from("<H12xH", data, header + 6)
    optional = header + 24
    plus = struct.unpack_from("<H", data, optional)[0] == 0x20B
    directories = optional + (112 if plus else 96)
    (how_many,) = struct.unpack_from("<I", data, directories - 4)
    sections = [struct.unpack_from("<IIII", data, optional + optional_size + 40 * index + 8) for index in range(count)]

    def directory(index: int) -> tuple[int, int]:
        return struct.unpack_from("<II", data, directories + 8 * index) if index < how_many else (0, 0)

    def at(address: int) -> int:
        return next(raw + address - start for size, start, raw_size, raw in sections if start <= address < start + max(size, raw_size))

    def names(index: int, entry: int, field_at: int) -> list[str]:
        place, size = directory(index)
        found: list[str] = []
        while place and size:
            (name,) = struct.unpack_from("<I", data, at(place) + field_at)
            if not name:
                break
            found.append(data[at(name) : data.index(b"\0", at(name))].decode("ascii"))
            place += entry
        return found

    info = data.find(_FIXED_FILE_INFO)
    low, high = struct.unpack_from("<HH", data, info + 8) if info >= 0 else (0, 0)
    return Pe(
        imports=names(_IMPORTS, 20, 12) + names(_DELAYED, 32, 4),
        linker=struct.unpack_from("<BB", data, optional + 2),
        version=(high, low),
        signed=directory(_SECURITY)[1] > 0,
    )
