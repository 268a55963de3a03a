"""The parent's side of the guard: start processes under it, hear them, end them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zk0desk.demo import warm
from zk0desk.errors import OperatorError

WARM = "engine"
"""Name, and the log's name, of the process that the others are forked from."""


class GuardFailed(OperatorError):
    """The guard process could not be started, or it died."""

    code = "guard-failed"


class Guard:
    """A guard process, its folder, and what its processes print. A context manager; `close` ends everything.

    `on_line(name, text)` gets each line that a process prints, `on_end(name, status)` its exit status; both come from
    the guard's reading thread, and `on_end("", -1)` when the guard itself is gone.
    """

    def __init__(self, on_line: Callable[[str, str], None], on_end: Callable[[str, int], None], *, keep: Path | None = None) -> None:
        self._on_line, self._on_end = on_line, on_end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zk0desk.demo.guard", *([str(keep)] if keep else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            bufsize=1,
            # Ctrl-C in the terminal reaches the parent alone, which then closes the pipe.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first:
            self._process.wait()
            raise GuardFailed("The demo could not start.", "Its guard process ended at once.", "See the message above.")
        self.folder = Path(json.loads(first)["folder"])
        self.pids: dict[str, int] = {}
        self._warm = False
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="demo-guard", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if answer.get("line") == WARM:
                # What the warm process says is about the processes forked from it.
                with contextlib.suppress(ValueError):
                    answer = json.loads(answer["text"])
            if "line" in answer:
                self._on_line(answer["line"], answer["text"])
            elif "started" in answer:
                self.pids[answer["started"]] = answer["pid"]
            elif "ended" in answer:
                self._on_end(answer["ended"], answer["status"])
        self._on_end("", -1)

    def _send(self, **order: Any) -> None:
        assert self._process.stdin is not None
        try:
            with self._sending:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise GuardFailed("The demo ended.", "Its guard process is gone.", "Start it again.") from error

    def start(self, name: str, arguments: list[str], env: dict[str, str] | None = None) -> None:
        """Start `python ARGUMENTS` under the guard; what it writes to standard error goes to NAME.log in the folder."""
        environment = {"PYTHONUNBUFFERED": "1", **(env or {})}
        self._send(start=name, argv=[sys.executable, *arguments], env=environment, log=str(self.folder / f"{name}.log"))

    def warm_up(self, env: dict[str, str] | None = None) -> None:
        """Begin to load torch and LeRobot in a process under the guard, from which `call` forks. Without effect but on Linux."""
        if warm.AVAILABLE:
            self._warm = True
            self.start(WARM, ["-m", "zk0desk.demo.warm"], env)

    def call(self, name: str, module: str, arguments: list[str], env: dict[str, str] | None = None) -> None:
        """Run `main(arguments)` of `module` as a process under the guard: forked after `warm_up`, else started as any other.

        `module` is `zk0desk.cli` or `zk0desk.demo.prepare`. `end` and `pids` know only what was started.
        """
        if not self._warm:
            self.start(name, ["-m", {"zk0desk.cli": "zk0desk"}.get(module, module), *arguments], env)
            return
        order = {"start": name, "call": module, "arguments": arguments, "env": env or {}, "log": str(self.folder / f"{name}.log")}
        self._send(tell=WARM, text=json.dumps(order))

    def end(self, name: str) -> None:
        """Ask a process to end; it is killed when it does not within two seconds."""
        self._send(end=name)

    def close(self) -> None:
        """End every process under the guard, remove the folder, and wait until that is done."""
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, 9)
            self._process.wait()
        self._reader.join(5)
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
