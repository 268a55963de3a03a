"""The library on the Recordings page: sorted, filtered, and watched."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QCoreApplication, QPoint

from tests.training.recording_parts import make_recording
from tests.ui.page_parts import settle, words
from tests.ui.test_recordings_page import looked, open_page
from zk0desk.settings import ChosenRecording, Recordings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.recordings import RecordingsPage


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings: a is the smallest, b of another robot and with another camera, c cannot be used."""
    folder = tmp_path / "recordings"
    make_recording(folder / "a", cameras=("top",))
    make_recording(folder / "b", cameras=("side", "wrist"), info=lambda info: info.update(robot_type="koch"))
    make_recording(folder / "c")
    (folder / "c" / "meta" / "info.json").write_text("")
    return folder


def listed(page: RecordingsPage) -> list[str]:
    """The names that can be seen, from the top."""
    for _ in range(3):
        QCoreApplication.processEvents()  # the places follow
    shown = [each for each in page.cards.values() if each.isVisible()]
    return [each.entry.name for each in sorted(shown, key=lambda each: each.mapTo(page, QPoint(0, 0)).y())]


def sort_by(page: RecordingsPage, order: str) -> None:
    next(each for each in page.listing.view.sort_menu.actions() if each.data() == order).trigger()


def only(page: RecordingsPage, words: str) -> None:
    next(each for each in page.listing.view.filter_menu.actions() if each.text() == words).trigger()


def test_a_menu_sorts_the_list(model: AppModel, folder: Path, qtbot) -> None:
    page = open_page(model, qtbot, folder)
    assert listed(page) == ["a", "b", "c"]
    sort_by(page, "size")
    assert listed(page) == ["b", "a", "c"] and page.listing.view.sort_button.text() == "Sort &by size"
    page.listing.view.reverse.trigger()
    assert listed(page) == ["c", "a", "b"] and page.cards[folder / "a"].aside.text().endswith("kB")
    sort_by(page, "date")
    assert page.cards[folder / "a"].aside.text() == time.strftime("%Y-%m-%d")


def test_filters_hide_and_say_so(model: AppModel, folder: Path, qtbot) -> None:
    page = open_page(model, qtbot, folder)
    only(page, "koch (1)")
    assert listed(page) == ["b"] and "2 of 3 hidden by the filter." in words(page)
    assert page.listing.view.filter_button.text() == "Filter: 1"
    only(page, "Cannot be used (1)")
    assert listed(page) == [] and page.listing.view.filter_button.text() == "Filter: 2"
    only(page, "Show all")
    assert listed(page) == ["a", "b", "c"] and "hidden" not in words(page)


def test_the_search_finds_a_camera_too(model: AppModel, folder: Path, qtbot) -> None:
    page = open_page(model, qtbot, folder)
    qtbot.keyClicks(page.listing.search, "wrist")
    assert listed(page) == ["b"] and "2 of 3 hidden by the search." in words(page)


def test_what_comes_changes_and_goes_shows_by_itself(model: AppModel, folder: Path, tmp_path: Path, qtbot, monkeypatch) -> None:
    checked: list[str] = []
    from zk0desk.training import deep_check

    best = deep_check.best_answer
    monkeypatch.setattr(deep_check, "best_answer", lambda path, needs: checked.append(path.name) or best(path, needs))
    page = open_page(model, qtbot, folder)
    assert sorted(checked) == ["a", "b", "c"]
    checked.clear()
    made = make_recording(tmp_path / "elsewhere")
    made.rename(folder / "new")
    qtbot.waitUntil(lambda: listed(page) == ["a", "b", "c", "new"], timeout=15_000)
    assert "4 found" in page.header.answer.text()
    info = folder / "a" / "meta" / "info.json"
    told = json.loads(info.read_text()) | {"robot_type": "a-new-name"}
    info.write_text(json.dumps(told))
    page.show_recording(folder / "a")
    qtbot.waitUntil(lambda: "a-new-name" in words(page.details), timeout=15_000)
    shutil.rmtree(folder / "b")
    qtbot.waitUntil(lambda: listed(page) == ["a", "c", "new"], timeout=15_000)
    assert sorted(checked) == ["a", "new"], "only what changed is read again"
    settle(qtbot)


def test_a_folder_that_is_gone_is_told_and_what_is_chosen_stays_listed(model: AppModel, folder: Path, tmp_path: Path, qtbot) -> None:
    chosen = (ChosenRecording(path=folder / "a"),)
    page = open_page(model, qtbot, recordings=Recordings(folders=(folder,), chosen=chosen))
    folder.rename(tmp_path / "away")
    qtbot.waitUntil(lambda: listed(page) == ["a"] and "is not there now." in words(page), timeout=15_000)
    qtbot.waitUntil(lambda: page.cards[folder / "a"].badge.text() == "Cannot be used", timeout=15_000)
    assert not page.go_on.isEnabled()
    (tmp_path / "away").rename(folder)
    qtbot.waitUntil(lambda: listed(page) == ["a", "b", "c"] and page.go_on.isEnabled(), timeout=15_000)
    assert "is not there now" not in words(page)


def test_the_page_that_is_closed_watches_no_longer(model: AppModel, folder: Path, qtbot) -> None:
    page = open_page(model, qtbot, folder)
    looked(page, qtbot)
    threads = page.library._watch._threads  # type: ignore[union-attr]
    page.close()
    page.deleteLater()
    qtbot.waitUntil(lambda: not any(thread.is_alive() for thread in threads), timeout=10_000)
