"""The node's thread: events cross in order and in batches, and no exception reaches the window."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from zk0desk import events
from zk0desk.control import NodeControl
from zk0desk.errors import OperatorError
from zk0desk.federation.node_state import SENTENCES, NodeState
from zk0desk.journal import Journal
from zk0desk.settings import Settings
from zk0desk.ui.model import AppModel
from zk0desk.ui.node_thread import NodeThread


@pytest.fixture
def model(tmp_path: Path, qapp):
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


def behave(monkeypatch: pytest.MonkeyPatch, work: Callable[[NodeThread], None]) -> None:
    """Let the thread do `work` in the place of a node with a federation."""
    monkeypatch.setattr(NodeThread, "_run_node", work)


def test_events_arrive_in_order_in_the_windows_thread(model: AppModel, qtbot, monkeypatch) -> None:
    def work(thread: NodeThread) -> None:
        for number in range(5000):
            thread.emit_event(events.Notice(severity="note", code=str(number), what="x"))

    behave(monkeypatch, work)
    monkeypatch.setattr(Journal, "record", lambda self, event: None)
    seen: list[str] = []
    threads: set[int] = set()
    batches: list[int] = []
    model.nodeEvent.connect(lambda event: threads.add(threading.get_ident()))
    model.nodeEvent.connect(lambda event: seen.append(event.code) if isinstance(event, events.Notice) else None)
    model.nodeEvents.connect(lambda batch: batches.append(len(batch)))
    with qtbot.waitSignal(model.nodeEnded, timeout=20_000):
        model.join()
    assert seen == [str(number) for number in range(5000)]
    assert threads == {threading.get_ident()}
    assert max(batches) > 100
    assert not model.running


def test_an_exception_becomes_a_sentence_and_the_window_lives(model: AppModel, qtbot, monkeypatch) -> None:
    def work(thread: NodeThread) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    behave(monkeypatch, work)
    with qtbot.waitSignal(model.nodeEnded, timeout=20_000):
        model.join()
    assert model.state is NodeState.FAILED
    assert model.last_notice is not None and "illegal memory access" in model.last_notice.why
    assert "Join again" in model.last_notice.remedy
    with qtbot.waitSignal(model.nodeEnded, timeout=20_000):
        model.join()


def test_an_error_that_the_node_has_told_is_not_told_twice(model: AppModel, qtbot, monkeypatch) -> None:
    def work(thread: NodeThread) -> None:
        thread.emit_event(events.NodeStateChanged(state=NodeState.FAILED, what="Refused", why="Revoked.", then="Ask."))
        raise OperatorError("Refused", "Revoked.", "Ask.")

    behave(monkeypatch, work)
    states: list[str] = []
    model.nodeStateChanged.connect(lambda event: states.append(event.what))
    with qtbot.waitSignal(model.nodeEnded, timeout=20_000):
        model.join()
    assert states == ["Refused"]


def test_an_operators_error_keeps_its_words(model: AppModel, qtbot, monkeypatch) -> None:
    def work(thread: NodeThread) -> None:
        raise OperatorError("The policy is missing.", "The folder is gone.", "Choose it again.")

    behave(monkeypatch, work)
    with qtbot.waitSignal(model.nodeEnded, timeout=20_000):
        model.join()
    assert (model.state_event.what, model.state_event.why, model.state_event.then) == (
        "The policy is missing.",
        "The folder is gone.",
        "Choose it again.",
    )


def test_stop_reaches_the_nodes_thread_and_a_second_join_does_nothing(model: AppModel, qtbot, monkeypatch) -> None:
    def work(thread: NodeThread) -> None:
        what, why, then = SENTENCES[NodeState.WAITING_FOR_ROUND]
        thread.emit_event(events.NodeStateChanged(state=NodeState.WAITING_FOR_ROUND, what=what, why=why, then=then))
        while not thread._control.finishing:
            thread._control.sleep(5)

    behave(monkeypatch, work)
    with qtbot.waitSignal(model.nodeStateChanged, timeout=20_000):
        model.join()
    thread = model.thread_of_node
    model.join()
    assert model.thread_of_node is thread
    with qtbot.waitSignal(model.nodeEnded, timeout=20_000):
        model.finish_round()
    assert model.state is NodeState.STOPPED


def test_what_the_node_tells_is_in_the_journal(model: AppModel, qtbot, monkeypatch) -> None:
    def work(thread: NodeThread) -> None:
        thread.emit_event(events.RoundStarted(run="r", round=1, rounds=3, lr=1e-4, mu=0.01, steps=2, epochs=1, batch_size=4, frames=8))
        for step in (1, 2):
            thread.emit_event(
                events.StepDone(
                    run="r", round=1, step=step, steps=2, epoch=0, loss=1.0, proximal=0.0, grad_norm=1.0,
                    lr=1e-4, mu=0.01, frames=4, seconds=0.1,
                )
            )  # fmt: skip

    behave(monkeypatch, work)
    with qtbot.waitSignal(model.nodeEnded, timeout=20_000):
        model.join()
    assert [run["steps"] for run in model.journal.runs()] == [2]
    assert model.live_run is not None and len(model.live_run) == 2


def test_settings_that_cannot_be_read_are_told_without_a_thread(tmp_path: Path, qapp) -> None:
    (tmp_path / "settings.toml").write_text("[training]\nthreads = -3\n")
    model = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    model.join()
    assert model.state is NodeState.FAILED and "threads" in model.state_event.why and not model.running
    model.close()


def test_the_real_node_without_a_recording_says_what_is_missing(model: AppModel, qtbot) -> None:
    with qtbot.waitSignal(model.nodeEnded, timeout=60_000):
        model.join()
    assert model.state is NodeState.FAILED
    assert model.state_event.what and model.state_event.then


def test_a_thread_made_by_hand_ends_by_itself(tmp_path: Path, qtbot, monkeypatch) -> None:
    behave(monkeypatch, lambda thread: None)
    with Journal(tmp_path / "journal.sqlite") as journal:
        thread = NodeThread(Settings(), journal, NodeControl())
        with qtbot.waitSignal(thread.ended, timeout=20_000):
            thread.start()
        assert thread.wait(5000)
