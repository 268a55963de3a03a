"""A run that goes on is the run that was never interrupted, whatever was lost of its last rounds."""

import json
import shutil
from pathlib import Path

import pytest

from tests.federation.coordinator_parts import make_server
from tests.federation.offline_parts import OfflineRun, conduct
from zk0desk.federation import chain
from zk0desk.federation.audit import audit
from zk0desk.federation.keeping import CheckpointsLost
from zk0desk.federation.run_record import records
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.settings import ServerAggregation, ServerSchedule, ServerSettings, save

WAYS = {
    "mean, int8": {"rounds": {"encoding": "int8"}},
    "median, fp16, clipped": {"rounds": {"encoding": "fp16"}, "aggregation": ServerAggregation(method="median", hostile_nodes=0, clip=1.1)},
    "adam, int8": {"rounds": {"encoding": "int8"}, "schedule": ServerSchedule(server_optimiser="adam", server_lr=0.001)},
    "mean, fp16, a schedule that restarts": {
        "rounds": {"encoding": "fp16"},
        "schedule": ServerSchedule(window=1, cycle=2),
        "policy": {"held-out": [{"path": "nowhere"}]},
    },
    "momentum, fp32": {"rounds": {"encoding": "fp32"}, "schedule": ServerSchedule(server_optimiser="momentum")},
}


def made(tmp_path: Path, rounds: dict | None = None, **sections: object) -> ServerFolder:
    folder = make_server(tmp_path, **(rounds or {}))
    before = folder.settings()
    if "policy" in sections:
        sections["policy"] = {"folder": before.policy.folder, **sections["policy"]}
    save(ServerSettings.model_validate({**dict(before), **sections}), folder.settings_path)
    return folder


def checkpoint(folder: ServerFolder, number: int) -> Path:
    return records(folder)[-1].checkpoint(folder, number)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_every_round_after_a_restart_is_the_same_to_the_bit(tmp_path, way, stop):
    undisturbed = conduct(made(tmp_path / "one", **WAYS[way]), 5)
    folder = made(tmp_path / "other", **WAYS[way])
    assert conduct(folder, 5, until=stop) + conduct(folder, 5, until=4) + conduct(folder, 5) == undisturbed
    assert len(set(undisturbed)) == 5


def test_a_round_that_was_kept_and_not_settled_is_settled_and_not_trained_again(tmp_path):
    folder = made(tmp_path)
    conduct(folder, 5, until=2)
    before = (records(folder)[0].folder(folder) / "run.json").read_bytes()
    conduct(folder, 5, until=3)
    (records(folder)[0].folder(folder) / "run.json").write_bytes(before)
    run = OfflineRun(folder, 5)
    try:
        assert (run.state.record.done, run.state.record.settled) == (3, 2)
        run.settle()
        assert (run.state.record.done, run.state.record.settled) == (3, 3)
    finally:
        run.close()


@pytest.mark.parametrize("damaged", [[4], [4, 3], [4, 3, 2, 1]])
def test_damaged_checkpoints_are_told_set_aside_and_passed_over(tmp_path, damaged):
    undisturbed = conduct(made(tmp_path / "one"), 5)
    folder = made(tmp_path / "other")
    conduct(folder, 5, until=4)
    for number in damaged:
        path = checkpoint(folder, number) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    run = OfflineRun(folder, 5)
    told = [event for event in run.events.named("notice") if event.code == "checkpoint-damaged"]
    assert len(told) == len(damaged)
    assert all("model.safetensors" in event.what and event.why and event.remedy for event in told)
    assert run.state.record.done == 4 - len(damaged)
    run.close()
    assert conduct(folder, 5) == undisturbed[4 - len(damaged) :]
    record = records(folder)[0]
    assert sorted(map(int, record.train_losses)) == [1, 2, 3, 4, 5]
    assert audit(folder, record).findings == []


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_does_not_begin_again(tmp_path):
    folder = made(tmp_path, {"keep_checkpoints": 2})
    conduct(folder, 5, until=4)
    for number in (3, 4):
        (checkpoint(folder, number) / "zk0" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointsLost, match="None of this run's checkpoints"):
        OfflineRun(folder, 5)


def test_a_run_goes_on_when_run_json_is_gone_or_cut_short(tmp_path):
    undisturbed = conduct(made(tmp_path / "one"), 5)
    for number, text in enumerate((None, '{"uid": "0a')):
        folder = made(tmp_path / f"other{number}")
        conduct(folder, 5, until=3)
        path = records(folder)[0].folder(folder) / "run.json"
        path.unlink() if text is None else path.write_text(text)
        assert conduct(folder, 5) == undisturbed[3:]


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    folder = made(tmp_path, {"keep_checkpoints": 2})
    run = OfflineRun(folder, 6)
    for _ in range(6):
        run.round(lambda number: 1.0 if number == 2 else 2.0)
    run.close()
    assert sorted(path.name for path in records(folder)[0].folder(folder).glob("round-*")) == ["round-0002", "round-0005", "round-0006"]
    assert records(folder)[0].best == 2


