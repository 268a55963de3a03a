"""The connection to the Hub: what it answers as JSON, and files piece by piece. Only GET, and only while a fetch asks for it.

huggingface_hub's own transfer is not used, for what version 1.33 does: it refuses in a process that is offline for all
else, throws away what has arrived of a file when it ends in any way, compares no hash, sleeps as long as the server
says without hearing of Stop, and with Xet storage hands the transfer to a library that cannot be stopped. The Hub
gives Xet's files over plain HTTP too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qsl, quote, urlsplit

import httpx

from zk0desk import __version__
from zk0desk.federation.hub_errors import (
    Asked,
    HubError,
    HubFileWrong,
    of_answer,
    of_disk,
    of_environment,
    of_line,
    rate_limited,
    unknown_answer,
)
from zk0desk.federation.hub_files import HubFile

MAX_JSON = 64 * 2**20
MAX_PAGES = 1000
SYNC_EVERY = 32 * 2**20
"""Bytes after which the disk is waited for: the wait at the end stays short, and so does a Stop."""
_PIECE = 4 * 2**20
_ASTRAY = (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL, httpx.DecodingError)


@dataclass(frozen=True)
class Patience:
    """How long the Hub is waited for, in seconds, and how often it is asked again without anything new."""

    connect: float = 10
    silence: float = 20
    tries: int = 5
    first_wait: float = 1
    longest_wait: float = 60
    """A Hub that asks for more is not waited for: the person is told."""


class _Waits:
    """Tries without anything new, and how long to wait before the next."""

    def __init__(self, patience: Patience, asked: Asked) -> None:
        self._patience = patience
        self._asked = asked
        self._failures = 0

    def something_came(self) -> None:
        """The line works: count anew."""
        self._failures = 0

    def after_answer(self, response: httpx.Response) -> float:
        """Seconds to wait after an answer that is no success; raises what it means where waiting does not help."""
        if response.status_code not in (408, 429) and response.status_code < 500:
            raise of_answer(response, self._asked)
        asked_for = _seconds_asked_for(response.headers)
        if asked_for is not None and asked_for > self._patience.longest_wait:
            raise rate_limited(asked_for, self._asked) if response.status_code == 429 else of_answer(response, self._asked)
        wait = self._next(lambda: of_answer(response, self._asked))
        return wait if asked_for is None else asked_for

    def after_break(self, error: Exception, *, in_the_middle: bool = False) -> float:
        """Seconds to wait after a line that gave nothing more; raises when it was tried often enough."""
        return self._next(lambda: of_line(error, self._asked, in_the_middle=in_the_middle))

    def _next(self, last: Callable[[], HubError]) -> float:
        self._failures += 1
        if self._failures >= self._patience.tries:
            raise last()
        return min(self._patience.first_wait * 2.0 ** (self._failures - 1), self._patience.longest_wait)


def _seconds_asked_for(headers: httpx.Headers) -> float | None:
    """What `Retry-After` says (seconds or a date), or the Hub's own `RateLimit` header; None where neither does."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    limit = re.search(r";\s*r=0\s*;\s*t=([0-9]{1,9})", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None


