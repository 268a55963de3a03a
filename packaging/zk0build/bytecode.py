"""Bytecode that is shipped beside the sources: Python takes it unseen, so a read-only or moved installation starts as fast as any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from zk0build.trouble import BuildError

_COMPILE = """
import py_compile, sys
root, part = sys.argv[1], int(sys.argv[2])
for number, name in enumerate(sys.stdin.read().split("\\n")):
    if name and number % 2 == part:
        try:
            py_compile.compile(f"{root}/{name}", dfile=name, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        except py_compile.PyCompileError:
            print(name)
"""


def compile_all(root: Path) -> list[str]:
    """Compile every .py under `root` in place; the names of those that are no Python 3.12 (templates), which stay without.

    The same sources give the same bytes: a fixed order, a fixed hash seed, two processes with a fixed share each (what a process
    compiled before changes how constants are written), and names relative to `root`.
    """
    names = "\n".join(sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PYTHONHASHSEED": "0"}
    running = [
        subprocess.Popen(
            [sys.executable, "-s", "-S", "-c", _COMPILE, str(root), part],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for part in ("0", "1")
    ]
    refused: list[str] = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write(names)
        process.stdin.close()
    for process in running:
        assert process.stdout is not None
        refused += process.stdout.read().split()
        if process.wait() != 0:
            raise BuildError("The bytecode could not be compiled.", f"Python ended with status {process.returncode}.")
    return sorted(refused)
