"""What the tests of training share: demo recordings, and a trainer on them in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from zk0desk.control import NodeControl
from zk0desk.events import Event
from zk0desk.settings import ChosenRecording
from zk0desk.training.rounds import RoundPlan, RoundResult

if TYPE_CHECKING:
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.trainer import LocalTrainer


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recordings `node0` (one camera), `node1` (two) and `held-out`; never write into it."""
    from zk0desk.training import demo_data

    root = tmp_path_factory.mktemp("recordings")
    demo_data.make_demo_recording(root / "node0", 0, seed=7, episodes=2, frames=20)
    demo_data.make_demo_recording(root / "node1", 1, seed=7, episodes=2, frames=18)
    demo_data.make_demo_held_out(root / "held-out", seed=7, episodes=2, frames=15)
    return root


@dataclass
class LocalNode:
    """A policy and a trainer, the weights that a round starts from, and the events that came."""

    policy: TrainablePolicy
    trainer: LocalTrainer
    start: np.ndarray
    control: NodeControl
    events: list[Event] = field(default_factory=list)

    def train(self, **plan: Any) -> RoundResult:
        """Train a round of 6 steps of 8 frames with mu 0, but for what `plan` says."""
        return self.trainer.train(a_plan(**plan), self.start)

    def told(self, kind: type[Event]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


def a_plan(**changes: Any) -> RoundPlan:
    plan: dict[str, Any] = {"run": "run", "round": 1, "rounds": 3, "seed": 5, "lr": 1e-3, "mu": 0.0, "batch_size": 8, "local_steps": 6}
    return RoundPlan(**(plan | changes))


@pytest.fixture
def local_node(demo_policy: Path, recordings: Path) -> Callable[..., LocalNode]:
    """Make a node: `local_node("node0", "node1", micro_batch=2, on_event=...)`."""
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.trainer import LocalTrainer

    def make(*names: str, micro_batch: int = 0, on_event: Callable[[Event], None] | None = None, node: str = "a") -> LocalNode:
        policy, control, events = TrainablePolicy.load(demo_policy), NodeControl(), []

        def emit(event: Event) -> None:
            events.append(event)
            if on_event:
                on_event(event)

        chosen = [ChosenRecording(path=recordings / name) for name in names or ("node0",)]
        trainer = LocalTrainer(policy, chosen, node=node, device="cpu", threads=1, micro_batch=micro_batch, emit=emit, control=control)
        return LocalNode(policy, trainer, policy.get_weights(), control, events)

    return make
