"""The recordings page: what is found, what is wrong with it, and what is chosen."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QMimeData, Qt, QUrl
from PySide6.QtWidgets import QAbstractButton, QComboBox, QLineEdit, QProgressBar, QWidget
from pytestqt.exceptions import TimeoutError as QtTimeout

from tests.training.recording_parts import Table, make_recording
from tests.ui.page_parts import drop, settle, words
from tests.ui.whole_window import clipped, overlapping
from zk0desk import settings as files
from zk0desk.control import NodeControl
from zk0desk.settings import ChosenRecording, Policy, Recordings, Settings
from zk0desk.training.recordings import Camera, CheckResult, Finding, Progress, Recording, Severity
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.recording_list import RecordingCard
from zk0desk.ui.pages.recording_words import duration, megabytes, thousands
from zk0desk.ui.pages.recordings import RecordingsPage
from zk0desk.ui.pages.repair_dialog import RepairDialog
from zk0desk.ui.widgets import FindingRow


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


def open_page(model: AppModel, qtbot, *folders: Path, **sections: object) -> RecordingsPage:
    """The page after it looked into `folders`."""
    recordings = sections.pop("recordings", None) or Recordings(folders=folders)
    model.update_settings(Settings.model_validate({"recordings": recordings, **sections}))
    page = RecordingsPage(model)
    qtbot.addWidget(page)
    page.resize(1084, 740)
    page.show()
    qtbot.waitExposed(page)
    looked(page, qtbot)
    return page


def looked(page: RecordingsPage, qtbot) -> None:
    """Wait until the page has checked all that it found."""
    qtbot.waitUntil(lambda: not page.header.answer.text().startswith("Looking"), timeout=30_000)
    for _ in range(len(page.cards) + 20):
        settle(qtbot)


def card(page: RecordingsPage, name: str) -> RecordingCard:
    return next(each for path, each in page.cards.items() if path.name == name)


def combos(page: RecordingsPage) -> list[QComboBox]:
    return [box for box in page.findChildren(QComboBox) if box.isVisible()]


def test_without_a_recording_the_page_helps(model: AppModel, qtbot) -> None:
    page = open_page(model, qtbot)
    assert page.empty.isVisible() and "Add the folder that holds yours" in words(page) and page.empty.button.isVisible()
    assert not page.go_on.isEnabled()
    assert "nothing leaves this computer" in page.header.answer.text()


def test_a_dropped_folder_is_looked_into_and_remembered(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot)
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(demo_recording.parent))])
    drop(page, data)
    looked(page, qtbot)
    assert files.load(model.settings_path).recordings.folders == (demo_recording.parent,)
    assert list(page.cards) == [demo_recording] and not page.empty.isVisible()


def test_a_recording_is_shown_with_its_facts_and_its_picture(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot, demo_recording)
    said = words(page)
    for fact in ("2 / 80", "fps", "never leaves", "What the check found"):
        assert fact in said
    assert not card(page, "node-0").picture.pixmap().isNull()
    assert page.header.answer.text() == "1 found. Choose those that this computer trains on."


def test_choosing_is_kept_and_leaving_out_too(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot, demo_recording)
    assert not page.go_on.isEnabled()
    card(page, "node-0").box.click()
    assert files.load(model.settings_path).recordings.chosen == (ChosenRecording(path=demo_recording),)
    assert "1 of 1 chosen: 2 episodes, 80 frames." in page.header.answer.text() and page.go_on.isEnabled()
    card(page, "node-0").box.click()
    assert files.load(model.settings_path).recordings.chosen == () and not page.go_on.isEnabled()
    settle(qtbot)


def test_what_was_chosen_is_ticked_and_shown_at_the_next_start(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot, recordings=Recordings(chosen=(ChosenRecording(path=demo_recording),)))
    assert card(page, "node-0").box.isChecked() and page.shown == demo_recording and page.go_on.isEnabled()


def test_a_chosen_recording_that_is_gone_is_told(model: AppModel, tmp_path: Path, qtbot) -> None:
    page = open_page(model, qtbot, recordings=Recordings(chosen=(ChosenRecording(path=tmp_path / "gone"),)))
    assert "gone cannot be trained on as it is." in page.header.answer.text()
    assert card(page, "gone").badge.text() == "Cannot be used" and not page.go_on.isEnabled()
    card(page, "gone").box.click()
    assert model.settings.recordings.chosen == ()


def test_the_next_page_is_offered(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot, recordings=Recordings(chosen=(ChosenRecording(path=demo_recording),)))
    with qtbot.waitSignal(model.showPage) as shown:
        qtbot.mouseClick(page.go_on, Qt.MouseButton.LeftButton)
    assert shown.args == ["computer"]


def test_the_keyboard_chooses_and_shows(model: AppModel, demo_recording: Path, tmp_path: Path, qtbot) -> None:
    (tmp_path / "other" / "meta").mkdir(parents=True)
    (tmp_path / "other" / "meta" / "info.json").write_text("")
    page = open_page(model, qtbot, demo_recording, tmp_path / "other")
    first, second = card(page, "node-0"), card(page, "other")
    first.setFocus()
    qtbot.keyClick(first, Qt.Key.Key_Space)
    assert model.settings.recordings.chosen == (ChosenRecording(path=demo_recording),)
    second.setFocus()
    qtbot.keyClick(second, Qt.Key.Key_Return)
    assert page.shown == tmp_path / "other" and second.property("chosen") == "true" and first.property("chosen") == "false"
    qtbot.keyClick(second, Qt.Key.Key_Space)
    assert len(model.settings.recordings.chosen) == 1, "what cannot be used cannot be chosen"
    settle(qtbot)


def test_the_search_hides_what_does_not_fit(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot, demo_recording)
    qtbot.keyClicks(page.listing.search, "no such arm")
    assert not card(page, "node-0").isVisible()
    page.listing.search.clear()
    qtbot.keyClicks(page.listing.search, "NODE")
    assert card(page, "node-0").isVisible()


def test_a_slot_is_given_another_camera_and_it_is_kept(model: AppModel, tmp_path: Path, demo_policy: Path, qtbot) -> None:
    chosen = (ChosenRecording(path=make_recording(tmp_path / "cubes")),)
    page = open_page(model, qtbot, recordings=Recordings(chosen=chosen), policy=Policy(folder=demo_policy))
    box = combos(page)[0]
    assert box.isEnabled() and box.accessibleName().startswith("Camera for slot ")
    wanted, slot = "observation.images.wrist", box.accessibleName().removeprefix("Camera for slot ")
    assert box.currentData() == "observation.images.top"
    box.setCurrentIndex(box.findData(wanted))
    box.activated.emit(box.currentIndex())
    settle(qtbot)
    assert files.load(model.settings_path).recordings.chosen[0].cameras[slot] == wanted
    qtbot.waitUntil(lambda: bool(combos(page)))
    assert combos(page)[0].currentData() == wanted


def test_one_slot_has_to_keep_a_camera(model: AppModel, demo_recording: Path, demo_policy: Path, qtbot) -> None:
    page = open_page(model, qtbot, recordings=Recordings(chosen=(ChosenRecording(path=demo_recording),)), policy=Policy(folder=demo_policy))
    filled = [box for box in combos(page) if box.currentData()]
    for box in filled[1:]:
        box.setCurrentIndex(0)
        box.activated.emit(0)
        settle(qtbot)
    box = next(each for each in combos(page) if each.currentData())
    before = box.currentData()
    box.setCurrentIndex(0)
    box.activated.emit(0)
    assert box.currentData() == before and "One slot needs a camera." in words(page)
    settle(qtbot)


def test_slots_can_be_set_only_for_what_is_chosen(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot, demo_recording)
    assert combos(page) and not any(box.isEnabled() for box in combos(page))
    card(page, "node-0").box.click()
    settle(qtbot)
    qtbot.waitUntil(lambda: bool(combos(page)) and all(box.isEnabled() for box in combos(page)))


def test_episodes_are_left_out_and_a_wrong_number_is_told(model: AppModel, demo_recording: Path, qtbot) -> None:
    page = open_page(model, qtbot, recordings=Recordings(chosen=(ChosenRecording(path=demo_recording),)))
    for typed, said, kept in (("1", "", (1,)), ("7", "Numbers from 0 to 1.", (1,)), ("0, 1", "One has to stay.", (1,)), ("", "", ())):
        name = "Episodes that are not trained on"
        (field,) = [each for each in page.details.findChildren(QLineEdit) if each.accessibleName() == name and each.isVisible()]
        field.clear()
        qtbot.keyClicks(field, typed)
        qtbot.keyClick(field, Qt.Key.Key_Return)
        assert files.load(model.settings_path).recordings.chosen[0].leave_out == kept
        assert said in words(page)


def test_real_recordings_have_their_verdicts_in_words(model: AppModel, shared_recordings: Path, qtbot) -> None:
    page = open_page(model, qtbot, shared_recordings)
    badges = {path.name: each.badge.text() for path, each in page.cards.items()}
    assert badges["cr5-cube"] == "Ready" and badges["cr5-cube-v21"] == "Can be converted"
    for name in ("empty-info-json", "lfs-pointers-v30", "piper-info-says-105-has-19", "so101-novideo"):
        assert badges[name] == "Cannot be used" and not card(page, name).box.isEnabled(), name
        page.show_recording(card(page, name).result.path)
        rows = [row for row in page.findChildren(FindingRow) if not row.isHidden()]
        assert rows and all(row.what.text() and row.why.text() for row in rows), name
    card(page, "cr5-cube").box.click()
    card(page, "cr5-banana").box.click()
    assert "They fit the policy and each other." in page.header.answer.text()
    settle(qtbot)


def test_looking_again_finds_what_came(model: AppModel, demo_recording: Path, tmp_path: Path, qtbot) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    page = open_page(model, qtbot, folder)
    assert page.empty.isVisible()
    (folder / "arm").symlink_to(demo_recording)
    page.look()
    looked(page, qtbot)
    assert [path.name for path in page.cards] == ["arm"]


@pytest.mark.parametrize("chosen", [False, True])
def test_long_names_many_joints_and_three_cameras_fit_the_smallest_window(chosen: bool, model: AppModel, tmp_path: Path, qtbot) -> None:
    joints = tuple(f"{joint}.pos" for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"))
    recording = Recording(
        path=tmp_path / "arm", name="so101-kitchen-cubes-of-a-long-winter-evening-with-both-arms", robot="so101_follower_with_a_long_name",
        version="v3.0", episodes=48, frames=37_812, fps=30.0, duration=1260.0,
        cameras=tuple(Camera(f"observation.images.{name}", 640, 480, "av1") for name in ("front", "wrist", "top")),
        state_names=joints, action_names=joints, state_dim=6, action_dim=6, bytes_on_disk=612_000_000,
        tasks=("put the cube into the box", "take the cube out of the box again and give it to whoever asks for it"),
    )  # fmt: skip
    why, remedy = "The metadata name 105 episodes and the data hold 19; none of the two cameras has a video.", "Fetch the recording again."
    finding = Finding("short", Severity.NOTE, "Episodes 7 and 31 are shorter than one action chunk of the policy.", why, remedy)
    if chosen:
        model.update_settings(Settings(recordings=Recordings(chosen=(ChosenRecording(path=recording.path),))))
    page = RecordingsPage(model)
    qtbot.addWidget(page)
    page._looked = True
    page.resize(804, 580)
    page.show()
    page._layers.setCurrentIndex(1)
    page.results[recording.path] = CheckResult(recording.path, recording, "ok", (finding,))
    page._rebuild()
    settle(qtbot)
    assert (page.width(), page.height()) == (804, 580)
    with contextlib.suppress(QtTimeout):  # the assertion says what does not fit
        qtbot.waitUntil(lambda: not clipped(page), timeout=3000)
    assert clipped(page) == [] and overlapping(page) == []


@pytest.mark.parametrize(("seconds", "said"), [(53, "53 s"), (1260, "21 min"), (3900, "65 min"), (7500, "2 h 5 min")])
def test_durations_are_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_sizes_and_counts_are_for_people() -> None:
    assert megabytes(612_000_000) == "612.0 MB" and megabytes(12_000) == "12 kB" and megabytes(6_000_000_000) == "6.0 GB"
    assert thousands(38_342) == "38\u202f342"


# --- every frame, and a copy that can be trained on


def late(table: Table) -> None:
    table["timestamp"] = table["timestamp"] + np.float32(0.02)


def button(page: QWidget, text: str) -> QAbstractButton:
    return next(each for each in page.findChildren(QAbstractButton) if each.isVisible() and each.text().replace("&", "") == text)


def test_every_frame_is_checked_on_request_and_the_answer_stays(model: AppModel, tmp_path: Path, qtbot) -> None:
    folder = make_recording(tmp_path / "cubes", data=late)
    page = open_page(model, qtbot, folder)
    assert "Every row was read" not in words(page)
    button(page, "Check every frame").click()
    qtbot.waitUntil(lambda: "Every row was read" in words(page), timeout=20_000)
    assert "Episodes 0, 1." in words(page)
    # Another start finds the answer where it was kept.
    again = open_page(model, qtbot, folder)
    assert "Every row was read" in words(again)
    assert button(again, "Check every frame again").isEnabled()


def test_a_deep_check_shows_how_far_it_is_and_can_be_cancelled(model: AppModel, tmp_path: Path, qtbot, monkeypatch) -> None:
    release = threading.Event()

    def slow(_path: Path, needs: object, *, control: NodeControl, progress: Callable[[Progress], None], again: bool) -> CheckResult:
        progress(Progress(30, 100, "file-000.parquet"))
        while not release.wait(0.01):
            control.check()
        raise AssertionError("it was not cancelled")

    folder = make_recording(tmp_path / "cubes")
    page = open_page(model, qtbot, folder)
    monkeypatch.setattr("zk0desk.training.recordings.deep_check", slow)
    button(page, "Check every frame").click()
    qtbot.waitUntil(lambda: "30 %  file-000.parquet" in words(page))
    (bar,) = [each for each in page.findChildren(QProgressBar) if each.isVisible()]
    assert bar.value() == 30
    button(page, "Cancel").click()
    qtbot.waitUntil(lambda: not page._checks[folder].running, timeout=10_000)
    assert button(page, "Check every frame").isEnabled()
    assert "It can be read and fits the policy" in words(page)


def test_a_recording_is_repaired_on_a_copy_that_takes_its_place(model: AppModel, tmp_path: Path, qtbot) -> None:
    folder = make_recording(tmp_path / "cubes", data=late)
    before = (folder / "data/chunk-000/file-000.parquet").read_bytes()
    page = open_page(model, qtbot, recordings=Recordings(folders=(folder,), chosen=(ChosenRecording(path=folder),)))
    assert "cannot be trained on as it is" in page.header.answer.text()
    button(page, "Repair a copy…").click()
    (dialog,) = page.findChildren(RepairDialog)
    qtbot.waitUntil(dialog.go.isEnabled, timeout=30_000)
    assert "stays as it is" in dialog.answer.text() and "of disk" in dialog.answer.text()
    assert dialog.place.text() == str(tmp_path / "cubes-repaired")
    with qtbot.waitSignal(dialog.made, timeout=60_000):
        dialog.go.click()
    looked(page, qtbot)
    copy = tmp_path / "cubes-repaired"
    qtbot.waitUntil(lambda: copy in page.results, timeout=20_000)
    assert page.results[copy].status == "ok" and page.shown == copy
    assert [each.path for each in model.settings.recordings.chosen] == [copy]
    assert page.go_on.isEnabled()
    assert (folder / "data/chunk-000/file-000.parquet").read_bytes() == before


def test_broken_episodes_are_left_out_of_a_copy_which_is_said_beforehand(model: AppModel, tmp_path: Path, qtbot) -> None:
    def no_number(table) -> None:
        table["action"][3][0] = np.nan

    page = open_page(model, qtbot, make_recording(tmp_path / "cubes", data=no_number))
    assert "An action that is no number" in words(page) or "an action that is no number" in words(page)
    button(page, "Repair a copy…").click()
    (dialog,) = page.findChildren(RepairDialog)
    qtbot.waitUntil(dialog.go.isEnabled, timeout=30_000)
    assert "1 of 2 episodes are left out: 0" in words(dialog)
    dialog.reject()


def test_the_videos_of_a_good_recording_are_encoded_anew_on_request(model: AppModel, tmp_path: Path, qtbot) -> None:
    page = open_page(model, qtbot, make_recording(tmp_path / "cubes"))
    button(page, "Make a copy…").click()
    (dialog,) = page.findChildren(RepairDialog)
    qtbot.waitUntil(lambda: "no copy is needed" in dialog.answer.text(), timeout=30_000)
    assert not dialog.go.isEnabled()
    dialog.reencode.click()
    qtbot.waitUntil(dialog.go.isEnabled, timeout=30_000)
    assert "H.264" in words(dialog)
    with qtbot.waitSignal(dialog.made, timeout=60_000):
        dialog.go.click()
    codecs = {feature["info"]["video.codec"] for feature in info_of(tmp_path / "cubes-repaired") if feature["dtype"] == "video"}
    assert codecs == {"h264"}


def info_of(folder: Path) -> list[dict]:
    return list(json.loads((folder / "meta/info.json").read_text())["features"].values())


def test_a_copy_that_cannot_be_made_says_why(model: AppModel, tmp_path: Path, qtbot) -> None:
    folder = make_recording(tmp_path / "cubes", data=late)
    page = open_page(model, qtbot, folder)
    button(page, "Repair a copy…").click()
    (dialog,) = page.findChildren(RepairDialog)
    qtbot.waitUntil(dialog.go.isEnabled, timeout=30_000)
    dialog.place.setText(str(folder / "inside"))
    dialog.go.click()
    qtbot.waitUntil(lambda: "cannot lie in the recording itself" in dialog.step.text(), timeout=60_000)
    assert dialog.go.isEnabled() and not (folder / "inside").exists()
    dialog.reject()
