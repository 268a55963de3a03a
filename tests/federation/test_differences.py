"""Differences that a node receives, and what it owes: right ones come through to the bit, nothing else is used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from tests.federation.node_parts import HEX, invitation
from zk0desk.federation import updates
from zk0desk.federation.error_feedback import ErrorFeedback
from zk0desk.federation.local_round import piece_name, read_weights
from zk0desk.federation.messages import MessageRefused, TrainRequest, WholeNeeded
from zk0desk.federation.run_store import RunStore
from zk0desk.federation.updates import decode, encode, weights_sha256

SIZE = 700
HELD = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "PIECE", 512)


def request(**changes: Any) -> TrainRequest:
    values: dict[str, Any] = {
        "run_uid": "run-1", "server_round": 6, "num_rounds": 9, "seed": 1, "lr": 1e-4, "proximal_mu": 0.01, "batch_size": 8,
        "policy_id": "tiny", "backbone_sha256": HEX, "layout_sha256": HEX, "weights_sha256": HEX, "base_sha256": HEX,
        "encoding": "int8", **changes,
    }  # fmt: skip
    return TrainRequest(**values)


def holding(runs: Path, number: int = 3) -> RunStore:
    """A node's files that hold the weights of round `number`."""
    sha256, store = weights_sha256(HELD), RunStore("run-1", runs)
    files: Any = SimpleNamespace(policy_id="tiny", backbone_sha256=HEX, layout=SimpleNamespace(sha256=HEX), folder=runs)
    store.keep_weights(request(server_round=number + 1, weights_sha256=sha256, base_sha256=sha256), HELD, invitation(), files)
    return store


