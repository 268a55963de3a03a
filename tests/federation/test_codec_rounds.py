"""Weights and updates over many rounds: all hold the same weights to the bit, and what is rounded off is not lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.federation.codec_parts import CodecNode, Rounds
from tests.federation.coordinator_parts import make_server
from zk0desk.federation import updates
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.federation.updates import decode, encoded_bytes, weights_sha256
from zk0desk.federation.weights_chain import RESIDUAL, StepUnfit
from zk0desk.training.policy_files import read_policy, trainable_weights

ROUNDS = 20
KEYS = {name: NodeKey.make() for name in "ab"}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' policy, of 330 values, in three pieces."""
    monkeypatch.setattr(updates, "PIECE", 128)


def trained(seed: int) -> Callable[[int, np.ndarray], np.ndarray]:
    """Changes as AdamW makes them: some 1e-4, towards one side for long."""
    drift = np.random.default_rng(seed).standard_normal(10_000)

    def change(number: int, weights: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng([seed, number]).standard_normal(weights.size)
        return (1e-4 * np.tanh(drift[: weights.size] + noise)).astype(np.float32)

    return change


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., ServerFolder]:
    return lambda **rules: make_server(tmp_path, rounds=ROUNDS, min_nodes=1, **{"encoding": "int8", **rules})


def nodes_of(server: ServerFolder, count: int) -> list[CodecNode]:
    return [CodecNode(server.path / f"node-{number}", server, trained(number)) for number in range(count)]


@pytest.fixture
def opened() -> Iterator[Callable[[ServerFolder, list[CodecNode]], Rounds]]:
    made: list[Rounds] = []

    def open_rounds(server: ServerFolder, nodes: list[CodecNode]) -> Rounds:
        made.append(Rounds(server, nodes))
        return made[-1]

    yield open_rounds
    for each in made:
        each.close()


def owed(node: CodecNode, number: int) -> np.ndarray:
    (path,) = node.home.glob(f"**/residual-{number:06d}.npy")
    return np.load(path)


@pytest.mark.parametrize("encoding", ["int8", "fp16", "fp32"])
def test_that_all_hold_the_same_weights_through_misses_restarts_and_refused_rounds(server, opened, encoding):
    folder = server(encoding=encoding)
    nodes = nodes_of(folder, 3)
    rounds, away = opened(folder, nodes), {4: 1, 5: 1, 9: 2, 10: 2, 11: 2, 12: 2, 16: 0}
    steps = np.zeros(rounds.state.weights.size)
    for number in range(1, ROUNDS + 1):
        if number in (6, 13):
            rounds = opened(folder, nodes)
        before = rounds.state.weights.copy()
        for index, node in enumerate(nodes):
            node.online, node.lies = away.get(number) != index, (number, index) == (7, 2)
        if number == 15:
            shutil.rmtree(nodes[1].home)  # a disk that was replaced
        rounds.conduct()
        for node in nodes:
            if node.online:
                assert np.array_equal(node.weights, before), node.errors
                assert node.requests[-1].weights_sha256 == weights_sha256(before)
        shares = rounds.events.named("round-aggregated")[-1].shares
        for node in nodes:
            if node.key.fingerprint in shares:
                steps += shares[node.key.fingerprint] * decode(node.sent[number], encoding, steps.size).astype(np.float64)
    for node in nodes:
        node.online = True
    rounds.end()
    state = rounds.state
    assert all(np.array_equal(node.weights, state.weights) for node in nodes)
    base = trainable_weights(folder.policy(folder.settings()))
    left = state.kept_arrays.get(RESIDUAL, np.zeros(steps.size))
    assert np.abs(state.weights + left - base - steps).max() < 2e-6, "nothing but float32's own rounding is lost"
    assert ([error.split(":")[0] for node in nodes for error in node.errors]) == (["whole-needed"] if encoding != "fp32" else [])
    if encoding == "int8":
        kinds = ["".join(kind[0] + str(count) for kind, _, count in node.came) for node in nodes]
        assert kinds[0] == "w1" + "d1" * 14 + "d2" + "d1" * 4, "one missed round is made up by two differences"
        assert kinds[1] == "w1d1d1" + "d3" + "d1" * 8 + "w1" + "d1" * 6, "a lost disk costs one whole message"
        assert kinds[2] == "w1" + "d1" * 6 + "d2" + "w1" + "d1" * 8, "what was refused is held all the same; four rounds are too many"


