"""`kill -9` of each process in each phase of a round: the run goes on, nothing is lost, nothing is there twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.federation.kill_parts import KEYS, Federation, Kill, SturdyNode, federation, make_federation
from zk0desk.federation.server_folder import ServerFolder, init_server
from zk0desk.settings import ServerSettings

pytestmark = pytest.mark.timeout(900)

PHASES = ("sending", "half", "aggregating", "checkpoint", "evaluating")
TARGETS = ("conductor", "superlink", "supervisor", "all")
QUICK = {("conductor", "half"), ("all", "checkpoint")}
ROUNDS, KILLED = 4, 3
PATIENCE_S = 300.0
"""On a loaded computer the imports of torch and flwr alone take minutes; nothing waits for this in vain."""
EXPECTED = {
    "sending": {"not sent"}, "half": {"0 replies in", "1 replies in"}, "aggregating": {"2 replies in", "aggregated, no checkpoint"},
    "checkpoint": {"checkpoint half written"}, "evaluating": {"checkpoint whole, not evaluated"},
}  # fmt: skip


def cells(phases: tuple[str, ...]):
    for phase in phases:
        for target in TARGETS:
            marks = [] if (target, phase) in QUICK else [pytest.mark.long]
            yield pytest.param(target, phase, "memory", marks=marks, id=f"{target}-{phase}")
            if target in ("superlink", "all"):
                yield pytest.param(target, phase, "disk", marks=pytest.mark.long, id=f"{target}-{phase}-disk")


def run_through(made: Federation, kill: Kill | None) -> dict[str, Counter[int]]:
    """Conduct all rounds, with a kill and starting again what does not start by itself; how often each node was asked each round."""
    hold = kill.hold if kill else lambda _: None
    nodes = [SturdyNode(made.folder, KEYS[0], 0.02), SturdyNode(made.folder, KEYS[1], -0.03, hold)]
    with nodes[0], nodes[1]:
        if kill:
            assert kill.done.wait(PATIENCE_S), [event.to_json() for event in made.events[-8:]]
            if kill.seen and made.server is not None and kill._what in ("supervisor", "all"):
                made.end()
                made.start()
        made.events.wait_for(lambda event: event.name == "run-finished" and event.reason == "complete", PATIENCE_S)
    return {node._key.fingerprint: Counter(request.server_round for request in node.requests) for node in nodes}


def whole(made: Federation) -> None:
    """Nothing is missing, nothing is there twice, nothing half done is left."""
    record, found = made.record, made.audit()
    assert [each.what for each in found.findings] == []
    assert (record.done, record.settled, record.finished, found.rounds) == (ROUNDS, ROUNDS, True, ROUNDS)
    assert sorted(map(int, record.train_losses)) == list(range(1, ROUNDS + 1))
    assert [path.name for path in made.run.iterdir() if path.name.startswith(".") or path.name.endswith((".partial", ".damaged"))] == []
    assert list((made.folder.state / "spool").iterdir()) == []
    assert len(list(made.folder.runs.iterdir())) == 1
    assert {node.fingerprint for node in made.folder.nodes().nodes()} == {key.fingerprint for key in KEYS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The weights' hashes by round of a run that nobody disturbs."""
    with federation(make_federation(tmp_path_factory.mktemp("undisturbed"), ROUNDS), ROUNDS) as made:
        made.start()
        run_through(made, None)
        whole(made)
        return made.hashes()


@pytest.mark.parametrize(("target", "phase", "state"), list(cells(PHASES[:4])))
def test_a_run_goes_on_after_kill_9(tmp_path: Path, undisturbed: dict[int, str], target: str, phase: str, state: str):
    with federation(make_federation(tmp_path, ROUNDS, state), ROUNDS) as made:
        with Kill(made, target, phase, KILLED) as kill:
            made.start(kill.watch)
            asked = run_through(made, kill)
        whole(made)
        print(f"\n{phase:12} {target:11} {state:6} {kill.seen:32} asked {dict(asked[KEYS[0].fingerprint])}")
        assert kill.seen in EXPECTED[phase]
        assert made.hashes() == undisturbed, "the run that was disturbed gives the same weights to the bit"
    for rounds in asked.values():
        assert sorted(rounds) == list(range(1, ROUNDS + 1))
        assert [number for number, count in rounds.items() if count > 1] in ([], [KILLED])


def with_evaluation(tmp_path: Path, policy: Path, recording: Path) -> ServerFolder:
    """A server that measures each round on a held-out recording."""
    settings = ServerSettings.model_validate(
        {
            "network": {"host": "127.0.0.1", "port": 0},
            "policy": {"folder": policy, "held-out": [{"path": recording}]},
            "rounds": {"rounds": ROUNDS, "min-nodes": 2, "local-steps": 1, "batch-size": 512, "deadline-s": 60.0, "seed": 5},
            "aggregation": {"clip": 1e6},
        }
    )
    return init_server(tmp_path / "server", settings)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, demo_policy: Path, demo_recording: Path) -> tuple[dict[int, str], dict[int, float]]:
    """Hashes and held-out losses by round of a run with evaluation that nobody disturbs."""
    folder = with_evaluation(tmp_path_factory.mktemp("measured"), demo_policy, demo_recording)
    with federation(folder, ROUNDS) as made:
        made.start()
        run_through(made, None)
        whole(made)
        return made.hashes(), made.losses()


@pytest.mark.long
@pytest.mark.parametrize("target", [*TARGETS, "evaluator"])
def test_a_round_that_is_being_measured_is_measured_again(tmp_path, demo_policy, demo_recording, measured, target):
    with federation(with_evaluation(tmp_path, demo_policy, demo_recording), ROUNDS) as made:
        with Kill(made, target, "evaluating", KILLED) as kill:
            made.start(kill.watch)
            asked = run_through(made, kill)
        whole(made)
        print(f"\nevaluating   {target:11} {kill.seen:32} asked {dict(asked[KEYS[0].fingerprint])}")
        assert kill.seen in EXPECTED["evaluating"]
        assert (made.hashes(), made.losses()) == measured
        assert [each for each in made.events.named("notice") if each.severity == "error"] == []
        assert {int(number): loss for number, loss in made.record.eval_losses.items()} == measured[1]
    for rounds in asked.values():
        assert rounds == Counter(range(1, ROUNDS + 1)), "no round is trained again"
