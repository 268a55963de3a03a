"""How quickly the window is there, and whether it stays answerable while the engine loads and the demo trains.

    python benchmarks/window.py [--repeat N] [--rounds N] [--only start|load|demo]

Starts are measured in processes of their own: from the start of the process to the first paint, beside a bare
PySide6 + pyqtgraph window. Latency is how late a timer of 5 ms fires in the window's event loop. Training is the demo
itself, in its window: the third node learns in the window's thread while the rest of the federation runs beside it.
The last line holds all figures as JSON.
"""

from __future__ import annotations

import argparse
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


DEMO_LIMITS = {"starting": "none", "joining": "worst 400 ms", "training": "p99 33 ms, worst 100 ms"}


def loop_until(done: Callable[[], bool]) -> None:
    """Run the event loop until `done`."""
    from PySide6.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    timer = QTimer()
    timer.timeout.connect(lambda: done() and loop.quit())
    timer.start(20)
    loop.exec()


def loading() -> dict[str, object]:
    """Latency of the real window at rest and while its process loads torch and LeRobot; then a redraw of a million points."""
    from PySide6.QtCore import QThread

    from zk0desk.quiet import quiet_libraries
    from zk0desk.training.loading import load_engine
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
                load_engine()
                self.seconds = time.perf_counter() - began

        idle = Latency()
        idle.start()
        until = time.perf_counter() + 3
        loop_until(lambda: time.perf_counter() > until)
        rests = idle.figures()
        thread, latency = Loads(), Latency()
        latency.start()
        thread.start()
        loop_until(thread.isFinished)
        loaded = {**latency.figures(), "seconds": round(thread.seconds, 1)}

        page = window.page("training")
        million = big_run(1_000_000)
        page.open_run(million)
        began = time.perf_counter()
        for _ in range(20):
            million.version += 1
            page.plot.draw()
            window.repaint()
            app.processEvents()
        redraw = 1000 * (time.perf_counter() - began) / 20
        window.close()
        model.close()
        return {"idle": rests, "loading": loaded, "redraw-million-points-ms": round(redraw, 1)}


def demo(rounds: int, began: float) -> dict[str, object]:
    """The demo in its window, from its start to the end of its run: latency in each phase, and when the first loss is drawn.

    A whole federation runs beside the window meanwhile: a SuperLink, a coordinator that evaluates, two more nodes.
    """
    from zk0desk import events
    from zk0desk.demo.federation import DemoPlan
    from zk0desk.ui.demo_window import run_demo

    figures: dict[str, object] = {}
    latency = Latency()

    def attach(window: object) -> None:
        model, page = window.model, window.page("training")
        figures["first-paint-s"] = round(time.time() - began, 2)
        phase, losses = "starting", []
        latency.start()

        def turn(name: str) -> None:
            nonlocal phase
            if name == phase:
                return
            if latency.late:
                figures.setdefault(phase, latency.figures())
            phase = name
            latency.late.clear()
            latency.start()

        def take(event: events.Event) -> None:
            if isinstance(event, events.RoundStarted) and event.round == 1:
                turn("training")
            elif isinstance(event, events.FederationMetrics):
                losses.append(event.eval_loss)
            elif isinstance(event, events.Notice) and event.code == "demo-finished":
                figures["training-steps"] = len(model.live_run)
                figures["held-out"] = [losses[0], losses[-1]] if losses else []
                turn("over")
                latency.timer.stop()
                model.nodeEnded.connect(window.close)  # before, it would ask
            elif isinstance(event, events.Notice) and event.severity == "error":
                print(f"the demo failed: {event.what} {event.why}", file=sys.stderr)
                os._exit(1)

        def drawn() -> None:
            if "first-loss-drawn-s" not in figures and page.plot.data is not None and len(page.plot.data):
                figures["first-loss-drawn-s"] = round(time.time() - began, 1)

        model.nodeStarted.connect(lambda: turn("joining"))
        model.nodeEvent.connect(take)
        page._timer.timeout.connect(drawn)

    run_demo(DemoPlan(rounds=rounds, seed=1), on_ready=attach)
    return figures


BESIDE = """
import sys, time
late, due, until = [], time.perf_counter() + 0.005, time.perf_counter() + 900
sys.stdout.write("ready\\n"); sys.stdout.flush()
import select
while not select.select([0], [], [], max(0.0, due - time.perf_counter()))[0]:
    now = time.perf_counter()
    late.append(1000 * max(0.0, now - due)); due = now + 0.005
late.sort()
print(late[len(late) // 2], late[int(len(late) * 0.99)], late[-1])
"""


def demo_apart(rounds: int) -> dict[str, object]:
    """`demo` in a process of its own: nothing is imported before the command is.

    A process that does nothing but wait for the same timer runs beside it: what it is late is this computer's, not the window's.
    """
    beside = subprocess.Popen([sys.executable, "-c", BESIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, __file__, "--demo-from", repr(time.time()), "--rounds", str(rounds)]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "ZK0DESK_HOME": home}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=900, check=True)
    said = beside.communicate()[0].split()[1:]
    own = dict(zip(("p50-ms", "p99-ms", "worst-ms"), (round(float(value), 1) for value in said), strict=True))
    return {**json.loads(done.stdout.splitlines()[-1]), "process-beside": own}


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
    parser.add_argument("--rounds", type=int, default=8, help="rounds of the demo")
    parser.add_argument("--only", choices=("start", "load", "demo"), help="measure one part")
    parser.add_argument("--demo-from", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    if chosen.demo_from:
        print(json.dumps(demo(chosen.rounds, chosen.demo_from)))
        return
    figures: dict[str, object] = {}
    if chosen.only in (None, "start"):
        start_ = figures["start"] = starts(chosen.repeat)
        print(f"first paint {start_['first-paint-s']} s, bare window {start_['bare-s']} s, ratio {start_['ratio']} (limit: 1.2)")
        print(f"first page {start_['first-page-s']} s, ratio {start_['ratio-first-page']}")
    phases: list[tuple[str, dict[str, float], str]] = []
    if chosen.only in (None, "load"):
        figures.update(loading())
        phases += [("idle", figures["idle"], "none: what else runs here"), ("loading", figures["loading"], "worst 400 ms")]
    if chosen.only in (None, "demo"):
        shown = figures["demo"] = demo_apart(chosen.rounds)
        phases += [(f"the demo is {name}", shown[name], limit) for name, limit in DEMO_LIMITS.items()]
        phases.append(("a process that only waits runs beside the demo", shown["process-beside"], "none: what this computer adds"))
    for name, f, limit in phases:
        print(f"event loop while {name}: p50 {f['p50-ms']}, p99 {f['p99-ms']}, worst {f['worst-ms']} ms (limit: {limit})")
    if "redraw-million-points-ms" in figures:
        print(f"a redraw of a million points: {figures['redraw-million-points-ms']} ms")
    if "demo" in figures:
        print(f"the demo's first loss was drawn {figures['demo']['first-loss-drawn-s']} s after its command (limit: 60 s)")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
