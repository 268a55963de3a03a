"""The demo's guard: whatever happens to its parent, no process and no folder stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from zk0desk.demo.guard import PREFIX
from zk0desk.demo.guarded import Guard, GuardFailed

pytestmark = pytest.mark.timeout(60)

STUBBORN = """
import signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"],
                         stdout=subprocess.PIPE, text=True, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
signal.pause()
"""
"""A process that no polite signal ends, with a child in a session of its own."""

ORPHANING = STUBBORN.replace("signal.pause()\n", "raise SystemExit(3)\n") + "\n"
"""The same, but it ends at once and leaves its child behind."""

PARENT = """
import json, sys, time
from pathlib import Path
from zk0desk.demo.guarded import Guard
lines = []
guard = Guard(lambda name, text: print(json.dumps([name, text]), flush=True), lambda name, status: None)
print(json.dumps(["folder", str(guard.folder)]), flush=True)
print(json.dumps(["guard", str(guard.pid)]), flush=True)
guard.start("stubborn", ["-c", sys.argv[1]])
sys.stdin.read()
"""


def until(holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for a condition that nothing announces."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        pause.wait(0.02)


class Heard:
    """What a guard's processes print, and how they end."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.ends: dict[str, int] = {}

    def line(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def end(self, name: str, status: int) -> None:
        self.ends[name] = status

    def of(self, name: str) -> list[str]:
        return [text for source, text in self.lines if source == name]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def guard(heard: Heard) -> Iterator[Guard]:
    with Guard(heard.line, heard.end) as guard:
        yield guard


def gone(*pids: int) -> None:
    """Every one of `pids` has ended."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs([p for p in processes if p.status() != psutil.STATUS_ZOMBIE], timeout=15)
    assert not alive


def family(guard: Guard, heard: Heard, program: str = STUBBORN) -> tuple[int, int]:
    """Start `program` under the guard; its pid and that of its child."""
    guard.start("stubborn", ["-c", program])
    until(lambda: bool(heard.of("stubborn")), "the child's pid")
    return guard.pids["stubborn"], int(heard.of("stubborn")[0])


def test_lines_and_exit_statuses_reach_the_parent(guard: Guard, heard: Heard) -> None:
    guard.start("speaker", ["-c", "import sys; print('één'); print('two'); print('aside', file=sys.stderr); sys.exit(7)"])
    guard.start("killed", ["-c", "import os; os.kill(os.getpid(), 9)"])
    until(lambda: {"speaker", "killed"} <= heard.ends.keys(), "both ends")
    assert heard.of("speaker") == ["één", "two"]
    assert heard.ends == {"speaker": 7, "killed": -9}
    assert (guard.folder / "speaker.log").read_text(encoding="utf-8") == "aside\n"


def test_a_process_gets_the_environment_it_was_given(guard: Guard, heard: Heard) -> None:
    guard.start("speaker", ["-c", "import os; print(os.environ['ZK0DESK_HOME'])"], {"ZK0DESK_HOME": "/nowhere/at all"})
    until(lambda: "speaker" in heard.ends, "the end")
    assert heard.of("speaker") == ["/nowhere/at all"]


def test_close_ends_children_and_grandchildren_and_removes_the_folder(heard: Heard) -> None:
    guard = Guard(heard.line, heard.end)
    child, grandchild = family(guard, heard)
    (guard.folder / "deep" / "er").mkdir(parents=True)
    guard.close()
    gone(child, grandchild, guard.pid)
    assert not guard.folder.exists()
    assert heard.ends[""] == -1


def test_close_may_come_twice(heard: Heard) -> None:
    guard = Guard(heard.line, heard.end)
    guard.close()
    guard.close()
    assert not guard.folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
def test_a_grandchild_whose_own_parent_has_died_ends_too(heard: Heard) -> None:
    guard = Guard(heard.line, heard.end)
    _, grandchild = family(guard, heard, ORPHANING)
    until(lambda: heard.ends.get("stubborn") == 3, "the child's end")
    assert psutil.pid_exists(grandchild)
    guard.close()
    gone(grandchild)


def test_one_process_can_be_ended_and_the_others_go_on(guard: Guard, heard: Heard) -> None:
    stubborn, _ = family(guard, heard)
    guard.start("polite", ["-c", "import sys; print('up', flush=True); sys.exit(len(sys.stdin.read()) + 4)"])
    guard.start("other", ["-c", "import sys; print('up', flush=True); sys.stdin.read()"])
    until(lambda: heard.of("polite") == heard.of("other") == ["up"], "both to be up")
    guard.end("polite")
    until(lambda: "polite" in heard.ends, "the polite one's end")
    assert "other" not in heard.ends
    guard.end("stubborn")
    until(lambda: heard.ends.get("stubborn") == -signal.SIGKILL, "the stubborn one to be killed")
    gone(stubborn)
    assert "other" not in heard.ends
    guard.end("nobody")


def test_a_kept_folder_stays_with_what_is_in_it(tmp_path: Path, heard: Heard) -> None:
    keep = tmp_path / "kept" / "demo"
    guard = Guard(heard.line, heard.end, keep=keep)
    assert guard.folder == keep
    child, grandchild = family(guard, heard)
    guard.close()
    gone(child, grandchild)
    assert (keep / "stubborn.log").exists()


def test_a_command_that_cannot_be_started_ends_with_a_reason(guard: Guard, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    guard.start("ghost", ["-c", ""])
    until(lambda: "ghost" in heard.ends, "the end")
    assert heard.ends["ghost"] == 127
    assert "/nowhere/python" in heard.of("ghost")[0]


def test_a_guard_that_was_killed_is_told_and_refuses_orders(heard: Heard) -> None:
    guard = Guard(heard.line, heard.end)
    folder = guard.folder
    psutil.Process(guard.pid).kill()
    until(lambda: heard.ends.get("") == -1, "the end of the guard")
    with pytest.raises(GuardFailed):
        guard.start("late", ["-c", ""])
    guard.close()
    shutil.rmtree(folder)


def parent() -> tuple[subprocess.Popen[str], Path, list[int]]:
    """A process that owns a guard with a stubborn family: itself, the folder, and the pids under it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, STUBBORN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    told = dict(json.loads(process.stdout.readline()) for _ in range(3))
    pids = [int(told["guard"]), int(told["stubborn"]), psutil.Process(int(told["stubborn"])).ppid()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    return process, Path(told["folder"]), pids


def finished(process: subprocess.Popen[str], folder: Path, pids: list[int]) -> None:
    process.wait(10)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    gone(*pids)
    until(lambda: not folder.exists(), "the folder to go")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_when_the_parent_is_killed(number: signal.Signals) -> None:
    process, folder, pids = parent()
    assert folder.name.startswith(PREFIX)
    process.send_signal(number)
    finished(process, folder, pids)


def test_nothing_stays_when_the_parent_ends_without_a_word() -> None:
    process, folder, pids = parent()
    assert process.stdin is not None
    process.stdin.close()
    finished(process, folder, pids)
    assert process.returncode == 0


def test_a_signal_to_the_guard_does_not_end_it(guard: Guard, heard: Heard) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guard.pid, number)
    guard.start("speaker", ["-c", "print('still here')"])
    until(lambda: "speaker" in heard.ends, "the end")
    assert heard.of("speaker") == ["still here"]
