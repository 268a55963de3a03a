"""Waiting for something that cannot be interrupted itself, in a way that a person's "stop now" ends at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from zk0desk.control import NodeControl

CHECK_S = 0.05


class Behind[T]:
    """`work()` in a thread of its own, begun at once. Left behind, it goes on until it ends by itself; its result is dropped."""

    def __init__(self, work: Callable[[], T], *, name: str = "node-call") -> None:
        self._work = work
        self._done = threading.Event()
        self._result: list[T] = []
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            self._failure = error
        finally:
            self._done.set()

    @property
    def ended(self) -> bool:
        """Whether it has returned or raised."""
        return self._done.is_set()

    @property
    def result(self) -> T | None:
        """What it returned, if it has."""
        return self._result[0] if self._result else None

    def wait(self, control: NodeControl) -> T:
        """What `work()` returned or raised; raises `Stopped` as soon as `control` asks for it."""
        while not self._done.wait(CHECK_S):
            control.check()
        control.check()
        if self._failure is not None:
            raise self._failure
        return self._result[0]


def interruptible[T](control: NodeControl, work: Callable[[], T], *, name: str = "node-call") -> T:
    """What `work()` returns or raises, computed in a thread of its own; raises `Stopped` as soon as `control` asks for it."""
    return Behind(work, name=name).wait(control)
