import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk import events
from zk0desk.journal import Journal, JournalError, LedgerEntry


def _step(step, round_=1, run="r", loss=1.0):
    return events.StepDone(
        run=run, round=round_, step=step, steps=9, epoch=0, loss=loss, proximal=0.1, grad_norm=2.0, lr=1e-4, mu=0.01, frames=8, seconds=0.5
    )


def _started(round_=1, run="r"):
    return events.RoundStarted(run=run, round=round_, rounds=3, lr=1e-4, mu=0.01, steps=9, epochs=1.0, batch_size=8, frames=72)


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def test_a_run_is_read_back_as_it_was_told(journal):
    journal.describe_run("r", federation="Arms", address="127.0.0.1:8000", policy="p", rounds=3)
    for event in [
        _started(), _step(1), _step(2, loss=0.5),
        events.RoundTrained(run="r", round=1, metrics={"loss-mean": 0.75}, partial="deadline"),
        events.UpdateSent(run="r", round=1, bytes=10, sha256="ab", seconds=1.0),
        events.FederationMetrics(run="r", round=1, nodes=2, train_loss=0.7, eval_loss=0.6),
    ]:  # fmt: skip
        journal.record(event)
    (run,) = journal.runs()
    (round_,) = journal.rounds("r")
    assert (run["federation"], run["steps"]) == ("Arms", 2)
    assert [step["loss"] for step in journal.steps("r")] == [1.0, 0.5]
    assert (round_["metrics"], round_["partial"], round_["nodes"], round_["eval_loss"]) == ({"loss-mean": 0.75}, "deadline", 2, 0.6)
    assert round_["sent"] is not None


def test_a_round_that_begins_again_replaces_its_steps(journal):
    for event in [_started(), _step(1), _step(2), _step(3)]:
        journal.record(event)
    journal.flush()
    journal.record(_started())
    journal.record(_step(1, loss=0.25))
    assert [step["loss"] for step in journal.steps("r")] == [0.25]


def test_a_message_is_in_the_ledger_with_what_it_held(journal):
    sent = LedgerEntry("sent", "train-reply", "lab:8000", 400, sha256="ff", run="r", round=2, contents={"loss-mean": 0.5})
    number = journal.enter(sent)
    journal.settle(number, "refused: too late")
    (entry,) = journal.ledger()
    assert (entry.contents, entry.outcome, entry.bytes, entry.id) == ({"loss-mean": 0.5}, "refused: too late", 400, number)
    assert entry.time > 0


def test_the_newest_message_comes_first_and_search_finds_a_peer(journal):
    for peer in ("lab:8000", "farm:8000"):
        journal.enter(LedgerEntry("sent", "heartbeat", peer, 1))
    assert [entry.peer for entry in journal.ledger()] == ["farm:8000", "lab:8000"]
    assert [entry.peer for entry in journal.ledger("lab")] == ["lab:8000"]


def test_a_percent_sign_is_searched_for_as_it_stands(journal):
    journal.enter(LedgerEntry("sent", "heartbeat", "lab:8000", 1))
    journal.record(events.Notice(severity="note", code="x", what="10% are left.\\"))
    assert journal.ledger("%") == []
    assert [len(journal.log(search)) for search in ("%", "_", "\\", "10%")] == [1, 0, 1, 1]


def test_the_log_keeps_sentences_and_finds_them(journal):
    journal.record(events.NodeStateChanged(state="training", what="Training", why="A round has begun."))
    journal.record(events.Notice(severity="warning", code="memory", what="The batch was halved."))
    assert [line["event"] for line in journal.log("halved")] == ["notice"]
    assert len(journal.log()) == 2


@given(st.dictionaries(st.text(max_size=10), st.integers(-(2**53), 2**53) | st.text() | st.booleans() | st.none(), max_size=5))
def test_what_is_remembered_is_recalled(journal, value):
    journal.remember("fact", value)
    assert journal.recall("fact") == value
    journal.forget("fact")
    assert journal.recall("fact", "nothing") == "nothing"


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_can_be_searched_for_and_any_text_can_be_an_outcome(journal, search, outcome):
    journal.settle(journal.enter(LedgerEntry("received", "train", "lab:8000", 1)), outcome)
    journal.ledger(search)
    journal.log(search)
    assert journal.ledger(limit=1)[0].outcome == outcome


def test_threads_share_a_journal(journal):
    def write(round_):
        for step in range(20):
            journal.record(_step(step, round_))
        journal.enter(LedgerEntry("sent", "train-reply", "lab", round_))

    threads = [threading.Thread(target=write, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journal.steps("r")) == 60
    assert len(journal.ledger()) == 3


def test_the_ledger_survives_kill_9(tmp_path):
    path = tmp_path / "journal.sqlite"
    program = (
        "import sys; from pathlib import Path; from zk0desk.journal import *; j = Journal(Path(sys.argv[1]));"
        "j.enter(LedgerEntry('sent', 'train-reply', 'lab', 7)); print('written', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with Journal(path) as journal:
        assert [entry.bytes for entry in journal.ledger()] == [7]


def test_only_its_owner_can_read_the_journal(journal):
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_a_journal_of_a_newer_version_is_refused_with_a_way_on(tmp_path):
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalError, match="newer zk0desk") as caught:
        Journal(path)
    assert "Update zk0desk" in caught.value.remedy


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_was(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is not a database, it is a shopping list" * 50)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(path)
    assert path.read_bytes() == before
