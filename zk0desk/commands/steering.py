"""How a command that works for long is told to pause, go on and stop: by signals, and by lines from the window that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zk0desk.control import NodeControl

WORDS = ("pause", "resume", "stop")


@contextlib.contextmanager
def stopped_by_signals(control: NodeControl) -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM ask `control` to stop now."""

    def stop(*_: object) -> None:
        # The interrupted thread may hold the control's lock.
        threading.Thread(target=control.stop_now, name="zk0desk-stop", daemon=True).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def steered_by_lines(control: NodeControl) -> None:
    """Do what lines on standard input say: `pause`, `resume`, `stop`. When they end, who steered is gone: stop."""
    number = sys.stdin.fileno()
    acts = dict(zip(WORDS, (control.pause, control.resume, control.stop_now), strict=True))

    def listen() -> None:
        rest = b""
        # Read past Python's buffer, whose lock a thread must not hold when the interpreter ends.
        while piece := os.read(number, 1024):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                act = acts.get(line.strip().decode("utf-8", "replace"))
                if act is not None:
                    act()
        control.stop_now()

    threading.Thread(target=listen, name="zk0desk-lines", daemon=True).start()
