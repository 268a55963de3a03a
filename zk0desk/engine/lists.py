"""Lists of exact wheels, one for each system and back end. They are made when zk0desk is built, and read strictly."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from zk0desk.engine.errors import EngineListError
from zk0desk.resources import resource

Backend = Literal["cu130", "cu128", "cu126", "cpu", "mps"]
BACKENDS: tuple[str, ...] = get_args(Backend)
SYSTEMS = {"linux": "linux", "win32": "windows", "darwin": "macos"}
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
"""What the wheels have to be made for."""
UNPACKED = 2.0
"""Bytes on the disk for each byte of a wheel, where the list does not tell (1.75 and 1.88 measured for whole engines)."""

_MAX_TEXT, _MAX_WHEELS, _MAX_SIZE = 5_000_000, 2_000, 2**34
_FILE = re.compile(r"[A-Za-z0-9_.]+-[A-Za-z0-9_.!+]+(-\d[A-Za-z0-9_.]*)?-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\.whl")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Wheel:
    """A wheel: its file's name, size in bytes and SHA-256, and where it is (`url`; "" when it is shipped with the list).

    `unpacked`: bytes of its files on the disk, 0 where the list does not tell. `record`: SHA-256 of its RECORD, by which its files are
    known without the wheel, or "".
    """

    name: str
    version: str
    file: str
    size: int
    sha256: str
    url: str = ""
    unpacked: int = 0
    record: str = ""

    @property
    def room(self) -> int:
        """Bytes that it takes on the disk once unpacked, estimated where they are not told."""
        return self.unpacked or int(UNPACKED * self.size)


@dataclass(frozen=True)
class EngineList:
    """The wheels of an engine for one system, processor, back end and Python."""

    system: str
    arch: str
    backend: str
    python: str
    wheels: tuple[Wheel, ...]

    @functools.cached_property
    def id(self) -> str:
        """16 hex digits that stand for exactly these wheels, wherever they are fetched."""
        kept = ("name", "version", "file", "size", "sha256")
        content = {**self._head(), "wheels": [{key: getattr(wheel, key) for key in kept} for wheel in self.wheels]}
        return hashlib.sha256(_canonical(content)).hexdigest()[:16]

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def unpacked(self) -> int:
        """Bytes on the disk, estimated where the list does not tell."""
        return sum(wheel.room for wheel in self.wheels)

    def _head(self) -> dict[str, Any]:
        return {"schema": 1, "system": self.system, "arch": self.arch, "backend": self.backend, "python": self.python}

    def to_text(self) -> str:
        """The list as `parse` reads it."""
        wheels = []
        for wheel in self.wheels:
            entry: dict[str, Any] = {key: getattr(wheel, key) for key in ("name", "version", "file", "size", "sha256", "url")}
            wheels.append(entry | {key: getattr(wheel, key) for key in ("unpacked", "record") if getattr(wheel, key)})
        return json.dumps({**self._head(), "wheels": wheels}, indent=1) + "\n"


def this_system() -> tuple[str, str]:
    """This computer's system and processor as lists name them: ("linux", "x86_64"), ("windows", "x86_64"), ("macos", "arm64")."""
    machine = platform.machine().lower()
    return SYSTEMS.get(sys.platform, sys.platform), {"amd64": "x86_64"}.get(machine, machine)


def folder() -> Path | None:
    """Where the lists are: shipped with the artefact, or `ZK0DESK_ENGINE_LISTS`. None where there are none."""
    if chosen := os.environ.get("ZK0DESK_ENGINE_LISTS"):
        return Path(chosen)
    try:
        return resource("engines")
    except FileNotFoundError:
        return None


def shipped() -> dict[str, EngineList]:
    """The lists for this system, processor and Python, by back end. `EngineListError` when one of them is broken."""
    place = folder()
    system, arch = this_system()
    found = {}
    for backend in BACKENDS:
        path = place / f"{system}-{arch}-{backend}.json" if place else None
        if path and path.is_file():
            one = read(path)
            if (one.system, one.arch, one.backend) != (system, arch, backend):
                raise _wrong(str(path), f"it is for {one.system} {one.arch} {one.backend}")
            if one.python == PYTHON:
                found[backend] = one
    return found


