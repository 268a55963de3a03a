"""The training engine on demand: what a kill costs, peak disk, an update, verifying, a folder without a network, and the window meanwhile.

    python benchmarks/packages_engine.py [--megabytes N] [--files N] [--wheels FOLDER] [--list FILE] [--first-import]

The engine is made up in the shape of the real one (a few large libraries, thousands of small modules), or is that of the wheels in a
folder; with `--list`, one of an artefact's lists whose wheels are in the folder. A server on loopback hands the wheels out. Lateness is how
late a timer of 5 ms fires in a Qt window's event loop while the engine is fetched and unpacked, once as the window does it, in a process of
its own, and once in a thread of the window's process. `--first-import` imports torch and SmolVLA from a real engine, with its bytecode
made. The last line holds all figures as JSON.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TARGETS = {
    "fetched again after a kill bytes": 0,
    "peak disk over final and two largest wheels": 1.0,
    "update MB": 15,
    "update s": 5,
    "verify s": 1,
    "from a folder s": 30,
    "event loop worst ms": 50,
    "first import s": 8,
}
PIECE = 2**20


# --- an engine in the shape of the real one


def make_wheels(folder: Path, megabytes: int, files: int) -> None:
    """Wheels of about so many MB in all with so many modules: one large and eight middling libraries, the rest small packages."""
    shares = [0.2, *[0.07] * 8]
    for number, share in enumerate(shares):
        size = int(1.9e6 * megabytes * share)
        count = files // 3 if number == 0 else files // 40
        pieces = [library(size // 4, (number, part)) for part in range(4)]
        name = f"large{number}"
        content = {f"{name}/lib/part{part}.so": piece for part, piece in enumerate(pieces)} | modules(name, count)
        write_wheel(folder, name, content)
    left = files - files // 3 - 8 * (files // 40)
    small = 40
    for number in range(small):
        name = f"small{number}"
        extra = {f"{name}/data.bin": library(int(1.9e6 * megabytes * 0.24 / small), name)}
        write_wheel(folder, name, modules(name, left // small) | extra)


def library(size: int, seed: object) -> bytes:
    """Bytes that pack to a little more than half, as compiled code does."""
    block = random.Random(str(seed)).randbytes(36_000) + bytes(28_000)
    # Every block another one, or they would pack to nothing.
    return b"".join(hashlib.sha256(f"{seed}{n}".encode()).digest() + block[n % 977 :] for n in range(size // len(block) + 1))[:size]


def modules(name: str, count: int) -> dict[str, bytes]:
    """So many Python modules of 4 kB in folders of fifty."""
    text = "".join(f"def function_{line}(value):\n    return value + {line}  # as in a library's module\n" for line in range(48))
    return {f"{name}/package{n // 50}/module{n % 50}.py": f"number = {n}\n{text}".encode() for n in range(count)}


def write_wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """A whole wheel with these files."""
    info = f"{name}-{version}.dist-info"
    files = files | {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()}
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([path, f"sha256={digest}", len(content)])
    writer.writerow([f"{info}/RECORD", "", ""])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
        archive.writestr(f"{info}/RECORD", rows.getvalue())
    return path


def changed(path: Path, folder: Path) -> Path:
    """A copy of the wheel at `path` with one file more: the next version of a package."""
    new = folder / path.name
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        extra = f"{record.partition('/')[0]}/CHANGES"
        for info in old.infolist():
            if info.filename != record:
                archive.writestr(info, old.read(info))
        archive.writestr(extra, b"changed")
        digest = base64.urlsafe_b64encode(hashlib.sha256(b"changed").digest()).rstrip(b"=").decode()
        archive.writestr(record, old.read(record) + f"{extra},sha256={digest},7\n".encode())
    return new


# --- the server, in a process of its own


def serve(folders: list[Path]) -> None:
    """Hand out the files of these folders, from where a Range begins, until standard input ends. The first line says the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2].replace("%2B", "+")
            path = next(folder / name for folder in folders if (folder / name).is_file())
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            size = path.stat().st_size
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            with open(path, "rb") as file, contextlib.suppress(OSError):
                self.wfile.flush()
                self.connection.sendfile(file, start)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    server.shutdown()


@contextlib.contextmanager
def served(*folders: Path) -> Iterator[str]:
    """The address of a server of these folders."""
    command = [sys.executable, __file__, "serve", *map(str, folders)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.communicate("")


# --- one piece of work in a process of its own


def work(arguments: list[str]) -> None:
    """`get LIST [FOLDER]`, `export FOLDER`, `verify` or `compile`, in the engines of ZK0DESK_HOME; what came of it as JSON."""
    from zk0desk.control import NodeControl
    from zk0desk.engine import bytecode, install, lists, portable, store
    from zk0desk.engine.verify import verify

    action, *rest = arguments
    control = NodeControl()
    began = time.perf_counter()
    told: dict[str, Any] = {}
    if action == "get":
        source = Path(rest[1]) if len(rest) > 1 else None
        got = install.get(lists.read(Path(rest[0])), control=control, source=source)
        told = {"received": got.received, "folder": got.engine.folder, "bytes": got.engine.bytes}
    else:
        engine = store.current()
        assert engine is not None
        if action == "export":
            told = portable.export(engine, Path(rest[0]), control=control).to_json()
        elif action == "verify":
            found = verify(engine, thorough=bool(rest))
            assert found.ok, found.sentence
            told = {"files": found.files}
        else:
            told = {"modules": bytecode.compile_modules(engine, control=control)}
    print(json.dumps({**told, "seconds": time.perf_counter() - began}))


def start(home: Path, *arguments: object) -> subprocess.Popen[str]:
    """Begin a piece of work."""
    command = [sys.executable, __file__, "work", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "ZK0DESK_HOME": str(home)})