def steps(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The pieces of so many differences, and the weights before them and after each."""
    pieces, weights = [], [HELD]
    for number in range(count):
        step = (1e-3 * np.random.default_rng([2, number]).standard_normal(SIZE)).astype(np.float32)
        pieces += encode(step, "int8")
        weights.append(weights[-1] + decode(pieces[-2:], "int8", SIZE))
    return pieces, weights


def carrying(arrays: list[np.ndarray]) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({piece_name(n): Array(array) for n, array in enumerate(arrays)})})


def asked(weights: list[np.ndarray], first: int, last: int) -> TrainRequest:
    """A round whose weights round `last + 3` formed, sent as the steps from `first` on."""
    return request(
        server_round=4 + last, arrays_kind="difference", base_sha256=weights_sha256(weights[first]),
        weights_sha256=weights_sha256(weights[last]),
    )  # fmt: skip


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 2), (0, 3)])
def test_that_one_to_three_differences_lead_to_the_coordinators_weights(tmp_path: Path, first: int, last: int) -> None:
    pieces, weights = steps(last)
    assert np.array_equal(read_weights(carrying(pieces), asked(weights, first, last), SIZE, holding(tmp_path)), weights[last])


def test_that_differences_that_came_before_are_passed_over(tmp_path: Path) -> None:
    pieces, weights = steps(2)
    store = holding(tmp_path, number=5)  # these are the weights after both
    told = request(server_round=6, arrays_kind="difference", base_sha256="cd" * 32, weights_sha256=weights_sha256(HELD))
    assert np.array_equal(read_weights(carrying(pieces), told, SIZE, store), HELD)
    pieces, weights = steps(3)
    later = request(server_round=5, arrays_kind="difference", base_sha256="cd" * 32, weights_sha256=weights_sha256(weights[1]))
    assert np.array_equal(read_weights(carrying([*pieces[2:], *pieces[:2]]), later, SIZE, holding(tmp_path)), weights[1])


def test_that_a_node_asks_for_the_whole_where_differences_lead_elsewhere(tmp_path: Path) -> None:
    pieces, weights = steps(2)
    told = asked(weights, 0, 2)
    store = holding(tmp_path)
    for content, request_, kept in (
        (pieces, told, None),
        (pieces[:2], told, store),  # a difference is missing
        (pieces, request(server_round=6, arrays_kind="difference", base_sha256="cd" * 32, weights_sha256=told.weights_sha256), store),
        ([*pieces[2:], *pieces[2:]], told, store),
    ):
        with pytest.raises(WholeNeeded):
            read_weights(carrying(content), request_, SIZE, kept)
    facts = json.loads((store.folder / "run.json").read_text())
    (store.folder / "global-last.npy").write_bytes(b"not an array")
    with pytest.raises(WholeNeeded):
        read_weights(carrying(pieces), told, SIZE, store)
    assert facts["last"]["round"] == 3


forms = st.sampled_from(["i1", "<f2", "<f4", "<i4", "<f8"])
lengths = st.sampled_from([0, 1, 512, 188, 700, 517, 191])


@given(
    st.lists(st.tuples(forms, lengths, st.integers(-130, 130)), max_size=7), st.sampled_from(["int8", "fp16", "fp32"]),
    st.sampled_from(["whole", "difference"]), st.integers(1, 9),
)  # fmt: skip
def test_that_whatever_comes_is_the_coordinators_weights_or_is_refused(tmp_path, arrays, encoding, kind, number) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        content = carrying([np.full(length, value).astype(form) for form, length, value in arrays])
    sha256 = weights_sha256(HELD)
    told = request(server_round=number, arrays_kind=kind, base_sha256=sha256, weights_sha256=sha256, encoding=encoding)
    try:
        found = read_weights(content, told, SIZE, holding(tmp_path))
    except MessageRefused:
        return
    assert weights_sha256(found) == sha256


@given(st.binary(max_size=300))
def test_that_bytes_that_are_no_array_are_refused(data: bytes) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(updates.piece_length(SIZE, "int8"), np.int8))
    array = Array(np.zeros(1, np.int8))
    array.data = data if len(data) % 2 else data + buffer.getvalue()[len(data) :]
    content = RecordDict({"arrays": ArrayRecord({piece_name(0): array})})
    with pytest.raises(MessageRefused):
        read_weights(content, request(arrays_kind="difference"), SIZE)


# --- what a node owes


def change(seed: int) -> np.ndarray:
    return (1e-4 * np.random.default_rng([3, seed]).standard_normal(SIZE)).astype(np.float32)


def sent(feedback: ErrorFeedback, number: int, accepted: int) -> np.ndarray:
    return decode(feedback.encode(change(number), request(server_round=number, accepted_round=accepted)), "int8", SIZE)


def left(folder: Path, number: int) -> np.ndarray:
    return np.load(folder / f"residual-{number:06d}.npy")


def test_that_only_what_an_accepted_update_left_out_is_owed(tmp_path: Path) -> None:
    feedback = ErrorFeedback(tmp_path)
    sent(feedback, 1, 0)
    first = left(tmp_path, 1)
    assert np.allclose(sent(feedback, 2, 1) + left(tmp_path, 2), change(2) + first, atol=1e-11)
    again = sent(ErrorFeedback(tmp_path), 3, 1)  # round 2 was refused or lost, and the node restarted
    assert np.allclose(again + left(tmp_path, 3), change(3) + first, atol=1e-11)
    assert np.array_equal(sent(feedback, 3, 1), again), "a round that is asked again is answered to the bit"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["residual-000001.npy", "residual-000003.npy"]


@pytest.mark.parametrize("lost", ["old", "other base", "damaged", "not finite", "of another size"])
def test_that_a_residual_that_does_not_fit_is_dropped(tmp_path: Path, lost: str) -> None:
    feedback = ErrorFeedback(tmp_path)
    sent(feedback, 1, 0)
    path, accepted, number = tmp_path / "residual-000001.npy", 1, 2
    if lost == "old":
        number = 5
    elif lost == "other base":
        accepted = 0
    elif lost == "damaged":
        path.write_bytes(path.read_bytes()[:300])
    else:
        np.save(path, np.full(SIZE if lost == "not finite" else 9, np.nan, np.float32))
    assert np.array_equal(sent(feedback, number, accepted), decode(encode(change(number), "int8"), "int8", SIZE))


def test_that_what_is_owed_to_other_runs_goes_and_at_the_end_all_of_it(tmp_path: Path) -> None:
    old, new = RunStore("run-0", tmp_path), RunStore("run-1", tmp_path)
    sent(old.feedback(), 1, 0)
    sent(new.feedback(), 1, 0)
    assert [path.parent.name for path in tmp_path.glob("*/residual-*")] == ["run-1"]
    new.feedback().forget()
    assert not list(tmp_path.glob("*/residual-*"))
