"""What the server does about processes that ended, and about those that a killed server left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zk0desk.federation import child, supervisor
from zk0desk.federation.supervisor import Backoff


@pytest.fixture
def hanging() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends by itself for nobody."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    os.kill(process.pid, signal.SIGSTOP)
    yield process
    process.kill()
    process.wait(5)


def test_a_hanging_child_of_a_killed_server_is_ended(tmp_path: Path, hanging):
    child.remember(tmp_path / "children.json", [hanging.pid, 2**22 - 1])
    child.end_left_behind(tmp_path / "children.json", grace=0.1)
    assert hanging.poll() is not None
    assert not (tmp_path / "children.json").exists()


@pytest.mark.parametrize("changed", [{"began": 1.0}, {"command": ["vi", "thesis.tex"]}])
def test_a_process_that_only_has_a_childs_number_is_left_alone(tmp_path: Path, hanging, changed):
    path = tmp_path / "children.json"
    child.remember(path, [hanging.pid])
    path.write_text(json.dumps([{**each, **changed} for each in json.loads(path.read_text())]))
    child.end_left_behind(path, grace=0.1)
    assert hanging.poll() is None


@pytest.mark.parametrize("text", ["", "{", '[{"pid": 1}]', "{}"])
def test_a_list_of_children_that_is_damaged_stops_nothing(tmp_path: Path, text):
    (tmp_path / "children.json").write_text(text)
    child.end_left_behind(tmp_path / "children.json", grace=0.1)


def test_the_wait_before_another_start_grows_and_begins_anew_after_some_health(monkeypatch):
    now = 0.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    backoff = Backoff()
    assert [backoff.wait_s() for _ in range(7)] == [0.2, 1.0, 5.0, 15.0, 60.0, 60.0, 60.0]
    backoff.started()
    now += supervisor.HEALTHY_S - 1
    assert backoff.wait_s() == 60.0
    backoff.started()
    now += supervisor.HEALTHY_S + 1
    assert [backoff.wait_s(), backoff.wait_s()] == [0.2, 1.0]
