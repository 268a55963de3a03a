"""A stand-in for the Hugging Face Hub on loopback: a real HTTP server that answers as the Hub does, and fails as it is told."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.federation import hub_uploads

BIG = 100_000
"""Files of at least so many bytes are listed with a SHA-256 and led to the store, as the Hub does with large ones."""


@dataclass
class Repository:
    """What a repository holds, and who may see it."""

    files: dict[str, bytes]
    kind: str = "models"
    commit: str = "a" * 40
    revisions: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    members: tuple[str, ...] = ()
    """Tokens whose accounts agreed to the conditions, or may see what is private."""

    def listing(self) -> list[dict[str, Any]]:
        folders = sorted({path.rpartition("/")[0] for path in self.files if "/" in path})
        entries: list[dict[str, Any]] = [{"type": "directory", "path": each, "oid": "0" * 40, "size": 0} for each in folders]
        for path, content in self.files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
            if len(content) >= BIG:
                entry["oid"] = git_id(b"pointer")
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries


def git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Request:
    """A request that came: the token is the one that was sent with it."""

    method: str
    host: str
    path: str
    range: str
    token: str
    headers: dict[str, str]


class HubStandIn:
    """The Hub, and the store to which it leads for large files (another port). `interfere` may answer instead of them."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self.writers: set[str] = set()
        """Tokens that may also write."""
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        """What was uploaded to the store, by SHA-256: whole, and in parts so far."""
        self.requests: list[Request] = []
        self.page_size = 1000
        self.gives_parts = True
        self.interfere: Callable[[Answer], bool] = lambda answer: False
        self.slow = 0.0
        """Seconds before each piece of a file's body."""
        self.ended = threading.Event()
        self._servers = [_Server(("127.0.0.1", 0), _handler(self, store)) for store in (False, True)]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def store(self) -> str:
        return f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def asked_for(self, part: str) -> list[Request]:
        """The requests whose path has `part` in it."""
        return [request for request in self.requests if part in request.path]

    def fail(self, part: str, times: int, status: int, headers: dict[str, str] | None = None, body: bytes = b"trouble") -> Counter[str]:
        """Answer the first `times` requests with `part` in their path with `status`."""
        counted: Counter[str] = Counter()

        def interfere(answer: Answer) -> bool:
            if part not in answer.path or counted["failed"] >= times:
                return False
            counted["failed"] += 1
            answer.send(status, body, headers or {})
            return True

        self.interfere = interfere
        return counted


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A caller who leaves in the middle is what some tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Answer(BaseHTTPRequestHandler):
    """One request's answer."""

    hub: HubStandIn
    is_store: bool
    protocol_version = "HTTP/1.1"
    content: bytes | None = None
    cut_after: int | None = None

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    do_PUT = do_POST

    def _answer(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        parts = urlsplit(self.path)
        host = "store" if self.is_store else "hub"
        self.hub.requests.append(Request(self.command, host, self.path, self.headers.get("Range", ""), token, dict(self.headers)))
        self.content, self.cut_after = None, None
        try:
            if self.command in ("POST", "PUT"):
                hub_uploads.take(self, unquote(parts.path), parse_qs(parts.query), token)
            elif self.is_store:
                self._from_store(parts.path.rpartition("/")[2])
            else:
                self._from_hub(unquote(parts.path), parse_qs(parts.query), token)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _from_hub(self, path: str, query: dict[str, list[str]], token: str) -> None:
        api = path.startswith("/api/")
        kind, rest = "models", path.lstrip("/")
        if api:
            _, kind, rest = rest.split("/", 2)
        elif rest.startswith("datasets/"):
            kind, rest = "datasets", rest.removeprefix("datasets/")
        user, name, verb, *more = f"{rest}/info".split("/") if api and rest.count("/") == 1 else rest.split("/")
        repository = self.hub.repositories.get(f"{user}/{name}")
        if not api and repository:
            self.content = repository.files.get("/".join(more[1:]))
        if self.hub.interfere(self):
            return
        if token and token not in self.hub.tokens | self.hub.writers:
            self.send(401, b'{"error":"Invalid credentials"}', {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None or repository.kind != kind or (repository.private and token not in repository.members):
            self.send(404 if token else 401, b"{}", {"X-Error-Code": "RepoNotFound"} if token else {})
        elif api and verb == "info":
            about = {"id": f"{user}/{name}", "sha": repository.commit, "private": repository.private, "siblings": [], "tags": []}
            self.send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        elif verb == "revision":
            self._revision(repository, "/".join(more))
        elif verb == "tree":
            self._tree(repository, query)
        elif repository.gated and token not in repository.members:
            self.send(403 if token else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif self.content is None:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._resolve(repository, self.content)

    def _revision(self, repository: Repository, revision: str) -> None:
        known = {"main": repository.commit, repository.commit: repository.commit, **repository.revisions}
        if revision not in known:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.send(200, json.dumps({"id": "x", "sha": known[revision]}).encode(), {"Content-Type": "application/json"})

    def _tree(self, repository: Repository, query: dict[str, list[str]]) -> None:
        start = int(query.get("cursor", ["0"])[0])
        entries, size = repository.listing(), self.hub.page_size
        headers = {}
        if start + size < len(entries):
            # As the Hub does: with its own public address, wherever it was asked.
            link = f"https://huggingface.co{urlsplit(self.path).path}?recursive=true&cursor={start + size}"
            headers["Link"] = f'<{link}>; rel="next"'
        self.send(200, json.dumps(entries[start : start + size]).encode(), headers)

    def _resolve(self, repository: Repository, content: bytes) -> None:
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{git_id(content)}"'}
        if len(content) < BIG:
            self.send_file(content, headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "Location": f"{self.hub.store}/{digest}"}
        self.send(302, b"", headers)

    def _from_store(self, digest: str) -> None:
        every = (content for repository in self.hub.repositories.values() for content in repository.files.values())
        self.content = next((each for each in every if hashlib.sha256(each).hexdigest() == digest), None)
        if self.hub.interfere(self):
            return
        assert self.content is not None
        self.send_file(self.content, {"ETag": f'"{digest}"'})

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """The whole of `content`, or the part that was asked for."""
        asked, status, total = self.headers.get("Range"), 200, len(content)
        if asked and self.hub.gives_parts:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            content, status = content[start:], 206
            headers = headers | {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        self.send(status, content, headers | {"Accept-Ranges": "bytes"}, slow=True)

    def send(self, status: int, body: bytes, headers: dict[str, str], *, slow: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None and slow:
            self.wfile.write(body[: self.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return
        step = 16_384 if slow and self.hub.slow else len(body) or 1
        for start in range(0, len(body), step):
            if slow and self.hub.slow and self.hub.ended.wait(self.hub.slow):
                self.close_connection = True
                return
            self.wfile.write(body[start : start + step])
            self.wfile.flush()

    def stall(self) -> None:
        """Say nothing until the stand-in ends, or the caller leaves."""
        ends = time.monotonic() + 30
        self.connection.settimeout(0.05)
        while not self.hub.ended.is_set() and time.monotonic() < ends:
            try:
                if self.connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _handler(hub: HubStandIn, is_store: bool) -> type[Answer]:
    return type("Handler", (Answer,), {"hub": hub, "is_store": is_store})
