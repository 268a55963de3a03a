"""A local round, LeRobot's own training loop and ours side by side: `python benchmarks/local_round.py --size full --level P --cameras 2`.

On the same frames of a real recording, with the same batches, order, noise, times and learning rate; each side in a process of its own,
one after the other. LeRobot's side is its `update_policy` over its `LeRobotDataset`, torch's `DataLoader` without workers, its processors
and its AdamW; ours is `LocalTrainer` with an empty prefix cache, whole: choosing, self check and filling included. `benchmarks/README.md`
says how each figure is measured and what it does not show. `--size tiny` ends within a minute. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from local_round_sides import lerobot_side, our_side, steps_of_round

PICTURE = Path(__file__).with_suffix(".png")
SIDES = {"lerobot": lerobot_side, "ours": our_side}
DEFAULTS = {"tiny": (16, 8), "full": (8, 4)}
"""Frames and batch for each size."""
ASKED = ("size", "cameras", "frames", "batch", "epochs", "threads", "seed")
THEIRS, OURS = ("lerobot_steps",), ("level", "rounds", "micro_batch")
"""What the figures of both sides, and of each, depend on."""
SMOOTHED = 10
"""Steps whose mean loss the picture's thick line shows."""
LONG = 530
"""Frames of the whole recording, for which first and five rounds are reckoned from what was measured."""


