"""The activity page: what left and what came, searched, looked at and taken away."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from tests.ui.page_parts import settle, words
from zk0desk import events
from zk0desk.journal import LedgerEntry
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.activity import ActivityPage


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.fixture
def page(model: AppModel, qtbot) -> ActivityPage:
    widget = ActivityPage(model)
    qtbot.addWidget(widget)
    widget.resize(804, 580)
    return widget


def fill(model: AppModel) -> None:
    """Two messages and a line of the log."""
    contents = {"weights": {"shape": [330], "dtype": "float16"}, "loss-mean": 0.25}
    model.journal.enter(LedgerEntry("received", "train", "arms:9443", 4_800_000, run="run-1", round=3, time=1_700_000_000.0))
    model.journal.enter(
        LedgerEntry("sent", "train-reply", "arms:9443", 2_400_000, "ab" * 32, "run-1", "77", 3, contents, "ok", 1_700_000_060.0)
    )
    model.journal.record(
        events.Notice(severity="error", code="refused", what="The SuperLink does not answer.", why="It was refused.", time=1_700_000_070.0)
    )
    model.journal.flush()


def show(page: ActivityPage, qtbot) -> None:
    page.show()
    qtbot.waitExposed(page)
    settle(qtbot)


def search(page: ActivityPage, text: str, qtbot) -> None:
    page.search.clear()
    qtbot.keyClicks(page.search, text)
    for _ in range(3):  # what was typed while the journal was read is searched after it
        settle(qtbot)


def test_without_a_message_the_page_says_that_nothing_left(page: ActivityPage, qtbot) -> None:
    show(page, qtbot)
    assert page.header.answer.text() == "Nothing has left this computer."
    assert "Each one will be listed here" in words(page.empty) and not page.export.isEnabled()


def test_what_left_and_what_came_is_listed_with_its_sum(page: ActivityPage, qtbot) -> None:
    fill(page.model)
    show(page, qtbot)
    assert page.header.answer.text() == "1 message left this computer, 2.4 MB in all; 1 came."
    assert [row[1:] for row in page.ledger_rows.rows] == [
        ("left", "train-reply", "run-1", "3", "2.4 MB", "ok"),
        ("came", "train", "run-1", "3", "4.8 MB", "ok"),
    ]
    assert page.tables.currentWidget() is page.ledger_view


def test_the_search_finds_a_message(page: ActivityPage, qtbot) -> None:
    fill(page.model)
    show(page, qtbot)
    search(page, "train-reply", qtbot)
    assert [row[2] for row in page.ledger_rows.rows] == ["train-reply"]
    search(page, "nowhere", qtbot)
    assert not page.ledger_rows.rows and page.header.answer.text() == "Nothing fits the search."


def test_a_message_shows_all_that_was_in_it(page: ActivityPage, qtbot) -> None:
    fill(page.model)
    show(page, qtbot)
    assert not page.details.isVisible()
    page.ledger_view.setFocus()
    page.ledger_view.selectRow(0)
    said = words(page.details)
    for fact in ("arms:9443", "2,400,000", "ab" * 32, "float16", "loss-mean: 0.25", "77"):
        assert fact in said
    qtbot.keyClick(page.ledger_view, Qt.Key.Key_Down)
    assert "4,800,000" in words(page.details) and "nothing but its kind" in words(page.details)


def test_the_log_says_what_happened_and_its_details(page: ActivityPage, qtbot) -> None:
    fill(page.model)
    show(page, qtbot)
    qtbot.mouseClick(page.log_tab, Qt.MouseButton.LeftButton)
    assert page.tables.currentWidget() is page.log_view
    assert any("The SuperLink does not answer." in row[1] for row in page.log_rows.rows)
    page.log_view.selectRow(0)
    assert "It was refused." in words(page.details)


def test_what_happens_while_the_page_is_open_appears(page: ActivityPage, qtbot) -> None:
    show(page, qtbot)
    fill(page.model)
    qtbot.waitUntil(lambda: len(page.ledger_rows.rows) == 2, timeout=10_000)
    settle(qtbot)


def test_a_chosen_message_stays_chosen_when_another_comes(page: ActivityPage, qtbot) -> None:
    fill(page.model)
    show(page, qtbot)
    page.ledger_view.selectRow(1)
    page.model.journal.enter(LedgerEntry("received", "evaluate", "arms:9443", 10, time=1_700_000_090.0))
    page.refresh()
    settle(qtbot)
    assert len(page.ledger_rows.rows) == 3 and "4,800,000" in words(page.details)


def test_a_page_that_is_not_shown_reads_nothing(page: ActivityPage, qtbot) -> None:
    show(page, qtbot)
    page.hide()
    assert not page._timer.isActive()


def test_the_messages_are_saved_as_a_table(page: ActivityPage, tmp_path: Path, qtbot) -> None:
    fill(page.model)
    show(page, qtbot)
    page.save_csv(tmp_path / "messages.csv")
    with (tmp_path / "messages.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["When", "Way", "Message", "Run", "Round", "Size", "Outcome"] and len(rows) == 3 and rows[1][2] == "train-reply"


def test_a_folder_that_is_not_there_is_told(page: ActivityPage, tmp_path: Path, qtbot) -> None:
    fill(page.model)
    show(page, qtbot)
    page.save_csv(tmp_path / "none" / "messages.csv")
    assert page.banner.isVisible() and "could not be written" in page.banner.what.text()
