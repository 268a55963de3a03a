"""Processes of the product that end when the process that started them ends, however it ends.

The child reads its standard input, a pipe that the parent holds: when the parent is gone, even by `kill -9`, the pipe
ends. That works on every system and leaves the parent free to start the child from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any


def spawn(arguments: list[str], *, stderr: IO[Any] | int | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `python -m zk0desk ARGUMENTS` with pipes for its standard input and output, line by line.

    It is in a session of its own: Ctrl-C in the terminal reaches the parent, which decides.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "zk0desk", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        bufsize=1,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        start_new_session=True,
    )


def ask_to_end(process: subprocess.Popen[str]) -> None:
    """Close a child's standard input and do not wait."""
    if process.stdin and not process.stdin.closed:
        with contextlib.suppress(BrokenPipeError, OSError):
            process.stdin.close()


def end(process: subprocess.Popen[str], grace: float = 1.0) -> None:
    """End a child: its standard input is closed, after `grace` seconds it is killed."""
    ask_to_end(process)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    if process.stdout and not process.stdout.closed:
        process.stdout.close()


def when_parent_ends(act: Callable[[], None], *, within: float = 1.0) -> None:
    """Call `act` in a thread of its own when standard input ends, and leave this process at the latest `within` seconds later."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            # Not through sys.stdin: a thread that waits inside its buffer makes the interpreter's exit fail.
            while os.read(0, 4096):
                continue
        last = threading.Timer(within, os._exit, (0,))
        last.daemon = True
        last.start()
        act()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def remember(path: Path, pids: Iterable[int]) -> None:
    """Write down which children there are, for one who comes after this process was killed."""
    import psutil

    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found.append({"pid": pid, "began": process.create_time(), "command": process.cmdline()})
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)


def end_left_behind(path: Path, grace: float = 3.0) -> None:
    """Wait until the children that a killed process wrote down have ended; one that hangs is ended. Nobody else is touched."""
    import psutil

    try:
        known = [(int(each["pid"]), float(each["began"]), each["command"]) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return
    left = []
    for pid, began, command in known:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            # A process id is given out again.
            if abs(process.create_time() - began) < 1 and process.cmdline() == command:
                left.append(process)
    for process in psutil.wait_procs(left, timeout=grace)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(5)
    path.unlink(missing_ok=True)
