"""What can be changed in a running federation is, and is told; what cannot be is refused."""

import pytest

from tests.federation.coordinator_parts import Events, TestNode, make_server, steady
from zk0desk.errors import SettingsError
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.live_settings import LIVE, SettingFixed, by_key, change_setting, taken_over
from zk0desk.federation.run_record import RunRecord
from zk0desk.federation.server_app import run_rounds
from zk0desk.federation.superlink import start_server
from zk0desk.settings import ServerSettings


def test_a_setting_is_changed_with_its_comment_kept(tmp_path):
    server = make_server(tmp_path)
    text = server.settings_path.read_text()
    server.settings_path.write_text(text.replace("# A round waits for this many nodes.", "# At least the two arms of the lab."))
    change = change_setting(server, "rounds.min-nodes", "3")
    assert (change.before, change.after, change.when) == (2, 3, "next-round")
    assert "# At least the two arms of the lab.\nmin-nodes = 3\n" in server.settings_path.read_text()
    assert server.settings().rounds.min_nodes == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("rounds.min-nodes", "0"), ("rounds.min-nodes", "many"), ("rounds.minimum", "3"), ("policy.held-out", "[]"), ("rounds", "1")],
)
def test_a_key_or_value_that_cannot_be_changes_nothing(tmp_path, key, value):
    server = make_server(tmp_path)
    before = server.settings_path.read_text()
    with pytest.raises(SettingsError):
        change_setting(server, key, value)
    assert server.settings_path.read_text() == before


@pytest.mark.parametrize(("key", "value"), [("rounds.seed", "9"), ("rounds.encoding", "fp32"), ("policy.folder", "/elsewhere")])
def test_what_a_run_was_begun_with_is_refused_until_it_is_complete(tmp_path, key, value):
    server = make_server(tmp_path)
    RunRecord("0a1b", 30, "p", 5, done=3).save(server)
    with pytest.raises(SettingFixed, match="under way") as refused:
        change_setting(server, key, value)
    assert "round 3 of 30" in refused.value.why
    change_setting(server, "contact", "Ann, 555 0100")
    RunRecord("0a1b", 3, "p", 5, done=3, finished=True).save(server)
    assert change_setting(server, key, value).when == "next-run"


def test_every_live_key_is_a_setting():
    assert set(by_key(ServerSettings())) >= LIVE and all(taken_over(key) == "next-round" for key in LIVE)


@pytest.mark.timeout(240)
def test_a_running_federation_takes_changes_before_its_next_round_keeps_its_seed_and_outlives_a_broken_file(tmp_path):
    folder, key, events = make_server(tmp_path, min_nodes=5, rounds=3, seed=5), NodeKey.make(), Events()

    def emit(event):
        events(event)
        if event.name == "server-state-changed" and event.state == "waiting-for-nodes" and not events.named("settings-changed"):
            change_setting(folder, "rounds.min-nodes", "1")
        if event.name == "round-opened" and event.round == 1:
            text = folder.settings_path.read_text()
            folder.settings_path.write_text(text.replace("seed = 5", "seed = 6").replace("deadline-s = 20.0", "deadline-s = 11.0"))
        if event.name == "round-opened" and event.round == 2:
            folder.settings_path.write_text("rounds = 7\n[[")

    with start_server(folder.path, lambda event: None) as server:
        server.admit(key.public_line)
        with TestNode(folder.invitation(), key, steady(0.5)) as node:
            run_rounds(folder.path, emit)
    changed = events.named("settings-changed")
    assert [(event.round, event.changes) for event in changed] == [
        (1, {"rounds.min-nodes": [5, 1]}),
        (2, {"rounds.deadline-s": [20.0, 11.0]}),
    ]
    assert [(request.seed, request.deadline_s) for request in node.requests] == [(5, 20.0), (5, 11.0), (5, 11.0)]
    assert [event.bytes for event in events.named("round-opened")] == [4 * 330, 2 * 330, 2 * 330], "then the differences alone"
    waits = [event for event in events.named("notice") if event.code == "setting-waits"]
    assert len(waits) == 1 and "rounds.seed" in waits[0].what and "goes on with 5" in waits[0].what
    assert [event.code for event in events.named("notice")].count("settings-invalid") == 1
    assert events.named("run-finished")[0].reason == "complete"
