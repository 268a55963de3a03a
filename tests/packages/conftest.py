"""The builder of the packages is not a part of zk0desk: its modules are found beside packaging/build.py."""

import sys
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parent.parent.parent / "packaging"
sys.path[:0] = [str(PACKAGING), str(Path(__file__).resolve().parent)]


@pytest.fixture(scope="session")
def site():
    """The environment's own site-packages: what the window's wheels unpack to."""
    import PySide6

    return Path(PySide6.__file__).parent.parent
