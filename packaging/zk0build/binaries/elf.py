"""The dynamic section of 64-bit little-endian ELF files (System V ABI, chapter 5; GNU symbol versions)."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH, _VERNEED, _VERNEEDNUM = 1, 5, 14, 15, 29, 0x6FFFFFFE, 0x6FFFFFFF


@dataclass
class Elf:
    """`needed`: DT_NEEDED; `soname`; `runpath`: DT_RUNPATH or DT_RPATH.

    `versions`: the symbol versions that it asks each library for, e.g. {"libc.so.6": ["GLIBC_2.34"]}.
    """

    needed: list[str] = field(default_factory=list)
    soname: str = ""
    runpath: str = ""
    versions: dict[str, list[str]] = field(default_factory=dict)

    def glibc(self) -> tuple[int, ...]:
        """The oldest glibc that it loads on, e.g. (2, 34); (0,) when it asks for none."""
        found = [name.removeprefix("GLIBC_") for names in self.versions.values() for name in names if name.startswith("GLIBC_2")]
        return max((tuple(map(int, each.split("."))) for each in found), default=(0,))


def read(path: Path) -> Elf:
    """Read `path`; ValueError when it is not a 64-bit little-endian ELF file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is no 64-bit ELF file")
        (phoff,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        segments = [struct.unpack_from("<IIQQQQQQ", data, phoff + size * index) for index in range(count)]
        loads = [(vaddr, offset, filesz) for kind, _, offset, vaddr, _, filesz, _, _ in segments if kind == _LOAD]

        def at(address: int) -> int:
            return next(offset + address - vaddr for vaddr, offset, filesz in loads if vaddr <= address < vaddr + filesz)

        found = Elf()
        for kind, _, offset, _, _, filesz, _, _ in segments:
            if kind != _DYNAMIC:
                continue
            entries = [struct.unpack_from("<QQ", data, offset + 16 * index) for index in range(filesz // 16)]
            values = dict(reversed(entries))
            if _STRTAB not in values:
                continue
            strings = at(values[_STRTAB])

            def text(index: int, start: int = strings) -> str:
                return data[start + index : data.find(b"\0", start + index)].decode()

            found.needed = [text(value) for tag, value in entries if tag == _NEEDED]
            found.soname = text(values[_SONAME]) if _SONAME in values else ""
            found.runpath = next((text(values[tag]) for tag in (_RUNPATH, _RPATH) if tag in values), "")
            place = at(values[_VERNEED]) if _VERNEED in values else 0
            for _ in range(values.get(_VERNEEDNUM, 0)):
                _, names, library, aux, following = struct.unpack_from("<HHIII", data, place)
                item, versions = place + aux, []
                for _ in range(names):
                    _, _, _, name, step = struct.unpack_from("<IHHII", data, item)
                    versions.append(text(name))
                    item += step
                found.versions[text(library)] = versions
                place += following
        return found
