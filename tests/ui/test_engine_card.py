"""The engine on This computer: which and why, what it takes, getting it with pause and cancel, and what is done when something fails.

The work is the real command in a real process, from a packaged copy of zk0desk, against a server on loopback with small wheels.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog

from tests.engine.wheel_parts import WheelServer, list_of, noise, write_wheel
from tests.ui.engine_parts import package, ship
from tests.ui.page_parts import settle, words
from zk0desk import __version__
from zk0desk.engine import activation, artefact, install, store, updates
from zk0desk.engine.lists import EngineList
from zk0desk.settings import Federation, Settings
from zk0desk.ui import engine_look
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.engine_card import EngineCard
from zk0desk.ui.strip import StatusStrip

pytestmark = pytest.mark.timeout(120)
LARGE = 400_000


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    return package(tmp_path_factory.mktemp("Röbot Ärm") / "site", checkout)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WheelServer]:
    (tmp_path / "wheels").mkdir()
    one = WheelServer(tmp_path / "wheels")
    yield one
    one.stop()


@pytest.fixture
def wanted(server: WheelServer) -> EngineList:
    large = write_wheel(server.folder, "large", {"large/__init__.py": b"size = 1\n", "large/library.so": noise(LARGE)})
    small = write_wheel(server.folder, "small", {"small.py": b"answer = 42\n"})
    return list_of([large, small], server.url)


@pytest.fixture(autouse=True)
def in_a_package(packaged: Path, wanted: EngineList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this process, and those that it starts, were the artefact's."""
    monkeypatch.setenv("ZK0DESK_ENGINE_LISTS", "")
    ship(packaged, wanted)
    monkeypatch.setenv("PYTHONPATH", str(packaged))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(artefact, "resource", lambda name: packaged / "zk0desk" / "_resources" / name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(activation, "_held", [])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    artefact.artefact.cache_clear()
    yield
    for handle in activation._held:
        os.close(handle)
    artefact.artefact.cache_clear()


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = new_model(tmp_path)
    yield made
    made.close()


def new_model(tmp_path: Path) -> AppModel:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    made.update_settings(Settings(federation=Federation(key_storage="file", key_file=tmp_path / "key.pem")))
    return made


def shown(model: AppModel, qtbot) -> EngineCard:
    card = EngineCard(model)
    qtbot.addWidget(card)
    card.resize(760, 400)
    card.show()
    looked(card, qtbot)
    return card


def looked(card: EngineCard, qtbot) -> None:
    with qtbot.waitSignal(card.seen, timeout=20_000):
        card.refresh()
    settle(qtbot)


def done(card: EngineCard, qtbot) -> None:
    qtbot.waitUntil(lambda: not card._work.busy, timeout=60_000)
    settle(qtbot)
    settle(qtbot)


def press(qtbot, button) -> None:
    assert button.isVisible() and button.isEnabled(), button.text()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def test_the_engine_is_got_tested_and_used_at_once(model: AppModel, wanted: EngineList, qtbot) -> None:
    card = shown(model, qtbot)
    said = words(card)
    assert "The training engine is not on this computer yet." in said and "so the processor trains" in said
    assert "Getting it fetches 0 MB" in said and "of disk" in said and "are free" in said
    assert not card.verify.isVisible() and not card.banner.isVisible()
    strip = StatusStrip(model)
    qtbot.addWidget(strip)
    strip.show()
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.get)
        assert card.progress.isVisible() and not card.get.isVisible() and strip.engine.isVisible()
        assert strip.what.text() == "Fetching the training engine"
    assert "The engine works: torch 2.11.0, LeRobot 0.6.1 and flwr 1.41.0, computing on the processor." in words(card)
    engine = store.current()
    assert engine is not None and engine.id == wanted.id and str(engine.site) in sys.path, "it is used without a restart"
    done(card, qtbot)
    assert card.badge.text() == "Ready" and not card.restart.isVisible() and not card.get.isVisible() and not strip.engine.isVisible()
    assert model.window_state.values["engine"] is None

    # A node that runs has its engine to itself.
    model._thread = object()  # type: ignore[assignment]
    model.nodeStarted.emit()
    assert card.verify.isVisible() and not card.repair.isVisible() and "The node uses this engine" in words(card)
    model._thread = None
    model.nodeEnded.emit()

    # Kept in order: a damaged file is found, and brought back.
    library = engine.site / "large" / "library.so"
    library.write_bytes(noise(LARGE, "other"))
    press(qtbot, card.verify)
    done(card, qtbot)
    assert "missing or damaged, in large" in words(card.banner) and "Repair fetches" in words(card.banner)
    press(qtbot, card.repair)
    done(card, qtbot)
    assert "1 files were brought back." in words(card.banner) and library.read_bytes() == noise(LARGE)


