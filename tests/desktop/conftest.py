"""A desktop of its own for each test, in folders whose names are hard to quote."""

from __future__ import annotations

from pathlib import Path

import pytest

AWKWARD = 'Röbot "Ärm" 机器人 $HOME `x` 100% a\\b'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with spaces, quotes, umlauts and signs that a shell or a desktop entry gives a meaning."""
    folder = tmp_path / AWKWARD
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def own_desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The person's desktop is not the tests'."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config home"))
