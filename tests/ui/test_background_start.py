"""Starting out of sight, a second start that hands over what was opened, and what a desktop opens while the window lives."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from PySide6.QtCore import QEvent, QMimeData, QPoint, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent
from PySide6.QtWidgets import QSystemTrayIcon

from tests.federation.coordinator_parts import make_server
from tests.ui.page_parts import drop, settle
from zk0desk.settings import Federation, Settings
from zk0desk.ui import tray
from zk0desk.ui.model import AppModel
from zk0desk.ui.tray import Background
from zk0desk.ui.window import MainWindow


@pytest.fixture
def model(tmp_path: Path, qapp):
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    made.update_settings(Settings(federation=Federation(key_storage="file", key_file=tmp_path / "key.pem")))
    yield made
    made.close()


@pytest.fixture
def window(model: AppModel, qtbot):
    made = MainWindow(model)
    qtbot.addWidget(made, before_close_func=lambda closing: setattr(closing, "stays_in_tray", False))
    return made


# --- out of sight


def test_with_a_tray_the_window_waits_there_and_closing_puts_it_back(window: MainWindow, model: AppModel, qtbot) -> None:
    background = Background(window, model, lambda: True)
    background.begin()
    assert background.icon is not None and not window.isVisible()
    background.icon.activated.emit(QSystemTrayIcon.ActivationReason.Trigger)
    assert window.isVisible()
    told: list[str] = []
    background.icon.showMessage = lambda title, *_more: told.append(title)  # type: ignore[method-assign]
    window.close()
    assert not window.isVisible() and not window.ended and told == ["zk0desk goes on here"]
    window.raise_up()
    window.close()
    assert len(told) == 1, "once is enough"
    assert background.menu is not None
    with qtbot.waitSignal(window.closed):
        background.menu.actions()[1].trigger()
    assert window.ended and not background.icon.isVisible()


def test_a_tray_that_comes_late_is_found(window: MainWindow, model: AppModel, qtbot, monkeypatch) -> None:
    monkeypatch.setattr(tray, "LOOK_MS", 5)
    answers = iter([False, False])
    background = Background(window, model, lambda: next(answers, True))
    background.begin()
    assert background.icon is None
    qtbot.waitUntil(lambda: background.icon is not None)
    assert not window.isVisible()
    background.end()


def test_without_a_tray_the_window_is_minimised(window: MainWindow, model: AppModel, qtbot, monkeypatch) -> None:
    monkeypatch.setattr(tray, "LOOK_MS", 1)
    monkeypatch.setattr(tray, "LOOKS", 3)
    Background(window, model, lambda: False).begin()
    assert not window.isVisible()
    qtbot.waitUntil(window.isMinimized)
    assert not window.stays_in_tray
    window.raise_up()
    assert not window.isMinimized()


def test_the_tray_says_what_the_node_does(window: MainWindow, model: AppModel) -> None:
    background = Background(window, model, lambda: True)
    background.begin()
    assert background.icon is not None and model.state_event.what in background.icon.toolTip()
    background.end()


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("agreed", ["an agreement", ""])
def test_it_joins_again_only_where_that_is_wanted_and_was_agreed_to(model: AppModel, monkeypatch, wanted: bool, agreed: str) -> None:
    joined: list[bool] = []
    monkeypatch.setattr(model, "join", lambda: joined.append(True))
    federation = model.settings.federation
    told = federation.model_copy(update={"invitation": "zk0desk:join?", "consent": agreed, "join_at_start": wanted})
    model.update_settings(model.settings.model_copy(update={"federation": told}))
    model.join_again()
    assert bool(joined) is (wanted and bool(agreed))


# --- whole starts

FIRST = """
import os, sys, threading
from PySide6.QtCore import QObject, QUrl, Signal
from PySide6.QtGui import QFileOpenEvent
from PySide6.QtWidgets import QApplication
from zk0desk.ui import main
from zk0desk.ui.model import AppModel
opened = AppModel.open_invitation
def tell(self, text):
    opened(self, text)
    print("opened", ascii(text), self.settings.federation.invitation == "", flush=True)
AppModel.open_invitation = tell
class Lines(QObject):
    came = Signal(str)
