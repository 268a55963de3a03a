"""What an owner waits for and downloads: sizes of the packages, starts to the first paint, and the training engine on demand.

    python benchmarks/packages.py [--packages DIR] [--repeat N] [--only size|start|engine]

`--packages` holds packages that `make packages` built; without it they are built now, which takes ten minutes. The tar is unpacked and
started as it is, by its own launcher, on an Xvfb where there is one. First starts come after the system's cache of files was dropped
(as root; else each file of the tree is given up with posix_fadvise). Times are from the launcher's start to the window's first paint.
The last line holds all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
# With pyarrow and PyAV inside, recordings are checked and played before any engine is there.
TARGETS = {"deb MB": 130, "tar MB": 130, "appimage MB": 130, "first start s": 1.5, "later start s": 0.8}

# What the launcher starts, but with the moment of the first paint told, and closed after it.
PAINT = """
import sys, time, zk0desk_start
trouble = zk0desk_start.what_is_missing()
assert not trouble, trouble
from zk0desk.ui import main
original = main.MainWindow._after_paint
def painted(self):
    print(time.time(), flush=True)
    original(self)
main.MainWindow._after_paint = painted
main.run([], on_ready=lambda window: window.close())
"""


def build(out: Path) -> None:
    """Build the packages from this checkout with this computer's Python."""
    command = [sys.executable, CHECKOUT / "packaging" / "build.py", "--system", "linux", "--format", "deb,tar,appimage"]
    subprocess.run([*command, "--python", "running", "--out", out], check=True)


def sizes(packages: Path) -> dict[str, float]:
    """Megabytes (10^6 bytes) of each package."""
    found = {}
    for name, pattern in (("deb", "*.deb"), ("tar", "*.tar.xz"), ("appimage", "*.squashfs"), ("appimage", "*.AppImage")):
        for path in packages.glob(pattern):
            found[f"{name} MB"] = round(path.stat().st_size / 1e6, 1)
    return found


def forget(tree: Path) -> None:
    """Have the system read the tree from the disk again."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for path in tree.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start(tree: Path, home: str) -> float:
    """Seconds from the launcher's start to the first paint."""
    launcher = tree / "bin" / "zk0desk-measured"
    text = (tree / "bin" / "zk0desk").read_text(encoding="utf-8")
    launcher.write_text(text.replace("-m zk0desk_start", '-c "$PAINT"'), encoding="utf-8")
    launcher.chmod(0o755)
    began = time.time()
    environment = {**os.environ, "ZK0DESK_HOME": home, "PAINT": PAINT}
    done = subprocess.run([launcher], env=environment, capture_output=True, text=True, timeout=120, check=True)
    return float(done.stdout.split()[0]) - began


def starts(packages: Path, folder: Path, repeat: int) -> dict[str, Any]:
    """First and later starts of the tar, unpacked under `folder`; the middle of `repeat` each, and the worst."""
    subprocess.run(["tar", "-xf", next(packages.glob("*.tar.xz")), "-C", folder], check=True)
    tree = next(folder.glob("zk0desk-*"))
    home = str(folder / "home")
    later, first = [], []
    for _ in range(repeat):
        forget(tree)
        first.append(start(tree, home))
    for _ in range(repeat):
        later.append(start(tree, home))
    return {
        "first start s": round(statistics.median(first), 2),
        "first start worst s": round(max(first), 2),
        "later start s": round(statistics.median(later), 2),
        "later start worst s": round(max(later), 2),
        "unpacked MB": round(sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6, 1),
    }


def screen() -> subprocess.Popen[bytes] | None:
    """An X server without a monitor, if there is one to start; else Qt draws offscreen."""
    if shutil.which("Xvfb") is None:
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
        return None
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x900x24", "-nolisten", "tcp"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read) as file:
        os.environ["DISPLAY"] = f":{file.readline().strip()}"
    os.environ["QT_QPA_PLATFORM"] = "xcb"
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=("size", "start", "engine"))
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="zk0desk-packages-") as name:
        folder = Path(name)
        packages = given.packages or folder / "packages"
        if not given.packages and given.only != "engine":
            build(packages)
        if given.only in (None, "size"):
            figures |= sizes(packages)
        if given.only in (None, "start"):
            server = screen()
            try:
                figures |= starts(packages, folder, given.repeat)
            finally:
                if server is not None:
                    server.terminate()
                    server.wait()
    for what, value in figures.items():
        target = f"  (at most {TARGETS[what]})" if what in TARGETS else ""
        print(f"{what:24} {value}{target}")
    if given.only in (None, "engine"):
        from packages_engine import measure

        engine = measure()
        figures |= engine
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
