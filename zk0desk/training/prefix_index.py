"""What a shelf is (its identity), and its index: a header, and for each entry a checksum, or 0 where nothing is kept.

The checksum is XXH3 over an entry's bytes, seeded with its row and the shelf's identity: an entry in the wrong place, or one of another
shelf, is as wrong as one with a flipped bit. A checksum is one aligned word of 8 bytes, so it is never half written; it is written after
its entry. Whatever stands in an index by accident therefore leads to a miss, never to wrong numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Buffer, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

FORMAT = 1
"""Raised when the files are laid out otherwise: older shelves are then other shelves."""
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""What entries can be stored as, and the bytes of a number. float64 is there to prove that nothing but rounding is lost."""
WORD = 8
"""Bytes of a checksum in the index."""
_MAGIC = b"zk0entry"
_HEADER = struct.Struct("<8sQQ32sQ")
HEADER_BYTES = _HEADER.size
_MAX_ENTRY_BYTES, _MAX_ENTRIES = 2**34, 2**40


def canonical(value: Any) -> str:
    """JSON with one form only: keys in order, no spaces, no NaN. ValueError or TypeError for what JSON cannot say."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Layout:
    """What makes a shelf this one: its key, how many entries, and their shape and storage type (of `ITEM_BYTES`).

    Two layouts that differ in anything have different names.
    """

    key: Mapping[str, Any]
    entries: int
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"a shelf stores {', '.join(ITEM_BYTES)}, not {self.dtype}")
        if not 0 < self.entries <= _MAX_ENTRIES or any(size < 1 for size in self.shape) or self.entry_bytes > _MAX_ENTRY_BYTES:
            raise ValueError(f"no shelf can have {self.entries} entries of shape {self.shape}")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The layout as a JSON object."""
        whole = {"format": FORMAT, "key": dict(self.key), "entries": self.entries, "shape": list(self.shape), "dtype": self.dtype}
        return dict(json.loads(canonical(whole)))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the identity's canonical JSON."""
        return hashlib.sha256(canonical(self.identity).encode()).digest()

    @property
    def name(self) -> str:
        """The folder's name: the digest in hex."""
        return self.digest.hex()

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    @property
    def all_bytes(self) -> int:
        """Bytes of all entries: what the shelf takes when it is full."""
        return self.entries * self.entry_bytes

    def header(self) -> bytes:
        """The first bytes of the index."""
        return _HEADER.pack(_MAGIC, self.entries, self.entry_bytes, self.digest, FORMAT)

    def checksum(self, row: int, content: Buffer) -> int:
        """The checksum of entry `row` with this content: 1 to 2**64 - 1, never 0."""
        import xxhash

        return xxhash.xxh3_64_intdigest(content, (self._salt + row) % 2**64) or 1

    @cached_property
    def _salt(self) -> int:
        return int.from_bytes(self.digest[:8], "little")


def word_at(row: int) -> int:
    """Where the checksum of entry `row` stands in the index."""
    return HEADER_BYTES + WORD * row


def parse_layout(text: str) -> tuple[Layout, dict[str, Any]] | None:
    """Layout and `about` from a shelf's description, or None where the text is no such thing."""
    try:
        data = json.loads(text)
        identity, about = data["identity"], data["about"]
        shape, entries, dtype = identity["shape"], identity["entries"], identity["dtype"]
        integers = all(type(size) is int for size in (*shape, entries))
        if identity["format"] != FORMAT or not integers or not isinstance(identity["key"], dict) or not isinstance(about, dict):
            return None
        return Layout(identity["key"], entries, tuple(shape), dtype), about
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def describe(layout: Layout, about: Mapping[str, Any]) -> str:
    """The description that `parse_layout` reads: the identity, and what the shelf is about, which is not part of it."""
    return json.dumps({"identity": layout.identity, "about": dict(about)}, indent=1, sort_keys=True, allow_nan=False)