def test_that_what_a_node_sent_and_owes_is_what_it_trained(server, opened):
    folder = server()
    nodes = nodes_of(folder, 2)
    rounds = opened(folder, nodes)
    refused = {3, 8, 9}
    for number in range(1, 13):
        nodes[0].lies = number in refused
        if number == 6:
            rounds = opened(folder, nodes)
        rounds.conduct()
        used = [n for n in range(1, number + 1) if n not in refused]
        true = np.sum([nodes[0].changes[n].astype(np.float64) for n in used], axis=0)
        sent = np.sum([decode(nodes[0].sent[n], "int8", true.size).astype(np.float64) for n in used], axis=0)
        left = owed(nodes[0], used[-1])
        assert np.abs(sent + left - true).max() < 1e-10
        assert np.abs(sent - true).max() <= 1.1 * 1e-4 / 127, "the sums differ by no more than one step of the last encoding"
        assert nodes[0].requests[-1].accepted_round == max([n for n in used if n < number], default=0)


def test_that_a_node_that_is_away_for_long_owes_nothing(server, opened):
    folder = server()
    nodes = nodes_of(folder, 2)
    rounds = opened(folder, nodes)
    for number in range(1, 7):
        nodes[0].online = number in (1, 5, 6)
        rounds.conduct()
    true, sent = nodes[0].changes[5], decode(nodes[0].sent[5], "int8", nodes[0].changes[5].size)
    assert np.abs(sent - true).max() <= 0.51 * 1e-4 / 127, "round 5 carries nothing of round 1"
    assert [kind for kind, _, _ in nodes[0].came] == ["whole", "whole", "difference"]


def test_that_the_same_replies_give_the_same_weights_after_a_restart(server, opened, tmp_path):
    found = []
    for restarts in ((), (3, 4)):
        folder = server()
        nodes = nodes_of(folder, 2)
        for node, name in zip(nodes, "ab", strict=True):
            node.key = KEYS[name]
        rounds = opened(folder, nodes)
        for number in range(1, 7):
            if number in restarts:
                rounds = opened(folder, nodes)
            rounds.conduct()
        found.append((rounds.state.sha256, [weights_sha256(np.concatenate([decode(n.sent[6], "int8", 330)])) for n in nodes]))
        shutil.rmtree(tmp_path / "server")
        shutil.rmtree(tmp_path / "policy")
    assert found[0] == found[1]


def test_that_settings_that_change_the_encoding_lose_nothing(server, opened):
    folder = server()
    nodes = nodes_of(folder, 1)
    base, step = trainable_weights(folder.policy(folder.settings())), np.zeros(330)
    for encoding in ("int8", "fp32", "fp16", "int8"):
        rounds = opened(folder, nodes)
        rounds.state.rules = rounds.state.rules.model_copy(update={"encoding": encoding})
        for _ in range(2):
            rounds.conduct()
            step += decode(nodes[0].sent[rounds.state.record.done], encoding, 330).astype(np.float64)
    left = rounds.state.kept_arrays[RESIDUAL]
    assert np.abs(rounds.state.weights + left - base - step).max() < 2e-6


def test_that_a_round_of_int8_is_a_quarter_of_the_bytes(server, opened):
    folder = server()
    nodes = nodes_of(folder, 1)
    rounds = opened(folder, nodes)
    for _ in range(3):
        rounds.conduct()
    rounds.end()
    size = read_policy(folder.policy(folder.settings())).layout.size
    assert [count for _, count, _ in nodes[0].came] == [4 * size, *[encoded_bytes(size, "int8")] * 3]
    assert {sum(array.nbytes for array in sent) for sent in nodes[0].sent.values()} == {encoded_bytes(size, "int8")}


def test_that_the_end_reaches_a_node_that_lost_its_files(server, opened):
    folder = server()
    nodes = nodes_of(folder, 2)
    rounds = opened(folder, nodes)
    rounds.conduct()
    shutil.rmtree(nodes[0].home)
    rounds.end()
    assert [kind for kind, _, _ in nodes[0].came] == ["whole", "whole"] and nodes[0].errors[0].startswith("whole-needed")
    assert [kind for kind, _, _ in nodes[1].came] == ["whole", "difference"]
    assert all(np.array_equal(node.weights, rounds.state.weights) for node in nodes)


def test_that_a_step_beyond_float32_leaves_the_weights_and_what_is_owed_as_they_were(server, opened):
    folder = server()
    rounds = opened(folder, nodes_of(folder, 1))
    rounds.conduct()
    state = rounds.state
    before, left, kept = state.weights.copy(), state.kept_arrays[RESIDUAL].copy(), dict(state.kept["codec"])
    for step in (np.full(330, np.nan, np.float32), np.full(330, 3e38, np.float32)):
        with pytest.raises(StepUnfit):
            state.codec.advance(state.weights, step)
    assert np.array_equal(state.weights, before) and np.array_equal(state.kept_arrays[RESIDUAL], left) and state.kept["codec"] == kept
    rounds.conduct()
