"""Makes the pictures in docs/pictures: each page, in light and dark, empty, busy and in error.

    python packaging/screenshots.py [--to FOLDER] [--recordings FOLDER] [--pages training,federation]

The window is real and stands over an empty home of its own; the run in it is simulated by events. Recordings are those
in `--recordings`, else generated ones.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

ROUNDS, STEPS = 30, 120


def simulated_run() -> list[object]:
    """Events of thirteen rounds and a half, with a pause."""
    import numpy as np

    from zk0desk import events as e

    random = np.random.default_rng(0)
    now = time.time() - 13.4 * STEPS * 1.7 - 720
    made: list[object] = []
    for number in range(1, 15):
        made.append(
            e.FederationMetrics(
                run="kitchen", round=number - 1, nodes=3, time=now, eval_loss=1.3 * 0.86 ** (number - 1) + 0.5,
                train_loss=1.2 * 0.86 ** (number - 1) + 0.42 if number > 1 else None,
            )
        )  # fmt: skip
        plan = {"lr": 8.7e-5, "mu": 0.01, "steps": STEPS, "epochs": 20, "batch_size": 64, "frames": 384}
        made.append(e.RoundStarted(time=now, run="kitchen", round=number, rounds=ROUNDS, **plan))
        made.append(training(number, now))
        for step in range(1, STEPS + 1 if number < 14 else 47):
            now += 1.7
            if (number, step) == (9, 30):
                made.append(e.NodeStateChanged(time=now, state="paused", what="Paused"))
                now += 720
                made.append(training(number, now))
            index = (number - 1) * STEPS + step
            loss = 1.15 * np.exp(-index / 420) + 0.35 + random.normal() * 0.1 * (0.4 + np.exp(-index / 600))
            made.append(
                e.StepDone(
                    time=now, run="kitchen", round=number, step=step, steps=STEPS, epoch=step // 6, loss=float(loss),
                    proximal=float(1e-4 * step / STEPS), grad_norm=float(1 + 2 * np.exp(-index / 500) + 0.2 * random.random()),
                    lr=8.7e-5, mu=0.01, frames=64, seconds=1.65,
                )
            )  # fmt: skip
        if number < 14:
            mean = 1.15 * 0.86 ** (number - 1) + 0.38
            made.append(e.RoundTrained(time=now, run="kitchen", round=number, metrics={"loss-mean": mean}))
    made.append(training(14, now))
    return made


def training(number: int, at: float) -> object:
    """The state in round `number`."""
    from zk0desk import events as e

    return e.NodeStateChanged(
        state="training", time=at, since=at, what=f"Training round {number} of {ROUNDS}",
        why="The policy learns from your recordings, on this computer.", then="Then the update (101 MB) is sent.",
    )  # fmt: skip


def recordings_folder(given: Path | None, scratch: Path) -> Path:
    """The folder that the Recordings page looks in."""
    if given is not None:
        return given
    from zk0desk.training.demo_data import make_demo_recording

    for node in (0, 1):
        make_demo_recording(scratch / f"demo-arm-{node + 1}", node=node, seed=0)
    return scratch


class Studio:
    """A window over a home of its own."""

    def __init__(self, home: Path, target: Path) -> None:
        from zk0desk.ui import main, theme
        from zk0desk.ui.model import AppModel
        from zk0desk.ui.window import MainWindow

        self.app = main.application([])
        self._theme, self._target = theme, target
        theme.apply(self.app, "light")
        self.model = AppModel(home / "settings.toml", home / "journal.sqlite")
        self.window = MainWindow(self.model)
        self.window.resize(1280, 800)
        self.window.show()
        self.settle(0.2)

    def settle(self, seconds: float = 0.6) -> None:
        """Let the window work."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.app.processEvents()
            time.sleep(0.01)

    def shoot(self, page_id: str, name: str) -> None:
        """The page in both themes, in both sizes."""
        self.window.show_page(page_id)
        self.settle()
        for choice in ("light", "dark"):
            self._theme.apply(self.app, choice)
            for width, height in ((1000, 640), (1280, 800)):
                self.window.resize(width, height)
                self.settle(0.35)
                size = "" if width == 1280 else "-small"
                self.window.grab().save(str(self._target / f"{page_id}-{name}-{choice}{size}.png"))
        self._theme.apply(self.app, "light")

    def close(self) -> None:
        """Close the window."""
        self.model.control = None
        self.model._thread = None
        self.window.close()
        self.model.close()


def pictures(target: Path, recordings: Path, pages: list[str]) -> None:
    """Make all pictures into `target`."""
    from zk0desk import events as e
    from zk0desk.control import NodeControl

    def studio(fill: Callable[[Studio], None], name: str) -> None:
        with tempfile.TemporaryDirectory() as home:
            os.environ["ZK0DESK_HOME"] = home
            os.environ["HF_LEROBOT_HOME"] = str(Path(home) / "lerobot")
            made = Studio(Path(home), target)
            fill(made)
            for page in pages:
                made.shoot(page, name)
            made.close()

    def busy(made: Studio) -> None:
        settings = made.model.settings
        chosen = settings.recordings.model_copy(update={"folders": (recordings,)})
        made.model.update_settings(settings.model_copy(update={"recordings": chosen}))
        made.model.control = NodeControl()
        made.model._thread = object()  # type: ignore[assignment] - as if a node ran
        run = simulated_run()
        for event in run:
            made.model.journal.record(event)  # type: ignore[arg-type]
        made.model.take(run)  # type: ignore[arg-type]

    def error(made: Studio) -> None:
        what, why = "The SuperLink refuses this node.", "Its key 7c1e 09af 55d2 8b40 was revoked."
        remedy = "Ask the coordinator to admit it again."
        made.model.take([
            e.Notice(severity="error", code="revoked", what=what, why=why, remedy=remedy),
            e.NodeStateChanged(state="failed", what=what, why=why, then=remedy),
        ])  # fmt: skip
        made.model.open_invitation("zk0desk:join?this-line-was-cut-off")
        made.settle()

    studio(lambda made: None, "empty")
    studio(busy, "busy")
    studio(error, "error")


def main() -> None:
    """Parse the arguments and make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--pages", default="recordings,computer,federation,training,activity,settings")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    chosen.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pictures(chosen.to.resolve(), recordings_folder(chosen.recordings, Path(scratch)).resolve(), chosen.pages.split(","))


if __name__ == "__main__":
    main()