def read(path: Path) -> EngineList:
    """Read the list in the file `path`. `EngineListError` where it cannot be."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_TEXT + 1)
    except OSError as error:
        raise _wrong(str(path), f"it cannot be read ({error.strerror})") from error
    return parse(text, str(path))


def parse(text: bytes | str, where: str) -> EngineList:
    """Read a list strictly; `where` names it in the error. Raises `EngineListError`."""
    if len(text) > _MAX_TEXT:
        raise _wrong(where, "it is too long")
    try:
        told = json.loads(text)
    except ValueError as error:
        raise _wrong(where, "it is no JSON") from error
    keys = {"schema", "system", "arch", "backend", "python", "wheels"}
    if not isinstance(told, dict) or set(told) != keys or told["schema"] != 1:
        raise _wrong(where, "it has other keys, or another schema, than this version of zk0desk knows")
    if told["backend"] not in BACKENDS:
        raise _wrong(where, f"the back end {told['backend']!r} is not known")
    for key in ("system", "arch", "python"):
        if not isinstance(told[key], str) or not _VERSION.fullmatch(told[key]):
            raise _wrong(where, f"{key} is no name")
    if not isinstance(told["wheels"], list) or not 0 < len(told["wheels"]) <= _MAX_WHEELS:
        raise _wrong(where, "it names no wheels")
    wheels = tuple(_wheel(each, where) for each in told["wheels"])
    names = {re.sub(r"[-_.]+", "-", wheel.name).lower() for wheel in wheels}
    if len(names) != len(wheels) or len({wheel.file.casefold() for wheel in wheels}) != len(wheels):
        raise _wrong(where, "it names a wheel twice")
    return EngineList(told["system"], told["arch"], told["backend"], told["python"], wheels)


def _wheel(told: Any, where: str) -> Wheel:
    needed, more = {"name", "version", "file", "size", "sha256", "url"}, {"unpacked", "record"}
    if not isinstance(told, dict) or not needed <= set(told) <= needed | more:
        raise _wrong(where, "an entry has other keys than a wheel has")
    texts = {key: told.get(key, "") for key in ("name", "version", "file", "sha256", "url", "record")}
    if not all(isinstance(value, str) for value in texts.values()):
        raise _wrong(where, "an entry's value is no text")
    name = texts["name"][:100]
    for key, pattern in (("name", _NAME), ("version", _VERSION), ("file", _FILE), ("sha256", _HASH)):
        if len(texts[key]) > 200 or not pattern.fullmatch(texts[key]):
            raise _wrong(where, f"{key} of {name!r} cannot be: {texts[key][:100]!r}")
    if texts["record"] and not _HASH.fullmatch(texts["record"]):
        raise _wrong(where, f"record of {name!r} is no SHA-256")
    for key in ("size", "unpacked"):
        number = told.get(key, 0)
        if type(number) is not int or not (0 < number <= _MAX_SIZE if key == "size" else 0 <= number <= 64 * _MAX_SIZE):
            raise _wrong(where, f"{key} of {name!r} is no number of bytes")
    if texts["url"] and not allowed(texts["url"]):
        raise _wrong(where, f"the address of {name!r} is not https")
    return Wheel(**texts, size=told["size"], unpacked=told.get("unpacked", 0))


def allowed(url: str) -> bool:
    """Whether something may be fetched from there: over https, or over http from this computer itself; no password in it."""
    if re.search(r"[\x00-\x20\x7f-\uffff\\]", url):
        return False
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether `host` is this computer."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _wrong(where: str, why: str) -> EngineListError:
    what = f"The list of the engine's parts cannot be used: {where}."
    return EngineListError(what, f"{why[:1].upper()}{why[1:]}.", "Install zk0desk again; if it happens again, report it.")
