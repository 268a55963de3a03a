"""What is in a wheel, checked before a byte of it is unpacked: where each file goes, its size and its SHA-256.

A wheel is a zip file with a RECORD that names each file with its hash (PyPA: binary distribution format). A list pins the
wheel as a whole; this keeps what is unpacked inside the engine's folder even if a list were wrong.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from zk0desk.engine.errors import WheelError
from zk0desk.engine.lists import Wheel

PIECE = 2**20
"""Bytes that are read at once: large enough that hashing and unpacking run without Python's lock."""

_MAX_ENTRIES, _MAX_PATH, _MAX_RECORD = 200_000, 230, 64 * 2**20
_MAX_RATIO, _SPARE = 200, 64 * 2**20
"""A wheel that would unpack to more than this many times its size, and so much more, is a bomb (whole engines take twice their size)."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SITE = ("purelib", "platlib")
"""Parts of `NAME.data` that belong beside the packages. Scripts, headers and data have no use in an engine."""
_BAD = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in "0123456789")}
_UNHASHED = (".jws", ".p7s")


@dataclass(frozen=True)
class Entry:
    """A file of a wheel: `path` below the engine's `site`, its size in bytes, its SHA-256 in hex, and whether it is a program."""

    info: zipfile.ZipInfo
    path: str
    size: int
    sha256: str
    program: bool


@dataclass(frozen=True)
class OpenWheel:
    """A wheel whose entries were checked. `record`: the bytes of its RECORD; `record_path`: where it is."""

    archive: zipfile.ZipFile
    entries: tuple[Entry, ...]
    record: bytes
    record_path: str

    @property
    def unpacked(self) -> int:
        """Bytes of all its files on the disk."""
        return len(self.record) + sum(entry.size for entry in self.entries)


@contextmanager
def opened(wheel: Path | BinaryIO, name: str = "") -> Iterator[OpenWheel]:
    """Open a wheel, a file or what reads like one, and check all that can be known without unpacking it.

    Raises `WheelError`; `name` is how to call it.
    """
    name = name or getattr(wheel, "name", "")
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield _checked(archive, archive.start_dir, name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise wrong(name, f"it is no whole zip file ({error})") from error


def describe(path: Path) -> dict[str, Any]:
    """The entry of a list for the wheel at `path`, without its address: name, version, file, size, sha256, unpacked, record."""
    name, version = path.name.split("-")[:2]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": name, "version": version, "file": path.name, "size": path.stat().st_size, "sha256": digest} | contents(path)


def contents(wheel: Path | BinaryIO, name: str = "") -> dict[str, Any]:
    """What a list says of a wheel's contents: `unpacked`, bytes on the disk, and `record`, SHA-256 of its RECORD. Of the file only the
    end and the RECORD are read, so that it may lie behind an address that answers to Range.
    """
    with opened(wheel, name) as content:
        return {"unpacked": content.unpacked, "record": hashlib.sha256(content.record).hexdigest()}


def files_of(record: bytes, name: str) -> dict[str, tuple[str, int]]:
    """What a RECORD says: for each path in the wheel its SHA-256 in hex and its size; ("", 0) for what is not hashed."""
    found: dict[str, tuple[str, int]] = {}
    try:
        for row in csv.reader(io.StringIO(record.decode("utf-8"))):
            if not row:
                continue
            path, told, size = row
            if path in found:
                raise wrong(name, f"its RECORD names {path[:100]!r} twice")
            if not told:
                found[path] = ("", 0)
                continue
            algorithm, _, digest = told.partition("=")
            content = base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4))
            if algorithm != "sha256" or len(content) != 32:
                raise wrong(name, f"its RECORD has no SHA-256 of {path[:100]!r}")
            found[path] = (content.hex(), int(size))
    except (UnicodeDecodeError, csv.Error, ValueError, binascii.Error) as error:
        raise wrong(name, "its RECORD cannot be read") from error
    return found


