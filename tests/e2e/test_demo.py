"""The demo as a person starts it: a whole federation in processes of its own, and the events that it prints."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.timeout(900)

Line = dict[str, Any]
PASSING = {"time", "seconds", "since", "address", "run", "deadline", "sha256", "weights-sha256-of", "policy", "folder", "settings"}
"""What differs between two runs of the same seed: times, places, and names that are drawn anew."""


@contextmanager
def demo(*options: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """`zk0desk demo --headless OPTIONS`, which has ended when the block has."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zk0desk", "demo", "--headless", *options],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except ValueError:
            process.wait(30)  # the test closed the pipe itself


def lines_of(*options: str) -> list[Line]:
    """Every line that a demo prints; it must end well."""
    with demo(*options) as process:
        out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


@contextmanager
def busy() -> Iterator[None]:
    """A process that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def losses(lines: list[Line]) -> list[float]:
    """The held-out losses, from the base policy's on."""
    return [line["loss"] for line in lines if line["event"] == "evaluated"]


def the_same_in_every_run(lines: list[Line]) -> dict[str, list[Any]]:
    """What must not differ between two runs of a seed: per source, the events of learning; a node is called by its number."""
    names = {line["fingerprint"]: line["source"] for line in lines if line["event"] == "connected"}
    kept = {
        "round-started",
        "step-done",
        "round-trained",
        "federation-metrics",
        "round-opened",
        "round-aggregated",
        "evaluated",
        "run-finished",
    }

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {names.get(key, key): plain(item) for key, item in sorted(value.items()) if key not in PASSING and "seconds" not in key}
        if isinstance(value, list):
            return sorted((plain(item) for item in value), key=repr)
        return names.get(value, value) if isinstance(value, str) else value

    found: dict[str, list[Any]] = {}
    for line in lines:
        if line["event"] in kept:
            found.setdefault(line["source"], []).append(plain({key: value for key, value in line.items() if key != "source"}))
    return found


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Line], Path]:
    """The lines of one run of seed 5, and the ZK0DESK_HOME in which it ran."""
    home = tmp_path_factory.mktemp("demo-home")
    before = os.environ.get("ZK0DESK_HOME")
    os.environ["ZK0DESK_HOME"] = str(home)
    try:
        return lines_of("--rounds", "2", "--seed", "5"), home
    finally:
        if before is not None:
            os.environ["ZK0DESK_HOME"] = before


def test_the_last_line_names_the_result(first_run: tuple[list[Line], Path]) -> None:
    lines, home = first_run
    last = lines[-1]
    assert last.keys() == {"event", "rounds", "eval-loss-first", "eval-loss-last", "policy"}
    assert (last["event"], last["rounds"]) == ("demo-finished", 2)
    assert [last["eval-loss-first"], last["eval-loss-last"]] == [losses(lines)[0], losses(lines)[-1]]
    assert Path(last["policy"]).is_relative_to(home)


def test_the_held_out_loss_falls_with_every_round(first_run: tuple[list[Line], Path]) -> None:
    found = losses(first_run[0])
    assert len(found) == 3
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.9 * found[0]


def test_every_node_takes_part_in_every_round(first_run: tuple[list[Line], Path]) -> None:
    lines = first_run[0]
    trained = sorted((line["round"], line["source"]) for line in lines if line["event"] == "round-trained")
    assert trained == [(number, f"node-{node}") for number in (1, 2) for node in (1, 2, 3)]
    for line in lines:
        if line["event"] == "round-aggregated":
            assert sum(line["shares"].values()) == pytest.approx(1)
            assert line["missing"] == []


def test_lerobot_loads_the_policy_that_the_demo_made(first_run: tuple[list[Line], Path]) -> None:
    folder = Path(first_run[0][-1]["policy"])
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    assert sum(parameter.numel() for parameter in SmolVLAPolicy.from_pretrained(folder).parameters()) > 100_000


def test_a_seed_gives_the_same_curve_on_a_busy_computer(first_run: tuple[list[Line], Path]) -> None:
    with busy():
        again = lines_of("--rounds", "2", "--seed", "5")
    assert the_same_in_every_run(again) == the_same_in_every_run(first_run[0])


