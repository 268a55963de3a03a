"""The coordinator's optimiser, against Flower's own strategies on the same updates."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from flwr.supercore.task_identity import TaskIdentity

from zk0desk.federation import server_optimiser
from zk0desk.federation.server_optimiser import FIRST, SECOND, to_step
from zk0desk.federation.updates import PIECE
from zk0desk.settings import ServerSchedule

MOMENTUM = ServerSchedule(server_optimiser="momentum", server_lr=0.7, server_momentum=0.9)
ADAM = ServerSchedule(server_optimiser="adam", server_lr=0.02, server_momentum=0.8, server_beta_2=0.95, server_tau=1e-2)


def flower(strategy: FedAvg, start: np.ndarray, deltas: list[list[np.ndarray]], shares: list[int]) -> list[np.ndarray]:
    """The weights after each round of Flower's `strategy`."""
    weights, found = start, []
    for number, updates in enumerate(deltas, 1):
        # What `configure_train` keeps, without a grid to ask nodes over.
        if isinstance(strategy, FedAdam):
            strategy.current_arrays = {"w": weights}
        elif isinstance(strategy, FedAvgM) and strategy.current_arrays is None:
            strategy.current_arrays = ArrayRecord({"w": Array(weights)})
        replies = [
            Message(
                RecordDict({"arrays": ArrayRecord({"w": Array(weights + delta)}), "metrics": MetricRecord({"num-examples": share})}),
                reply_to=Message(RecordDict({"config": ConfigRecord({})}), dst_node_id=node, message_type="train"),
            )
            for node, (delta, share) in enumerate(zip(updates, shares, strict=True), 1)
        ]
        arrays, _ = strategy.aggregate_train(number, replies)
        assert arrays is not None
        weights = arrays["w"].numpy()
        found.append(weights)
    return found


def ours(rules: ServerSchedule, start: np.ndarray, deltas: list[list[np.ndarray]], shares: list[int], folder: Path) -> list[np.ndarray]:
    weights, found, kept = start, [], {}
    for number, updates in enumerate(deltas, 1):
        delta = np.float32(0) * start
        for update, share in zip(updates, shares, strict=True):
            delta += np.float32(share / sum(shares)) * update
        to_step(rules, delta, number, kept, folder)
        weights = weights + delta
        found.append(weights)
    return found


@pytest.mark.parametrize(
    ("rules", "strategy"),
    [
        (MOMENTUM, FedAvgM(server_learning_rate=0.7, server_momentum=0.9)),
        (ADAM, FedAdam(eta=0.02, beta_1=0.8, beta_2=0.95, tau=1e-2)),
        (ServerSchedule(), FedAvg()),
    ],
    ids=["momentum", "adam", "none"],
)
def test_five_rounds_give_flowers_weights(rules, strategy, tmp_path, monkeypatch):
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(server_optimiser, "PIECE", 17)  # several pieces, the last one short
    draw = np.random.default_rng(3)
    start = draw.standard_normal(60).astype(np.float32)
    deltas = [[(0.1 * draw.standard_normal(60)).astype(np.float32) for _ in range(3)] for _ in range(5)]
    shares = [30, 50, 20]
    for found, wanted in zip(ours(rules, start, deltas, shares, tmp_path), flower(strategy, start, deltas, shares), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert not np.allclose(found, start, atol=1e-2)


@pytest.mark.parametrize("rules", [MOMENTUM, ADAM], ids=["momentum", "adam"])
@pytest.mark.parametrize("size", [50, PIECE + 3])
def test_moments_that_went_through_a_checkpoint_go_on_bitwise(rules, size, tmp_path):
    delta = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    kept: dict[str, np.ndarray] = {}
    steps = []
    for number in (1, 2):
        steps.append(delta.copy())
        to_step(rules, steps[-1], number, kept, tmp_path / "one")
        if number == 1:
            for name, array in kept.items():
                np.save(tmp_path / f"{name}.npy", array)
    restored = {path.stem: np.load(path, mmap_mode="c") for path in tmp_path.glob("*.npy")}
    again = delta.copy()
    to_step(rules, again, 2, restored, tmp_path / "two")
    assert np.array_equal(again, steps[1]) and not np.array_equal(again, steps[0])
    assert all(np.array_equal(restored[name], kept[name]) for name in kept)
    assert all(isinstance(array, np.memmap) == (size > PIECE) for array in restored.values())


def test_another_optimiser_drops_what_it_has_no_use_for(tmp_path):
    kept: dict[str, np.ndarray] = {}
    to_step(ADAM, np.ones(4, np.float32), 1, kept, tmp_path)
    assert set(kept) == {FIRST, SECOND}
    to_step(MOMENTUM, np.ones(4, np.float32), 2, kept, tmp_path)
    assert set(kept) == {FIRST}
    delta = np.ones(4, np.float32)
    to_step(ServerSchedule(), delta, 3, kept, tmp_path)
    assert kept == {} and np.array_equal(delta, np.ones(4, np.float32))
