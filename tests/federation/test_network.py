"""The way to the federation, what its rounds ask for, and how fast they travelled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.federation.node_parts import invitation
from tests.federation.test_probe import answering
from zk0desk import folders
from zk0desk import settings as settings_file
from zk0desk.cli import main
from zk0desk.federation.asked_round import asked_round
from zk0desk.federation.network import CALLS, look_at_network
from zk0desk.federation.probe import Refused
from zk0desk.federation.transfer_speed import keep_transfer, transfer_speed, update_bytes, weights_bytes
from zk0desk.journal import Journal, LedgerEntry
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings
from zk0desk.training import disk_look
from zk0desk.training.disk_look import look_at_disk

MB = 10**6


def settings_with(**changes: Any) -> Settings:
    return Settings(federation=Federation(invitation=invitation(**changes).to_line()))


def ask_in_a_round(journal: Journal, peer: str, **config: object) -> None:
    """A round's message as the ledger keeps it: its values as text."""
    told = {"num-rounds": "7", "lr": "0.001", "proximal-mu": "0.01", "batch-size": "8", "local-epochs": "3.0", "local-steps": "0"}
    contents = {"tensors": [], "config": {**told, "deadline-s": "900.0", **config}}
    journal.enter(LedgerEntry("received", "train", peer, 100, contents=contents))


def test_that_without_an_invitation_the_papers_round_is_asked() -> None:
    asked = asked_round(Settings())
    assert (asked.asked_by, asked.plan.batch_size, asked.deadline_s, asked.transfer_s) == ("usual", 64, 2700, 0)


def test_that_the_invitations_round_is_asked_until_a_round_came(tmp_path: Path) -> None:
    settings, path = settings_with(batch_size=16, local_steps=50, deadline_s=600, rounds=4), tmp_path / "journal.sqlite"
    asked = asked_round(settings, path)
    assert (asked.asked_by, asked.plan.batch_size, asked.plan.local_steps, asked.plan.rounds) == ("invitation", 16, 50, 4)
    assert asked.deadline_s == 600 and not path.exists(), "looking makes no journal"
    with Journal(path) as journal:
        ask_in_a_round(journal, "another.example:8000")
        assert asked_round(settings, path).asked_by == "invitation"
        ask_in_a_round(journal, invitation().address)
        asked = asked_round(settings, path)
        assert (asked.asked_by, asked.plan.batch_size, asked.plan.local_epochs, asked.plan.rounds) == ("last round", 8, 3, 7)
        assert asked.deadline_s == 900
        ask_in_a_round(journal, invitation().address, **{"batch-size": "many"})
        assert asked_round(settings, path).asked_by == "invitation", "what cannot be read does not count"


def test_that_the_last_transfers_are_kept_for_their_federation(tmp_path: Path) -> None:
    asked, path = invitation(), tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        assert asdict(transfer_speed(journal, asked)) == {"down": 0, "up": 0}
        keep_transfer(journal, asked, "down", 100 * MB, 10)
        keep_transfer(journal, asked, "up", 50 * MB, 25)
        keep_transfer(journal, asked, "down", 100 * MB, 5)
        assert asdict(transfer_speed(journal, asked)) == {"down": 20 * MB, "up": 2 * MB}
    assert asked_round(Settings(federation=Federation(invitation=asked.to_line())), path).transfer_s == update_bytes(asked) / (2 * MB)


def test_that_the_way_is_measured_and_a_rounds_transfers_are_told_once_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with answering(tmp_path) as port:
        asked = invitation(port=port)
        found = look_at_network(asked, path)
        assert found.calls == CALLS and 0 < found.shortest_ms <= found.latency_ms <= found.longest_ms < 1000
        assert (found.weights_bytes, found.update_bytes, found.round_seconds) == (weights_bytes(asked), update_bytes(asked), 0)
        assert "not known until the first round" in found.sentences[1] and found.to_json()["round-seconds"] is None
        with Journal(path) as journal:
            keep_transfer(journal, asked, "down", 20 * MB, 1)
            keep_transfer(journal, asked, "up", 2 * MB, 1)
        found = look_at_network(asked, path)
    assert found.round_seconds == pytest.approx(weights_bytes(asked) / 20e6 + update_bytes(asked) / 2e6)
    assert "20.0 MB/s down and 2.0 MB/s up" in found.sentences[1]


def test_that_the_disk_is_measured_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at_disk(tmp_path, 4 * disk_look.PIECE)
    assert found.free > 0 and found.write > 0 and found.read > 0 and not found.trouble and "MB/s" in found.sentence
    assert list(tmp_path.iterdir()) == []
    assert "too little is free" in look_at_disk(tmp_path, 10**18).sentence

    def refuses(**_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk_look.tempfile, "TemporaryFile", refuses)
    assert "its speed could not be measured: Permission denied." in look_at_disk(tmp_path, disk_look.PIECE).sentence


def doctor(settings: Settings, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    settings_file.save(settings)
    status = main(["doctor", "--quick", "--json", *more])
    return status, json.loads(capsys.readouterr().out)


def test_that_doctor_tells_network_and_disk_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(tmp_path) as port:
        _, data = doctor(settings_with(port=port), capsys, "--network")
    assert data["network"]["calls"] == CALLS and data["disk"]["write"] > 0 and data["asked"]["asked-by"] == "invitation"
    assert not [each for each in folders.runs_folder().parent.rglob("*") if each.is_file()], "nothing was written that stays"
    status, data = doctor(settings_with(port=port), capsys, "--network")
    assert data["network"] is None and status in (3, 4)
    assert Refused.code in [finding["code"] for finding in data["findings"]]
    _, data = doctor(settings_with(port=port), capsys)
    assert data["network"] is None and data["disk"] is None, "only when it is asked for"
    _, data = doctor(Settings(), capsys, "--network")
    assert data["network"] is None and data["findings"][-1]["code"] == "no-invitation"


def test_that_doctor_says_when_a_round_does_not_fit_into_the_federations_time(
    demo_policy: Path, demo_recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = Recordings(chosen=(ChosenRecording(path=demo_recording),))
    given = {"policy": Policy(folder=demo_policy), "recordings": chosen}

    def asked(**changes: Any) -> Settings:
        return settings_with(batch_size=8, **changes).model_copy(update=given)

    _, data = doctor(asked(local_steps=2, local_epochs=1, deadline_s=3600), capsys, "--measure")
    assert data["estimate"]["batch"] == 8 and data["asked"]["fits"] is True
    assert "the federation allows 60 min" in data["estimate"]["sentence"] and "2 rounds take about" in data["estimate"]["sentence"]
    status, data = doctor(asked(local_steps=100_000, deadline_s=60), capsys)
    assert data["asked"]["fits"] is False and status == 3 and data["status"] == "limits"
    finding = data["findings"][-1]
    assert finding["code"] == "round-too-long" and "the federation allows 60 s" in finding["what"]
    assert finding["why"].endswith("of it will be done, which counts.") and "ask the coordinator" in finding["remedy"]
