"""The pictures in docs/pictures: each page, light and dark, empty, busy and in error, from a real run of the demo.

    make screenshots [ARGS="--demo FOLDER"]

Runs the demo headless (about two minutes), then shows what its last node has: its recordings, its journal, its curves.
With `--demo` a folder that `zk0desk demo --headless --keep FOLDER` left is taken instead.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication

    from zk0desk.ui.window import MainWindow

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SETTLE_S = 2.0
"""How long a page has to fill itself: recordings and thumbnails are read in the background."""


def main() -> int:
    """Make all pictures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="a folder that `zk0desk demo --headless --keep FOLDER` left")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of the demo that is run otherwise")
    parser.add_argument("--size", default="1280x800", help="size of the window")
    chosen = parser.parse_args()
    width, height = (int(number) for number in chosen.size.split("x"))
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zk0desk-pictures-") as temp:
        demo = chosen.demo or Path(temp) / "demo"
        if chosen.demo is None:
            print("Running the demo for its curves ...", flush=True)
            command = [
                sys.executable,
                "-m",
                "zk0desk",
                "demo",
                "--headless",
                "--seed",
                "1",
                "--rounds",
                str(chosen.rounds),
                "--keep",
                str(demo),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "ZK0DESK_HOME": str(Path(temp) / "home")})
        (*_, busy) = sorted(filter(Path.is_dir, demo.glob("node-*")), key=lambda folder: int(folder.name.removeprefix("node-")))
        for state, home in (("empty", Path(temp) / "empty"), ("busy", busy), ("error", busy)):
            os.environ["ZK0DESK_HOME"] = str(home)
            os.environ["HF_LEROBOT_HOME"] = str(Path(temp) / "lerobot")
            _pictures(state, home, width, height)
    return 0


def _pictures(state: str, home: Path, width: int, height: int) -> None:
    from zk0desk.ui import theme
    from zk0desk.ui.main import application
    from zk0desk.ui.model import AppModel
    from zk0desk.ui.pages import PAGES
    from zk0desk.ui.window import MainWindow

    app = application(["zk0desk"])
    for choice in ("light", "dark"):
        model = AppModel(home / "config" / "settings.toml", home / "data" / "journal.sqlite")
        theme.apply(app, choice)  # type: ignore[arg-type]
        window = MainWindow(model)
        window.resize(width, height)
        window.show()
        _settle(app, 0.3)
        theme.apply(app, choice)  # type: ignore[arg-type]
        _tell(window, state)
        for spec in PAGES:
            window.show_page(spec.page_id)
            _settle(app, SETTLE_S)
            library = getattr(window.page(spec.page_id), "library", None)
            for _ in range(30):
                if library is None or not library.looking:
                    break
                _settle(app, 1.0)  # a picture of what was found, however busy the computer is
            target = PICTURES / f"{spec.page_id}-{state}-{choice}.png"
            if not window.grab().save(str(target)):
                raise OSError(f"{target} cannot be written")
            print(target.name, flush=True)
        model._thread = None
        window.close()
        window.deleteLater()
        model.close()
        _settle(app, 0.1)


def _tell(window: MainWindow, state: str) -> None:
    """Bring the window to `state` with what the demo's node recorded: the curves are those of its run."""
    from zk0desk.events import NodeStateChanged, Notice
    from zk0desk.federation.node_state import SENTENCES, NodeState
    from zk0desk.ui.run_data import RunData

    if state == "empty":
        return
    model = window.model
    model.live_run = RunData.from_journal(model.journal, str(model.journal.runs()[0]["run"]))
    model._thread = object()  # type: ignore[assignment] # the window shows what it shows while a node runs
    model.nodeStarted.emit()
    if state == "error":
        what, why, remedy = (
            "The SuperLink does not answer.",
            "The connection was refused: nothing listens at that address now.",
            "Tried again by itself; ask the coordinator whether the server runs.",
        )
        model.take([Notice(severity="error", code="refused", what=what, why=why, remedy=remedy)])
        shown, (sentence, reason, then) = NodeState.RECONNECTING, (what, why, remedy)
    else:
        shown, (sentence, reason, then) = NodeState.TRAINING, SENTENCES[NodeState.TRAINING]
    model.take([NodeStateChanged(state=shown, what=sentence, why=reason, then=then, since=time.time())])


def _settle(app: QApplication, seconds: float) -> None:
    from PySide6.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    QTimer.singleShot(int(seconds * 1000), loop.quit)
    loop.exec()
    app.processEvents()


if __name__ == "__main__":
    sys.exit(main())
