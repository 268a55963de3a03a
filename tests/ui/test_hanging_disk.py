"""A disk in a network that is gone: what asks it waits without end, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QObject

from tests.training.recording_parts import make_recording
from tests.ui.page_parts import settle
from tests.ui.test_recordings_page import looked, model, open_page
from zk0desk.ui import background, deep_checks, library, player
from zk0desk.ui.background import in_background
from zk0desk.ui.deep_checks import DeepCheck
from zk0desk.ui.episode_viewer import EpisodeViewer
from zk0desk.ui.model import AppModel

__all__ = ["model"]


@pytest.fixture
def gone() -> Iterator[threading.Event]:
    """What hangs waits for this; at the end the network comes back."""
    event = threading.Event()
    yield event
    event.set()
    assert background.wait(10)


def test_what_hangs_does_not_hold_up_other_work(gone: threading.Event, qtbot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "HANGS_S", 0.1)
    owner, answers = QObject(), []
    for _ in range(background.AT_ONCE + 3):
        in_background(owner, lambda: gone.wait(60), lambda _: None)
    in_background(owner, lambda: "answer", answers.append)
    qtbot.waitUntil(lambda: answers == ["answer"], timeout=10_000)
    assert not gone.is_set()


def test_no_more_work_is_done_at_once_than_there_is_room(qtbot) -> None:
    owner, done, now, most, lock = QObject(), [], [0], [0], threading.Lock()

    def work() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    for _ in range(6 * background.AT_ONCE):
        in_background(owner, work, lambda _: done.append(1))
    qtbot.waitUntil(lambda: len(done) == 6 * background.AT_ONCE, timeout=10_000)
    assert most[0] == background.AT_ONCE


def test_the_application_ends_though_something_hangs() -> None:
    program = """
import threading
from PySide6.QtCore import QCoreApplication, QTimer
from zk0desk.ui.background import in_background
app = QCoreApplication([])
in_background(app, threading.Event().wait, print)
QTimer.singleShot(0, app.quit)
app.exec()
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, "ended"), done.stderr


def test_the_other_recordings_are_checked_and_what_takes_long_is_named(
    gone: threading.Event, model: AppModel, tmp_path: Path, qtbot, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0desk.training import deep_check

    answer = deep_check.best_answer

    def hang(path: Path, needs: object) -> object:
        if path.name == "lost":
            gone.wait(60)
        return answer(path, needs)  # type: ignore[arg-type]

    monkeypatch.setattr(deep_check, "best_answer", hang)
    monkeypatch.setattr(library, "PATIENCE_MS", 1000)
    monkeypatch.setattr("tests.ui.test_recordings_page.settle", lambda _qtbot: None)  # it waits for all of it
    for name in ("cubes", "lost", "tables"):
        make_recording(tmp_path / "all" / name)
    page = open_page(model, qtbot, tmp_path / "all")
    qtbot.waitUntil(lambda: {path.name for path in page.results} == {"cubes", "tables"} and not page.library.looking, timeout=20_000)
    assert "lost takes long to check" in page.listing.away.text() and page.listing.away.isVisible()
    gone.set()
    qtbot.waitUntil(lambda: len(page.results) == 3, timeout=20_000)
    qtbot.waitUntil(lambda: not page.listing.away.isVisible())
    monkeypatch.undo()
    looked(page, qtbot)


def test_a_check_that_is_cancelled_is_left_behind(gone: threading.Event, qtbot, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training import recordings
    from zk0desk.training.recordings import PolicyNeeds

    monkeypatch.setattr(recordings, "deep_check", lambda *_, **__: gone.wait(60))
    monkeypatch.setattr(deep_checks, "CANCEL_MS", 50)
    owner = QObject()
    check, answers = DeepCheck(Path("cubes"), owner), []
    check.done.connect(answers.append)
    check.start(PolicyNeeds())
    check.cancel()
    qtbot.waitUntil(lambda: not check.running, timeout=10_000)
    gone.set()
    settle(qtbot)
    qtbot.wait(50)
    assert answers == [None], "the late answer is told to nobody"


def test_the_viewer_closes_though_a_picture_never_comes(
    gone: threading.Event, tmp_path: Path, qtbot, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0desk.training.episode_frames import EpisodeFrames

    asked = threading.Event()

    def hang(*_: object) -> None:
        asked.set()
        gone.wait(60)
        raise IndexError

    monkeypatch.setattr(EpisodeFrames, "picture", hang)
    monkeypatch.setattr(player, "STOP_S", 0.1)
    viewer = EpisodeViewer(make_recording(tmp_path / "cubes"), (), None, lambda _: None)
    qtbot.addWidget(viewer)
    viewer.show()
    qtbot.waitUntil(asked.is_set, timeout=20_000)
    began = time.monotonic()
    viewer.done(0)
    assert time.monotonic() - began < 5 and viewer.player.running
    gone.set()
    qtbot.waitUntil(lambda: not viewer.player.running, timeout=10_000)
