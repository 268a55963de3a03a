"""The order in which the trainable set is packed into one flat array. numpy only: the aggregating process uses it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from math import prod


@dataclass(frozen=True)
class Layout:
    """The trainable set's parameters, sorted by name: (name, shape, dtype).

    dtype is the parameter's own ("float32"); on the wire the flat array is float32, or an encoding of it.
    """

    parameters: tuple[tuple[str, tuple[int, ...], str], ...]

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.parameters]
        if names != sorted(set(names)):
            raise ValueError("a layout's parameters are sorted by name and each is there once")

    @cached_property
    def size(self) -> int:
        """Number of values in the flat array."""
        return sum(prod(shape) for _, shape, _ in self.parameters)

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the canonical JSON of the parameters: `layout-sha256` of the wire contract."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in the flat array."""
        result, start = {}, 0
        for name, shape, _ in self.parameters:
            result[name] = slice(start, start + prod(shape))
            start += prod(shape)
        return result

    def to_json(self) -> str:
        """Canonical JSON: [[name, [shape], dtype], ...] without spaces."""
        return json.dumps([[name, list(shape), dtype] for name, shape, dtype in self.parameters], separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The layout that `to_json` wrote; ValueError when it is not one."""
        data = json.loads(text)
        try:
            return cls(tuple((str(name), tuple(int(n) for n in shape), str(dtype)) for name, shape, dtype in data))
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a layout: {error}") from error
