"""How quickly the window is there, and whether it stays answerable while the engine loads and a node trains.

    python benchmarks/window.py [--repeat N] [--steps N]

Starts are measured in processes of their own: from the start of the process to the first paint, beside a bare
PySide6 + pyqtgraph window. Latency is how late a timer of 5 ms fires in the window's event loop. While training, a
small torch model learns in the same QThread that runs a node, and its steps go through the page's plots. The last
line holds all figures as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BARE = """
import sys, time
from PySide6.QtWidgets import QApplication, QMainWindow
import pyqtgraph as pg
app = QApplication([])
class Plot(pg.PlotWidget):
    def paintEvent(self, event):
        super().paintEvent(event)
        from PySide6.QtCore import QTimer
        QTimer.singleShot(0, done)
def done():
    print(time.time()); sys.stdout.flush(); app.exit()
window = QMainWindow(); window.setCentralWidget(Plot()); window.resize(1280, 800); window.show(); app.exec()
"""

OURS = """
import sys, time
from zk0desk.ui import main
def ready(window):
    loaded = sorted({"torch", "lerobot", "flwr", "pyarrow", "keyring", "transformers"} & set(sys.modules))
    assert not loaded, loaded
    window.close()
def painted(window_class=main.MainWindow):
    original = window_class._after_paint
    def told(self):
        print(time.time(), sorted({"pydantic", "torch", "lerobot", "flwr", "pyarrow", "keyring"} & set(sys.modules)))
        original(self)
        print(time.time()); sys.stdout.flush()
    window_class._after_paint = told