class HubLine:
    """Requests to one Hub, with the operator's token where that is safe. An asynchronous context manager."""

    def __init__(self, asked: Asked, token: str | None, patience: Patience) -> None:
        self._asked = asked
        self._patience = patience
        headers = {"User-Agent": f"zk0desk/{__version__}", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(patience.silence, connect=patience.connect),
                # httpx takes the token off a request that is led to another host.
                follow_redirects=True,
                max_redirects=5,
                trust_env=not is_loopback(asked.endpoint),
            )
        except (ImportError, ValueError, httpx.InvalidURL, OSError):
            raise of_environment() from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.aclose()

    async def commit_of(self, asked: Asked) -> str:
        """The commit that `asked.revision` is now: 40 hex digits."""
        about, _ = await self._json(asked, f"{_api(asked)}/revision/{quote(asked.revision, safe='')}", {})
        commit = about.get("sha") if isinstance(about, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise unknown_answer(asked, "It names no commit.")
        if re.fullmatch(r"[0-9a-f]{40}", asked.revision) and commit != asked.revision:
            raise unknown_answer(asked, "It names another commit than the one that was asked for.")
        return commit

    async def listing(self, asked: Asked, commit: str) -> list[Any]:
        """The Hub's listing of all files at `commit`."""
        entries: list[Any] = []
        parameters = {"recursive": "true", "expand": "false"}
        for _ in range(MAX_PAGES):
            page, following = await self._json(asked, f"{_api(asked)}/tree/{commit}", parameters)
            if not isinstance(page, list):
                raise unknown_answer(asked, "It gives no list of files.")
            entries += page
            if following is None:
                return entries
            # Of the link to the next page only its question is taken: the token goes where it was meant to.
            parameters = dict(parse_qsl(urlsplit(following).query))
        raise unknown_answer(asked, "Its list of files does not end.")

    async def _json(self, asked: Asked, url: str, parameters: dict[str, str]) -> tuple[Any, str | None]:
        waits = _Waits(self._patience, asked)
        while True:
            try:
                async with self._client.stream("GET", url, params=parameters) as response:
                    if response.is_success:
                        return await _parsed(response, asked), response.links.get("next", {}).get("url")
                    wait = waits.after_answer(response)
            except _ASTRAY:
                raise unknown_answer(asked, "It leads to an address that cannot be, or sends what cannot be read.") from None
            except httpx.TransportError as error:
                wait = waits.after_break(error)
            await asyncio.sleep(wait)

    async def file(self, asked: Asked, commit: str, file: HubFile, partial: Path, heard: Callable[[int], None]) -> None:
        """Get `file` whole into `partial`; what is there already is gone on from. `heard` is told of bytes that came, or were dropped.

        Raises `HubFileWrong` when size or hash differ twice, from the first byte on; `partial` is then gone.
        """
        prefix = "datasets/" if asked.kind == "recording" else ""
        url = f"{asked.endpoint}/{prefix}{asked.repo_id}/resolve/{commit}/{quote(file.path)}"
        for _ in range(2):
            try:
                with partial.open("a+b") as opened:
                    arrival = _Arrival(file, opened, heard)
                    await arrival.look_back()
                    await self._arrive(asked, url, arrival)
                    if arrival.whole:
                        return
                    arrival.begin_anew()
            except OSError as error:
                raise of_disk(error, partial.parent.parent) from None
        partial.unlink(missing_ok=True)
        raise HubFileWrong(
            f"{file.path} of {asked.repo_id} did not arrive as the Hub lists it.",
            "Its size or its hash differs, twice. What came was removed.",
            f"Try again later. If it stays so, tell the owner: {asked.page}",
        )

    async def _arrive(self, asked: Asked, url: str, arrival: _Arrival) -> None:
        """Until as many bytes are there as are listed, or more were offered."""
        waits = _Waits(self._patience, asked)
        while arrival.have < arrival.file.size:
            headers = {"Range": f"bytes={arrival.have}-"} if arrival.have else {}
            began = arrival.have
            try:
                async with self._client.stream("GET", url, headers=headers) as response:
                    if response.status_code == 416:
                        arrival.begin_anew()
                        wait = waits.after_break(httpx.ReadError("there is no such part"))
                    elif not response.is_success:
                        wait = waits.after_answer(response)
                    elif not await arrival.take(response):
                        return
                    else:
                        if arrival.have > began:
                            waits.something_came()
                        wait = 0 if arrival.have >= arrival.file.size else waits.after_break(httpx.ReadError("short"), in_the_middle=True)
            except _ASTRAY:
                raise unknown_answer(asked, "It leads to an address that cannot be, or sends what cannot be read.") from None
            except httpx.TransportError as error:
                if arrival.have > began:
                    waits.something_came()
                wait = waits.after_break(error, in_the_middle=arrival.have > 0)
            await asyncio.sleep(wait)


class _Arrival:
    """A file that comes: how much is on the disk, and its hash so far."""

    def __init__(self, file: HubFile, opened: BinaryIO, heard: Callable[[int], None]) -> None:
        self.file = file
        self.have = 0
        self._opened = opened
        self._heard = heard
        self._hash = file.hasher()
        self._unsynced = 0

    @property
    def whole(self) -> bool:
        """Whether it is on the disk, with the listed size and hash."""
        self._sync()
        return self.have == self.file.size and self._hash.hexdigest() == self.file.digest

    async def look_back(self) -> None:
        """Read what an earlier fetch left."""
        self._opened.seek(0)
        while piece := self._opened.read(_PIECE):
            self._hash.update(piece)
            self.have += len(piece)
            await asyncio.sleep(0)
        self._heard(self.have)
        if self.have > self.file.size:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Drop what is there."""
        self._opened.truncate(0)
        self._heard(-self.have)
        self.have, self._hash = 0, self.file.hasher()

    async def take(self, response: httpx.Response) -> bool:
        """Write what `response` brings; False when it cannot be this file."""
        begins = 0
        if response.status_code == 206:
            part = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", response.headers.get("Content-Range", ""))
            if not part or int(part[1]) != self.have or part[2] not in ("*", str(self.file.size)):
                return False
            begins = self.have
        elif self.have:
            # The server does not give parts: all of it comes again.
            self.begin_anew()
        # What was asked to come as it is may come compressed all the same: then its length says nothing, and no part of it fits.
        compressed = response.headers.get("Content-Encoding", "identity") != "identity"
        length = None if compressed else response.headers.get("Content-Length")
        if (compressed and begins) or (length is not None and length != str(self.file.size - begins)):
            return False
        async for piece in response.aiter_bytes():
            if self.have + len(piece) > self.file.size:
                return False
            self._opened.write(piece)
            self._hash.update(piece)
            self.have += len(piece)
            self._heard(len(piece))
            self._unsynced += len(piece)
            if self._unsynced >= SYNC_EVERY:
                self._sync()
        return True

    def _sync(self) -> None:
        self._opened.flush()
        os.fsync(self._opened.fileno())
        self._unsynced = 0


def _api(asked: Asked) -> str:
    return f"{asked.endpoint}/api/{'datasets' if asked.kind == 'recording' else 'models'}/{asked.repo_id}"


async def _parsed(response: httpx.Response, asked: Asked) -> Any:
    text = b""
    async for piece in response.aiter_bytes():
        text += piece
        if len(text) > MAX_JSON:
            raise unknown_answer(asked, "It does not come to an end.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise unknown_answer(asked, "It sends no JSON.") from None


def is_loopback(endpoint: str) -> bool:
    """Whether `endpoint` is on this computer."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HubLoop(asyncio.SelectorEventLoop):
    """Looks names up in threads that nobody waits for: a name server that is silent holds up neither a Stop nor the exit."""

    async def getaddrinfo(self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        found: asyncio.Future[Any] = self.create_future()

        def settle(addresses: Any, error: OSError | None) -> None:
            if not found.done():
                found.set_exception(error) if error else found.set_result(addresses)

        def look() -> None:
            addresses, failure = None, None
            try:
                addresses = socket.getaddrinfo(host, port, family, type, proto, flags)
            except OSError as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.call_soon_threadsafe(settle, addresses, failure)

        threading.Thread(target=look, name="hub-name", daemon=True).start()
        return await found
