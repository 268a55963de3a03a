"""What executables and libraries of the three systems say about themselves: which others they load."""

from __future__ import annotations

from pathlib import Path

from zk0build.binaries import elf, macho, pe

_MACHO = {b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"}


def needed(path: Path) -> list[str] | None:
    """File names of the libraries that `path` loads by itself, without folders; None when it is no executable or library."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"\x7fELF":
        return elf.read(path).needed
    if magic[:2] == b"MZ":
        return pe.read(path).imports
    if magic in _MACHO:
        return macho.needed(path)
    return None