def test_it_pauses_survives_closing_and_goes_on_at_the_next_start_without_a_byte_twice(
    model: AppModel, server: WheelServer, wanted: EngineList, tmp_path: Path, qtbot
) -> None:
    card = shown(model, qtbot)
    server.close_gate(LARGE // 2)
    press(qtbot, card.get)
    qtbot.waitUntil(server.reached.is_set, timeout=60_000)
    qtbot.waitUntil(lambda: card._work.step.done > 0, timeout=20_000)
    assert "Fetching: " in card.progress.words.text() and card.progress.bar.value() > 0
    press(qtbot, card.progress.pause)
    assert card.progress.pause.text() == "Resume" and card.progress.words.text().startswith("Paused. ")
    press(qtbot, card.progress.pause)
    assert model.window_state.values["engine"] == {"action": "get", "arguments": ["--backend", "cpu"], "paused": False}
    server.open_gate()
    server.close_gate(server.sent.total() + LARGE // 4)
    qtbot.waitUntil(server.reached.is_set, timeout=60_000)
    model.close()  # the window closes
    server.open_gate()
    open_yet, sent = install.plan(wanted).fetch, server.sent.total()
    assert 0 < open_yet < wanted.size

    after = new_model(tmp_path)
    with qtbot.waitSignals([after.engine.ended, after.engineTaken], timeout=60_000):
        after.engine.go_on()  # before any page is shown
    engine = store.current()
    assert after.engine.error is None and engine is not None and str(engine.site) in sys.path
    assert server.sent.total() - sent == open_yet, "nothing that had arrived is fetched again"
    after.close()


def test_a_fetch_that_was_paused_or_cancelled_waits_for_the_person(model: AppModel, server: WheelServer, tmp_path: Path, qtbot) -> None:
    card = shown(model, qtbot)
    server.close_gate(LARGE // 2)
    press(qtbot, card.get)
    qtbot.waitUntil(server.reached.is_set, timeout=60_000)
    card._work.pause(True)
    again = new_model(tmp_path)
    again.engine.go_on()
    assert not again.engine.busy, "paused by hand"
    again.close()
    press(qtbot, card.progress.cancel)
    assert model.window_state.values["engine"] is None, "whoever cancels and closes at once did cancel"
    server.open_gate()
    done(card, qtbot)
    looked(card, qtbot)
    assert model.window_state.values["engine"] is None and not card.banner.isVisible()
    assert card.get.text() == "Go on getting it" and "are here already" in words(card)
    assert store.current() is None


def test_an_error_says_what_why_and_remedy_and_is_tried_again(model: AppModel, server: WheelServer, qtbot) -> None:
    card = shown(model, qtbot)

    def refuse(handler, _name, _start, _content) -> bool:
        handler.send_error(403)
        return True

    server.bad.append(refuse)
    press(qtbot, card.get)
    done(card, qtbot)
    said = words(card.banner)
    assert "403" in said and card._work.error is not None and card._work.error.remedy in said
    press(qtbot, card.copy)
    details = QGuiApplication.clipboard().text()
    assert card._work.error.what in details and '"get"' in details and "key.pem" not in details
    server.bad.clear()
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.try_again)
    done(card, qtbot)
    assert card.badge.text() == "Ready" and "The engine works" in words(card.banner)


def test_another_engine_can_be_chosen_and_a_failed_test_offers_the_one_for_the_processor(
    model: AppModel, packaged: Path, wanted: EngineList, qtbot, monkeypatch
) -> None:
    ship(packaged, wanted, replace(wanted, backend="cu126"))
    card = shown(model, qtbot)
    offered = [card.backend.itemText(index) for index in range(card.backend.count())]
    assert offered == ["Processor, 0 MB (for this computer)", "CUDA 12.6, 0 MB (not for this computer)"]
    with qtbot.waitSignal(card.seen, timeout=20_000):
        card.backend.choose("cu126")
    assert "here it would train on the processor" in words(card)
    monkeypatch.setenv("STANDIN", "broken")
    press(qtbot, card.get)
    done(card, qtbot)
    looked(card, qtbot)
    said = words(card.banner)
    assert "The engine cannot be loaded" in said and "libcudart.so.13" in said
    monkeypatch.delenv("STANDIN")
    press(qtbot, card.for_processor)
    looked(card, qtbot)
    assert card.look is not None and card.look.backend == "cpu"
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.get)
    done(card, qtbot)
    current = store.current()
    assert current is not None and current.backend == "cpu"


def test_an_update_says_that_it_needs_a_restart_and_the_old_one_is_kept_until_it_is_removed(
    model: AppModel, packaged: Path, wanted: EngineList, server: WheelServer, qtbot
) -> None:
    card = shown(model, qtbot)
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.get)
    done(card, qtbot)
    newer = write_wheel(server.folder, "small", {"small.py": b"answer = 43\n"}, "1.1")
    later = replace(wanted, wheels=(wanted.wheels[0], *list_of([newer], server.url).wheels))
    ship(packaged, later)
    looked(card, qtbot)
    assert card.get.text() == "Update the engine" and "are taken over from an older engine" in words(card)
    sent = server.sent["large-1.0-py3-none-any.whl"]
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.get)
    done(card, qtbot)
    looked(card, qtbot)
    assert server.sent["large-1.0-py3-none-any.whl"] == sent, "what is unchanged is not fetched"
    assert card.restart.isVisible() and "It is used after a restart" in words(card.banner)
    with qtbot.waitSignal(model.restartAsked):
        press(qtbot, card.restart)
    assert "Older engines are kept: cpu of" in words(card)
    press(qtbot, card.back)
    done(card, qtbot)
    looked(card, qtbot)
    current = store.current()
    assert current is not None and current.id == wanted.id
    press(qtbot, card.prune)
    done(card, qtbot)
    looked(card, qtbot)
    assert [each.id for each in store.engines()] == [wanted.id] and not card.prune.isVisible() and not card.back.isVisible()


