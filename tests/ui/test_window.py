"""The window: first paint, pages on demand, keyboard, closing, what is kept."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import PySide6
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractButton, QMessageBox, QWidget

from zk0desk import events
from zk0desk.control import Stopped
from zk0desk.federation.node_state import NodeState
from zk0desk.ui import main
from zk0desk.ui.crash import Crash
from zk0desk.ui.model import AppModel, WindowState
from zk0desk.ui.node_thread import NodeThread
from zk0desk.ui.pages import PAGES
from zk0desk.ui.widgets import EmptyState
from zk0desk.ui.window import MainWindow

FIRST_PAINT = """
import sys
from zk0desk.ui import main
from zk0desk.ui.window import MainWindow
after = MainWindow._after_paint
def told(self):
    print(sorted({"pydantic", "tomlkit", "keyring", "pyarrow", "av", "torch", "lerobot", "flwr", "sqlite3", "typer"} & set(sys.modules)))
    after(self)
MainWindow._after_paint = told
sys.exit(main.run([], on_ready=lambda window: window.close()))
"""


@pytest.fixture
def model(tmp_path: Path, qapp, monkeypatch):
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


class Page(QWidget):
    """A page for tests: the window's own doings are tested without the others."""

    built = 0

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        Page.built += 1


@pytest.fixture
def window(model: AppModel, qtbot, monkeypatch):
    Page.built = 0
    monkeypatch.setattr(MainWindow, "_build", lambda self, spec: Page(self.model))
    made = MainWindow(model)
    qtbot.addWidget(made)
    with qtbot.waitSignal(made.firstPaint, timeout=10_000):
        made.show()
    qtbot.waitUntil(lambda: Page.built == 1)
    return made


def test_before_the_first_paint_only_theme_and_geometry_are_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", FIRST_PAINT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[0] == "[]"


def test_the_window_opens_wherever_qt_lies(tmp_path: Path) -> None:
    place = tmp_path / 'Röbot, "Ärm"; 机器人 100% a\\b'
    place.mkdir()
    for name in ("PySide6", "shiboken6"):
        (place / name).symlink_to(Path(PySide6.__file__).parent.with_name(name))
    program = "from zk0desk.ui.main import application; application(['zk0desk']); print('opened')"
    environment = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "opened\n", done.stderr


def test_pages_are_built_when_they_are_shown(window: MainWindow) -> None:
    window.show_page("activity")
    window.show_page("recordings")
    window.show_page("activity")
    assert Page.built == 2


def test_every_page_has_a_shortcut(window: MainWindow, qtbot) -> None:
    window.activateWindow()
    for number, spec in enumerate(PAGES, start=1):
        qtbot.keyClick(window, Qt.Key(Qt.Key.Key_0 + number), Qt.KeyboardModifier.ControlModifier)
        assert window.current_page == spec.page_id
        assert window.sidebar.buttons[spec.page_id].isChecked()


def test_mnemonics_of_sidebar_and_strip_differ(window: MainWindow) -> None:
    labels = [b.text() for b in window.findChildren(QAbstractButton) if "&" in b.text()]
    letters = [text[text.index("&") + 1].lower() for text in labels]
    assert len(set(letters)) == len(letters), labels


def test_every_button_can_be_reached_by_keyboard_and_has_a_name(window: MainWindow) -> None:
    for button in window.findChildren(QAbstractButton):
        assert button.accessibleName(), button.text()
        grouped = button.group() is not None  # one of a group takes Tab, arrows go on to the others
        assert grouped or button.focusPolicy() & Qt.FocusPolicy.TabFocus, button.text()


def test_a_page_that_breaks_does_not_take_the_window_down(model: AppModel, qtbot, monkeypatch) -> None:
    import zk0desk.ui.window as module

    def broken(name: str) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(module.importlib, "import_module", broken)
    window = MainWindow(model)
    qtbot.addWidget(window)
    window.show()
    window._painted = True
    window.show_page("activity")
    page = window.page("activity")
    assert isinstance(page, EmptyState) and "Activity cannot be shown" in page.sentence.text()


def test_geometry_and_page_are_there_again(window: MainWindow, model: AppModel, qtbot) -> None:
    window.resize(1111, 700)
    window.show_page("federation")
    with qtbot.waitSignal(window.closed):
        window.close()
    state = WindowState(model.window_state.path)
    assert state.text("page") == "federation" and state.text("geometry")
    model.window_state = state
    again = MainWindow(model)
    qtbot.addWidget(again)
    assert again.height() == 700  # the width is cut to the screen's


def test_a_damaged_state_file_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "window.json"
    for text in ("{", "[1]", json.dumps({"theme": 3, "geometry": None})):
        path.write_text(text)
        state = WindowState(path)
        assert state.text("theme", "system") == "system" and state.text("geometry") == ""


def _node_that_waits(thread: NodeThread) -> None:
    thread.emit_event(events.NodeStateChanged(state=NodeState.WAITING_FOR_ROUND, what="Waiting", why="No round.", then="Training."))
    with contextlib.suppress(Stopped):
        while True:
            thread._control.sleep(5)


def test_closing_while_the_node_runs_asks_and_can_be_declined(window: MainWindow, model: AppModel, qtbot, monkeypatch) -> None:
    monkeypatch.setattr(NodeThread, "_run_node", _node_that_waits)
    with qtbot.waitSignal(model.nodeStateChanged, timeout=20_000):
        model.join()
    asked: list[str] = []

    def answer(box: QMessageBox) -> int:
        asked.append(box.informativeText())
        box.buttons()[answers.pop(0)].click()
        return 0

    answers = [1, 0]
    monkeypatch.setattr(QMessageBox, "exec", answer)
    window.close()
    assert window.isVisible() and model.running and "Nothing is lost" in asked[0]
    with qtbot.waitSignal(window.closed, timeout=20_000):
        window.close()
    assert not model.running and len(asked) == 2


def test_an_invitation_from_outside_opens_the_federation_page(window: MainWindow, model: AppModel, qtbot) -> None:
    with qtbot.waitSignal(model.invitationOpened) as opened:
        model.open_invitation("zk0desk:join?abc")
    assert opened.args == ["zk0desk:join?abc"] and model.pending_invitation == "zk0desk:join?abc"
    assert window.current_page == "federation"


def test_after_a_crash_in_training_the_window_offers_to_go_on(window: MainWindow, model: AppModel, qtbot, monkeypatch) -> None:
    joined: list[bool] = []
    monkeypatch.setattr(AppModel, "join", lambda self: joined.append(True))
    main.offer_to_go_on(window, Crash("a segmentation fault", "PyTorch", 0.0, True, None))
    box = window.findChild(QMessageBox)
    assert "a segmentation fault in PyTorch" in box.text()
    qtbot.mouseClick(box.buttons()[0], Qt.MouseButton.LeftButton)
    assert joined == [True] and window.current_page == "training"


def test_the_chosen_theme_is_kept_for_the_next_first_paint(window: MainWindow, model: AppModel) -> None:
    from zk0desk.settings import Appearance
    from zk0desk.ui import theme

    model.update_settings(model.settings.model_copy(update={"appearance": Appearance(theme="dark")}))
    assert WindowState(model.window_state.path).text("theme") == "dark" and theme.is_dark()


def test_it_fits_into_1000_by_640(window: MainWindow) -> None:
    window.resize(1000, 640)
    assert (window.width(), window.height()) == (1000, 640)
    assert window.sidebar.width() == 196 and window.strip.height() == 60
