"""Prepared frames of a recording that is taken out of the list: they go, can be kept, and it is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from tests.training.cache_parts import ENTRIES, shelf, values
from tests.ui.page_parts import settle
from zk0desk.settings import Cache, ChosenRecording, Recordings, Settings
from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.prepared_removal import PreparedRemoval

CUBES, CUPS = Path("/recordings/cubes"), Path("/recordings/cups")


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    chosen = tuple(ChosenRecording(path=path) for path in (CUBES, CUPS))
    made.update_settings(Settings(recordings=Recordings(chosen=chosen), cache=Cache(folder=tmp_path / "cache")))
    with PrefixCache(tmp_path / "cache", 10**9, keep_free=0) as cache:
        for name in ("cubes", "cups"):
            shelf(cache, name=name).write(range(ENTRIES), values(range(ENTRIES)))
    yield made
    made.close()


@pytest.fixture
def banner(model: AppModel, qtbot) -> PreparedRemoval:
    made = PreparedRemoval(model)
    qtbot.addWidget(made)
    made.begin()
    return made


def choose(model: AppModel, *paths: Path, qtbot) -> None:
    recordings = Recordings(chosen=tuple(ChosenRecording(path=path) for path in paths))
    model.update_settings(model.settings.model_copy(update={"recordings": recordings}))
    settle(qtbot)


def kept(model: AppModel) -> set[str]:
    folder = model.settings.cache.folder
    assert folder is not None
    with PrefixCache(folder) as cache:
        return {each.about["recording"] for each in cache.shelves()}


def test_they_go_after_a_moment_and_it_is_said(banner: PreparedRemoval, model: AppModel, qtbot) -> None:
    choose(model, CUPS, qtbot=qtbot)
    assert banner.isVisible() and "cubes are removed in a moment" in banner.what.text() and kept(model) == {"cubes", "cups"}
    banner._timer.setInterval(1)
    banner._timer.start()
    qtbot.waitUntil(lambda: "were removed" in banner.what.text(), timeout=10_000)
    assert kept(model) == {"cups"} and not banner.keep.isVisible()


def test_a_person_can_keep_them_or_choose_the_recording_again(banner: PreparedRemoval, model: AppModel, qtbot) -> None:
    choose(model, CUPS, qtbot=qtbot)
    qtbot.mouseClick(banner.keep, Qt.MouseButton.LeftButton)
    assert not banner.isVisible() and not banner._timer.isActive()
    choose(model, CUBES, qtbot=qtbot)
    assert "cups" in banner.what.text()
    choose(model, CUBES, CUPS, qtbot=qtbot)
    assert not banner.isVisible() and not banner._timer.isActive() and kept(model) == {"cubes", "cups"}


def test_the_setting_keeps_them(banner: PreparedRemoval, model: AppModel, qtbot) -> None:
    cache = model.settings.cache.model_copy(update={"keep_after_removal": True})
    model.update_settings(model.settings.model_copy(update={"cache": cache}))
    choose(model, qtbot=qtbot)
    assert not banner.isVisible() and kept(model) == {"cubes", "cups"}


def test_those_in_use_stay_and_it_says_where_to_remove_them(banner: PreparedRemoval, model: AppModel, qtbot) -> None:
    folder = model.settings.cache.folder
    assert folder is not None
    with PrefixCache(folder, 10**9, keep_free=0) as cache:
        shelf(cache, name="cubes")
        choose(model, CUPS, qtbot=qtbot)
        banner.remove()
        settle(qtbot)
        assert "in use by a running node" in banner.what.text() and "This computer" in banner.why.text()
    assert kept(model) == {"cubes", "cups"}


def test_closing_the_window_within_the_moment_removes_them(banner: PreparedRemoval, model: AppModel, qtbot) -> None:
    choose(model, CUPS, qtbot=qtbot)
    banner._quit()
    banner._timer.stop()
    assert kept(model) == {"cups"}
