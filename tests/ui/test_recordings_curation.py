"""Episodes in or out on the Recordings page: one click a filter, a reason for each, kept by content."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.recording_parts import make_recording
from tests.training.test_curation import other_rows, second_still
from tests.ui.page_parts import settle, words
from tests.ui.test_recordings_page import button, card, open_page
from zk0desk import settings as files
from zk0desk.settings import ChosenRecording, Recordings
from zk0desk.training.curation import content_of
from zk0desk.ui.model import AppModel


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_recording(tmp_path / "all" / "cubes", data=second_still)


def test_a_filter_leaves_out_with_one_click_and_says_why(model: AppModel, folder: Path, qtbot) -> None:
    page = open_page(model, qtbot, recordings=Recordings(chosen=(ChosenRecording(path=folder),)))
    assert "Check every frame to find what is too short" in words(page)
    button(page, "Check every frame").click()
    qtbot.waitUntil(lambda: "no motion: 1" in words(page), timeout=20_000)
    button(page, "Leave out episode 1").click()
    (chosen,) = files.load(model.settings_path).recordings.chosen
    assert chosen.leave_out == (1,) and chosen.reasons == {"1": "no motion"} and chosen.content == content_of(folder)
    assert "Left out, no motion: 1" in words(page) and "1 of 2 are trained on" in words(page)
    assert "1 episode, 1 left out" in page.header.answer.text()
    button(page, "Take back").click()
    assert files.load(model.settings_path).recordings.chosen[0].leave_out == () and "2 of 2 are trained on" in words(page)
    settle(qtbot)


def test_unticked_moved_and_ticked_again_it_is_left_out_again(model: AppModel, folder: Path, qtbot) -> None:
    chosen = ChosenRecording(path=folder, leave_out=(1,), reasons={"1": "the cube fell"}, content=content_of(folder))
    page = open_page(model, qtbot, recordings=Recordings(folders=(folder.parent,), chosen=(chosen,)))
    card(page, "cubes").box.click()
    assert model.settings.recordings.chosen == () and model.settings.recordings.curated[0].content == chosen.content
    folder.rename(folder.parent / "renamed")
    qtbot.waitUntil(lambda: [path.name for path in page.cards] == ["renamed"] and not page.library._waiting, timeout=15_000)
    card(page, "renamed").box.click()
    (again,) = files.load(model.settings_path).recordings.chosen
    assert again.path == folder.parent / "renamed" and again.reasons == {"1": "the cube fell"}
    settle(qtbot)


def test_what_changed_is_asked_about_and_not_trained_on_until_then(model: AppModel, folder: Path, qtbot) -> None:
    chosen = ChosenRecording(path=folder, leave_out=(1,), reasons={"1": "the cube fell"}, content=content_of(folder))
    page = open_page(model, qtbot, recordings=Recordings(folders=(folder.parent,), chosen=(chosen,)))
    assert page.go_on.isEnabled()
    made = make_recording(folder.parent.parent / "new", data=other_rows)
    shutil.rmtree(folder)
    made.rename(folder)
    qtbot.waitUntil(lambda: "has changed since episodes were left out" in page.header.answer.text(), timeout=15_000)
    assert not page.go_on.isEnabled() and "Left out were 1; these may be other episodes now." in words(page)
    button(page, "Keep these numbers").click()
    (kept,) = files.load(model.settings_path).recordings.chosen
    assert kept.leave_out == (1,) and kept.content == content_of(folder) != chosen.content
    assert page.go_on.isEnabled() and "Left out, the cube fell: 1" in words(page)
    settle(qtbot)
