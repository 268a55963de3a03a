"""Held-out evaluation of a real policy in its process, as the rounds use it."""

import math

import numpy as np
import pytest

from tests.federation.coordinator_parts import Events, TestNode, steady
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.run_record import records
from zk0desk.federation.server_app import run_rounds
from zk0desk.federation.server_folder import init_server
from zk0desk.federation.superlink import start_server
from zk0desk.settings import ServerSettings
from zk0desk.training import demo_data

pytestmark = pytest.mark.timeout(240)


def test_rounds_are_measured_on_the_held_out_recording_as_often_as_asked_and_kept_with_its_statistics(
    tmp_path, demo_policy, demo_recording
):
    known = demo_data.make_demo_recording(tmp_path / "known", 1, seed=3, episodes=1, frames=12)
    settings = ServerSettings.model_validate(
        {
            "network": {"host": "127.0.0.1", "port": 0},
            "policy": {"folder": demo_policy, "held-out": [{"path": demo_recording}], "retention": [{"path": known}], "evaluate-every": 2},
            "rounds": {"rounds": 3, "min-nodes": 1, "local-steps": 1, "batch-size": 512, "deadline-s": 60.0, "encoding": "fp16"},
        }
    )
    folder, key, events = init_server(tmp_path / "server", settings), NodeKey.make(), Events()
    with start_server(folder.path, lambda event: None) as server:
        server.admit(key.public_line)
        with TestNode(folder.invitation(), key, steady(0.0)) as node:
            policy = run_rounds(folder.path, events)
    losses = [event.loss for event in events.named("evaluated")]
    assert [event.round for event in events.named("evaluated")] == [0, 2, 3]
    assert all(map(math.isfinite, losses))
    assert losses[0] == losses[1] == losses[2], "an update of nothing changes no loss: the noise is the same each time"
    first = events.named("evaluated")[0]
    assert list(first.recordings) == [demo_recording.name] and first.recordings[demo_recording.name] == pytest.approx(losses[0])
    assert list(first.retention) == ["known"] and first.retention["known"] != losses[0], "what was known counts in no held-out loss"
    assert set(first.standard_errors) == {demo_recording.name, "known"} and 0 < first.standard_error < losses[0]
    assert node.requests[2].last["last-eval-loss"] == pytest.approx(losses[1])
    assert node.told[0]["last-eval-loss"] == pytest.approx(losses[2])
    assert [event.best for event in events.named("checkpoint-saved")] == [False, True, False], "what is not measured is not the best"
    assert records(folder)[0].best == 2
    assert any("normalizer" in path.name for path in policy.iterdir())
    from safetensors.numpy import load_file

    before, after = load_file(demo_policy / "model.safetensors"), load_file(policy / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
