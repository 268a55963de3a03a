"""The guard of a demo: a small process that starts the others, owns their folder, and cleans up when its parent is gone.

It reads orders from its standard input, a pipe that only the parent holds. When the pipe ends, because the parent
closed it or was killed at any moment, the guard ends every process under it and removes the folder. As a subreaper
(Linux) it also gets the grandchildren whose own parent died. `Guard` in `guarded.py` is the parent's side.

Orders, a JSON object a line: {"start": NAME, "argv": [...], "env": {...}, "log": PATH}, {"end": NAME},
{"tell": NAME, "text": LINE}, which writes to that process's standard input.
Answers: {"folder": PATH}, {"started": NAME, "pid": N}, {"line": NAME, "text": LINE}, {"ended": NAME, "status": N}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 1.0
"""How long a child that is asked to end may take before it is killed."""
PREFIX = "zk0desk-demo-"
NICE = 10
"""What the guard starts makes way for the window and whatever else a person does meanwhile."""


class _Processes:
    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._threads: list[threading.Thread] = []
        self._writing = threading.Lock()

    def say(self, **answer: Any) -> None:
        # The parent may be gone; then the end of the pipe ends this process.
        with self._writing, contextlib.suppress(BrokenPipeError, OSError, ValueError):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    def start(self, name: str, argv: list[str], env: dict[str, str], log: str) -> None:
        try:
            with open(log, "ab") as errors:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    env={**os.environ, **env},
                )
        except OSError as error:
            self.say(line=name, text=str(error))
            self.say(ended=name, status=127)
            return
        self._children[name] = child
        self.say(started=name, pid=child.pid)
        thread = threading.Thread(target=self._read, args=(name, child), name=f"read-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read(self, name: str, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self.say(line=name, text=line.rstrip("\n"))
        self.say(ended=name, status=child.wait())

    def end(self, name: str) -> None:
        """Ask a child to end; a thread kills it when it does not."""
        child = self._children.get(name)
        if child is None or child.poll() is not None:
            return
        with contextlib.suppress(OSError):
            assert child.stdin is not None
            child.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        timer = threading.Timer(GRACE_S + 1.0, child.kill)
        timer.daemon = True
        timer.start()

    def tell(self, name: str, text: str) -> None:
        """Write a line to a child's standard input; nothing happens when the child has ended."""
        child = self._children.get(name)
        if child is not None and child.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                child.stdin.write(text + "\n")
                child.stdin.flush()

    def end_all(self) -> None:
        """Kill everything under this process until nothing is left, for at most ten seconds."""
        own = psutil.Process()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            living = [each for each in own.children(recursive=True) if _lives(each)]
            if not living:
                break
            for each in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(living, timeout=0.5)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main(keep: str = "") -> None:
    """Guard until standard input ends. With `keep` that folder is used and stays."""
    for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())):
        signal.signal(number, signal.SIG_IGN)
    _adopt_orphans()
    if hasattr(os, "nice"):
        os.nice(NICE)
    processes = _Processes()
    folder = Path(keep) if keep else Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What its processes leave in their temporary folder goes with the demo's own.
        temporary = folder / "tmp"
        temporary.mkdir(mode=0o700, exist_ok=True)
        os.environ.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)))
        processes.say(folder=str(folder))
        for line in iter(sys.stdin.readline, ""):
            order = json.loads(line)
            if "start" in order:
                processes.start(order["start"], order["argv"], order["env"], order["log"])
            elif "end" in order:
                processes.end(order["end"])
            elif "tell" in order:
                processes.tell(order["tell"], order["text"])
    finally:
        processes.end_all()
        if keep:
            shutil.rmtree(folder / "tmp", ignore_errors=True)
        else:
            for _ in range(20):
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():
                    break
                time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:2])