@pytest.mark.long
def test_another_seed_gives_another_curve(first_run: tuple[list[Line], Path]) -> None:
    assert losses(lines_of("--rounds", "1", "--seed", "6"))[:1] != losses(first_run[0])[:1]


def test_a_learning_rate_of_zero_leaves_the_policy_as_it_is() -> None:
    lines = lines_of("--rounds", "2", "--seed", "5", "--lr", "0")
    assert len(losses(lines)) == 3
    assert len(set(losses(lines))) == 1
    assert {line["update-norm"] for line in lines if line["event"] == "round-aggregated"} == {0.0}


def under(process: psutil.Process) -> list[psutil.Process]:
    return [each for each in process.children(recursive=True) if each.is_running()]


def reach(process: subprocess.Popen[str], event: str) -> list[Line]:
    """The lines up to the first that is `event`; after that, lines are read and dropped."""
    lines: list[Line] = []
    assert process.stdout is not None
    for text in process.stdout:
        lines.append(json.loads(text))
        if lines[-1]["event"] == event or lines[-1].get("state") == event:
            return lines
    raise AssertionError(f"no {event} among {len(lines)} events")


def listening() -> list[Any]:
    return [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.laddr]


def demo_folders() -> list[Path]:
    return [path for path in Path(os.environ["TMPDIR"]).iterdir() if path.name.startswith("zk0desk-demo-")]


@contextmanager
def nothing_left() -> Iterator[Any]:
    """Whatever runs under the process that the block gets, is gone after it: processes, the folder, ports."""
    family: list[psutil.Process] = []
    ports: set[int] = set()

    def note(process: subprocess.Popen[str]) -> None:
        family.extend(under(psutil.Process(process.pid)))
        assert family
        pids = {each.pid for each in family}
        ports.update(each.laddr.port for each in listening() if each.pid in pids)

    yield note
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    end = time.monotonic() + 10
    while demo_folders():
        assert time.monotonic() < end, "the folder stays"
        threading.Event().wait(0.05)
    assert not ports & {each.laddr.port for each in listening()}


PHASES = ("making", "starting", "serving", "step-done", "run-finished")
BETWEEN = ("connected", "joining", "round-opened", "round-aggregated")
"""From the first event to the last; a kill just before the first is among the guard's own tests."""


@pytest.mark.parametrize("moment", [*PHASES, *(pytest.param(moment, marks=pytest.mark.long) for moment in BETWEEN)])
def test_nothing_stays_when_the_demo_is_killed(moment: str) -> None:
    with demo("--rounds", "1") as process, nothing_left() as note:
        reach(process, moment)
        note(process)
        process.kill()
        process.wait()


@contextmanager
def window_demo() -> Iterator[subprocess.Popen[str]]:
    """`zk0desk demo` with its window, which nobody sees."""
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    command = [sys.executable, "-m", "zk0desk", "demo", "--rounds", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until_trained(process: subprocess.Popen[str]) -> None:
    """Wait until the window's own node has made a step: its journal says so."""
    import sqlite3

    end = time.monotonic() + 150
    while time.monotonic() < end:
        assert process.poll() is None
        for folder in demo_folders():
            journal = folder / "node-3" / "data" / "journal.sqlite"
            if journal.exists():
                with (
                    contextlib.suppress(sqlite3.Error),
                    contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database,
                ):
                    if database.execute("SELECT count(*) FROM steps").fetchone()[0]:
                        return
        threading.Event().wait(0.2)
    raise AssertionError("the window's node made no step")


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_when_the_windows_demo_is_ended_while_it_trains(way: signal.Signals) -> None:
    with window_demo() as process, nothing_left() as note:
        until_trained(process)
        note(process)
        process.send_signal(way)
        assert process.wait(20) == (130 if way == signal.SIGINT else -signal.SIGKILL)


def test_a_folder_that_is_in_use_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "zk0desk", "demo", "--headless", "--keep", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "is not empty" in done.stderr and not done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_the_demo_ends_at_once_when_nobody_reads_it() -> None:
    with demo("--rounds", "3") as process:
        reach(process, "making")
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) != 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_ctrl_c_ends_the_demo_at_once() -> None:
    with demo("--rounds", "3") as process:
        reach(process, "training")
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
