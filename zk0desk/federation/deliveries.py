"""What the coordinator knows of each node: which weights it holds, and which of its updates was the last to be accepted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zk0desk.federation.run_state import RunState

KEPT = "deliveries"
HOLDS, LAST = "holds", "accepted"


class Deliveries:
    """Kept with each round, as JSON by the fingerprints of the nodes' keys."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def used(self, number: int, nodes: Iterable[str]) -> None:
        """The updates of these nodes (fingerprints) are in the weights that round `number` formed: they held those that it began with."""
        for node in nodes:
            self._note(node, {HOLDS: number - 1, LAST: number})

    def took(self, node: str, number: int) -> None:
        """The node said that it has the weights which round `number` formed."""
        self._note(node, {HOLDS: number})

    def holds(self, node: str) -> int | None:
        """The round whose weights the node holds, or had when it was last heard of; None when it was not."""
        return self._known(node).get(HOLDS)

    def accepted(self, node: str) -> int:
        """The last round in which the node's update was used; 0 when none was."""
        return self._known(node).get(LAST, 0)

    def _known(self, node: str) -> dict[str, int]:
        return dict(self._state.kept.get(KEPT, {}).get(node, {}))

    def _note(self, node: str, more: dict[str, int]) -> None:
        self._state.kept.setdefault(KEPT, {}).setdefault(node, {}).update(more)
