"""How a federation stands, from what its processes leave in the folder."""

import io
import json
import threading

import pytest
from PIL import Image
from rich.console import Console

from tests.federation.coordinator_parts import Events, make_server
from zk0desk.cli import main
from zk0desk.commands.server_view import snapshot, watch
from zk0desk.events import (
    CheckpointSaved,
    Evaluated,
    Notice,
    PrivacySpent,
    ReplyAccepted,
    ReplyRefused,
    RoundAggregated,
    RoundOpened,
    RunStarted,
    ScheduleDecided,
    ServerStateChanged,
)
from zk0desk.federation import chain, event_log
from zk0desk.federation.chain import ChainedJournal
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.event_log import NAME, EventReader, logged
from zk0desk.federation.quarantine import Quarantine
from zk0desk.federation.run_curves import Curves
from zk0desk.federation.run_record import RunRecord
from zk0desk.federation.server_status import StatusReader

RUN = "0a1b2c3d4e5f6071"


def journal(server):
    """Writes events into the run's journal, as the rounds do."""

    def write(event):
        journal = ChainedJournal(server.runs / RUN / chain.NAME)
        journal.append(event.to_json())
        journal.close()

    return write


@pytest.fixture
def served(tmp_path):
    """A server's folder with three nodes, in the second round of thirty: one answered, one was refused, one was late."""
    server = make_server(tmp_path)
    keys = sorted((NodeKey.make() for _ in range(3)), key=lambda key: key.fingerprint)
    for key in keys:
        server.nodes().admit(key.public_line)
    a, b, c = (key.fingerprint for key in keys)
    emit, run = journal(server), {"run": RUN}
    logged(server, Events())(ServerStateChanged(time=900.0, state="serving", what="Nodes can call."))
    emit(RunStarted(time=1000.0, **run, round=1, rounds=30, policy="p", settings={}))
    emit(RoundOpened(time=1000.0, **run, round=1, nodes=[a, b, c], lr=1e-4, mu=0.01, weights_sha256="0"))
    emit(Evaluated(time=1001.0, **run, round=0, loss=2.5, frames=40, recordings={"cubes": 2.5}, retention={"known": 1.0}))
    emit(ReplyAccepted(time=1050.0, **run, node=a, round=1, bytes=1_000_000, sha256="0", metrics={"loss-mean": 1.5, "num-examples": 90.0}))
    emit(RoundAggregated(time=1060.0, **run, round=1, shares={a: 1.0}, missing=[b, c], train_loss=1.5, update_norm=1.0, weights_sha256="0"))
    last = {"standard_error": 0.05, "retention": {"known": 1.25}}
    emit(Evaluated(time=1090.0, **run, round=1, loss=2.0, frames=40, recordings={"cubes": 2.0}, **last))
    emit(CheckpointSaved(time=1100.0, **run, round=1, folder="f", best=True))
    emit(RoundOpened(time=1101.0, **run, round=2, nodes=[a, b, c], lr=5e-5, mu=0.008, weights_sha256="0"))
    emit(ReplyRefused(time=1102.0, **run, round=2, node=b, code="reply-invalid", why="`loss-mean` is not finite."))
    logged(server, Events())(Notice(time=1103.0, severity="warning", code="round-empty", what="A round was empty."))
    RunRecord(RUN, 30, "p", 5, done=1, best=1, eval_losses={"0": 2.5, "1": 2.0}, train_losses={"1": 1.5}).save(server)
    return server, (a, b, c)


