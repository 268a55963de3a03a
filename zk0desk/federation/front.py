"""HTTP/1.1 over TLS with a deadline for everything: what stands between the network and the gateway.

Parsing is h11's, which takes one request at a time and holds no more than the headers' limit. Every wait for the other side ends: the
handshake, the headers, each part of a body in either direction, and the time between two requests. Bodies are passed on as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import h11

from zk0desk.federation.gateway_limits import Doors, Limits, Visit, neighbourhood

log = logging.getLogger("zk0desk.gateway")

PART = 2**16
"""Bytes that are read at once."""
LINGER = 2**22
"""Bytes that are still read of a body that was refused, so that the answer arrives; within `LINGER_S`."""
LINGER_S = 2.0
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: those with forward secrecy. TLS 1.3 has no others."""
OPEN_FILES = 4096
"""Open files that the process is allowed to have, where the system permits it."""


class BodyTooLarge(Exception):
    """A request's body is larger than the route allows."""


class CallerGone(Exception):
    """The caller left, was too slow, or does not speak HTTP/1.1 any more."""


@dataclass
class Request:
    """A request whose headers are there, with lower-case names. `doubled`: one came twice, or two of them give the body's length.

    `body(limit)` gives the body in parts as they come, and `BodyTooLarge` after `limit` bytes. `known(key)` makes the connection that of
    an admitted node; False when that is not possible. `stranger`: that has not happened yet.
    """

    method: str
    path: str
    headers: dict[str, str]
    address: str
    doubled: bool
    stranger: bool
    body: Callable[[int], AsyncIterator[bytes]]
    known: Callable[[bytes], bool]


@dataclass
class Answer:
    """What is answered. `drop` closes the connection without a word; `body` is streamed, and closed in the end."""

    status: int
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: AsyncIterator[bytes] | None = None
    drop: bool = False


Handler = Callable[[Request], Awaitable[Answer]]


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3, or 1.2 with forward secrecy. OSError (ssl.SSLError is one) when the files cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.load_cert_chain(certificate, key)
    return context


