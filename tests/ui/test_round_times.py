"""Where the time of each round goes: from the node's events, from the journal, and as it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QApplication

from tests.ui.page_parts import words
from zk0desk import events
from zk0desk.events import Event
from zk0desk.federation.node_state import NodeState as S
from zk0desk.journal import Journal
from zk0desk.ui import theme
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.rounds_card import RoundsCard
from zk0desk.ui.round_parts import PARTS, RoundParts
from zk0desk.ui.run_data import RunData
from zk0desk.ui.time_bars import SIGNS

BEGAN = 1_700_000_000.0
COUNTED = {"prepare": 4.0, "wait": 0.5, "forward": 3.0, "backward": 5.0, "optimiser": 1.0, "other": 2.0}
WHOLE = {"idle": 10.0, "download": 2.0, **COUNTED, "upload": 3.0}


def state(name: S, at: float) -> Event:
    return events.NodeStateChanged(state=name, what=name, time=BEGAN + at)


def a_round(number: int, at: float, pause: float = 0.0, run: str = "r") -> list[Event]:
    """From waiting at `at` to the update: 10 s idle, 2 s download, 15.5 s of training and a pause in it, 3 s upload."""
    trained = at + 12 + 15.5 + pause
    counted = {**COUNTED, "other": COUNTED["other"] + pause}
    held = [state(S.PAUSED, at + 13), state(S.TRAINING, at + 13 + pause)] if pause else []
    about = {"run": run, "round": number}
    return [
        state(S.WAITING_FOR_ROUND, at),
        state(S.DOWNLOADING, at + 10),
        state(S.TRAINING, at + 12),
        events.RoundStarted(
            **about, rounds=5, lr=1e-4, mu=0.01, steps=4, epochs=1, batch_size=8, frames=80, time=BEGAN + at + 12
        ),
        *held,
        events.PrefixChosen(run=run, level="P", reason="P: it fits the memory.", larger="", time=BEGAN + at + 12.5),
        events.RoundTimes(**about, seconds=counted, hits=60, asked=80, filled=75, frames=80, time=BEGAN + trained),
        events.RoundTrained(**about, metrics={"loss-mean": 1.0}, time=BEGAN + trained),
        state(S.UPLOADING, trained),
        events.UpdateSent(**about, bytes=1, sha256="", seconds=3.0, time=BEGAN + trained + 3),
    ]  # fmt: skip


TWO = [state(S.CHECKING, -30), state(S.CONNECTING, -20), *a_round(1, 0), *a_round(2, 30.5, pause=7.0)]


def test_all_time_between_two_updates_is_counted_once() -> None:
    parts = RoundParts()
    parts.take_all(TWO)
    assert parts.rounds[1].seconds == pytest.approx(WHOLE)
    assert parts.rounds[2].seconds == pytest.approx({**WHOLE, "paused": 7.0})
    assert parts.rounds[2].total == pytest.approx(30.5 + 7.0)
    assert set(WHOLE) | {"paused"} == set(PARTS) == set(SIGNS)
    said = parts.rounds[1].words()
    assert said.startswith("round 1, 30.5 s: idle 10.0 s (33%), download 2.0 s (7%), prepare frames 4.0 s (13%)")
    assert said.endswith("75% of the frames were prepared; 75 of 80 are now.")


def test_the_journal_gives_the_same_as_the_events_of_now(tmp_path: Path) -> None:
    live = RunData("r")
    with Journal(tmp_path / "journal.sqlite") as journal:
        for event in TWO:
            journal.record(event)
        live.take(TWO)
        past = RunData.from_journal(journal, "r")
        first = RunData.from_journal(journal, "r", before_round=2)
    for number in (1, 2):
        assert past.parts.rounds[number].seconds == pytest.approx(live.parts.rounds[number].seconds)
        assert past.parts.rounds[number].words() == live.parts.rounds[number].words()
    assert past.parts.chosen is not None and past.parts.chosen.level == "P"
    assert list(first.parts.rounds) == [1]
    later = RunData("r")
    later.take(a_round(2, 30.5))
    later.prepend(first)
    assert sorted(later.parts.rounds) == [1, 2]


def test_the_first_download_counts_though_the_run_is_not_known_yet(tmp_path: Path, qapp: QApplication) -> None:
    model = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    for event in TWO:
        model.take([event])
    assert model.live_run is not None
    assert model.live_run.parts.rounds[1].seconds == pytest.approx(WHOLE)
    model.take(a_round(1, 100.0, run="another"))
    assert model.live_run.run == "another" and model.live_run.parts.rounds[1].seconds == pytest.approx(WHOLE)
    model.close()


@pytest.fixture
def card(qapp: QApplication, qtbot) -> Iterator[RoundsCard]:
    theme.apply(qapp, "light")
    made = RoundsCard()
    qtbot.addWidget(made)
    made.resize(760, 300)
    made.show()
    yield made
    theme.apply(qapp, "light")


def test_bars_level_and_words_are_shown_and_follow_the_events(card: RoundsCard, qtbot) -> None:
    data = RunData("r")
    card.show_data(data)
    qtbot.mouseClick(card.tabs[1], Qt.MouseButton.LeftButton)
    assert card.bars.rounds == []
    data.take(TWO)
    card.draw()
    assert "P: it fits the memory." in words(card) and card.reading.text() == data.parts.rounds[2].words()
    assert [each.number for each in card.bars.rounds] == [1, 2]
    qtbot.keyClick(card.bars, Qt.Key.Key_Home)
    assert card.reading.text() == data.parts.rounds[1].words() == card.bars.accessibleDescription()
    qtbot.keyClick(card.bars, Qt.Key.Key_Down)
    assert card.reading.text() == data.parts.rounds[2].words()


def test_the_newest_rounds_are_shown_and_the_keyboard_reaches_the_others(card: RoundsCard, qtbot) -> None:
    data = RunData("r")
    for number in range(1, 41):
        data.take(a_round(number, 30.5 * number))
    card.show_data(data)
    card.show_view(1)
    assert card.bars.rounds[-1].number == 40 and len(card.bars.rounds) < 20
    qtbot.keyClick(card.bars, Qt.Key.Key_Home)
    assert card.bars.rounds[0].number == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_parts_differ_without_colour(card: RoundsCard, qapp: QApplication, scheme: str) -> None:
    theme.apply(qapp, scheme)
    data = RunData("r")
    data.take(TWO)
    card.show_data(data)
    card.show_view(1)
    image = card.grab().toImage().convertToFormat(QImage.Format.Format_Grayscale8)
    bars = card.bars.mapTo(card, card.bars.rect().topLeft())
    row = [image.pixelColor(x, bars.y() + 10).value() for x in range(bars.x(), bars.x() + card.bars.width())]
    assert len(set(row)) > 6  # solid grounds, patterns and gaps
    looks = {(token, pattern) for token, pattern in SIGNS.values()}
    assert len(looks) == len(SIGNS)
