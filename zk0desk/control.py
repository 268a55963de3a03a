"""How a person, or a signal, tells a running node what to do. Thread-safe, without Qt and without torch."""

from __future__ import annotations

import threading
import time


class Stopped(Exception):
    """Raised inside a node's thread at the next check after `NodeControl.stop_now`. It is no error: a person asked for it."""


class NodeControl:
    """Pause, resume, finish this round and stop, stop now. Any thread may call any method."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = False
        self._finish = False
        self._stop = False

    def pause(self) -> None:
        """Hold between two steps until `resume`."""
        self._set(paused=True)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._set(paused=False)

    def finish_round(self) -> None:
        """Train this round to its end, send its update, then stop. Between rounds: stop."""
        self._set(finish=True, paused=False)

    def stop_now(self) -> None:
        """Stop at the next check (between layers of a step, between pieces of a transfer). Nothing more is sent."""
        self._set(stop=True)

    def _set(self, *, paused: bool | None = None, finish: bool | None = None, stop: bool | None = None) -> None:
        with self._changed:
            self._paused = self._paused if paused is None else paused
            self._finish = self._finish if finish is None else finish
            self._stop = self._stop if stop is None else stop
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether the node is asked to hold."""
        return self._paused

    @property
    def finishing(self) -> bool:
        """Whether the node ends after this round."""
        return self._finish

    @property
    def stopping(self) -> bool:
        """Whether the node is asked to stop now."""
        return self._stop

    def check(self) -> None:
        """Raise `Stopped` when the node is asked to stop now. Cheap: called between layers."""
        if self._stop:
            raise Stopped

    def hold(self, until: float = 0.0) -> float:
        """Wait while paused, at most until the Unix time `until` (0: no limit); the seconds that passed.

        Raises `Stopped` when asked to stop meanwhile.
        """
        began = time.monotonic()
        with self._changed:
            while self._paused and not self._stop:
                left = until - time.time() if until else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
        self.check()
        return time.monotonic() - began

    def sleep(self, seconds: float) -> None:
        """Wait, but return early when asked to finish and raise `Stopped` when asked to stop."""
        ends = time.monotonic() + seconds
        with self._changed:
            while not (self._stop or self._finish) and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
        self.check()
