"""News of a later zk0desk or a mended engine: a signed file that is looked at when a person wants it, and never acted on by itself.

The artefact holds the address and the public key (`feed.json`); without it there is no feed. The file is JSON with two texts: `payload`,
again JSON, and `signature`, base64 of its Ed25519 signature. Nothing but the payload's own bytes is believed. A federation cannot update
anything.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zk0desk import __version__
from zk0desk.control import NodeControl
from zk0desk.engine import certificates, lists
from zk0desk.engine.artefact import artefact
from zk0desk.engine.connection import Connections, Interrupted
from zk0desk.engine.errors import EngineBusy, EngineError, EngineListError, EngineUnreachable, EngineWrongContent
from zk0desk.engine.lists import EngineList
from zk0desk.resources import resource

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAX_FEED, _MAX_LIST = 1_000_000, 5_000_000
_STALL_S = 20.0
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


@dataclass(frozen=True)
class Feed:
    """Where news is, and the Ed25519 public key (32 bytes) that it is signed with."""

    url: str
    key: bytes


@dataclass(frozen=True)
class Download:
    """A file that the feed names: its address, size in bytes and SHA-256."""

    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Update:
    """What the feed says. `newer`: `version` is later than this zk0desk; `artefact`: its package for this system and format, if there is
    one.

    `engine`: a mended engine for this very version of zk0desk, for the back end that was asked for.
    """

    version: str
    newer: bool
    notes: str
    artefact: Download | None
    engine: EngineList | None

    def to_json(self) -> dict[str, Any]:
        """It as a JSON object."""
        found = {"url": self.artefact.url, "size": self.artefact.size, "sha256": self.artefact.sha256} if self.artefact else None
        engine = {"id": self.engine.id, "size": self.engine.size} if self.engine else None
        return {"version": self.version, "newer": self.newer, "notes": self.notes, "artefact": found, "engine": engine}


def feed() -> Feed | None:
    """The feed that this artefact names, or None."""
    try:
        told = json.loads(resource("feed.json").read_text(encoding="utf-8"))
        key = base64.b64decode(told["key"], validate=True)
        return Feed(str(told["url"]), key) if len(key) == 32 and lists.allowed(str(told["url"])) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def look(source: Feed, backend: str | None, *, busy: bool, control: NodeControl) -> Update:
    """Ask the feed what there is. `busy`: a node is joined; then nothing is asked. `backend`: of the engine in use.

    Raises `EngineBusy`, `EngineUnreachable`, `EngineRefused`, `EngineWrongContent` and `Stopped`.
    """
    if busy:
        why = "This computer takes part in a federation at the moment."
        raise EngineBusy("Updates are not looked for now.", why, "Look again when the node has left.")
    told = _verified(_get(source.url, _MAX_FEED, control), source)
    return _read(told, backend, control)


def sign(payload: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """The text of a feed with this payload: {"schema": 1, "version", "notes", "artefacts": [...], "engines": [...]}.

    Each of `artefacts`: system, arch, format, url, size, sha256. Each of `engines`: for-version, system, arch, backend, url, size, sha256
    of a list.
    """
    text = json.dumps(payload, sort_keys=True)
    return json.dumps({"payload": text, "signature": base64.b64encode(key.sign(text.encode())).decode("ascii")}) + "\n"


def _verified(content: bytes, source: Feed) -> dict[str, Any]:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        outer = json.loads(content)
        payload = str(outer["payload"]).encode()
        Ed25519PublicKey.from_public_bytes(source.key).verify(base64.b64decode(outer["signature"], validate=True), payload)
        told = json.loads(payload)
        if not isinstance(told, dict) or told["schema"] != 1:
            raise ValueError("schema")
        return told
    except (InvalidSignature, ValueError, KeyError, TypeError, binascii.Error) as error:
        why = "Its signature is not that of those who make zk0desk, or it is damaged."
        raise EngineWrongContent("The news about updates is not believed.", why, "Nothing was changed. Try again later.") from error


def _read(told: dict[str, Any], backend: str | None, control: NodeControl) -> Update:
    system, arch = lists.this_system()
    own = artefact()
    try:
        version = str(told["version"])
        if not _VERSION.fullmatch(version):
            raise ValueError("version")
        here = [each for each in told["artefacts"] if (each["system"], each["arch"]) == (system, arch)]
        mine = next((each for each in here if own and each["format"] == own.format), None)
        wanted = (__version__, system, arch, backend)
        engine = next(
            (each for each in told["engines"] if (each["for-version"], each["system"], each["arch"], each["backend"]) == wanted), None
        )
        package, mended = (_download(each) if each else None for each in (mine, engine))
        notes = str(told.get("notes", ""))[:2000]
    except (ValueError, KeyError, TypeError) as error:
        what = "The news about updates cannot be read."
        raise EngineWrongContent(what, "It is written for another version of zk0desk.", "Look at the project's page.") from error
    return Update(version, _number(version) > _number(__version__), notes, package, _list(mended, control) if mended else None)


def _download(told: dict[str, Any]) -> Download:
    url, size, sha256 = str(told["url"]), told["size"], str(told["sha256"])
    if not lists.allowed(url) or type(size) is not int or size <= 0 or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError("download")
    return Download(url, size, sha256)


def _list(told: Download, control: NodeControl) -> EngineList:
    content = _get(told.url, _MAX_LIST, control, told.size)
    if hashlib.sha256(content).hexdigest() != told.sha256:
        raise EngineListError(
            "The list of the mended engine is not the one that was signed.", told.url, "Nothing was changed. Try again later."
        )
    return lists.parse(content, told.url)


def _get(url: str, most: int, control: NodeControl, size: int | None = None) -> bytes:
    connections = Connections(certificates.context(), _STALL_S)
    content = b""
    try:
        with closing(connections.read(url, 0, size)) as pieces:
            for piece in pieces:
                control.check()
                content += piece
                if len(content) > most:
                    raise EngineError("The answer about updates is far too long.", url, "Nothing was changed. Try again later.")
    except Interrupted as error:
        raise EngineUnreachable("The news about updates cannot be fetched.", f"{error}.", "Look at the network, and try again.") from error
    return content


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