def done(home: Path, *arguments: object) -> dict[str, Any]:
    """Do a piece of work; what came of it, with its seconds, the process' start included."""
    began = time.perf_counter()
    with start(home, *arguments) as process:
        said, _ = process.communicate()
    assert process.returncode == 0, arguments
    return {**json.loads(said), "whole": time.perf_counter() - began}


# --- what is measured


def write_list(path: Path, wheels: list[Path], url: str) -> Any:
    """Write the list of these wheels for this computer; the list."""
    from zk0desk.engine import lists
    from zk0desk.engine.wheel import describe

    entries = tuple(lists.Wheel(**describe(wheel), url=f"{url}/{wheel.name.replace('+', '%2B')}") for wheel in wheels)
    made = lists.EngineList(*lists.this_system(), "cpu", lists.PYTHON, entries)
    path.write_text(made.to_text(), encoding="utf-8")
    return made


def bytes_below(folder: Path) -> int:
    """Bytes of the files below `folder`, linked ones once."""
    seen: dict[tuple[int, int], int] = {}
    stack = [str(folder)]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        facts = entry.stat(follow_symlinks=False)
                        seen[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(seen.values())


def killed(home: Path, listed: Path, size: int) -> dict[str, Any]:
    """Fetch, kill -9 after four tenths came, fetch again: bytes that came twice."""
    wheels, partial = home / "data" / "engines" / "wheels", home / "data" / "engines"
    by_name = {entry["file"]: entry["size"] for entry in json.loads(listed.read_text())["wheels"]}

    def held() -> int:
        there = sum(path.stat().st_size for path in wheels.glob("*") if path.exists())
        return there + sum(by_name[path.name.removesuffix(".tsv")] for path in partial.glob("*.partial/files/*.tsv"))

    with start(home, "get", listed) as process:
        while process.poll() is None and held() < 0.4 * size:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = held()
    again = done(home, "get", listed)
    return {"killed at MB": round(kept / 1e6), "fetched again after a kill bytes": kept + again["received"] - size}


def peak(home: Path, listed: Path, largest: list[int]) -> dict[str, Any]:
    """Fetch while the disk is looked at: the most that was taken, over what is taken in the end and the two largest wheels."""
    folder = home / "data" / "engines"
    most = 0
    process = start(home, "get", listed)
    began = time.perf_counter()
    while process.poll() is None:
        most = max(most, bytes_below(folder))
        time.sleep(0.2)
    took = time.perf_counter() - began
    process.communicate()
    assert process.returncode == 0
    final = bytes_below(folder)
    return {
        "engine MB on the disk": round(final / 1e6),
        "fetched and unpacked s": round(took, 1),
        "peak disk over final": round(most / final, 3),
        "peak disk over final and two largest wheels": round(most / (final + sum(largest[:2])), 3),
    }


WINDOW = """
import json, sys, threading, time
from pathlib import Path
from PySide6.QtCore import QProcess, QTimer
from PySide6.QtWidgets import QApplication, QLabel
sys.setswitchinterval(0.002)
app = QApplication([])
label = QLabel("0"); label.show()
how, listed, script = sys.argv[1:]
late, last = [], time.perf_counter()
def tick():
    global last
    now = time.perf_counter()
    late.append(1000 * (now - last) - 5)
    last = now
timer = QTimer(); timer.setTimerType(timer.timerType().PreciseTimer); timer.timeout.connect(tick); timer.start(5)
def end(*_):
    late.sort()
    print(json.dumps({"worst": late[-1], "p99": late[len(late) * 99 // 100], "ticks": len(late)}), flush=True)
    app.quit()
if how == "process":
    process = QProcess()
    process.readyReadStandardOutput.connect(lambda: label.setText(str(len(process.readAllStandardOutput().data()))))
    process.finished.connect(end)
    process.start(sys.executable, [script, "window-work", listed])
else:
    from zk0desk.control import NodeControl
    from zk0desk.engine import install, lists
    ended = threading.Event()
    def work():
        install.get(lists.read(Path(listed)), control=NodeControl())
        ended.set()
    threading.Thread(target=work).start()
    look = QTimer(); look.timeout.connect(lambda: ended.is_set() and end()); look.start(50)
def begin():
    global last
    late.clear(); last = time.perf_counter()
QTimer.singleShot(0, begin)
app.exec()
"""


def window(home: Path, listed: Path, how: str) -> dict[str, float]:
    """How late a window's timer was while the engine was made: `how` is "process" or "thread". ms."""
    environment = {**os.environ, "ZK0DESK_HOME": str(home), "QT_QPA_PLATFORM": "offscreen"}
    ran = subprocess.run(
        [sys.executable, "-c", WINDOW, how, str(listed), __file__], capture_output=True, text=True, env=environment, check=True
    )
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def window_work(listed: str) -> None:
    """What the window's child process does: get the engine, and print progress as JSON lines."""
    from zk0desk.control import NodeControl
    from zk0desk.engine import install, lists

    install.get(lists.read(Path(listed)), control=NodeControl(), told=lambda told: print(json.dumps(told.to_json()), flush=True))


def first_import(home: Path) -> dict[str, Any]:
    """Import torch and SmolVLA from the engine, before and after its bytecode was made."""
    from zk0desk.engine import selftest, store

    os.environ["ZK0DESK_HOME"] = str(home)
    engine = store.current()
    compiled = done(home, "compile")
    found = selftest.run(engine)
    assert found.ok, found.sentence
    return {"compiled s": round(compiled["seconds"], 1), "modules": compiled["modules"], "first import s": round(found.seconds, 1)}


def measure(
    megabytes: int = 300, files: int = 8000, wheels: Path | None = None, listed: Path | None = None, *, imports: bool = False
) -> dict[str, Any]:
    """All figures, by name. `wheels`: a folder of real ones; `listed`: the list that names those that count. Prints them too."""
    with tempfile.TemporaryDirectory(prefix="zk0desk-engine-") as name:
        place = Path(name)
        shelf = wheels or place / "wheels"
        if wheels is None:
            shelf.mkdir()
            make_wheels(shelf, megabytes, files)
        named = {entry["file"] for entry in json.loads(listed.read_text())["wheels"]} if listed else None
        parts = sorted(path for path in shelf.glob("*.whl") if named is None or path.name in named)
        later = place / "later"
        later.mkdir()
        # Three packages of the usual size are changed.
        middle = sorted(parts, key=lambda path: abs(path.stat().st_size - 4_000_000))[:3]
        fresh = [changed(path, later) for path in middle]
        figures: dict[str, Any] = {}
        with served(later, shelf) as url:
            # The folder of changed wheels comes first, so the engine as it was is fetched by other names.
            first, second = place / "first.json", place / "second.json"
            with served(shelf) as old:
                wanted = write_list(first, parts, old)
                sizes = sorted((wheel.size for wheel in wanted.wheels), reverse=True)
                figures |= {"wheels": len(parts), "fetch MB": round(wanted.size / 1e6)}
                figures |= killed(place / "a", first, wanted.size)
                figures |= peak(place / "b", first, sizes)
                for how in ("process", "thread"):
                    late = window(place / how, first, how)
                    suffix = "" if how == "process" else ", in a thread"
                    figures |= {
                        f"event loop worst ms{suffix}": round(late["worst"], 1),
                        f"event loop p99 ms{suffix}": round(late["p99"], 1),
                    }
                    remove(place / how)
            write_list(second, [path for path in parts if path not in middle] + fresh, url)
            update = done(place / "b", "get", second)
            figures |= {"update MB": round(update["received"] / 1e6, 1), "update s": round(update["whole"], 1)}
        verified = done(place / "b", "verify")
        figures |= {"verify s": round(verified["seconds"], 2), "files": verified["files"]}
        figures |= {"verify by hash s": round(done(place / "b", "verify", "thorough")["seconds"], 1)}
        saved = done(place / "a", "export", place / "stick")
        figures |= {"saved to a folder s": round(saved["seconds"], 1), "saved MB": round(saved["bytes"] / 1e6)}
        remove(place / "a")
        figures |= {"from a folder s": round(done(place / "c", "get", first, saved["folder"])["whole"], 1)}
        remove(place / "c")
        figures |= {"from a folder of original wheels s": round(done(place / "d", "get", first, shelf)["whole"], 1)}
        if imports:
            figures |= first_import(place / "d")
    for what, value in figures.items():
        target = f"  (at most {TARGETS[what]})" if what in TARGETS else ""
        print(f"{what:44} {value}{target}", flush=True)
    return figures


def remove(folder: Path) -> None:
    """Give the disk back."""
    import shutil

    shutil.rmtree(folder)


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        serve([Path(name) for name in sys.argv[2:]])
    elif sys.argv[1:2] == ["work"]:
        work(sys.argv[2:])
    elif sys.argv[1:2] == ["window-work"]:
        window_work(sys.argv[2])
    else:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--megabytes", type=int, default=300, help="to fetch, of the made-up engine")
        parser.add_argument("--files", type=int, default=8000, help="modules of the made-up engine")
        parser.add_argument("--wheels", type=Path, help="a folder of real wheels")
        parser.add_argument("--list", type=Path, help="a list that names which of them")
        parser.add_argument("--first-import", action="store_true", help="import torch and SmolVLA from them")
        given = parser.parse_args()
        print(json.dumps(measure(given.megabytes, given.files, given.wheels, given.list, imports=given.first_import)))


if __name__ == "__main__":
    main()
