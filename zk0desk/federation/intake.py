"""Takes one reply: what it says is checked before its update is looked at, the update piece by piece on its way to disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zk0desk.federation import messages, updates
from zk0desk.federation.messages import MessageRefused, TrainRequest
from zk0desk.federation.plausibility import check_plausible
from zk0desk.federation.spool import Spool, Spooled, SpoolWriter


class Replayed(MessageRefused):
    """A reply to another round or run: it is right in itself, and was sent again."""

    code = "replayed"


class Intake:
    """The receiver of one reply to `request`. `declared` is the most frames that its node ever had; `elapsed` gives the seconds since the
    round was first asked, None where that is not known.
    """

    def __init__(self, request: TrainRequest, spool: Spool, values: int, declared: float, elapsed: Callable[[], float | None]) -> None:
        self._request, self._spool, self._values = request, spool, values
        self._declared, self._elapsed = declared, elapsed
        self._writer: SpoolWriter | None = None
        self.metrics: dict[str, float] = {}

    def begin(self, config: dict[str, Any], metrics: dict[str, Any], pieces: list[str]) -> None:
        """Check what the reply says. Raises `MessageRefused`."""
        _check_round(config, self._request)
        messages.check_reply(config, self._request)
        self.metrics = messages.check_metrics(metrics)
        if self._request.metrics == messages.NONE and self.metrics:
            raise MessageRefused("metrics", "none were asked for: this federation computes under differential privacy.")
        if self.metrics:
            check_plausible(self.metrics, self._request, declared=self._declared, elapsed=self._elapsed())
        wanted = [f"{number:06d}" for number in range(updates.pieces(self._values))]
        if pieces != wanted:
            raise MessageRefused("arrays", f"has {len(pieces)} pieces, and not the {len(wanted)} of this policy's {self._values:,} values.")
        self._writer = self._spool.open(self._request.encoding, self._values)

    def piece(self, array: np.ndarray) -> None:
        """Check and keep the next piece. Raises `MessageRefused`, `SpoolTrouble`."""
        assert self._writer is not None
        self._writer.add(array)

    def end(self) -> tuple[Spooled, dict[str, float]]:
        """The update on disk, and the metrics."""
        assert self._writer is not None
        return self._writer.done(), self.metrics

    def drop(self) -> None:
        """Remove what came."""
        if self._writer is not None:
            self._writer.drop()


def _check_round(config: dict[str, Any], request: TrainRequest) -> None:
    """Name a reply that was made for another round."""
    number, run = config.get("server-round"), config.get("run-uid")
    if run == request.run_uid and isinstance(number, int) and 0 < number < request.server_round:
        raise Replayed("server-round", f"this reply was made for round {number}; the round is {request.server_round}.")