class Front:
    """Serves `handler` in a thread of this process. `port` 0 takes a free one. OSError when the address or the certificate is no good."""

    def __init__(
        self, handler: Handler, *, host: str, port: int, certificate: Path, key: Path, limits: Limits | None = None,
        closing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self._handler, self._closing = handler, closing
        self._limits = limits or Limits()
        self._context = server_context(certificate, key)
        self.doors = Doors(self._limits)
        self._listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        _allow_open_files()
        self._thread.start()
        self._ready.wait(10)

    def renew(self, certificate: Path, key: Path) -> None:
        """Show another certificate from the next connection on."""
        self._context.load_cert_chain(certificate, key)

    def stop(self) -> None:
        """End within a second; requests that are under way are cut off."""
        if self._loop is not None and self._main is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join(1.0)
        self._listener.close()

    # --- the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            self._loop = runner.get_loop()
            # What strangers do wrong is no news, and may be said a thousand times a second.
            self._loop.set_exception_handler(lambda _loop, context: log.debug("%s", context.get("message")))
            with contextlib.suppress(asyncio.CancelledError):
                runner.run(self._serve())

    async def _serve(self) -> None:
        self._main = asyncio.current_task()
        self._ready.set()
        visits: set[asyncio.Task[None]] = set()
        try:
            while True:
                try:
                    connection, peer = await asyncio.get_running_loop().sock_accept(self._listener)
                except OSError as error:
                    log.warning("no connection is accepted: %s", error)
                    await asyncio.sleep(0.2)
                    continue
                address = neighbourhood(str(peer[0]))
                if not self.doors.may_enter(address):
                    _reset(connection)
                    continue
                task = asyncio.create_task(self._receive(connection, address, str(peer[0])))
                visits.add(task)
                task.add_done_callback(visits.discard)
        finally:
            for task in visits:
                task.cancel()
            await asyncio.gather(*visits, return_exceptions=True)
            if self._closing is not None:
                await self._closing()

    async def _receive(self, connection: socket.socket, address: str, host: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        visit = Visit(address, task.cancel)
        self.doors.enter(visit)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=PART, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport: Any = None  # uvloop's are no asyncio.Transport
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=self._limits.handshake_s, ssl_shutdown_timeout=2.0
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            await _Conversation(reader, writer, visit, host, self.doors, self._handler).hold()
            writer.close()
            async with asyncio.timeout(2.0):
                await writer.wait_closed()
        except (OSError, CallerGone, TimeoutError, asyncio.CancelledError) as error:
            # Cancelled by `Doors` or at the end; either way nothing follows in this task.
            log.debug("%s: %s", host, error or type(error).__name__)
        finally:
            self.doors.leave(visit)
            if transport is not None:
                transport.abort()
            else:
                connection.close()


class _Conversation:
    """The requests of one connection, one after the other."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, visit: Visit, host: str, doors: Doors, handler: Handler
    ) -> None:
        self._reader, self._writer, self._visit, self._host, self._doors, self._handler = reader, writer, visit, host, doors, handler
        self._limits = limits = doors.limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.headers)

    async def hold(self) -> None:
        """Until the other side, or an answer, ends it."""
        while True:
            try:
                request = await self._request()
            except h11.RemoteProtocolError as error:
                await self._answer(Answer(error.error_status_hint))
                return await self._linger()
            if request is None:
                return None
            answer = await self._handler(request)
            if answer.drop:
                raise CallerGone
            await self._answer(answer)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return await self._linger()
            self._http.start_next_cycle()

    async def _request(self) -> Request | None:
        """The next request, or None when there is none any more."""
        limits = self._limits
        if self._http.trailing_data[0] == b"":
            if not (first := await self._read(limits.idle_s if self._visit.key else limits.stranger_idle_s)):
                return None
            self._http.receive_data(first)
        ends = time.monotonic() + limits.headers_s
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._read(ends - time.monotonic()))
        if not isinstance(event, h11.Request):
            return None
        if sum(len(name) + len(value) for name, value in event.headers) > limits.headers:
            raise h11.RemoteProtocolError("headers too large", error_status_hint=431)
        names = [name.decode("latin-1") for name, _ in event.headers]
        headers = {name: value.decode("latin-1") for name, (_, value) in zip(names, event.headers, strict=True)}
        doubled = len(headers) < len(names) or {"content-length", "transfer-encoding"} <= headers.keys()
        return Request(
            event.method.decode("latin-1"), event.target.decode("latin-1"), headers, self._host, doubled, not self._visit.key, self._body,
            partial(self._doors.known, self._visit),
        )  # fmt: skip

    async def _body(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes. The time that this side takes is not the caller's."""
        size, left, parts = 0, self._limits.body_s, 0
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise CallerGone("the body was cut off") from error
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b"")
                began = time.monotonic()
                self._http.receive_data(await self._read(left))
                left -= time.monotonic() - began
            elif isinstance(event, h11.Data):
                size, left, parts = size + len(event.data), left + len(event.data) / self._limits.slowest, parts + 1
                if size > limit:
                    raise BodyTooLarge
                yield bytes(event.data)
                if parts % 64 == 0:
                    await asyncio.sleep(0)  # tiny chunks come many at once, and others wait
            else:
                return

    async def _read(self, seconds: float) -> bytes:
        """What came, or nothing when the other side has ended; `CallerGone` when nothing came in time."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                return await self._reader.read(PART)
        except TimeoutError as error:
            raise CallerGone("too slow") from error

    async def _answer(self, answer: Answer) -> None:
        headers = [(b"date", formatdate(usegmt=True).encode()), *answer.headers]
        if answer.body is None:
            headers.append((b"content-length", b"0"))
        # A body that was not taken whole ends the connection after the answer.
        if self._http.their_state is not h11.DONE:
            headers.append((b"connection", b"close"))
        try:
            self._writer.write(self._http.send(h11.Response(status_code=answer.status, headers=headers)) or b"")
            left = self._limits.body_s
            if answer.body is not None:
                async for part in answer.body:
                    self._writer.write(self._http.send(h11.Data(data=part)) or b"")
                    left = await self._drained(left + len(part) / self._limits.slowest)
            self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
            await self._drained(left)
        except h11.LocalProtocolError as error:
            raise CallerGone("the answer was cut off") from error
        finally:
            if answer.body is not None:
                await answer.body.aclose()  # type: ignore[attr-defined]

    async def _drained(self, left: float) -> float:
        """Wait, at most `left` seconds, until the caller took most of what was written; the seconds that are left then."""
        began = time.monotonic()
        async with asyncio.timeout(max(0.0, left)):
            await self._writer.drain()
        return left - (time.monotonic() - began)

    async def _linger(self) -> None:
        """Read on for a moment: a connection that is closed over unread data takes the answer with it."""
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while size < LINGER and (part := await self._reader.read(PART)):
                    size += len(part)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _reset(connection: socket.socket) -> None:
    """Close at once, so that not even the system keeps anything of it."""
    with contextlib.suppress(OSError, struct.error):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _allow_open_files() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < OPEN_FILES:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