painted()
main.run([], on_ready=ready)
"""


def start(code: str, home: str) -> list[str]:
    """Run `code` in a fresh Python; what it printed, times relative to the start."""
    environment = {**os.environ, "ZK0DESK_HOME": home, "OMP_NUM_THREADS": "1"}
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True)
    return [f"{float(line.split(' ', 1)[0]) - began:.4f} {' '.join(line.split(' ', 1)[1:])}".strip() for line in done.stdout.splitlines()]


def starts(repeat: int) -> dict[str, object]:
    """Medians over `repeat` starts, alternating, after one of each that fills the file cache."""
    bare, paint, page = [], [], []
    early = ""
    with tempfile.TemporaryDirectory() as home:
        for number in range(repeat + 1):
            one, two = start(BARE, home), start(OURS, home)
            if number:
                bare.append(float(one[0].split()[0]))
                paint.append(float(two[0].split()[0]))
                page.append(float(two[1].split()[0]))
                early = two[0].split(" ", 1)[1]
    middle = statistics.median
    return {
        "bare-s": round(middle(bare), 3),
        "first-paint-s": round(middle(paint), 3),
        "first-page-s": round(middle(page), 3),
        "ratio": round(middle(paint) / middle(bare), 3),
        "ratio-first-page": round(middle(page) / middle(bare), 3),
        "imported-before-paint": early,
    }


class Latency:
    """How late a 5 ms timer fires, in milliseconds."""

    def __init__(self) -> None:
        from PySide6.QtCore import Qt, QTimer

        self.late: list[float] = []
        self._due = 0.0
        self.timer = QTimer()
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.setInterval(5)
        self.timer.timeout.connect(self._tick)

    def start(self) -> None:
        """Begin to measure."""
        self._due = time.perf_counter() + 0.005
        self.timer.start()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.late.append(1000 * max(0.0, now - self._due))
        self._due = now + 0.005

    def figures(self) -> dict[str, float]:
        """p50, p99 and worst."""
        self.timer.stop()
        ordered = sorted(self.late) or [0.0]
        return {
            "p50-ms": round(ordered[len(ordered) // 2], 1),
            "p99-ms": round(ordered[int(len(ordered) * 0.99)], 1),
            "worst-ms": round(ordered[-1], 1),
        }


def loop_until(done: Callable[[], bool]) -> None:
    """Run the event loop until `done`."""
    from PySide6.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    timer = QTimer()
    timer.timeout.connect(lambda: done() and loop.quit())
    timer.start(20)
    loop.exec()


def latencies(steps: int) -> dict[str, object]:
    """Latency with the real window and training page: while torch and lerobot load, and while a thread trains."""
    from PySide6.QtCore import QThread

    from zk0desk import events
    from zk0desk.quiet import quiet_libraries
    from zk0desk.ui import main, theme
    from zk0desk.ui.model import AppModel
    from zk0desk.ui.window import MainWindow

    with tempfile.TemporaryDirectory() as home:
        os.environ["ZK0DESK_HOME"] = home
        quiet_libraries()
        sys.setswitchinterval(main.SWITCH_INTERVAL_S)
        app = main.application([])
        theme.apply(app)
        model = AppModel(Path(home) / "settings.toml", Path(home) / "journal.sqlite")
        window = MainWindow(model)
        window.show()
        app.processEvents()
        window.show_page("training")
        app.processEvents()

        class Loads(QThread):
            seconds = 0.0

            def run(self) -> None:
                began = time.perf_counter()
                importlib.import_module("lerobot.policies.smolvla.modeling_smolvla")

                self.seconds = time.perf_counter() - began

        idle = Latency()
        idle.start()
        until = time.perf_counter() + 3
        loop_until(lambda: time.perf_counter() > until)
        rests = idle.figures()
        loading, latency = Loads(), Latency()
        latency.start()
        loading.start()
        loop_until(loading.isFinished)
        loaded = {**latency.figures(), "seconds": round(loading.seconds, 1)}

        class Trains(QThread):
            def run(self) -> None:
                import torch

                torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
                network = torch.nn.Sequential(
                    torch.nn.Linear(720, 2048), torch.nn.SiLU(), torch.nn.Linear(2048, 2048), torch.nn.SiLU(), torch.nn.Linear(2048, 32)
                )
                optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
                x = torch.randn(64, 720)
                y = torch.tanh(x[:, :32])
                plan = {"lr": 1e-3, "mu": 0.0, "steps": steps, "epochs": 1, "batch_size": 64, "frames": 64}
                waiting.append(events.RoundStarted(run="b", round=1, rounds=1, **plan))
                for step in range(1, steps + 1):
                    began = time.perf_counter()
                    loss = torch.nn.functional.mse_loss(network(x), y)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    waiting.append(
                        events.StepDone(
                            run="b", round=1, step=step, steps=steps, epoch=0, loss=loss.item(), proximal=0.0, grad_norm=1.0,
                            lr=1e-3, mu=0.0, frames=64, seconds=time.perf_counter() - began,
                        )
                    )  # fmt: skip

        from collections import deque

        from PySide6.QtCore import QTimer

        from zk0desk.ui.node_thread import DRAIN_MS

        waiting: deque[events.Event] = deque()

        def drain() -> None:
            batch = []
            while waiting:
                batch.append(waiting.popleft())
            model.take(batch)

        timer = QTimer()
        timer.timeout.connect(drain)
        timer.start(DRAIN_MS)
        training, latency = Trains(), Latency()
        latency.start()
        training.start()
        loop_until(training.isFinished)
        trained = {**latency.figures(), "steps": steps}
        timer.stop()
        drain()

        page = window.page("training")
        million = big_run(1_000_000)
        page.open_run(million)
        began = time.perf_counter()
        for number in range(20):
            million.version += 1
            page.plot.draw()
            window.repaint()
            app.processEvents()
            _ = number
        redraw = 1000 * (time.perf_counter() - began) / 20
        window.close()
        model.close()
        return {"idle": rests, "loading": loaded, "training": trained, "redraw-million-points-ms": round(redraw, 1)}


def big_run(size: int) -> object:
    """A run of `size` steps."""
    import numpy as np

    from zk0desk.ui.run_data import COLUMNS, Round, RunData

    data = RunData("big", 1)
    values = 1 / (1 + np.arange(size) / 1e4) + np.random.default_rng(0).normal(size=size) * 0.1
    data._extend(dict.fromkeys(COLUMNS, values), np.arange(size).tolist(), [1] * size, list(range(size)))
    data.rounds[1] = data.current = Round(1, 0, 0.0, size)
    return data


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="starts of each window")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--starts-only", action="store_true")
    chosen = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen" if not os.environ.get("DISPLAY") else "")
    if not os.environ["QT_QPA_PLATFORM"]:
        del os.environ["QT_QPA_PLATFORM"]
    figures = {"start": starts(chosen.repeat)}
    start_ = figures["start"]
    print(f"first paint {start_['first-paint-s']} s, bare window {start_['bare-s']} s, ratio {start_['ratio']} (limit: 1.2)")
    if not chosen.starts_only:
        figures.update(latencies(chosen.steps))
        limits = {"idle": "none: what else runs here", "loading": "worst 400 ms", "training": "p99 33 ms, worst 100 ms"}
        for name, limit in limits.items():
            f = figures[name]
            print(f"event loop while {name}: p50 {f['p50-ms']}, p99 {f['p99-ms']}, worst {f['worst-ms']} ms (limit: {limit})")
        print(f"a redraw of a million points: {figures['redraw-million-points-ms']} ms")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