def test_on_windows_it_is_used_after_a_restart(model: AppModel, wanted: EngineList, qtbot, monkeypatch) -> None:
    card = shown(model, qtbot)
    monkeypatch.setattr(engine_look.sys, "platform", "win32")
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.get)
    done(card, qtbot)
    engine = store.current()
    assert engine is not None and str(engine.site) not in sys.path and card.restart.isVisible()
    assert "Windows has to load its libraries before the window's" in words(card.banner)


def test_the_feed_tells_of_a_newer_zk0desk_and_of_a_mended_engine_and_fetches_neither_by_itself(
    model: AppModel, packaged: Path, wanted: EngineList, server: WheelServer, qtbot, monkeypatch
) -> None:
    card = shown(model, qtbot)
    assert not card.news.isVisible(), "without a feed nothing is asked"
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.get)
    done(card, qtbot)
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes_raw()
    newer = write_wheel(server.folder, "small", {"small.py": b"answer = 44\n"}, "1.2")
    mended = replace(wanted, wheels=(wanted.wheels[0], *list_of([newer], server.url).wheels)).to_text()
    (server.folder / "mended.json").write_text(mended)
    about = {"url": f"{server.url}/mended.json", "size": len(mended), "sha256": hashlib.sha256(mended.encode()).hexdigest()}
    about |= {"for-version": __version__, "system": wanted.system, "arch": wanted.arch, "backend": "cpu"}
    payload = {"schema": 1, "version": "9.9.9", "notes": "Better.", "artefacts": [], "engines": [about]}
    (server.folder / "feed.json").write_text(updates.sign(payload, key))
    feed = packaged / "zk0desk" / "_resources" / "feed.json"
    feed.write_text(json.dumps({"url": f"{server.url}/feed.json", "key": base64.b64encode(raw).decode()}))
    monkeypatch.setattr(updates, "resource", lambda name: packaged / "zk0desk" / "_resources" / name)
    try:
        looked(card, qtbot)
        before = server.sent["small-1.2-py3-none-any.whl"]
        with qtbot.waitSignal(model.updates.seen, timeout=20_000):
            press(qtbot, card.news)
        assert "zk0desk 9.9.9 is there. Better." in words(card) and card.get.text() == "Update the engine"
        assert server.sent["small-1.2-py3-none-any.whl"] == before and model.window_state.values["updates-looked"] > 0
        model._thread = object()  # type: ignore[assignment]
        with qtbot.waitSignal(model.updates.failed, timeout=20_000):
            model.updates.look()
        assert "Updates are not looked for now." in words(card.banner)
        model._thread = None
        with qtbot.waitSignal(card.changed, timeout=60_000):
            press(qtbot, card.get)
        done(card, qtbot)
        engine = store.current()
        assert engine is not None and engine.id != wanted.id and (engine.site / "small.py").read_text() == "answer = 44\n"
    finally:
        feed.unlink()


def test_it_is_saved_to_a_folder_and_used_from_there_without_a_network(
    model: AppModel, server: WheelServer, tmp_path: Path, qtbot, monkeypatch
) -> None:
    card = shown(model, qtbot)
    with qtbot.waitSignal(card.changed, timeout=60_000):
        press(qtbot, card.get)
    done(card, qtbot)
    stick = tmp_path / "USB Stick ü"
    stick.mkdir()
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_given: str(stick))
    press(qtbot, card.save)
    done(card, qtbot)
    assert f"The engine is in {stick}" in words(card.banner)
    (saved,) = stick.iterdir()
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "another computer"))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_given: str(saved))
    sent = server.sent.total()
    with contextlib.closing(new_model(tmp_path / "other")) as other:
        fresh = shown(other, qtbot)
        assert fresh.badge.text() == "Not here yet"
        with qtbot.waitSignal(fresh.changed, timeout=60_000):
            press(qtbot, fresh.use_folder)
        done(fresh, qtbot)
        assert fresh.badge.text() == "Ready" and server.sent.total() == sent


def test_in_an_environment_nothing_is_fetched(model: AppModel, qtbot, monkeypatch) -> None:
    def none(_name: str) -> Path:
        raise FileNotFoundError

    monkeypatch.setattr(artefact, "resource", none)
    artefact.artefact.cache_clear()
    card = shown(model, qtbot)
    assert "This Python environment is the engine; nothing is fetched." in words(card) and "torch 2.11" in words(card)
    assert not card.get.isVisible() and not card.backend.isVisible() and not card.use_folder.isVisible() and card.test.isVisible()
