"""What holds on every page, in both schemes, in the smallest window: nothing is cut off, and the keyboard reaches all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractButton, QApplication, QPlainTextEdit, QWidget

from tests.federation.coordinator_parts import make_server
from tests.ui.page_parts import settle
from tests.ui.whole_window import (
    CONTROLS,
    clipped,
    controls,
    described,
    fill_journal,
    go_to,
    is_a_part,
    is_one_of_a_group,
    make_model,
    overlapping,
    training,
    walk,
    whole_window,
)
from zk0desk.settings import Federation, Policy, Recordings, Settings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages import PAGES
from zk0desk.ui.pages.federation import FederationPage
from zk0desk.ui.pages.recordings import RecordingsPage
from zk0desk.ui.window import MainWindow

pytestmark = pytest.mark.timeout(120)
IDS = [spec.page_id for spec in PAGES]


@pytest.fixture
def full(tmp_path: Path, demo_recording: Path, demo_policy: Path, qapp) -> AppModel:
    """A model with something to show on every page."""
    model = make_model(tmp_path, (demo_recording,), demo_policy)
    fill_journal(model)
    return model


@pytest.fixture
def window(full: AppModel, qtbot) -> Iterator[MainWindow]:
    with whole_window(full, qtbot) as made:
        yield made


@pytest.mark.parametrize("state", ["empty", "full", "training"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_the_smallest_window_nothing_is_cut_off(
    scheme: str, state: str, tmp_path: Path, demo_recording: Path, demo_policy: Path, qtbot
) -> None:
    model = make_model(tmp_path) if state == "empty" else make_model(tmp_path, (demo_recording,), demo_policy)
    if state != "empty":
        fill_journal(model)
    wrong = []
    with whole_window(model, qtbot, scheme) as window:  # type: ignore[arg-type]
        if state == "training":
            training(model)
        for page_id in IDS:
            go_to(window, page_id, qtbot)
            assert (window.width(), window.height()) == (1000, 640), page_id
            wrong += [f"{page_id}: {each}" for each in (*clipped(window), *overlapping(window))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page_id", IDS)
def test_tab_reaches_every_control_and_comes_back(page_id: str, window: MainWindow, qtbot) -> None:
    page = go_to(window, page_id, qtbot)
    start = window.sidebar.buttons[page_id]
    wanted = [each for each in controls(page) if not is_one_of_a_group(each)]
    assert wanted
    forward = walk(qtbot, start)
    back = walk(qtbot, start, Qt.Key.Key_Backtab)
    for way, reached in (("Tab", forward), ("Shift+Tab", back)):
        missed = [described(each) for each in wanted if each not in reached]
        assert not missed, f"{way} does not reach {missed}"
    assert set(map(id, forward)) == set(map(id, back))


@pytest.mark.parametrize("page_id", IDS)
def test_every_control_has_a_name(page_id: str, window: MainWindow, qtbot) -> None:
    import pyqtgraph

    page = go_to(window, page_id, qtbot)
    nameless = [
        type(each).__name__
        for each in page.findChildren(QWidget)
        if isinstance(each, (*CONTROLS, pyqtgraph.PlotWidget))
        and not is_a_part(each)
        and not (each.isHidden() and isinstance(each, QAbstractButton) and not each.text())
        and not (each.accessibleName() or (isinstance(each, QAbstractButton) and each.text().replace("&", "")))
    ]
    assert not nameless


@pytest.mark.parametrize("page_id", IDS)
def test_no_two_buttons_that_are_seen_together_have_the_same_letter(page_id: str, window: MainWindow, qtbot) -> None:
    go_to(window, page_id, qtbot)
    taken: dict[str, str] = {}
    for button in window.findChildren(QAbstractButton):
        text = button.text().replace("&&", "")
        if not button.isVisible() or "&" not in text:
            continue
        letter = text[text.index("&") + 1].lower()
        assert letter not in taken, f"Alt+{letter.upper()}: {text} and {taken[letter]}"
        taken[letter] = text


def press(qtbot, key: Qt.Key, modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
    """A key, wherever the keyboard is."""
    target = QApplication.focusWidget() or QApplication.activeWindow()
    assert target is not None
    qtbot.keyClick(target, key, modifier)


def tab_to(qtbot, wanted: QWidget) -> None:
    """Tab until `wanted` has the focus."""
    for _ in range(80):
        if QApplication.focusWidget() is wanted:
            return
        press(qtbot, Qt.Key.Key_Tab)
    raise AssertionError(f"Tab does not reach {described(wanted)}")


def test_a_person_joins_with_the_keyboard_alone(tmp_path: Path, demo_recording: Path, demo_policy: Path, qtbot, monkeypatch) -> None:
    joined: list[str] = []
    monkeypatch.setattr(AppModel, "join", lambda self: joined.append(self.settings.federation.consent))
    model = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    model.update_settings(
        Settings(
            recordings=Recordings(folders=(demo_recording,)),
            policy=Policy(folder=demo_policy),
            federation=Federation(key_storage="file", key_file=tmp_path / "key.pem"),
        )
    )
    ctrl = Qt.KeyboardModifier.ControlModifier
    with whole_window(model, qtbot) as window:
        press(qtbot, Qt.Key.Key_1, ctrl)
        recordings = go_to(window, "recordings", qtbot)
        assert isinstance(recordings, RecordingsPage)
        qtbot.waitUntil(lambda: demo_recording in recordings.cards, timeout=30_000)
        tab_to(qtbot, recordings.cards[demo_recording])
        press(qtbot, Qt.Key.Key_Space)
        assert [each.path for each in model.settings.recordings.chosen] == [demo_recording]
        tab_to(qtbot, recordings.go_on)
        press(qtbot, Qt.Key.Key_Return)
        assert window.current_page == "computer"
        computer = go_to(window, "computer", qtbot)
        qtbot.waitUntil(computer.go_on.isEnabled, timeout=60_000)  # type: ignore[attr-defined]
        tab_to(qtbot, computer.go_on)  # type: ignore[attr-defined]
        press(qtbot, Qt.Key.Key_Return)
        assert window.current_page == "federation"
        federation = go_to(window, "federation", qtbot)
        assert isinstance(federation, FederationPage)
        QApplication.clipboard().setText(make_server(tmp_path / "coordinator").invitation(9443).to_line())
        tab_to(qtbot, federation.paste)
        assert isinstance(QApplication.focusWidget(), QPlainTextEdit)
        press(qtbot, Qt.Key.Key_V, ctrl)
        qtbot.waitUntil(federation.agree.isVisible)
        settle(qtbot)
        tab_to(qtbot, federation.agree)
        press(qtbot, Qt.Key.Key_Space)
        assert federation.agree.isChecked() and federation.join.isEnabled()
        tab_to(qtbot, federation.join)
        press(qtbot, Qt.Key.Key_Return)
        assert len(joined) == 1 and joined[0] and window.current_page == "training"
        for number, spec in enumerate(PAGES, start=1):
            press(qtbot, Qt.Key(Qt.Key.Key_0 + number), ctrl)
            assert window.current_page == spec.page_id
        settle(qtbot)
