"""Replies without a wire: what arrives piece by piece, on disk as the coordinator keeps it."""

from __future__ import annotations

from typing import Any

import numpy as np

from zk0desk.federation import messages, updates
from zk0desk.federation.intake import Intake
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.spool import Spool, Spooled

HEX = "ab" * 32


class Arrays(list[np.ndarray]):
    """A receiver that keeps a reply's pieces in memory."""

    def begin(self, config: dict[str, Any], metrics: dict[str, Any], pieces: list[str]) -> None:
        self.names = pieces

    def piece(self, array: np.ndarray) -> None:
        self.append(array.copy())

    def end(self) -> list[np.ndarray]:
        return self

    def drop(self) -> None:
        self.clear()


def spooled(spool: Spool, vector: np.ndarray, encoding: str = "fp32") -> Spooled:
    """`vector` (flat float32) on disk, as it is when a node sent it."""
    writer = spool.open(encoding, vector.size)
    for piece in updates.encode(vector, encoding):
        writer.add(piece)
    return writer.done()


def request(**changes: Any) -> TrainRequest:
    """What a round asks, of two steps of 32 frames."""
    values: dict[str, Any] = {
        "run_uid": "run-1", "server_round": 4, "num_rounds": 9, "seed": 1, "lr": 1e-3, "proximal_mu": 0.01, "batch_size": 32,
        "policy_id": "tiny", "backbone_sha256": HEX, "layout_sha256": HEX, "weights_sha256": HEX, "base_sha256": HEX, "local_steps": 2,
        "encoding": "fp32", **changes,
    }  # fmt: skip
    return TrainRequest(**values)


def answered(
    spool: Spool, asked: TrainRequest, vector: np.ndarray, *, config: dict[str, Any] | None = None, metrics: dict[str, Any] | None = None
) -> tuple[Spooled, dict[str, float]]:
    """What becomes of a reply that arrives: `vector` (encoded as it is, whatever its values), and changes of what it says."""
    intake = Intake(asked, spool, 1000, declared=0.0, elapsed=lambda: 1.0)
    said = {"num-examples": 40.0, "frames-seen": 64.0, "steps-done": 2.0, "loss-mean": 1.0, "seconds": 0.5}
    try:
        intake.begin({**messages.reply_config(asked), **(config or {})}, {**said, **(metrics or {})}, ["000000"])
        intake.piece(vector)
        return intake.end()
    except BaseException:
        intake.drop()
        raise