def test_a_damaged_checkpoint_is_removed_when_its_round_is_old(tmp_path):
    folder = made(tmp_path, {"keep_checkpoints": 2})
    conduct(folder, 6, until=2)
    (checkpoint(folder, 2) / "config.json").write_text("{}")
    conduct(folder, 6, until=3)
    assert (checkpoint(folder, 2).with_name("round-0002.damaged")).is_dir()
    conduct(folder, 6)
    assert not list(records(folder)[0].folder(folder).glob("*.damaged"))


# --- the audit


@pytest.fixture
def kept(tmp_path: Path) -> ServerFolder:
    """Five rounds with their updates."""
    folder = made(tmp_path, {"keep_updates": True, "keep_checkpoints": 2, "encoding": "int8"})
    conduct(folder, 5, until=3)
    conduct(folder, 5)
    return folder


def findings(folder: ServerFolder) -> list[tuple[str, str]]:
    return [(each.code, each.where) for each in audit(folder, records(folder)[0]).findings]


@pytest.mark.parametrize("way", WAYS)
def test_an_audit_does_every_aggregation_again(tmp_path, way):
    sections = {**WAYS[way], "rounds": {**WAYS[way]["rounds"], "keep_updates": True, "keep_checkpoints": 2}}
    folder = made(tmp_path, **sections)
    conduct(folder, 5, until=2)
    conduct(folder, 5)
    found = audit(folder, records(folder)[0])
    assert (found.findings, found.rounds, found.recomputed, found.checkpoints) == ([], 5, 5, 2)


def test_the_journal_says_what_a_run_was_made_with_and_who_contributed_what(kept):
    told = [entry.data for entry in chain.entries(records(kept)[0].folder(kept) / chain.NAME)]
    first = told[0]
    assert (first["event"], first["seed"], first["settings"]["rounds"]["encoding"]) == ("provenance", 5, "int8")
    assert set(first["versions"]) == {"zk0desk", "python", "flwr", "numpy"}
    replies = [each for each in told if each["event"] == "reply-accepted" and each["round"] == 3]
    assert len(replies) == 2
    assert all(each["node"] and each["norm"] > 0 and len(each["sha256"]) == 64 and each["metrics"]["num-examples"] for each in replies)


def test_an_update_that_was_changed_is_named(kept):
    path = records(kept)[0].folder(kept) / "updates" / "round-0004" / "0001"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert findings(kept) == [("update-changed", "updates of round 4")]


def test_weights_that_the_updates_do_not_give_are_named(kept):
    folder = records(kept)[0].folder(kept) / "updates" / "round-0004"
    data = json.loads((folder / "round.json").read_text())
    data["settings"]["aggregation"]["clip"] = 0.01
    (folder / "round.json").write_text(json.dumps(data))
    assert findings(kept) == [("aggregation-differs", "round 4")]


def test_a_checkpoint_that_was_changed_is_named(kept):
    path = checkpoint(kept, 5) / "zk0" / "kept.json"
    path.write_text(path.read_text() + " ")
    assert findings(kept) == [("checkpoint-damaged", "round-0005")]


def test_a_loss_that_was_changed_in_run_json_is_named(kept):
    path = records(kept)[0].folder(kept) / "run.json"
    data = json.loads(path.read_text())
    data["eval_losses"]["3"] = 0.1
    path.write_text(json.dumps(data))
    assert findings(kept) == [("loss-differs", "round 3")]


def test_a_journal_without_a_round_is_named(kept):
    path = records(kept)[0].folder(kept) / chain.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if not (b"round-aggregated" in line and b'"round":2,' in line)))
    found = findings(kept)
    assert ("round-missing", "round 2") in found
    assert any(code == "missing" for code, _ in found)


def test_a_run_without_its_journal_is_named(kept):
    (records(kept)[0].folder(kept) / chain.NAME).unlink()
    assert findings(kept) == [("missing", "journal.jsonl")]


def test_the_audit_writes_nothing(kept, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in kept.path.rglob("*")}
    audit(kept, records(kept)[0])
    assert {path: path.stat().st_mtime_ns for path in kept.path.rglob("*")} == before


def test_a_run_of_which_the_folder_was_copied_elsewhere_can_be_audited(kept, tmp_path):
    shutil.copytree(kept.path, tmp_path / "copy")
    copy = ServerFolder(tmp_path / "copy")
    assert audit(copy, records(copy)[0]).findings == []
