"""Small real wheels, and a real server on loopback that hands them out, well or badly."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from zk0desk.engine import lists, store
from zk0desk.engine.fetch import Patience
from zk0desk.engine.lists import EngineList, Wheel
from zk0desk.engine.wheel import describe

HASTY = Patience(attempts=3, first_s=0.02, longest_s=0.05, stall_s=0.5)
PIECE = 2**14


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that cannot be packed."""
    return random.Random(str(seed)).randbytes(size)


def record_of(files: dict[str, bytes], info: str) -> bytes:
    """The RECORD of these files."""
    rows = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f'"{path}",sha256={digest},{len(content)}')
    return ("\n".join([*rows, f"{info}/RECORD,,"]) + "\n").encode()


def write_wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0", *, record: bytes | None = None) -> Path:
    """A whole wheel `name` with these files."""
    info = f"{name}-{version}.dist-info"
    everything = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    everything[f"{info}/RECORD"] = record_of(everything, info) if record is None else record
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in everything.items():
            entry = zipfile.ZipInfo(inside)
            entry.external_attr = (0o100755 if inside.endswith("/tool") else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def list_of(wheels: list[Path], base: str = "", *, record: bool = True) -> EngineList:
    """A list of these wheels for this computer, to be fetched from below `base`."""
    system, arch = lists.this_system()
    entries = []
    for path in wheels:
        told = describe(path)
        if not record:
            told |= {"record": "", "unpacked": 0}
        entries.append(Wheel(**told, url=f"{base}/{path.name}" if base else ""))
    return EngineList(system, arch, "cpu", lists.PYTHON, tuple(entries))


class WheelServer:
    """Hands out the files of `folder`, below any path. Counts what it sends by path; `bad` may answer a request in its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: Counter[str] = Counter()
        self.requests: list[tuple[str, int]] = []
        self.ranges = True
        self.bad: list[Callable[[BaseHTTPRequestHandler, str, int, bytes], bool]] = []
        self.gate_at: int | None = None
        self.going_on = False
        self.reached, self.go = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def sent_below(self, folder: str) -> Counter[str]:
        """What was sent of each file below this path."""
        return Counter({name.partition("/")[2]: count for name, count in self.sent.items() if name.startswith(f"{folder}/")})

    def stop(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def close_gate(self, at: int, *, going_on: bool = False) -> None:
        """Send so many bytes in all, then hold every transfer and set `reached`."""
        self.going_on = going_on
        self.reached.clear()
        self.go.clear()
        self.gate_at = at

    def open_gate(self) -> None:
        """End the transfers that are held where they are, or go on with them, and hold no more."""
        self.gate_at = None
        self.go.set()

    def pour(self, handler: BaseHTTPRequestHandler, name: str, content: bytes) -> None:
        """Send `content`, held at the gate when it is reached; what is held when the gate is opened ends there."""
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            with self._lock:
                if self.gate_at is not None and self.sent.total() + len(piece) > self.gate_at:
                    self.reached.set()
                held = self.reached.is_set() and not self.go.is_set()
                if not held:
                    self.sent[name] += len(piece)
            if held:
                self.go.wait()
                if not self.going_on:
                    return
                with self._lock:
                    self.sent[name] += len(piece)
            handler.wfile.write(piece)


class _Handler(BaseHTTPRequestHandler):
    owner: WheelServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        path = self.owner.folder / name.rpartition("/")[2]
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found and self.owner.ranges else 0
        self.owner.requests.append((name, start))
        try:
            if self.owner.bad and self.owner.bad[0](self, name, start, content):
                return
            self.answer(content, start, name)
        except OSError:
            self.close_connection = True

    def answer(self, content: bytes, start: int, name: str) -> None:
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.owner.pour(self, name, content[start:])

    def log_message(self, *_: object) -> None:
        pass


def content_of(engine: store.Installed) -> dict[str, bytes]:
    """Every file below the engine's site."""
    return {path.relative_to(engine.site).as_posix(): path.read_bytes() for path in engine.site.rglob("*") if path.is_file()}


def expected(wheels: list[Path]) -> dict[str, bytes]:
    """What these wheels hold."""
    found = {}
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            found |= {name: archive.read(name) for name in archive.namelist()}
    return found
