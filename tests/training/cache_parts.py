"""Small shelves for the tests of the prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zk0desk.events import Event
from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.training.prefix_shelf import Shelf

ENTRIES, SHAPE = 40, (3, 1024)
ENTRY_BYTES = 2 * 3 * 1024
KEY = {"level": "V", "recording": "0" * 64, "cameras": ["top", "wrist"]}


def shelf(cache: PrefixCache, *, name: str = "cubes", dtype: str = "float16", entries: int = ENTRIES, **key: Any) -> Shelf:
    """A shelf for the recording `name`."""
    about = {"recording": name, "path": f"/recordings/{name}", "content-sha256": f"sha-{name}", "level": "V"}
    return cache.shelf({**KEY, "recording": name, **key}, entries, SHAPE, dtype, about)


def values(rows: list[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """What is computed for `rows`: float32, other values for each row."""
    return np.stack([np.random.default_rng([seed, int(row)]).normal(size=SHAPE).astype(np.float32) for row in rows])


def stored_values(rows: list[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """The same as they are stored."""
    return values(rows, seed).astype(np.float16)


def entries_file(made: Shelf) -> Path:
    """The file that holds a shelf's entries."""
    return made.folder / "entries.bin"


def index_file(made: Shelf) -> Path:
    """The file that holds a shelf's checksums."""
    return made.folder / "index.bin"


def change_byte(path: Path, offset: int) -> None:
    """Flip one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def codes(self) -> list[str]:
        """The codes of what was said, in order."""
        return [event.code for event in self.events]  # type: ignore[attr-defined]