def ratios(given: argparse.Namespace, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """LeRobot's seconds over ours, CPU and wall: first round, a later one, all; and as reckoned for the whole recording."""
    found = {}
    for kind, name in (("cpu", ""), ("wall", "-wall")):
        their, our = theirs["round"][kind], [each[kind] for each in ours["rounds"]]
        found[f"first{name}"] = their / our[0]
        if len(our) > 1:
            found[f"later{name}"] = their / median(our[1:])
        if len(our) == 5:
            found[f"five{name}"] = 5 * their / sum(our)
    our, choose = [each["cpu"] for each in ours["rounds"]], ours["choose"]["cpu"]
    if len(our) > 1:
        longer, later = LONG / given.frames, median(our[1:])
        fill = max(0.0, our[0] - choose - later)
        found["first-reckoned"] = theirs["round"]["cpu"] * longer / (choose + longer * (fill + later))
        found["five-reckoned"] = 5 * theirs["round"]["cpu"] * longer / (choose + longer * (fill + 5 * later))
    return found


def show(given: argparse.Namespace, theirs: dict[str, Any], ours: dict[str, Any], found: dict[str, float]) -> None:
    """Print what a person reads."""
    about, step = theirs["about"], theirs["step"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lerobot", "transformers"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    print(f"{time.strftime('%Y-%m-%d')}: {machine}; load {os.getloadavg()[0]:.1f} at the end")
    print(
        f"{given.size}, level {given.level}, {given.cameras} camera(s) {about['picture'][0]}x{about['picture'][1]},"
        f" {given.frames} frames of {about['recording']}, batch {given.batch}, {given.epochs} epochs,"
        f" {steps_of_round(given)} steps a round, {given.threads} thread(s)"
    )
    how = f"from the median of {theirs['steps']} steady steps" if theirs["extrapolated"] else "whole"
    print(f"LeRobot  a round {theirs['round']['cpu']:8.1f} s CPU {theirs['round']['wall']:8.1f} s wall ({how}),", end=" ")
    print(f"step {step['cpu']:.2f} s CPU, of it loading {theirs['load']['cpu']:.2f} s; peak {theirs['peak'] / 1e9:.2f} GB")
    for number, each in enumerate(ours["rounds"], 1):
        print(f"ours {number}   a round {each['cpu']:8.1f} s CPU {each['wall']:8.1f} s wall; peak {each['peak'] / 1e9:.2f} GB")
    print(f"ours     step {ours['step']:.2f} s CPU, choosing and checking {ours['choose']['cpu']:.1f} s CPU once,", end=" ")
    print(f"cache {ours['bytes'] / 1e6:.1f} MB, {ours['micro'] or given.batch} frames at once")
    print("last round, s wall: " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in ours["times"].items()))
    for name, value in found.items():
        print(f"  {name:<16} {value:6.2f} times LeRobot's speed")
    print("gradients against LeRobot's on the same batch, noise and time, relative:")
    for level, differences in theirs["difference"].items():
        print(f"  {level}: " + ", ".join(f"{value:.1e} with {storage} entries" for storage, value in differences.items()))


def draw(path: Path, given: argparse.Namespace, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Loss against wall time."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import pyqtgraph as pg
    from pyqtgraph.exporters import ImageExporter
    from PySide6.QtWidgets import QApplication

    application = QApplication.instance() or QApplication([])
    pg.setConfigOptions(background="w", foreground="#333", antialias=True)
    window = pg.GraphicsLayoutWidget(size=(900, 480))
    title = f"Loss against wall time: {given.size} SmolVLA, {given.cameras} camera(s), level {given.level}, {given.threads} thread(s)"
    plot = window.addPlot(title=title)
    plot.setLabels(left=f"loss of a step, and mean of {SMOOTHED}", bottom="seconds since the start, self check and cache included")
    plot.addLegend(offset=(-10, 10))
    plot.showGrid(x=True, y=True, alpha=0.2)
    for name, side, colour in (("LeRobot", theirs, "#b5651d"), ("zk0desk", ours, "#2a6fdb")):
        seconds, losses = zip(*side["curve"], strict=True)
        plot.plot(seconds, losses, pen=pg.mkPen(colour + "50", width=1))
        smooth = [mean(losses[max(0, n - SMOOTHED + 1) : n + 1]) for n in range(len(losses))]
        plot.plot(seconds, smooth, pen=pg.mkPen(colour, width=2), name=f"{name}: {len(losses)} steps in {seconds[-1]:.0f} s")
    window.show()
    application.processEvents()
    ImageExporter(window.scene()).export(str(path))
    window.close()


def run_side(side: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One side in a process of its own; what it said before in a folder that is kept, if it was asked the same."""
    asked = {name: getattr(given, name) for name in ASKED + (OURS if side == "ours" else THEIRS)}
    place = folder / f"{side}{f'-{given.level}' if side == 'ours' else ''}.json"
    if given.keep and place.exists():
        found: dict[str, Any] = json.loads(place.read_text())
        if found["asked"] == asked:
            print(f"{side}: as it was measured {found['when']}")
            return found
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true", "SVT_LOG": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder), "--result", str(place)]
    with tempfile.TemporaryDirectory(prefix="zk0desk-local-round-") as scratch:  # libraries leave files behind
        subprocess.run(command, check=True, env=environment | {"TMPDIR": scratch})
    found = json.loads(place.read_text()) | {"asked": asked, "when": time.strftime("%Y-%m-%d %H:%M")}
    place.write_text(json.dumps(found))
    return found


def read_arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--level", choices=("N", "V", "P"), default="P")
    parser.add_argument("--cameras", type=int, choices=(1, 2), default=2, help="a second one repeats the first a frame later")
    parser.add_argument("--frames", type=int, help="of the recording; a multiple of the batch")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--epochs", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=5, help="of ours")
    parser.add_argument("--lerobot-steps", type=int, default=20, help="steady steps of LeRobot's that are timed; 0: a whole round")
    parser.add_argument("--threads", type=int, default=1, help="torch's, for both")
    parser.add_argument("--micro-batch", type=int, default=0, help="frames that ours computes at once; 0: as it chooses itself")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, nargs="?", const=PICTURE, help="draw loss against wall time there")
    parser.add_argument("--keep", type=Path, help="keep policy, recording and what each side said there, and use them again")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    frames, batch = DEFAULTS[given.size]
    given.frames, given.batch = given.frames or frames, given.batch or batch
    if given.frames % given.batch:
        parser.error("--frames has to be a multiple of --batch, so that all steps are alike")
    return given


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    if given.side:
        from zk0desk.quiet import quiet_libraries

        quiet_libraries()
        given.result.write_text(json.dumps(SIDES[given.side](given, given.folder)))
        return
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    with nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory(prefix="zk0desk-local-round-") as folder:
        theirs, ours = (run_side(side, given, Path(folder)) for side in SIDES)
    found = ratios(given, theirs, ours)
    show(given, theirs, ours, found)
    if given.picture:
        draw(given.picture, given, theirs, ours)
    asked = {name: getattr(given, name) for name in (*ASKED, "level", "rounds")}
    differences = theirs["difference"][given.level]
    result: dict[str, Any] = {"benchmark": "local-round"} | asked | {name: round(value, 3) for name, value in found.items()}
    result |= {
        "gradient-difference": differences.get("float16", differences["float32"]),
        "gradient-difference-float32": differences["float32"],
        "lerobot-extrapolated": theirs["extrapolated"],
        "lerobot-steps": theirs["steps"],
        "step-s": round(ours["step"], 4),
        "lerobot-step-s": round(theirs["step"]["cpu"], 4),
        "choose-s": round(ours["choose"]["cpu"], 3),
        "wait-share": round(ours["times"]["wait"] / sum(ours["times"].values()), 4),
        "loss-apart": round(mean(abs(a[1] - b[1]) / a[1] for a, b in zip(theirs["curve"], ours["curve"], strict=False)), 6),
        "peak-bytes": max(each["peak"] for each in ours["rounds"]),
        "peak-bytes-last-round": ours["rounds"][-1]["peak"],
        "lerobot-peak-bytes": theirs["peak"],
        "recording": theirs["about"]["recording"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