def ready(window):
    print("ready", window.isVisible(), flush=True)
    lines = Lines(window)
    def took(line):
        if line == "file-open":
            app = QApplication.instance()
            app.sendEvent(app, QFileOpenEvent(QUrl(os.environ["OPEN"])))
            print("visible", window.isVisible(), flush=True)
        elif line == "visible":
            print("visible", window.isVisible(), flush=True)
        else:
            window.quit()
    lines.came.connect(took)
    threading.Thread(target=lambda: [lines.came.emit(line.strip()) for line in sys.stdin], daemon=True).start()
sys.exit(main.run(sys.argv[1:], on_ready=ready))
"""


class First:
    """A whole zk0desk in a process of its own."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        self.environment = {
            **os.environ, "ZK0DESK_HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home), **environment,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", FIRST, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def second(self, *arguments: str, cwd: Path) -> int:
        command = [sys.executable, "-m", "zk0desk", *arguments]
        return subprocess.run(command, env=self.environment, cwd=cwd, timeout=60, capture_output=True).returncode

    def quit(self) -> str:
        _, trouble = self.process.communicate(b"quit\n", timeout=60)
        assert self.process.returncode == 0, trouble
        return trouble.decode()


@pytest.mark.timeout(120)
def test_a_second_start_hands_its_file_or_link_over_from_any_folder_and_shows_the_hidden_window(tmp_path: Path, checkout: Path) -> None:
    place = tmp_path / "Röbot Ärm 机器人"
    place.mkdir()
    file = place / "Einladung für Öl 100%.zk0invite"
    make_server(tmp_path / "coordinator").invitation(9443).write(file)
    url = "zk0desk:join?über"
    first = First(tmp_path / "home ö", "--background", OPEN=file.as_uri(), PYTHONPATH=str(checkout))
    assert first.line() == "ready False"
    assert first.second("--background", cwd=place) == 0
    first.say("visible")
    assert first.line() == "visible False", "a second start in the background raises nothing"
    assert first.second(file.name, cwd=place) == 0
    assert first.line() == f"opened {ascii(str(file))} True"
    first.say("visible")
    assert first.line() == "visible True"
    for given, handed in ((file.as_uri(), str(file)), (url, url), ("zk0desk:join?" + "A" * 60_000, None)):
        assert first.second(given, cwd=place) == 0
        line = first.line()
        assert line.startswith("opened ") and (handed is None or ascii(handed) in line), line
    first.say("file-open")  # as macOS hands it over
    assert first.line() == f"opened {ascii(str(file))} False"
    assert first.line() == "visible True"
    assert "Traceback" not in first.quit()


# --- dropped on the window


def entering(data: QMimeData) -> QDragEnterEvent:
    copy, left, none = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    event = QDragEnterEvent(QPoint(400, 300), copy, data, left, none)
    event.ignore()
    return event


def test_an_invitation_that_is_dropped_on_any_page_opens_the_joining_page(
    window: MainWindow, model: AppModel, qtbot, tmp_path: Path
) -> None:
    file = tmp_path / "arms.ZK0INVITE"
    invitation = make_server(tmp_path / "coordinator").invitation(9443)
    invitation.write(file)
    with qtbot.waitSignal(window.firstPaint):
        window.show()
    window.show_page("recordings")
    settle(qtbot)
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(file))])
    entered = entering(data)
    window.page("recordings").dragEnterEvent(entered)  # type: ignore[attr-defined]
    assert not entered.isAccepted(), "the page lets the window have it"
    window.dragEnterEvent(entered)
    assert entered.isAccepted()
    drop(window, data)
    settle(qtbot)
    assert window.current_page == "federation" and model.settings.federation.invitation == invitation.to_line()
    assert model.settings.federation.consent == "" and not model.running


def test_what_is_no_invitation_is_not_taken_by_the_window(window: MainWindow, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    for url in (QUrl.fromLocalFile(str(tmp_path / "holiday.jpg")), QUrl("https://example.org/a.zk0invite")):
        data = QMimeData()
        data.setUrls([url])
        entered = entering(data)
        window.dragEnterEvent(entered)
        assert not entered.isAccepted()


def test_the_system_ends_a_window_that_is_in_the_tray(window: MainWindow, model: AppModel, qtbot) -> None:
    from zk0desk.ui.main import Application

    Background(window, model, lambda: True).begin()
    # The tests have an application of their own, and there can be one only.
    application = types.SimpleNamespace(window=window)
    with qtbot.waitSignal(window.closed):
        assert Application.event(application, QEvent(QEvent.Type.Quit))  # type: ignore[arg-type]
    assert window.ended