def installed_path(path: str, name: str) -> str:
    """Where the file `path` of a wheel goes below `site`, or "" for what an engine has no use for.

    Raises `WheelError` for what must not be.
    """
    parts = path.split("/")
    if len(path) > _MAX_PATH or _BAD.search(path) or not all(_harmless(part) for part in parts):
        raise wrong(name, f"it holds a file with a name that must not be: {path[:100]!r}")
    if parts[0].lower().endswith(".data"):
        return "/".join(parts[2:]) if len(parts) > 2 and parts[1] in _SITE else ""
    return path


def _harmless(part: str) -> bool:
    if part in ("", ".", "..") or part.endswith((".", " ")) or part.startswith(" "):
        return False
    return part.partition(".")[0].rstrip().lower() not in _DEVICES


def _checked(archive: zipfile.ZipFile, packed: int, name: str) -> OpenWheel:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    for info in archive.infolist():
        if info.is_dir():
            installed_path(info.filename.rstrip("/"), name)
    if len(infos) > _MAX_ENTRIES:
        raise wrong(name, f"it holds {len(infos):,} files")
    if sum(info.file_size for info in infos) > _MAX_RATIO * packed + _SPARE:
        raise wrong(name, "it would unpack to far more than such a file holds")
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise wrong(name, f"it holds a link or a device: {info.filename[:100]!r}")
        if info.flag_bits & 0x1 or info.compress_type not in _METHODS:
            raise wrong(name, f"it holds a file that is packed in a way that zk0desk does not read: {info.filename[:100]!r}")
    record_info = _record_of(infos, name)
    record = archive.read(record_info)
    told = files_of(record, name)
    entries = []
    taken = {"": name}  # nothing goes to the folder's own place
    for info in infos:
        path = installed_path(info.filename, name)
        if not path:
            continue
        key = unicodedata.normalize("NFC", path).casefold()
        if key in taken:
            raise wrong(name, f"two of its files would be one where capitals do not count: {path[:100]!r}")
        taken[key] = path
        if info is record_info or path.startswith(record_info.filename) and path.endswith(_UNHASHED):
            continue
        digest, size = told.get(info.filename, ("", 0))
        if not digest or size != info.file_size:
            raise wrong(name, f"its RECORD does not describe {info.filename[:100]!r}")
        entries.append(Entry(info, path, size, digest, bool(info.external_attr >> 16 & 0o111)))
    for key in list(taken):
        above = key.rpartition("/")[0]
        while above:
            if above in taken:
                raise wrong(name, f"one of its files is where a folder has to be: {taken[above][:100]!r}")
            above = above.rpartition("/")[0]
    there = {info.filename for info in infos}
    if missing := [path for path, (digest, _) in told.items() if digest and path not in there and installed_path(path, name)]:
        raise wrong(name, f"its RECORD names {missing[0][:100]!r}, and it is not there")
    return OpenWheel(archive, tuple(entries), record, record_info.filename)


def _record_of(infos: list[zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    found = [info for info in infos if re.fullmatch(r"[^/]+\.dist-info/RECORD", info.filename)]
    if len(found) != 1 or found[0].file_size > _MAX_RECORD:
        raise wrong(name, "it has not exactly one RECORD, so it is no wheel")
    return found[0]


def check_size(wheel: Wheel, opened_wheel: OpenWheel) -> None:
    """Raise `WheelError` when the wheel's files are not those whose size the list tells."""
    if wheel.unpacked and opened_wheel.unpacked != wheel.unpacked:
        raise wrong(wheel.file, f"its files take {opened_wheel.unpacked:,} bytes and the list says {wheel.unpacked:,}")


def wrong(name: str, why: str) -> WheelError:
    """The error of a wheel that is not unpacked."""
    what = f"{name} is not unpacked."
    remedy = "Nothing of it was used. Install zk0desk again, or report it with this sentence."
    return WheelError(what, f"{why[:1].upper()}{why[1:]}.", remedy)
