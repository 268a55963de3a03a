"""Looking at episodes: the right picture at the right frame, by pointer and keyboard, and what is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractButton, QLineEdit, QSlider

from tests.training.recording_parts import LENGTHS, make_recording
from tests.ui.page_parts import settle, words
from zk0desk.settings import ChosenRecording, Recordings, Settings
from zk0desk.training.recordings import Finding, Severity
from zk0desk.ui import theme
from zk0desk.ui.episode_viewer import EpisodeViewer
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.recordings import RecordingsPage

NOTHING: dict[int, str] = {}
FINDINGS = (Finding("x", Severity.NOTE, "The arm stands still.", "For long.", "", (1,)), Finding("y", Severity.NOTE, "About all."))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_recording(tmp_path / "r")


def opened(qtbot, folder: Path, left_out: dict[int, str] | None = NOTHING) -> tuple[EpisodeViewer, list[dict]]:
    changes: list[dict] = []
    viewer = EpisodeViewer(folder, FINDINGS, left_out, changes.append)
    qtbot.addWidget(viewer)
    viewer.show()
    qtbot.waitActive(viewer)
    arrived(qtbot, viewer, 0)
    return viewer, changes


def arrived(qtbot, viewer: EpisodeViewer, frame: int) -> None:
    """Wait until every camera shows the grey that the video has at `frame` of the file."""

    def right() -> None:
        assert len(viewer._views) == 2
        for view in viewer._views.values():
            assert view.image is not None and abs(view.image.pixelColor(30, 20).red() - 20 * frame) < 6

    qtbot.waitUntil(right, timeout=10_000)


def test_it_opens_at_the_first_frame(qtbot, folder: Path) -> None:
    viewer, _ = opened(qtbot, folder)
    assert viewer.task.text() == "Put the cube into the box."
    assert [viewer.table.item(row, 1).text() for row in range(2)] == ["0.6", "0.4"]
    qtbot.waitUntil(lambda: len(viewer.state.plot._curves) == 3, timeout=10_000)
    named = [each.text() for each in viewer.state.legend.children() if hasattr(each, "text")]
    assert named == ["joint_0.pos", "joint_1.pos", "joint_2.pos"]
    viewer.close()
    assert not viewer.player.running


def test_keys_step(qtbot, folder: Path) -> None:
    viewer, _ = opened(qtbot, folder)
    key = Qt.Key
    for pressed, frame in ((key.Key_Right, 1), (key.Key_Right, 2), (key.Key_Left, 1), (key.Key_End, 5), (key.Key_Home, 0)):
        qtbot.keyClick(viewer, pressed)
        assert viewer.frame == frame
        arrived(qtbot, viewer, frame)
    qtbot.keyClick(viewer, key.Key_Right, Qt.KeyboardModifier.ShiftModifier)
    assert viewer.frame == 5, "a second is longer than the episode"
    assert viewer.state.plot.cursor.value() == pytest.approx(0.5)
    qtbot.keyClick(viewer, key.Key_Down)
    assert (viewer.place, viewer.frame) == (1, 0)
    arrived(qtbot, viewer, LENGTHS[0])
    qtbot.keyClick(viewer, key.Key_Up)
    assert viewer.place == 0
    viewer.close()


def test_keys_play(qtbot, folder: Path) -> None:
    viewer, _ = opened(qtbot, folder)
    qtbot.keyClick(viewer, Qt.Key.Key_Space)
    assert viewer.playing and viewer.play_button.text() == "Pause"
    qtbot.waitUntil(lambda: not viewer.playing and viewer.frame == 5, timeout=10_000)
    arrived(qtbot, viewer, 5)
    qtbot.keyClick(viewer, Qt.Key.Key_J)
    assert viewer.playing and viewer.speed == -1
    qtbot.keyClick(viewer, Qt.Key.Key_J)
    assert viewer.speed == -2
    qtbot.keyClick(viewer, Qt.Key.Key_L)
    qtbot.keyClick(viewer, Qt.Key.Key_L)
    assert viewer.speed == 0.25
    qtbot.keyClick(viewer, Qt.Key.Key_K)
    assert not viewer.playing
    viewer.close()


def test_scrubbing_shows_the_frame_where_it_ends(qtbot, folder: Path) -> None:
    viewer, _ = opened(qtbot, folder)
    for frame in (5, 1, 4, 0, 3):
        viewer.scrubber.setValue(frame)
    arrived(qtbot, viewer, 3)
    assert viewer.time.text() == "0.30 of 0.60 s · frame 3 of 6"
    viewer.close()


def test_the_list_says_what_was_found(qtbot, folder: Path) -> None:
    viewer, _ = opened(qtbot, folder)
    assert viewer.table.item(0, 3).text() == "" and viewer.table.item(1, 3).text() == "Note: The arm stands still."
    assert "The arm stands still." not in words(viewer)
    viewer.table.setCurrentCell(1, 0)
    assert "The arm stands still." in words(viewer)
    arrived(qtbot, viewer, LENGTHS[0])
    viewer.close()


def test_the_tick_leaves_an_episode_out(qtbot, folder: Path) -> None:
    viewer, changes = opened(qtbot, folder)
    assert viewer.train.isChecked()
    viewer.train.click()
    assert changes == [{0: "left out by hand"}] and viewer.table.item(0, 2).checkState() == Qt.CheckState.Unchecked
    qtbot.keyClick(viewer, Qt.Key.Key_Down)
    viewer.train.click()
    assert len(changes) == 1 and viewer.train.isChecked() and "One has to stay." in words(viewer)
    qtbot.keyClick(viewer, Qt.Key.Key_Up)
    viewer.train.setFocus()
    qtbot.keyClick(viewer.train, Qt.Key.Key_Space)
    assert changes[1:] == [{}] and not viewer.playing
    viewer.table.item(1, 2).setCheckState(Qt.CheckState.Unchecked)
    assert changes[2:] == [{1: "left out by hand"}] and viewer.place == 0 and viewer.train.isChecked()
    viewer.close()


def test_the_list_says_why_an_episode_is_left_out_and_the_reason_can_be_changed(qtbot, folder: Path) -> None:
    found = (Finding("values-jump", Severity.NOTE, "The arm jumps.", "", "", (1,)),)
    changes: list[dict] = []
    viewer = EpisodeViewer(folder, found, {}, changes.append)
    qtbot.addWidget(viewer)
    viewer.show()
    arrived(qtbot, viewer, 0)
    assert not viewer.reason.isVisible()
    viewer.go_to(1)
    viewer.train.click()
    assert changes == [{1: "the arm jumps"}], "what was found of it is the reason"
    assert viewer.table.item(1, 3).text() == "the arm jumps; Note: The arm jumps."
    viewer.reason.setText("a hand in the picture")
    qtbot.keyClick(viewer.reason, Qt.Key.Key_Return)
    assert changes[1:] == [{1: "a hand in the picture"}] and "a hand in the picture" in viewer.table.item(1, 3).text()
    viewer.close()


def test_nothing_is_left_out_of_what_is_not_chosen(qtbot, folder: Path) -> None:
    viewer, _ = opened(qtbot, folder, None)
    assert not viewer.train.isEnabled() and "Choose the recording" in words(viewer)
    viewer.close()


def test_a_damaged_video_leaves_the_other_camera(qtbot, folder: Path) -> None:
    (folder / "videos/observation.images.top/chunk-000/file-000.mp4").write_bytes(b"no video" * 500)
    viewer = EpisodeViewer(folder, (), {}, lambda _: None)
    qtbot.addWidget(viewer)
    viewer.show()
    qtbot.waitUntil(lambda: len(viewer._views) == 2 and all(view.words != "Decoding…" for view in viewer._views.values()), timeout=10_000)
    top, wrist = viewer._views.values()
    assert "cannot be played" in top.words and wrist.image is not None
    viewer.close()


def test_a_table_that_cannot_be_read_is_said(qtbot, folder: Path) -> None:
    (folder / "meta/episodes/chunk-000/file-000.parquet").write_bytes(b"no table")
    viewer = EpisodeViewer(folder, (), {}, lambda _: None)
    qtbot.addWidget(viewer)
    viewer.show()
    qtbot.waitUntil(viewer.banner.isVisible, timeout=10_000)
    assert "cannot be read" in words(viewer)
    viewer.close()


def test_every_control_has_a_name_in_both_themes(qtbot, qapp, folder: Path) -> None:
    viewer, _ = opened(qtbot, folder)
    for kind in (QAbstractButton, QSlider):
        for each in viewer.findChildren(kind):
            assert each.accessibleName() or each.text() or not each.isVisible() or each.parent() is viewer.table, each
    theme.apply(qapp, "dark")
    assert not viewer.grab().isNull()
    theme.apply(qapp, "light")
    viewer.close()


def test_the_details_open_it_and_keep_what_it_leaves_out(qtbot, qapp, tmp_path: Path, folder: Path) -> None:
    model = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    chosen = (ChosenRecording(path=folder),)
    model.update_settings(Settings.model_validate({"recordings": Recordings(folders=(folder,), chosen=chosen)}))
    page = RecordingsPage(model)
    qtbot.addWidget(page)
    page.show()
    qtbot.waitUntil(lambda: folder in page.results and page.shown == folder, timeout=30_000)
    button = next(each for each in page.details.findChildren(QAbstractButton) if each.accessibleName() == "Look at the episodes")
    button.click()
    (viewer,) = page.findChildren(EpisodeViewer)
    qtbot.waitUntil(lambda: viewer.listing is not None, timeout=10_000)
    viewer.train.click()
    assert model.settings.recordings.chosen[0].leave_out == (0,)
    viewer.close()
    qapp.processEvents()
    fields = [each.text() for each in page.details.findChildren(QLineEdit) if "not trained on" in each.accessibleName()]
    assert "0" in fields
    settle(qtbot)
    model.close()
