"""How a recording fits the policy: pictures on both sides, names, units and ranges beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtWidgets import QTableWidget

from tests.training.recording_parts import make_recording
from tests.ui.page_parts import settle, words
from tests.ui.test_recordings_page import card, combos, open_page
from tests.ui.whole_window import clipped, overlapping
from zk0desk.settings import ChosenRecording, Recordings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.camera_table import CameraPicture, SlotPicture
from zk0desk.ui.pages.recordings import RecordingsPage


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.fixture
def page(model: AppModel, tmp_path: Path, qtbot) -> RecordingsPage:
    """Two chosen recordings; of `degrees`, the state reaches 57 times as far."""
    folders = [make_recording(tmp_path / "all" / name) for name in ("degrees", "radians")]
    stats = json.loads((folders[0] / "meta/stats.json").read_text())
    stats["observation.state"] = {word: [57.3 * each for each in values] for word, values in stats["observation.state"].items()}
    (folders[0] / "meta/stats.json").write_text(json.dumps(stats))
    chosen = tuple(ChosenRecording(path=path) for path in folders)
    page = open_page(model, qtbot, recordings=Recordings(chosen=chosen))
    page.show_recording(folders[1])
    settle(qtbot)
    return page


def slots(page: RecordingsPage) -> dict[str, SlotPicture]:
    return {each.accessibleName(): each for each in page.details.findChildren(SlotPicture) if each.isVisible()}


def test_each_slot_has_the_cameras_picture_and_what_the_policy_sees_of_it(page: RecordingsPage, qtbot) -> None:
    qtbot.waitUntil(lambda: not slots(page)["What slot camera1 sees"].pixmap().isNull(), timeout=10_000)
    seen = slots(page)["What slot camera1 sees"].pixmap().toImage()
    assert seen.width() == seen.height() and seen.pixelColor(seen.width() // 2, 2).red() == 0, "padded at the top"
    assert slots(page)["What slot camera3 sees"].pixmap().isNull() and "masked" in words(page.details)
    pictures = [each.accessibleName() for each in page.details.findChildren(CameraPicture) if each.isVisible()]
    assert {"Picture of camera top", "Picture of camera wrist", "No camera"} <= set(pictures)


def test_the_pictures_play_while_they_are_seen(page: RecordingsPage, qtbot) -> None:
    seen = slots(page)["What slot camera1 sees"]
    qtbot.waitUntil(lambda: not seen.pixmap().isNull(), timeout=10_000)
    assert seen._turn.isActive() and len(seen._moments) > 3
    first = seen.pixmap().toImage()
    qtbot.waitUntil(lambda: seen.pixmap().toImage() != first, timeout=5_000)
    seen.hide()
    assert not seen._turn.isActive()


def test_another_camera_in_a_slot_shows_there_at_once(page: RecordingsPage, model: AppModel, qtbot) -> None:
    first = combos(page)[0]
    other = first.findText("wrist")
    first.setCurrentIndex(other)
    first.activated.emit(other)
    settle(qtbot)
    assert model.settings.recordings.chosen[1].cameras["camera1"] == "observation.images.wrist"
    assert combos(page)[0].currentText() == "wrist" and combos(page)[1].currentText() == "no camera"


def test_names_units_and_ranges_stand_beside_each_other(page: RecordingsPage) -> None:
    state = next(each for each in page.details.findChildren(QTableWidget) if each.accessibleName() == "State, place by place")
    rows = [[state.item(row, column).text() for column in range(3)] for row in range(2)]
    assert rows == [["1", "joint_0.pos", "rad, m?"], ["1", "in degrees", "°, %?"]]
    assert state.rowCount() == 6 and " to " in state.item(0, 3).text() and "±" in state.item(0, 4).text()
    assert "Places 1 to 3 of the policy's 32" in words(page.details)


def test_what_keeps_two_apart_is_said_in_words(page: RecordingsPage, qtbot) -> None:
    assert "as degrees against radians do" in words(page.details)
    assert "The state seems to be in different units." in page.header.answer.text()
    card(page, "degrees").box.click()
    settle(qtbot)
    assert "different units" not in page.header.answer.text()


def test_it_fits_the_smallest_window(page: RecordingsPage, qtbot) -> None:
    page.resize(804, 580)
    qtbot.waitUntil(lambda: not clipped(page), timeout=5000)
    assert overlapping(page) == []
