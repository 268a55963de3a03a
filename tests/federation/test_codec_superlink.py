"""Encoded rounds over a real SuperLink, gateway and node keys, with a real node that leaves for a round and one day loses its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.federation.coordinator_parts import Events, TestNode, make_server, steady
from tests.federation.node_parts import Desk, StandInEngine, admitted, operator_settings, wait_until, without_torch
from zk0desk import folders
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.server_app import run_rounds
from zk0desk.federation.superlink import start_server
from zk0desk.federation.updates import piece_length
from zk0desk.journal import Journal
from zk0desk.training.policy_files import trainable_weights

pytestmark = pytest.mark.timeout(120)


def test_that_four_rounds_in_int8_leave_all_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInEngine, "step_seconds", 0.0)
    without_torch(monkeypatch)
    folder, events, other = make_server(tmp_path, min_nodes=1, encoding="int8"), Events(), NodeKey.make()
    with start_server(folder.path, Events()) as server:
        server.admit(other.public_line)
        settings = operator_settings(folder.invitation(), folder.policy(folder.settings()))
        with TestNode(folder.invitation(), other, steady(-0.002, 100)) as beside:
            wait_until(lambda: beside.id)
            for number in (1, 2, 3, 4):
                if number == 2:
                    run_rounds(folder.path, events, rounds=number)  # the real node is away
                    continue
                if number == 4:
                    shutil.rmtree(folders.runs_folder())
                with Desk(settings) as desk:
                    admitted(folder, desk.key)
                    desk.until_event("connected")
                    policy = run_rounds(folder.path, events, rounds=number)
            final = beside.final
    rounds = events.named("round-aggregated")
    assert [len(each.shares) for each in rounds] == [2, 1, 2, 2], "no round was lost on a node that needed the whole weights"
    weights, (kept,) = trainable_weights(policy), folders.runs_folder().glob("*/global-last.npy")
    assert final is not None and np.array_equal(final, weights) and np.array_equal(np.load(kept), weights)
    with Journal() as journal:
        received = [entry for entry in journal.ledger()[::-1] if entry.kind == "train" and entry.contents]
    form = [(each.contents["config"]["arrays-kind"], len(each.contents["tensors"]), each.outcome.split(":")[0]) for each in received]
    assert form == [("whole", 1, "ok"), ("difference", 2, "ok"), ("difference", 1, "refused"), ("whole", 1, "ok")]
    assert [each.contents["config"]["accepted-round"] for each in received] == ["0", "1", "3", "3"]
    assert received[1].contents["tensors"] == [[name, [piece_length(weights.size, "int8")], "int8"] for name in ("000000", "000001")]
