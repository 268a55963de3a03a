"""A screen to start the packages on: Xvfb, what its windows are called, and pictures of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

_GRAB = """
import sys
from PySide6.QtWidgets import QApplication
application = QApplication([])
application.primaryScreen().grabWindow(0).save(sys.argv[1])
"""


class Screen:
    """An X server without a monitor, 1280 x 900 pixels; who connects needs no key."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self._server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x900x24", "-nolisten", "tcp", "-ac"],
            pass_fds=[write],
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with os.fdopen(read) as file:
            self.name = f":{file.readline().strip()}"

    def titles(self) -> list[str]:
        """The titles of all windows that can be seen."""
        tool = ["xdotool", "search", "--onlyvisible", "--name", "."]
        found = subprocess.run(tool, env={**os.environ, "DISPLAY": self.name}, capture_output=True, text=True).stdout.split()
        named = [
            subprocess.run(["xdotool", "getwindowname", each], env={**os.environ, "DISPLAY": self.name}, capture_output=True, text=True)
            for each in found
        ]
        return [each.stdout.strip() for each in named]

    def picture(self, file: Path) -> Path:
        """Save what the screen shows."""
        environment = {**os.environ, "DISPLAY": self.name, "QT_QPA_PLATFORM": "xcb"}
        subprocess.run([sys.executable, "-c", _GRAB, file], env=environment, check=True, capture_output=True, timeout=60)
        return file

    def wait_for(self, title: str, seconds: float = 90) -> None:
        """Until a window called `title` is seen and what it shows stays the same for a second."""
        until = time.monotonic() + seconds
        while title not in self.titles():
            assert time.monotonic() < until, f"no window called {title}, only {self.titles()}"
            time.sleep(0.3)

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(20)


def colours(file: Path) -> tuple[int, float]:
    """How many colours a picture has, and the part of it that is not black."""
    from PIL import Image

    with Image.open(file) as picture:
        counted = picture.convert("RGB").getcolors(1 << 24) or []
    total = sum(count for count, _ in counted)
    return len(counted), sum(count for count, colour in counted if sum(colour) > 30) / total


def difference(one: Path, other: Path) -> float:
    """The part of the pixels in which two pictures differ."""
    import numpy as np
    from PIL import Image

    with Image.open(one) as first, Image.open(other) as second:
        return float((np.asarray(first.convert("RGB")) != np.asarray(second.convert("RGB"))).any(axis=2).mean())
