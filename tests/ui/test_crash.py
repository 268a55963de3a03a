"""After a hard crash the next start says what died."""

from __future__ import annotations

import faulthandler
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zk0desk.ui.crash import CrashGuard, explain

DIES = """
import faulthandler, sys
from pathlib import Path
from zk0desk.ui.crash import CrashGuard
guard = CrashGuard(Path(sys.argv[1]))
guard.arm()
guard.note(training=True)
faulthandler._sigsegv()
"""


def test_a_segmentation_fault_is_told_by_the_next_start(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], timeout=60, check=False)
    assert dead.returncode == -signal.SIGSEGV
    crash = CrashGuard(tmp_path).last_crash()
    assert crash is not None
    assert "segmentation fault" in crash.sentence and crash.training
    assert crash.report is not None and "Segmentation fault" in crash.report.read_text()


def test_a_kill_is_told_too(tmp_path: Path) -> None:
    dies = DIES.replace("faulthandler._sigsegv()", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", dies, str(tmp_path)], timeout=60, check=False)
    crash = CrashGuard(tmp_path).last_crash()
    assert crash is not None and "killed" in crash.what


def test_a_good_end_leaves_nothing(tmp_path: Path) -> None:
    guard = CrashGuard(tmp_path)
    guard.arm()
    guard.disarm()
    faulthandler.enable(sys.__stderr__)
    assert CrashGuard(tmp_path).last_crash() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "name"), [("/x/torch/autograd/graph.py", "PyTorch"), ("/x/av/container.py", "the video decoder"), ("/x/other.py", "")]
)
def test_the_library_that_died_is_named(path: str, name: str) -> None:
    report = f'Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  File "{path}", line 1 in f\n'
    assert explain(report) == ("a segmentation fault", name)


def test_a_damaged_mark_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text("{")
    assert CrashGuard(tmp_path).last_crash() is None
