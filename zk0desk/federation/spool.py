"""Replies on disk while a round lasts: written piece by piece as they come, read back piece by piece.

A reply is kept in the encoding in which it came, which is its fewest bytes and those that its SHA-256 is of. What works on all updates'
values side by side (medians, the Gram matrix) gets them through one more file, which holds one decoded piece of each. Nothing here
grows in memory with the number of nodes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from zk0desk.errors import OperatorError
from zk0desk.federation import updates
from zk0desk.federation.messages import MessageRefused
from zk0desk.folders import private_folder

BLOCK = 2**20
"""Values that are looked at side by side at once, of all updates together."""


class SpoolTrouble(OperatorError):
    """A reply could not be written to disk, which is not its node's fault. It is raised from the disk's own error."""

    code = "spool-trouble"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolTrouble(
            f"{path.parent} cannot be written to.", f"{error}.", "Make room on that disk; the round then starts again."
        ) from error


@dataclass(frozen=True)
class Spooled:
    """A valid update on disk: `values` in `encoding`, its L2 norm, its bytes as they came and the SHA-256 of those."""

    path: Path
    encoding: str
    values: int
    norm: float
    bytes: int
    sha256: str
    pieces: tuple[tuple[int, str, int], ...]
    """Of each piece: where it begins in the file, its dtype, and how many of those."""

    def read(self, index: int, target: np.ndarray) -> None:
        """Decode piece `index` into `target` (float32)."""
        offset, dtype, count = self.pieces[index]
        raw = np.fromfile(self.path, np.dtype(dtype), count, offset=offset)
        updates.decode_piece(raw, self.encoding, target, f"arrays[{index}]")


class SpoolWriter:
    """Checks and writes the pieces of one reply, in order. It takes no byte that the layout and the encoding do not ask for."""

    def __init__(self, path: Path, encoding: str, values: int) -> None:
        self._path, self._encoding, self._values = path, encoding, values
        self._squares, self._digest, self._bytes = 0.0, hashlib.sha256(), 0
        self._pieces: list[tuple[int, str, int]] = []
        with _writing(path):
            self._file: IO[bytes] = path.open("wb", buffering=0)

    def add(self, piece: np.ndarray) -> None:
        """The next piece. `MessageRefused` unless it is exactly as agreed and all its values are finite; `SpoolTrouble`."""
        index = len(self._pieces)
        if index == updates.pieces(self._values):
            raise MessageRefused("arrays", f"has more than the {index} pieces that belong.")
        decoded = np.empty(min(updates.PIECE, self._values - index * updates.PIECE), np.float32)
        updates.decode_piece(piece, self._encoding, decoded, f"arrays[{index}]")
        self._squares += squares(decoded)
        plain = np.ascontiguousarray(piece)
        self._digest.update(plain.data)
        with _writing(self._path):
            left = memoryview(plain).cast("B")
            while left:  # unbuffered files may take less than they are given
                left = left[self._file.write(left) :]
        self._pieces.append((self._bytes, piece.dtype.str, piece.size))
        self._bytes += plain.nbytes

    def done(self) -> Spooled:
        """The update, when all its pieces came; else `MessageRefused`."""
        wanted = updates.pieces(self._values)
        if len(self._pieces) != wanted:
            raise MessageRefused("arrays", f"{len(self._pieces)} pieces where {wanted} belong.")
        with _writing(self._path):
            self._file.close()
        return Spooled(
            self._path, self._encoding, self._values, self._squares**0.5, self._bytes, self._digest.hexdigest(), tuple(self._pieces)
        )

    def drop(self) -> None:
        """Forget what came."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class Spool:
    """The folder of a round's replies. What an earlier process left in it is removed. Methods raise OSError when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = private_folder(folder)
        self._opened = 0

    def open(self, encoding: str, values: int) -> SpoolWriter:
        """A file for one more reply."""
        self._opened += 1
        return SpoolWriter(self.folder / f"reply-{self._opened:06d}", encoding, values)

    def vector(self, values: int) -> np.ndarray:
        """A flat float32 vector of zeros whose memory is a file of this folder."""
        self._opened += 1
        path = self.folder / f"vector-{self._opened:06d}"
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, 4 * values)  # a disk that is full is found out here, and not by a signal
            file.truncate(4 * values)
        return np.memmap(path, np.float32, "r+", shape=(values,))

    def clear(self) -> None:
        """Remove all files: the round is over. A vector's memory stays valid until it is let go of."""
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)

    def side_by_side(self, updates_: Sequence[Spooled]) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of all updates: where in the vector, and float32 of shape (updates, values). The array is used again for the next."""
        if not updates_:
            return
        values, path = updates_[0].values, self.folder / "side-by-side"
        width = max(1, min(updates.PIECE, BLOCK // len(updates_)))
        block = np.empty((len(updates_), width), np.float32)
        with path.open("w+b", buffering=0) as file:
            for index in range(updates.pieces(values)):
                start = index * updates.PIECE
                piece = np.empty(min(updates.PIECE, values - start), np.float32)
                file.seek(0)
                for update in updates_:
                    update.read(index, piece)
                    left = memoryview(piece).cast("B")
                    while left:
                        left = left[file.write(left) :]
                for begin in range(0, piece.size, width):
                    part = block[:, : min(width, piece.size - begin)]
                    for row in range(len(updates_)):
                        file.seek(4 * (row * piece.size + begin))
                        _fill(file, part[row])
                    yield start + begin, part
        path.unlink(missing_ok=True)


def _fill(file: IO[bytes], row: np.ndarray) -> None:
    left = memoryview(row).cast("B")
    while left:
        if not (count := file.readinto(left)):  # type: ignore[attr-defined]
            raise OSError("the file is shorter than what was written to it")
        left = left[count:]


def squares(vector: np.ndarray) -> float:
    """The sum of the squares of a float32 vector, in float64, without a float64 copy of all of it."""
    total = 0.0
    for start in range(0, vector.size, 2**18):
        part = vector[start : start + 2**18].astype(np.float64)
        total += float(part @ part)
    return total


def gram(spool: Spool, updates_: Sequence[Spooled]) -> np.ndarray:
    """The inner products of all pairs of updates, float64 of shape (updates, updates)."""
    total = np.zeros((len(updates_), len(updates_)))
    for _, block in spool.side_by_side(updates_):
        wide = block.astype(np.float64)
        total += wide @ wide.T
    return total
