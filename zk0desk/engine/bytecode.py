"""Compiles an engine's modules, so that its first import takes a third of the time. At low priority, in processes of their own.

`PYTHONPYCACHEPREFIX` is obeyed: then the bytecode is in the person's cache, else beside the modules.
"""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

from zk0desk.control import NodeControl, Stopped
from zk0desk.engine.progress import Pace, Told, nobody
from zk0desk.engine.store import Installed, kept_files

PIECE = 50
"""Modules that the child says it has done at a time."""


def compile_modules(engine: Installed, *, control: NodeControl, told: Told = nobody) -> int:
    """Compile what has no bytecode yet in a child process; the number of modules that have it now. Raises `Stopped`. Failures are no error:
    Python then compiles a module when it is imported.
    """
    modules = [kept.path for files in kept_files(engine.path).values() for kept in files if kept.path.endswith(".py")]
    pace = Pace(told, "compiling", len(modules), unit="files")
    command = [sys.executable, "-m", "zk0desk.engine.bytecode", str(engine.site)]
    low = getattr(subprocess, "IDLE_PRIORITY_CLASS", 0)
    done = 0
    quiet = subprocess.DEVNULL  # warnings of modules are for their authors
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True, encoding="utf-8", creationflags=low
    ) as process:
        assert process.stdin and process.stdout
        try:
            for start in range(0, len(modules), PIECE):
                if control.stopping:
                    raise Stopped
                control.hold()
                piece = modules[start : start + PIECE]
                process.stdin.write("".join(f"{path}\n" for path in piece) + "\n")
                process.stdin.flush()
                if not process.stdout.readline():
                    break  # it ended: the disk is full, or someone ended it
                done += len(piece)
                pace.at(done)
        except BrokenPipeError:
            return done
        finally:
            process.kill()
    pace.at(done, now=True)
    return done


def main() -> None:
    """Compile the modules that come as lines on standard input, below the folder that is the argument; a line back for each empty line."""
    if hasattr(os, "nice"):
        os.nice(19)
    site = Path(sys.argv[1])
    for line in sys.stdin:
        if path := line.rstrip("\n"):
            _compile(str(site / path))
        else:
            print(flush=True)


def _compile(path: str) -> None:
    if _is_fresh(path):
        return
    try:
        py_compile.compile(path, doraise=True)
    except (py_compile.PyCompileError, OSError, ValueError, RecursionError):
        return  # a template, or a module for another Python: nobody imports it


def _is_fresh(path: str) -> bool:
    """Whether the bytecode is there and of this very file (PEP 3147, PEP 552: flags, time and size of the source)."""
    try:
        with open(importlib.util.cache_from_source(path), "rb") as file:
            head = file.read(16)
        source = os.stat(path)
    except (OSError, NotImplementedError):
        return False
    expected = importlib.util.MAGIC_NUMBER + bytes(4) + _word(source.st_mtime) + _word(source.st_size)
    return head == expected


def _word(number: float) -> bytes:
    return (int(number) & 0xFFFFFFFF).to_bytes(4, "little")


if __name__ == "__main__":
    main()
