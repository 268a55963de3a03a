"""The first start: from an empty window to the first round, through the pages in their order, with a real coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PySide6.QtCore import QMimeData, Qt, QUrl

from tests.federation.coordinator_parts import Events, make_server
from tests.federation.node_parts import Round, admitted
from tests.ui.page_parts import drop, settle, words
from zk0desk import settings as settings_file
from zk0desk.federation.credentials import load_or_make_key
from zk0desk.federation.node_state import NodeState
from zk0desk.federation.superlink import RunningServer, start_server
from zk0desk.federation.updates import encode
from zk0desk.settings import Federation, ServerPolicy, Settings
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.computer import ComputerPage
from zk0desk.ui.pages.federation import FederationPage
from zk0desk.ui.pages.recordings import RecordingsPage
from zk0desk.ui.pages.training import TrainingPage
from zk0desk.ui.window import MainWindow

if TYPE_CHECKING:
    from zk0desk.federation.grid import Reply


@pytest.fixture
def server(tmp_path: Path, demo_policy: Path) -> Iterator[RunningServer]:
    folder = make_server(tmp_path / "coordinator", min_nodes=1)
    settings_file.save(folder.settings().model_copy(update={"policy": ServerPolicy(folder=demo_policy)}), folder.settings_path)
    with start_server(folder.path, Events()) as running:
        yield running


@pytest.mark.timeout(240)
def test_a_person_comes_from_nothing_to_the_first_round(
    tmp_path: Path, demo_recording: Path, demo_policy: Path, server: RunningServer, qtbot
) -> None:
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
    federation.paste.setPlainText(server.folder.invitation().to_line())
    if federation.paste.isVisible():
        qtbot.mouseClick(federation.read, Qt.MouseButton.LeftButton)
    settle(qtbot)
    assert not federation.join.isEnabled() and federation.footer.waits_for.text() == "Read the two lists and tick the box."
    qtbot.keyClick(federation.agree, Qt.Key.Key_Space)
    assert federation.join.isEnabled() and not model.running
    qtbot.mouseClick(federation.join, Qt.MouseButton.LeftButton)
    assert model.running and window.current_page == "training" and model.settings.federation.consent
    training = window.stack.currentWidget()
    assert isinstance(training, TrainingPage)

    # The coordinator has not let this node in yet: the strip says so, and goes on by itself once it has.
    qtbot.waitUntil(lambda: model.state is NodeState.WAITING_FOR_APPROVAL, timeout=60_000)
    assert window.strip.what.text() == "Waiting to be admitted"
    admitted(server.folder, load_or_make_key(model.settings.federation))
    qtbot.waitUntil(lambda: model.state is NodeState.WAITING_FOR_ROUND, timeout=60_000)

    from zk0desk.federation.grid import Grid

    replies: list[Reply] = []
    running = server.folder.running()
    grid = Grid(running.superlink, running.secret)
    try:
        asked = Round(demo_policy, local_steps=6)
        (node,) = [each for each in grid.nodes() if each.online]
        sent = grid.send([node.node_id], "train", arrays=encode(asked.weights, "fp32"), config=asked.request.to_config(), ttl=200.0)
        qtbot.waitUntil(lambda: bool(replies.extend(grid.replies(list(sent.values()))) or replies), timeout=120_000)
    finally:
        grid.close()
    assert not replies[0].error and replies[0].metrics["steps-done"] == 6
    settle(qtbot)
    training.refresh()
    assert training.plot.isVisible() and training.data is not None and len(training.data) == 6
    assert training.plot._raw.xData.size == 6

    window.strip.stop.click()
    qtbot.waitUntil(lambda: not model.running, timeout=10_000)
    assert model.state is NodeState.STOPPED
    settle(qtbot)
    window.close()
    settle(qtbot)
    model.close()
