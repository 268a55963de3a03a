"""One request for a wheel: through the system's proxy, by its certificates, from where the last one ended.

A request is a connection of its own, which any thread may cut.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import re
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urljoin, urlsplit

from zk0desk import __version__
from zk0desk.engine.errors import EngineRefused, EngineUnreachable, EngineWrongContent
from zk0desk.engine.lists import allowed

REDIRECTS = 5
PIECE = 2**18
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more is asked again after these."""


class Interrupted(Exception):
    """The transfer ended before its end, and may be tried again; `wait` seconds from now at the earliest if the server said so."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Connections:
    """The open connections of a fetch. `cut` ends them all at once, from any thread."""

    def __init__(self, context: ssl.SSLContext, stall_s: float) -> None:
        self._context, self._stall = context, stall_s
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False

    def cut(self) -> None:
        """End what is open, and refuse what is asked for later."""
        with self._lock:
            self._cut = True
            for each in self._open:
                try:
                    socket.socket.shutdown(each, socket.SHUT_RDWR)  # below TLS, whose own goodbye would wait
                except OSError:
                    continue  # it is over already

    def read(self, url: str, start: int, size: int | None) -> Generator[bytes]:
        """The bytes of the file at `url` from `start` on, of `size` in all (None: as many as there are), as they come.

        Raises `Interrupted` for what may pass, `EngineRefused`, `EngineUnreachable` and `EngineWrongContent` for what does not.
        """
        try:
            with self._response(url, start) as (response, where):
                skip = _skipped(response, where, start, size)
                left = sys.maxsize if size is None else size - start + skip
                while left > 0:
                    piece = response.read1(min(PIECE, left))
                    if not piece:
                        if size is None:
                            return
                        raise Interrupted("the server ended the transfer before its end")
                    left -= len(piece)
                    kept = piece[min(skip, len(piece)) :]
                    skip -= len(piece) - len(kept)
                    if kept:
                        yield kept
        except ssl.SSLCertVerificationError as error:
            why = f"{urlsplit(url).hostname}: {error.verify_message}. A proxy or an antivirus that looks into connections does this too."
            remedy = "Let this system trust its certificate, or set SSL_CERT_FILE to a file with it; or use a folder with the engine."
            raise EngineUnreachable("The server's certificate is not trusted.", why, remedy) from error
        except TimeoutError as error:
            raise Interrupted(f"nothing came for {self._stall:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if (tunnel := re.match(r"Tunnel connection failed: (\d+)", words)) and int(tunnel[1]) not in _AGAIN:
                raise _no_way_through(int(tunnel[1])) from error
            raise Interrupted(f"{urlsplit(url).hostname}: {words}") from error

    @contextmanager
    def _response(self, url: str, start: int) -> Iterator[tuple[http.client.HTTPResponse, str]]:
        for _ in range(REDIRECTS + 1):
            with self._answer(url, start) as response:
                if response.status in (301, 302, 303, 307, 308):
                    url = _led_to(url, response.getheader("Location", ""))
                    continue
                if response.status not in (200, 206):
                    _refuse(response, url)
                yield response, url
                return
        raise EngineRefused("The server sends from one address to the next.", f"{_plain(url)} was not the last.", _OTHER_WAY)

    @contextmanager
    def _answer(self, url: str, start: int) -> Iterator[http.client.HTTPResponse]:
        connection, target, headers = self._prepared(url)
        headers |= {"User-Agent": f"zk0desk/{__version__}", "Accept-Encoding": "identity", "Connection": "close"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            connection.connect()
            raw = connection.sock
            assert raw is not None
            with self._lock:
                if self._cut:
                    raise Interrupted("it was cut")
                self._open.add(raw)
            try:
                connection.request("GET", target, headers=headers)
                with connection.getresponse() as response:
                    yield response
            finally:
                with self._lock:
                    self._open.discard(raw)
        finally:
            connection.close()

    def _prepared(self, url: str) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """The connection, not made yet, with what to ask it for, and the headers that a proxy wants."""
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
        if not proxy:
            return self._connection(host, parts.port, secure), path, {}
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if through.scheme not in ("http", "https") or not through.hostname:
            why = f"It is a {through.scheme} proxy; zk0desk speaks with http proxies."
            raise EngineUnreachable("The proxy of this system cannot be used.", why, "Set HTTPS_PROXY to an http proxy, or use a folder.")
        login = {}
        if through.username is not None:
            words = f"{unquote(through.username)}:{unquote(through.password or '')}".encode()
            login["Proxy-Authorization"] = "Basic " + base64.b64encode(words).decode("ascii")
        connection = self._connection(through.hostname, through.port or 80, secure)
        if not secure:
            return connection, url, login
        connection.set_tunnel(host, parts.port or 443, headers=login)
        return connection, path, {}

    def _connection(self, host: str, port: int | None, secure: bool) -> http.client.HTTPConnection:
        if secure:
            return http.client.HTTPSConnection(host, port, timeout=self._stall, context=self._context)
        return http.client.HTTPConnection(host, port, timeout=self._stall)


_OTHER_WAY = "Try again later, or use a folder with the engine: zk0desk engine import FOLDER"


def _led_to(url: str, location: str) -> str:
    new = urljoin(url, location) if location else ""
    if not allowed(new) or (url.startswith("https:") and not new.startswith("https:")):
        raise EngineRefused("The server sends to an address that is not used.", f"{_plain(url)} leads to {_plain(new)}.", _OTHER_WAY)
    return new


def _plain(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"[:200]


def _skipped(response: http.client.HTTPResponse, url: str, start: int, size: int | None) -> int:
    """How many of the coming bytes are there already. Raises `EngineWrongContent` when another file comes."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.getheader("Content-Range", ""))
        if found is None or int(found[1]) != start or found[3] not in ("*", str(size)):
            raise _other(
                url, f"the server gave {response.getheader('Content-Range', '')[:60]!r} for the bytes from {start:,} on of {size or 0:,}"
            )
        return 0
    told = response.getheader("Content-Length", "")
    if size is not None and told.isdigit() and int(told) != size:
        kind = response.getheader("Content-Type", "something").partition(";")[0][:60]
        raise _other(url, f"{int(told):,} bytes of {kind} came in the place of {size:,}")
    return start


def _other(url: str, why: str) -> EngineWrongContent:
    remedy = "A network that asks for a login on a page of its own does this: open a web page first. Or use a folder with the engine."
    return EngineWrongContent(f"{_plain(url)} is not what the list names.", f"{why[:1].upper()}{why[1:]}.", remedy)


def _refuse(response: http.client.HTTPResponse, url: str) -> None:
    status = response.status
    if status in _AGAIN:
        raise Interrupted(f"{urlsplit(url).hostname} answers {status} {response.reason}", _retry_after(response))
    if status == 416:
        raise _other(url, "it ends before what is there already")
    if status == 407:
        raise _no_way_through(status)
    raise EngineRefused(
        "The server does not hand a part of the engine out.", f"{_plain(url)} answers {status} {response.reason}.", _OTHER_WAY
    )


def _no_way_through(status: int) -> EngineRefused:
    if status == 407:
        remedy = "Set HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT and try again."
        return EngineRefused("The proxy asks for a login.", "It answers 407.", remedy)
    return EngineRefused("The proxy does not let the connection through.", f"It answers {status}.", _OTHER_WAY)


def _retry_after(response: http.client.HTTPResponse) -> float:
    told = response.getheader("Retry-After", "").strip()
    if told.isdigit():
        return min(float(told), _LONGEST_WAIT)
    try:
        return min(max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time()), _LONGEST_WAIT)
    except (TypeError, ValueError):
        return 0.0
