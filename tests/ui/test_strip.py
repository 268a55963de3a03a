"""The status strip: every state says what, why, since when and what comes next, and its buttons act."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from zk0desk import events
from zk0desk.control import NodeControl
from zk0desk.federation.node_state import RUNNING, SENTENCES, NodeState
from zk0desk.ui.model import AppModel
from zk0desk.ui.strip import ICONS, StatusStrip


@pytest.fixture
def model(tmp_path: Path, qapp) -> AppModel:
    return AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")


@pytest.fixture
def strip(model: AppModel, qtbot) -> StatusStrip:
    widget = StatusStrip(model)
    qtbot.addWidget(widget)
    widget.resize(1280, 60)
    widget.show()
    return widget


def say(model: AppModel, state: NodeState) -> None:
    what, why, then = SENTENCES[state]
    model.take([events.NodeStateChanged(state=state, what=what, why=why, then=then, since=1_700_000_000.0)])


def run(model: AppModel, state: NodeState) -> NodeControl:
    """As if a node ran: the control is real, the thread is any object."""
    model.control = NodeControl()
    model._thread = object()  # type: ignore[assignment]
    say(model, state)
    return model.control


@pytest.mark.parametrize("state", list(NodeState))
def test_every_state_says_what_why_since_when_and_what_next(model: AppModel, strip: StatusStrip, state: NodeState, qtbot) -> None:
    say(model, state)
    what, why, then = SENTENCES[state]
    said = f"{strip.what.text()} {strip.why.text()} {strip.then.text()}"
    for part in (what, why, then):
        assert part.rstrip(".") in said
    assert ("since" in said) == (state is not NodeState.IDLE)
    assert strip.icon.name == ICONS[state][0]


def test_before_joining_there_is_nothing_to_stop(strip: StatusStrip) -> None:
    assert not any(button.isVisible() for button in (strip.pause, strip.finish, strip.stop, strip.again, strip.progress))


@pytest.mark.parametrize("state", sorted(RUNNING))
def test_stop_is_offered_in_every_state_in_which_the_node_runs(model: AppModel, strip: StatusStrip, state: NodeState) -> None:
    run(model, state)
    assert strip.stop.isVisible() and strip.stop.isEnabled()


def test_pause_holds_the_node_and_becomes_resume(model: AppModel, strip: StatusStrip, qtbot) -> None:
    control = run(model, NodeState.TRAINING)
    qtbot.mouseClick(strip.pause, Qt.MouseButton.LeftButton)
    assert control.paused and strip.pause.accessibleName() == "Resume"
    say(model, NodeState.PAUSED)
    qtbot.mouseClick(strip.pause, Qt.MouseButton.LeftButton)
    assert not control.paused and strip.pause.accessibleName() == "Pause"


def test_finish_round_can_be_asked_for_once_and_stop_still_works(model: AppModel, strip: StatusStrip, qtbot) -> None:
    control = run(model, NodeState.TRAINING)
    qtbot.keyClick(strip.finish, Qt.Key.Key_Space)
    assert control.finishing and not strip.finish.isEnabled() and not strip.pause.isEnabled()
    qtbot.keyClick(strip.stop, Qt.Key.Key_Space)
    assert control.stopping and not strip.stop.isEnabled()


def test_progress_follows_steps_and_transfers(model: AppModel, strip: StatusStrip) -> None:
    run(model, NodeState.DOWNLOADING)
    model.take([events.Transfer(direction="down", run="r", round=1, bytes_done=25, bytes_total=100)])
    assert strip.progress.isVisible() and strip.progress.value() == 250
    say(model, NodeState.WAITING_FOR_ROUND)
    assert not strip.progress.isVisible()


def test_in_a_narrow_window_reason_and_outlook_take_a_line_each(model: AppModel, strip: StatusStrip, qtbot) -> None:
    run(model, NodeState.TRAINING)
    strip.resize(1000, 60)
    qtbot.waitUntil(lambda: strip.then.isVisible())
    assert strip.then.text() == "Then the update is sent"
    strip.resize(2400, 60)
    qtbot.waitUntil(lambda: not strip.then.isVisible())


def test_every_control_has_an_accessible_name(strip: StatusStrip) -> None:
    assert all(b.accessibleName() for b in (strip.pause, strip.finish, strip.stop, strip.again, strip.progress))


def test_where_the_engine_is_missing_the_strip_leads_to_it_from_every_page(model: AppModel, strip: StatusStrip, qtbot) -> None:
    assert not strip.engine.isVisible()
    model.engine_seen(True)
    assert strip.engine.isVisible() and strip.engine.text() == "Get the engine"
    with qtbot.waitSignal(model.showPage) as asked:
        qtbot.mouseClick(strip.engine, Qt.MouseButton.LeftButton)
    assert asked.args == ["computer"]
    run(model, NodeState.TRAINING)
    assert not strip.engine.isVisible(), "a node runs: its engine is there"
    model._thread = None
    model.engine_seen(False)
    assert not strip.engine.isVisible()