def text_of(server, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(snapshot(StatusReader(server).read().to_json(), width))
    return console.file.getvalue()


def test_the_status_has_the_round_the_schedule_each_node_losses_bytes_and_the_time_left(served):
    server, (a, b, c) = served
    found = StatusReader(server).read().to_json()
    run = found["run"]
    assert (run["round"], run["rounds"], run["open-round"], run["lr"], run["mu"]) == (1, 30, 2, 5e-5, 0.008)
    assert (run["last-loss"], run["best-loss"], run["base-loss"], run["standard-error"]) == (2.0, 2.0, 2.5, 0.05)
    assert run["forgetting"] == {"known": 0.25} and run["bytes-up"] == 1_000_000
    assert run["seconds-left"] == pytest.approx(28 * 100, abs=101), "29 rounds of 100 seconds, the second long under way"
    by_node = {node["fingerprint"]: (node["round"], node["why"]) for node in found["nodes"]}
    assert by_node == {a: ("training", ""), b: ("refused", "reply-invalid: `loss-mean` is not finite."), c: ("training", "")}
    assert found["notices"][0]["code"] == "round-empty" and not found["running"]


def test_what_privacy_has_spent_is_in_the_status(served):
    server, _ = served
    journal(server)(PrivacySpent(run=RUN, round=1, of="federation", epsilon=1.25, delta=1e-5, budget=8.0))
    assert StatusReader(server).read().to_json()["run"]["epsilon"] == {"spent": 1.25, "delta": 1e-5, "budget": 8.0}
    assert "Privacy: epsilon 1.25 of 8 spent, at delta 1e-05" in text_of(server)


def test_a_late_reply_is_told_in_the_round_that_it_belongs_to_only(served):
    server, (a, b, c) = served
    emit = journal(server)
    emit(ReplyRefused(run=RUN, round=1, node=c, code="late", why="It came 3 s after round 1 had ended."))
    emit(ReplyRefused(run=RUN, round=2, node=a, code="late", why="Its update was still arriving."))
    found = {node["fingerprint"]: node["round"] for node in StatusReader(server).read().to_json()["nodes"]}
    assert found == {a: "late", b: "refused", c: "training"}


def test_who_is_online_is_told_only_where_the_superlink_was_asked(served):
    server, (a, _, _) = served
    assert "3 nodes admitted, 0 waiting to be admitted; who is online is not known" in text_of(server)
    key = next(node.public_key for node in server.nodes().nodes() if node.fingerprint == a)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(snapshot(StatusReader(server).read(frozenset({key})).to_json(), 80))
    assert "1 nodes online, 2 admitted and away" in console.file.getvalue()


def test_nodes_that_want_to_be_looked_at_come_first(served):
    server, (a, b, c) = served
    key = next(node.public_key for node in server.nodes().nodes() if node.fingerprint == c)
    Quarantine(server.nodes_path).strike(key, "update-invalid: it is not finite.", 1)
    assert [line[:19] for line in text_of(server).splitlines() if line[:19] in (a, b, c)] == [c, b, a]


def test_the_snapshot_fits_eighty_columns_and_says_why_a_node_was_refused(served):
    server, (_, b, _) = served
    text = text_of(server)
    assert max(map(len, text.splitlines())) <= 80
    line = next(line for line in text.splitlines() if line.startswith(b))
    assert "refused" in line and "reply-inv" in line
    assert "round 1 of 30" in text and "2.0000 ± 0.0500" in text and "base policy 2.5000" in text and "mu 0.008" in text
    assert "`loss-mean` is not finite." in text_of(server, 140)


def test_a_round_that_was_begun_again_counts_once(served):
    server, (a, b, c) = served
    emit = journal(server)
    emit(RunStarted(time=1200.0, run=RUN, round=2, rounds=30, policy="p", settings={}))
    emit(RoundOpened(time=1201.0, run=RUN, round=2, nodes=[a, b, c], lr=5e-5, mu=0.008, weights_sha256="0"))
    nodes = {node["fingerprint"]: node["round"] for node in StatusReader(server).read().to_json()["nodes"]}
    assert nodes == dict.fromkeys((a, b, c), "training")


def test_the_schedules_last_signal_is_shown_and_a_quarantine_until_the_node_is_admitted_again(served):
    server, (a, b, c) = served
    emit = journal(server)
    emit(ScheduleDecided(run=RUN, round=2, lr=5e-5, mu=0.008, signal="plateau", why="The loss fell by less than 0.01."))
    key = next(node.public_key for node in server.nodes().nodes() if node.fingerprint == b)
    Quarantine(server.nodes_path).strike(key, "update-invalid: it is not finite.", 1)
    text = text_of(server, 120)
    assert "plateau: The loss fell by less than 0.01." in text
    assert "quarantined" in next(line for line in text.splitlines() if line.startswith(b)) and "it is not finite." in text
    assert main(["server", "admit", str(server.path), b]) == 0
    assert "quarantined" not in text_of(server)


def test_without_a_running_server_the_status_tells_what_is_known_and_exits_with_six(served, capsys):
    server, _ = served
    assert main(["server", "status", str(server.path)]) == 6
    out, err = capsys.readouterr()
    assert "round 1 of 30" in out and "zk0desk server start" in err
    assert main(["server", "status", str(server.path), "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["run"]["round"] == 1


def test_the_view_follows_the_folder_without_a_terminal_and_on_one(served):
    server, (a, _, _) = served
    emit = journal(server)
    more = ReplyAccepted(time=1104.0, run=RUN, node=a, round=2, bytes=1, sha256="0", metrics={"loss-mean": 1.25})
    for terminal in (False, True):
        console = Console(width=80, height=30, file=io.StringIO(), force_terminal=terminal, color_system=None)
        timer = threading.Timer(0.1, emit, (more,))
        timer.start()
        watch(server, seconds=1.0, console=console)
        timer.join()
        assert "1.2500" in console.file.getvalue()


def test_a_line_that_was_cut_short_costs_that_line_only(served):
    server, _ = served
    path = server.state / NAME
    reader = EventReader(path)
    assert len(list(reader.new())) == 2
    with path.open("a") as file:
        file.write('{"event": "notic')
    assert list(reader.new()) == []
    logged(server, Events())(ServerStateChanged(state="serving", what="again"))
    assert [event["what"] for event in reader.new()] == ["again"]
    assert len(list(EventReader(path).new())) == 3
    assert path.stat().st_mode & 0o077 == 0


def test_the_servers_own_log_begins_anew_when_it_is_large_and_no_event_is_lost_to_a_reader(tmp_path, monkeypatch):
    server = make_server(tmp_path)
    monkeypatch.setattr(event_log, "ROTATE_AT", 2000)
    emit, reader, seen = logged(server, Events()), EventReader(server.state / NAME), []
    for number in range(60):
        emit(ServerStateChanged(state="serving", what=str(number)))
        seen += [event["what"] for event in reader.new()]
    assert sum(path.stat().st_size for path in server.state.glob("events.jsonl*")) < 5000
    assert seen == [str(number) for number in range(60)]
    assert len({event["what"] for event in EventReader(server.state / NAME).new()}) > 10, "one who comes later sees the file before too"


def test_a_folder_that_refuses_costs_no_round(tmp_path):
    server, events = make_server(tmp_path), Events()
    server.state.rmdir()
    server.state.write_text("a file where the folder should be")
    logged(server, events)(ServerStateChanged(state="serving", what="x"))
    assert [event.what for event in events] == ["x"]


def test_the_curves_are_drawn_from_the_journal_with_a_mark_for_each_decision(served, tmp_path, capsys):
    server, (a, _, _) = served
    journal(server)(ScheduleDecided(run=RUN, round=2, lr=5e-5, mu=0.008, signal="plateau", why="It fell no more."))
    curves = Curves(EventReader(server.runs / RUN / chain.NAME).new())
    assert (curves.loss, curves.train, curves.nodes, curves.lr) == ({0: 2.5, 1: 2.0}, {1: 1.5}, {a: {1: 1.5}}, {1: 1e-4, 2: 5e-5})
    panels = {panel.title.split(":")[0]: panel for panel in curves.panels()}
    assert [mark.text for mark in panels["Learning rate"].marks] == ["plateau"]
    assert list(panels["Forgetting"].lines[0].y) == [0.0, 0.25]
    assert main(["server", "plot", str(server.path), "--out", str(tmp_path / "curves.png")]) == 0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (960, 40 + 260 * len(panels))


def test_nothing_is_drawn_of_a_run_that_is_not_there(tmp_path, capsys):
    server = make_server(tmp_path)
    assert main(["server", "plot", str(server.path), "--out", str(tmp_path / "curves.png")]) == 2
    assert "zk0desk server run" in capsys.readouterr().err and not (tmp_path / "curves.png").exists()
