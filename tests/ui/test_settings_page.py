"""The settings page: each value is checked beside its field, and the file keeps its comments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QLineEdit

from tests.ui.page_parts import words
from zk0desk import settings as files
from zk0desk.settings import Settings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.settings_page import ELSEWHERE, SettingsPage

FILE = """# written by hand, on a rainy day
[training]
threads = 3  # the other cores are for the arm
device = "cpu"
"""


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    (tmp_path / "settings.toml").write_text(FILE)
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.fixture
def page(model: AppModel, qtbot) -> SettingsPage:
    widget = SettingsPage(model)
    qtbot.addWidget(widget)
    widget.resize(804, 580)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


def line(page: SettingsPage, section: str, name: str) -> QLineEdit:
    control = page.fields[section, name].control
    assert isinstance(control, QLineEdit)
    return control


def on_disk(page: SettingsPage) -> str:
    assert page.model.settings_path is not None
    return page.model.settings_path.read_text()


def test_every_setting_is_there_with_its_meaning(page: SettingsPage) -> None:
    said = words(page)
    for section, info in Settings.model_fields.items():
        for name, field in type(getattr(Settings(), section)).model_fields.items():
            assert (section, name) in ELSEWHERE or ((section, name) in page.fields and field.description in said), info


def test_what_the_file_holds_is_shown(page: SettingsPage) -> None:
    assert line(page, "training", "threads").text() == "3"


def test_a_value_that_cannot_be_is_told_beside_its_field_and_not_kept(page: SettingsPage, qtbot) -> None:
    threads = line(page, "training", "threads")
    threads.selectAll()
    qtbot.keyClicks(threads, "9999")
    problem = page.fields["training", "threads"].problem
    assert problem.isVisible() and "1024" in problem.text() and "The value before is kept." in problem.text()
    assert "One value cannot be used" in page.header.answer.text()
    page.save()
    assert on_disk(page) == FILE and page.model.settings.training.threads == 3
    assert [field.name for field in page.fields.values() if field.problem.isVisible()] == ["threads"]


def test_how_long_the_noise_is_is_said_while_it_is_typed(page: SettingsPage, qtbot) -> None:
    from tests.federation.node_parts import invitation

    assert not page.noise.isVisible(), "there is none"
    multiplier = line(page, "privacy", "noise_multiplier")
    multiplier.selectAll()
    qtbot.keyClicks(multiplier, "2")
    assert "once there is an invitation" in page.noise.text()
    settings = page.model.settings
    line_ = invitation(trainable_parameters=10_000, parameters=20_000).to_line()
    page.model.update_settings(settings.model_copy(update={"federation": settings.federation.model_copy(update={"invitation": line_})}))
    multiplier.selectAll()
    qtbot.keyClicks(multiplier, "3")
    assert page.noise.text().startswith("The noise will be 300 times as long as an update may be at most.")


def test_a_word_where_a_number_belongs_is_told(page: SettingsPage, qtbot) -> None:
    threads = line(page, "training", "threads")
    threads.selectAll()
    qtbot.keyClicks(threads, "many")
    assert "valid integer" in page.fields["training", "threads"].problem.text()


def test_a_typed_value_is_written_by_itself_and_comments_stay(page: SettingsPage, qtbot) -> None:
    threads = line(page, "training", "threads")
    threads.selectAll()
    with qtbot.waitSignal(page.model.settingsChanged):
        qtbot.keyClicks(threads, "12")
    written = on_disk(page)
    assert "threads = 12" in written and "# written by hand, on a rainy day" in written and "# the other cores are for the arm" in written
    assert files.load(page.model.settings_path).training.device == "cpu"


def test_a_wrong_value_mended_is_kept(page: SettingsPage, qtbot) -> None:
    threads = line(page, "training", "threads")
    threads.selectAll()
    qtbot.keyClicks(threads, "9999")
    qtbot.keyClick(threads, Qt.Key.Key_Backspace)
    page.save()
    assert page.fields["training", "threads"].problem.isHidden() and page.model.settings.training.threads == 999
    assert page.header.answer.text() == "Changes are kept as you make them."


def test_choices_and_boxes_are_kept(page: SettingsPage) -> None:
    theme = page.fields["appearance", "theme"].control
    assert isinstance(theme, QComboBox)
    theme.setCurrentText("dark")
    box = page.fields["federation", "allow_evaluation"].control
    assert isinstance(box, QCheckBox)
    box.click()
    page.save()
    kept = files.load(page.model.settings_path)
    assert kept.appearance.theme == "dark" and kept.federation.allow_evaluation


def test_several_folders_are_one_line(page: SettingsPage, tmp_path: Path, qtbot) -> None:
    qtbot.keyClicks(line(page, "recordings", "folders"), f"{tmp_path}/a; {tmp_path}/b")
    page.save()
    assert page.model.settings.recordings.folders == (tmp_path / "a", tmp_path / "b")


def test_the_wheel_scrolls_the_page_and_changes_no_choice(page: SettingsPage, qapp) -> None:
    device = page.fields["training", "device"].control
    assert isinstance(device, QComboBox) and not device.hasFocus()
    none, middle = Qt.KeyboardModifier.NoModifier, QPointF(10, 10)
    wheel = QWheelEvent(middle, middle, QPoint(), QPoint(0, -120), Qt.MouseButton.NoButton, none, Qt.ScrollPhase.NoScrollPhase, False)
    qapp.sendEvent(device, wheel)
    assert device.currentText() == "cpu"


def test_what_is_typed_is_kept_when_the_page_is_left_at_once(page: SettingsPage, qtbot) -> None:
    threads = line(page, "training", "threads")
    threads.selectAll()
    qtbot.keyClicks(threads, "7")
    page.hide()
    assert "threads = 7" in on_disk(page)


def test_a_change_made_elsewhere_is_shown(page: SettingsPage) -> None:
    settings = page.model.settings
    page.model.update_settings(settings.model_copy(update={"training": settings.training.model_copy(update={"threads": 5})}))
    assert line(page, "training", "threads").text() == "5"


def test_a_damaged_file_is_told_and_read_again_after_it_was_mended(model: AppModel, qtbot) -> None:
    assert model.settings_path is not None
    model.settings_path.write_text("[training]\nthreads = -1\n")
    page = SettingsPage(model)
    qtbot.addWidget(page)
    page.show()
    assert page.banner.isVisible() and "threads" in words(page.banner)
    model.settings_path.write_text(FILE)
    page._read_again()
    assert page.banner.isHidden() and line(page, "training", "threads").text() == "3"
