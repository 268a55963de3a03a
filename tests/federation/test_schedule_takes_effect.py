"""The schedule from the held-out loss to the optimiser: a real server and a real node, whose held-out losses are written beforehand."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation.coordinator_parts import Events
from tests.federation.node_parts import Desk, admitted, operator_settings
from zk0desk.federation import child
from zk0desk.federation.credentials import load_or_make_key
from zk0desk.federation.run_record import records
from zk0desk.federation.schedule import MARKED, cosine
from zk0desk.federation.server_app import run_rounds
from zk0desk.federation.server_folder import init_server
from zk0desk.federation.superlink import start_server
from zk0desk.settings import ServerSettings

LOSSES = [9.0, 1.0, 1.0, 1.0, 0.9, 5.0, 0.8, 0.7, 0.6]
"""Of the base policy, which does not count, and after rounds 1 to 8: a plateau at 3, a spike at 5."""
SCRIPT = """
import json, pathlib, sys
left = pathlib.Path(sys.argv[1])
input()
print(json.dumps({"ready": True}), flush=True)
for _ in sys.stdin:
    first, *rest = json.loads(left.read_text())
    left.write_text(json.dumps(rest))
    print(json.dumps({"loss": first, "frames": 64, "recordings": {"scripted": first}}), flush=True)
"""
"""In the place of the evaluator's process: the same lines, with the next of the losses in the file."""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, spawn = tmp_path / "losses.json", child.spawn
    left.write_text(str(LOSSES))

    def instead(arguments, **options):
        if arguments != ["server", "_evaluator"]:
            return spawn(arguments, **options)
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )

    monkeypatch.setattr(child, "spawn", instead)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, float]]]:
    """The learning rate of the optimiser itself and the mu of the proximal step, step by step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from zk0desk.training import trainer

    steps, mus, real = [], [], trainer.add_proximal_gradient

    def proximal(parameters, anchors, mu):
        mus.append(mu)
        return real(parameters, anchors, mu)

    monkeypatch.setattr(trainer, "add_proximal_gradient", proximal)
    hook = register_optimizer_step_post_hook(lambda adam, *_: steps.append((adam.param_groups[0]["lr"], mus[-1])))
    yield steps
    hook.remove()


@pytest.mark.timeout(240)
def test_the_optimiser_of_a_node_trains_with_what_the_held_out_losses_decide(tmp_path, demo_policy, demo_recording, scripted, used):
    settings = ServerSettings.model_validate({
        "network": {"host": "127.0.0.1", "port": 0},
        "policy": {"folder": demo_policy, "held-out": [{"path": demo_recording}]},
        "rounds": {"rounds": 8, "min-nodes": 1, "local-steps": 2, "batch-size": 4, "deadline-s": 60.0, "proximal-mu": 0.05},
        "schedule": {"window": 2, "cycle": 4},
    })  # fmt: skip
    folder, events = init_server(tmp_path / "server", settings), Events()
    with start_server(folder.path, Events()):
        operator = operator_settings(folder.invitation(), demo_policy, demo_recording)
        admitted(folder, load_or_make_key(operator.federation))
        with Desk(operator) as desk:
            run_rounds(folder.path, events, rounds=5)  # ends between the plateau and what the spike decides
            run_rounds(folder.path, events, rounds=8)
    first, second = 1e-4, 1.15e-4
    rates = [cosine(2.5e-6, first, place, 4) for place in range(3)] + [cosine(2.5e-6, second, place, 8) for place in range(5)]
    rates[5:7] = [rate / 2 for rate in rates[5:7]]
    # Above the 0.02 to which a node raises mu by itself, so that the schedule's own is seen.
    wanted = list(zip(rates, [0.05] * 3 + [0.04] * 5, strict=True))
    assert used[::2] == used[1::2] == [pytest.approx(each, rel=1e-12) for each in wanted]
    assert [(event.lr, event.mu) for event in desk.events.named("step-done")] == used
    accepted = [event.metrics for event in events.named("reply-accepted")]
    assert [(metrics["lr-used"], metrics["mu-used"]) for metrics in accepted] == used[::2]
    assert [(event.lr, event.mu) for event in events.named("round-opened")] == used[::2]

    decided = events.named("schedule-decided")
    assert [(event.round, event.signal) for event in decided] == [
        (1, "start"), (2, "cosine"), (3, "cosine"), (4, "plateau"), (5, "cosine"), (6, "spike"), (7, "rising"), (8, "calm"),
    ]  # fmt: skip
    assert "5" in decided[5].why and "0.95" in decided[5].why
    told = desk.events.named("schedule-decided")
    assert [(event.round, event.signal, event.lr) for event in told] == [
        (event.round, event.signal, event.lr) for event in decided if event.signal in MARKED
    ]
    assert records(folder)[0].kept["schedule"]["round"] == 7
