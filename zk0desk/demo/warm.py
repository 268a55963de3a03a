"""A process that has torch and LeRobot loaded and forks the demo's other processes from itself.

Loading them costs each process about fifteen seconds of a core. Forked, the demo's processes share one load and its
memory. Nothing is computed here and no thread is started, so that a fork is safe; only Linux lets it be safe. The guard
above it relays its lines: orders come as JSON lines {"start": NAME, "call": MODULE, "arguments": [...], "env": {...},
"log": PATH} on standard input, answers go as {"line": NAME, "text": LINE} and {"ended": NAME, "status": N} to standard
output. `call` is `zk0desk.cli` or `zk0desk.demo.prepare`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import selectors
import sys
import traceback
from typing import Any, NoReturn

from zk0desk.quiet import quiet_libraries
from zk0desk.training.loading import ENGINE

AVAILABLE = sys.platform == "linux"
CALLS = ("zk0desk.cli", "zk0desk.demo.prepare")
MODULES = (
    *ENGINE,
    "zk0desk.training.demo_data",
    "zk0desk.training.recordings",
    "zk0desk.federation.node",
    "zk0desk.federation.fleet",
    *CALLS,
)


class _Child:
    """A forked process, and what has come through its pipe of a line that is not complete."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid, self.rest = name, pid, b""


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _be(order: dict[str, Any], out: int) -> NoReturn:
    """Become the process that `order` asks for."""
    status = 1
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, log)):
            os.dup2(source, target)
        os.closerange(3, 256)
        os.environ.update(order["env"])
        random.seed()  # forked processes must not draw the same pauses
        status = int(importlib.import_module(order["call"]).main(order["arguments"]) or 0)
    except BaseException:  # noqa: BLE001 - it ends the process, with its traceback in the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def main() -> None:
    """Load, then fork what is ordered until standard input ends."""
    quiet_libraries()
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    waiting = selectors.DefaultSelector()
    orders = _Child("", 0)
    waiting.register(0, selectors.EVENT_READ, orders)
    while True:
        for key, _ in waiting.select():
            child: _Child = key.data
            data = os.read(key.fd, 65536)
            *lines, child.rest = (child.rest + data).split(b"\n")
            for line in lines:
                if child is orders:
                    _fork(json.loads(line), waiting)
                else:
                    _say(line=child.name, text=line.decode(errors="replace"))
            if data:
                continue
            if child is orders:
                return
            waiting.unregister(key.fd)
            os.close(key.fd)
            _say(ended=child.name, status=os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]))


def _fork(order: dict[str, Any], waiting: selectors.BaseSelector) -> None:
    if order["call"] not in CALLS:
        raise ValueError(f"{order['call']} is not something to call")
    sys.stdout.flush()
    out, inward = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be(order, inward)
    os.close(inward)
    waiting.register(out, selectors.EVENT_READ, _Child(order["start"], pid))


if __name__ == "__main__":
    main()
