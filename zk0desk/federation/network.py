"""The way to the federation: how long an answer takes, and how long a round's weights and update travel. No key and no name is sent."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk.amounts import duration, gigabytes
from zk0desk.federation.asked_round import known_transfer_speed
from zk0desk.federation.probe import probe
from zk0desk.federation.transfer_speed import update_bytes, weights_bytes, whole_bytes

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation

CALLS = 5


@dataclass(frozen=True)
class NetworkLook:
    """What was measured: of `calls` calls the median, shortest and longest time until the address answered, in ms.

    `weights_bytes` come and `update_bytes` go in a round, and `whole_bytes` come in the first one; `down` and `up` are bytes a second of
    the last round, 0 where there was none.
    """

    address: str
    calls: int
    latency_ms: float
    shortest_ms: float
    longest_ms: float
    weights_bytes: int
    whole_bytes: int
    update_bytes: int
    down: float
    up: float

    @property
    def round_seconds(self) -> float:
        """Seconds that a round's weights and update travel; 0 before the first round, when it is not known."""
        return self.weights_bytes / self.down + self.update_bytes / self.up if self.down and self.up else 0.0

    @property
    def sentences(self) -> tuple[str, str]:
        """How quickly the SuperLink answers, and what a round's transfers take."""
        spread = f"{self.calls} calls, {self.shortest_ms:.0f} to {self.longest_ms:.0f} ms"
        first = f" ({gigabytes(self.whole_bytes)} the first time)" if self.whole_bytes > self.weights_bytes else ""
        travels = f"A round brings {gigabytes(self.weights_bytes)}{first} and takes {gigabytes(self.update_bytes)} back"
        if not self.round_seconds:
            takes = f"{travels}. How long that takes is not known until the first round: nothing is sent only to measure."
        else:
            speed = f"{self.down / 1e6:.1f} MB/s down and {self.up / 1e6:.1f} MB/s up"
            takes = f"{travels}: about {duration(self.round_seconds)}, as fast as in the last round ({speed})."
        return f"The SuperLink at {self.address} answers in {self.latency_ms:.0f} ms ({spread}).", takes

    def to_json(self) -> dict[str, Any]:
        """The look as a JSON object, keys in kebab-case."""
        data = {key.replace("_", "-"): value for key, value in asdict(self).items()}
        return {**data, "round-seconds": self.round_seconds or None, "sentence": " ".join(self.sentences)}


def look_at_network(invitation: Invitation, journal: Path | None = None) -> NetworkLook:
    """Call the invitation's address a few times, as the check of the address does, and look up how fast the last round travelled.

    `journal` is the journal's file (default: the operator's). Raises a `ConnectionTrouble` that says what is in the way.
    """
    times = [probe(invitation).latency_ms for _ in range(CALLS)]
    speed = known_transfer_speed(invitation, journal)
    return NetworkLook(
        invitation.address, CALLS, statistics.median(times), min(times), max(times), weights_bytes(invitation), whole_bytes(invitation),
        update_bytes(invitation), speed.down, speed.up,
    )  # fmt: skip
