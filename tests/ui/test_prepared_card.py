"""Prepared frames on the page about this computer: what they take and gain, preparing them now, their budget, and removing them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QPushButton

from tests.training.cache_parts import ENTRIES, shelf, values
from tests.ui.page_parts import settle, words
from zk0desk import events
from zk0desk.settings import Cache, ChosenRecording, Policy, Recordings, Settings
from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.prepared_card import PreparedCard

CHOSEN = events.PrefixChosen(
    run="r", level="V", reason="V: 4 GB for 9,000 frames.", gain=7.3, larger="With 20 GB all frames fit at level P."
)


@pytest.fixture
def model(demo_policy: Path, demo_recording: Path, tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    chosen = Recordings(chosen=(ChosenRecording(path=demo_recording),))
    made.update_settings(Settings(policy=Policy(folder=demo_policy), recordings=chosen, cache=Cache(folder=tmp_path / "cache")))
    yield made
    made.close()


@pytest.fixture
def card(model: AppModel, qtbot) -> Iterator[PreparedCard]:
    made = PreparedCard(model)
    qtbot.addWidget(made)
    made.resize(760, 400)
    made.show()
    made.refresh()
    settle(qtbot)
    yield made
    made.now.end()


def press(qtbot, button: QPushButton) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def test_frames_are_prepared_in_a_process_of_its_own(card: PreparedCard, model: AppModel, qtbot) -> None:
    assert "for 80 frames" in card.now.choice.text() and "Estimated from the files" in words(card) and card.now.look.isVisible()
    press(qtbot, card.now.begin)
    assert card.now.pause.isVisible() and not card.now.begin.isVisible()
    qtbot.waitUntil(lambda: card.now.process is None, timeout=60_000)
    settle(qtbot)
    said = words(card)
    assert "80 of 80 frames are prepared" in said and "times as fast as in LeRobot's own step" in said
    assert "level P" in said and "80 of 80 frames" in said
    opened_again = PreparedCard(model)
    qtbot.addWidget(opened_again)
    opened_again.show()
    opened_again.refresh()
    settle(qtbot)
    assert card.now.choice.text() == opened_again.now.choice.text() and "Estimated" not in words(opened_again)
    press(qtbot, next(each for each in card.findChildren(QPushButton) if each.text() == "Remove"))
    settle(qtbot)
    settle(qtbot)
    assert "of prepared frames were removed" in words(card)
    assert not PrefixCache(model.settings.cache.folder).shelves()


def test_a_pause_and_a_cancel_reach_the_process(card: PreparedCard, qtbot) -> None:
    press(qtbot, card.now.begin)
    press(qtbot, card.now.pause)  # before it has begun to compute
    qtbot.waitUntil(lambda: card.now.bar.maximum() == 80, timeout=60_000)
    assert card.now.pause.text() == "R&esume" and "Paused" in card.now.state.text()
    press(qtbot, card.now.cancel)
    qtbot.waitUntil(lambda: card.now.process is None, timeout=20_000)
    assert "Stopped. What is done stays" in card.now.state.text() and card.now.begin.isVisible()
    settle(qtbot)


def test_while_the_node_runs_it_cannot_be_pressed_and_says_why(card: PreparedCard, model: AppModel) -> None:
    model._thread = object()  # type: ignore[assignment]  # as if a node ran
    model.nodeStarted.emit()
    assert not card.now.begin.isEnabled() and "rounds prepare frames themselves" in card.now.state.text()
    card.now.start()
    assert card.now.process is None
    model._thread = None
    card.now.refresh()
    assert card.now.begin.isEnabled() and not card.now.state.text()


def test_without_a_choice_it_says_what_to_choose(card: PreparedCard, model: AppModel, qtbot) -> None:
    model.update_settings(model.settings.model_copy(update={"recordings": Recordings()}))
    card.refresh()
    settle(qtbot)
    assert not card.now.begin.isEnabled() and "Choose recordings" in card.now.state.text()


def test_progress_is_told_with_its_rate_and_the_time_left(card: PreparedCard) -> None:
    card.now._take(CHOSEN)
    assert "7.3 times as fast" in card.now.choice.text() and card.now.larger.text() == CHOSEN.larger
    for done, seconds in ((100, 0.0), (160, 30.0)):
        card.now._take(events.Prepared(done=done, frames=1000, seconds=seconds))
    assert card.now.state.text() == "160 of 1,000 frames, 2.0 a second, about 7 min left"


def test_what_the_last_round_took_from_it_is_told(card: PreparedCard, model: AppModel, qtbot) -> None:
    model.journal.record(replace(CHOSEN, time=time.time()))
    model.journal.record(events.RoundTimes(run="r", round=4, seconds={"forward": 3.0}, hits=90, asked=120, filled=700, frames=900))
    card.refresh()
    settle(qtbot)
    said = words(card)
    assert "75% of the frames that the last round asked for: 90 of 120" in said and "700 of 900 frames after the last round" in said
    assert "V: 4 GB for 9,000 frames." in said and CHOSEN.larger in said


def test_what_a_running_node_uses_stays(card: PreparedCard, model: AppModel, qtbot) -> None:
    with PrefixCache(model.settings.cache.folder, 10**9, keep_free=0) as cache:
        shelf(cache, name="cubes").write(range(ENTRIES), values(range(ENTRIES)))
        card.refresh()
        settle(qtbot)
        remove = next(each for each in card.findChildren(QPushButton) if each.text() == "Remove")
        assert not remove.isEnabled() and "in use" in words(card)
        press(qtbot, card.remove_all)
        settle(qtbot)
        settle(qtbot)
        assert "Those that a running node uses stay." in words(card)


def test_the_budget_is_that_of_the_settings(card: PreparedCard, model: AppModel) -> None:
    assert card.budget.value == 20.0
    card.budget.choose(50.0)
    assert model.settings.cache.budget_gb == 50.0
