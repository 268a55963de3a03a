"""Where a local round's time goes, as the training thread sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zk0desk.events import RoundTimes
from zk0desk.training.cached_forward import CachedForward

if TYPE_CHECKING:
    from zk0desk.training.batch_gradients import BatchGradients
    from zk0desk.training.rounds import RoundPlan


class RoundClock:
    """Counts the seconds of one round, from when it is made to `event`."""

    def __init__(self, gradients: BatchGradients) -> None:
        self._gradients = gradients
        self._began = time.perf_counter()
        self._before = self._counts()
        self._wait = 0.0
        self.optimiser = 0.0
        """To be added to by whoever steps the optimiser."""

    def waiting[Item](self, items: Iterator[Item]) -> Iterator[Item]:
        """`items`, while the time until each comes is counted as waiting."""
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._wait += time.perf_counter() - began
            yield item

    def event(self, plan: RoundPlan, frames: int) -> RoundTimes:
        """What was counted."""
        now = self._counts()
        forward, backward, prepare, hits, asked = (after - before for after, before in zip(now, self._before, strict=True))
        seconds = {
            "prepare": prepare,
            "wait": self._wait,
            "forward": forward - prepare,
            "backward": backward,
            "optimiser": self.optimiser,
        }
        seconds["other"] = max(0.0, time.perf_counter() - self._began - sum(seconds.values()))
        filled = cached.filled if isinstance(cached := self._gradients.forward, CachedForward) else 0
        return RoundTimes(run=plan.run, round=plan.round, seconds=seconds, hits=int(hits), asked=int(asked), filled=filled, frames=frames)

    def _counts(self) -> tuple[float, ...]:
        gradients, forward = self._gradients, self._gradients.forward
        cached = (forward.seconds, forward.hits, forward.asked) if isinstance(forward, CachedForward) else (0.0, 0, 0)
        return gradients.forward_s, gradients.backward_s, *cached
