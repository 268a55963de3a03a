"""What the encoding left out of a node's update goes into its next one: the residual, on disk in the run's folder.

    residual-ROUND.npy       what is owed after the update of that round (float32, flat)

The residual of a round counts once the coordinator says that it used that round's update (`accepted-round`); until then the one before is
still owed. So an update that was refused, or lost on the way, costs nothing but itself. numpy only.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.updates import LOSSY, UpdateTooLarge, encode_owed
from zk0desk.federation.vector_file import new_vector, read_vector

ROUNDS = 3
"""A residual that is older is dropped: it belongs to weights that are long gone."""

_FLOAT = np.dtype(np.float32)
_NAME = re.compile(r"residual-(\d{6})\.npy\Z")


class ErrorFeedback:
    """Encodes the updates of one node in one run, whose files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def encode(self, change: np.ndarray, request: TrainRequest) -> list[np.ndarray]:
        """`change` (float32, flat) and what is still owed, encoded as `request` asks. What is left out now is kept for after this round.

        Raises `UpdateTooLarge` when the change cannot be encoded.
        """
        self._keep_only(request.accepted_round)
        owed = None
        if request.server_round - request.accepted_round <= ROUNDS:
            owed = read_vector(self._file(request.accepted_round), _FLOAT, change.size)
        try:
            return self._encode(change, owed, request)
        except UpdateTooLarge:
            if owed is None:
                raise
            return self._encode(change, None, request)  # it may be the residual that is not finite: a disk can fail

    def forget(self) -> None:
        """Drop what is owed: no round follows."""
        self._keep_only(-1)

    def _encode(self, change: np.ndarray, owed: np.ndarray | None, request: TrainRequest) -> list[np.ndarray]:
        pieces = encode_owed(change, owed, request.encoding)
        if request.encoding not in LOSSY:
            return [piece.array for piece in pieces]
        arrays = []
        with new_vector(self._file(request.server_round), _FLOAT, change.size) as owe:
            for piece in pieces:
                arrays.append(piece.array)
                owe(piece.left)
        return arrays

    def _file(self, number: int) -> Path:
        return self._folder / f"residual-{number:06d}.npy"

    def _keep_only(self, number: int) -> None:
        for path in self._folder.glob("residual-*.npy"):
            if (found := _NAME.match(path.name)) and int(found[1]) != number:
                with suppress(OSError):
                    path.unlink()
