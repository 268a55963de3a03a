"""Fixtures of the engine's tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.wheel_parts import HASTY, WheelServer, list_of, noise, write_wheel
from zk0desk.control import NodeControl
from zk0desk.engine import artefact, install
from zk0desk.engine.lists import EngineList


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder of the wheels that the server hands out."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def server(shelf: Path) -> Iterator[WheelServer]:
    one = WheelServer(shelf)
    yield one
    one.stop()


@pytest.fixture
def wheels(shelf: Path) -> list[Path]:
    """Three wheels, of 150 kB, 60 kB and 2 kB."""
    return [
        write_wheel(shelf, "large", {"large/__init__.py": b"size = 150_000\n", "large/library.so": noise(150_000)}),
        write_wheel(shelf, "middle", {"middle/__init__.py": b"size = 60_000\n", "middle/data.bin": noise(60_000, 1), "middle/tool": b"#!"}),
        write_wheel(shelf, "small", {"small.py": b"answer = 42\n"}),
    ]


@pytest.fixture
def wanted(wheels: list[Path], server: WheelServer) -> EngineList:
    """The list of these wheels."""
    return list_of(wheels, server.url)


@pytest.fixture
def get() -> Callable[..., install.Got]:
    """`install.get`, hasty, with a control of its own."""

    def run(wanted: EngineList, **more: object) -> install.Got:
        return install.get(wanted, **{"control": NodeControl(), "patience": HASTY, **more})  # type: ignore[arg-type]

    return run


GET = """
import sys
from pathlib import Path
from zk0desk.control import NodeControl
from zk0desk.engine import install, lists
got = install.get(lists.read(Path(sys.argv[1])), control=NodeControl())
print(got.engine.id, got.received)
"""


@pytest.fixture
def get_process(tmp_path: Path) -> Iterator[Callable[[EngineList], subprocess.Popen[str]]]:
    """Starts `install.get` of a list in a process of its own."""
    started = []

    def start(wanted: EngineList) -> subprocess.Popen[str]:
        path = tmp_path / "list.json"
        path.write_text(wanted.to_text(), encoding="utf-8")
        process = subprocess.Popen([sys.executable, "-c", GET, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[EngineList], None]]:
    """This zk0desk is a package of the format "tar"; called with a list, it ships that list."""
    folder = tmp_path / "resources"
    (folder / "engines").mkdir(parents=True)
    (folder / "artefact.json").write_text('{"version": "0.1.0", "format": "tar", "release": true, "stamp": ""}')
    monkeypatch.setenv("ZK0DESK_ENGINE_LISTS", str(folder / "engines"))
    monkeypatch.setattr(artefact, "resource", lambda name: folder / name)
    artefact.artefact.cache_clear()

    def ship(wanted: EngineList) -> None:
        path = folder / "engines" / f"{wanted.system}-{wanted.arch}-{wanted.backend}.json"
        path.write_text(wanted.to_text(), encoding="utf-8")

    yield ship
    artefact.artefact.cache_clear()
