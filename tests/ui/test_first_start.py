"""The first start: from an empty window to Join, through the pages in their order."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QMimeData, Qt, QUrl

from tests.federation.coordinator_parts import make_server
from tests.ui.page_parts import drop, settle, words
from zk0desk.settings import Federation, Settings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.computer import ComputerPage
from zk0desk.ui.pages.federation import FederationPage
from zk0desk.ui.pages.recordings import RecordingsPage
from zk0desk.ui.window import MainWindow


def test_a_person_comes_from_nothing_to_join(tmp_path: Path, demo_recording: Path, demo_policy: Path, qtbot, monkeypatch) -> None:
    joined: list[bool] = []
    monkeypatch.setattr(AppModel, "join", lambda self: joined.append(True))
    model = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    model.update_settings(Settings(federation=Federation(key_storage="file", key_file=tmp_path / "key.pem")))
    window = MainWindow(model)
    qtbot.addWidget(window)
    with qtbot.waitSignal(window.firstPaint):
        window.show()
    qtbot.waitUntil(lambda: isinstance(window.stack.currentWidget(), RecordingsPage))

    recordings = window.stack.currentWidget()
    assert isinstance(recordings, RecordingsPage)
    qtbot.waitUntil(recordings.empty.isVisible, timeout=20_000)
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(demo_recording))])
    drop(recordings, data)
    qtbot.waitUntil(lambda: demo_recording in recordings.cards, timeout=30_000)
    settle(qtbot)
    recordings.cards[demo_recording].box.click()
    qtbot.mouseClick(recordings.go_on, Qt.MouseButton.LeftButton)

    computer = window.stack.currentWidget()
    assert isinstance(computer, ComputerPage)
    computer.set_policy(demo_policy)
    qtbot.waitUntil(computer.go_on.isEnabled, timeout=60_000)
    settle(qtbot)
    qtbot.mouseClick(computer.go_on, Qt.MouseButton.LeftButton)

    federation = window.stack.currentWidget()
    assert isinstance(federation, FederationPage)
    assert federation.paste.isVisible() and "No invitation yet" in words(federation)
    federation.paste.setPlainText(make_server(tmp_path / "coordinator").invitation(9443).to_line())
    if federation.paste.isVisible():
        qtbot.mouseClick(federation.read, Qt.MouseButton.LeftButton)
    settle(qtbot)
    assert not federation.join.isEnabled() and federation.blocked.text() == "Read the two lists and tick the box."
    qtbot.keyClick(federation.agree, Qt.Key.Key_Space)
    assert federation.join.isEnabled() and not joined
    qtbot.mouseClick(federation.join, Qt.MouseButton.LeftButton)
    assert joined and window.current_page == "training" and model.settings.federation.consent

    settle(qtbot)
    window.close()
    settle(qtbot)
    model.close()
