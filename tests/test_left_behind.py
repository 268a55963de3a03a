"""The fixture that every test stands on fails a test that leaves something behind, and no other."""

import os
import re
import subprocess
import sys

import pytest

INNER = """
import socket, subprocess, sys, tempfile, threading, time, pytest

keep = []

def test_thread():
    thread = threading.Thread(target=time.sleep, args=(3,), daemon=True, name="forgotten")
    thread.start()

def test_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    process.stdout.readline()  # it runs: one that only begins has no environment yet to be known by
    keep.append(process)

def test_orphan():
    subprocess.run([sys.executable, "-c",
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)"])

def test_port():
    server = socket.create_server(("127.0.0.1", 0))
    keep.append(server)

def test_file():
    tempfile.mkdtemp(prefix="zk0desk-")

def test_timer(qapp):
    from PySide6.QtCore import QTimer
    timer = QTimer()
    timer.start(1000)
    keep.append(timer)

def test_qthread(qapp):
    from PySide6.QtCore import QThread
    thread = QThread()
    thread.start()
    keep.append(thread)

def test_internet():
    with pytest.raises(OSError):
        socket.create_connection(("9.9.9.9", 443), timeout=1)

def test_clean(qapp, tmp_path):
    from PySide6.QtCore import QTimer
    timer = QTimer()
    timer.start(1000)
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory(prefix="zk0desk-"):
        socket.create_connection(server.getsockname()).close()
    thread = threading.Thread(target=lambda: None)
    thread.start()
    subprocess.run([sys.executable, "-c", ""], check=True)
"""

LEFT = {
    "thread": "thread forgotten", "process": "process ", "orphan": "process ", "port": "listening port ", "file": "temp file zk0desk-",
    "timer": "QTimer of None, 1000 ms", "qthread": "QThread ", "internet": "connection to ('9.9.9.9', 443)",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inner")
    (folder / "test_inner.py").write_text(INNER)
    (folder / "pytest.ini").write_text("[pytest]\nqt_api = pyside6\n")
    environment = {**os.environ, "PYTHONPATH": str(checkout / "tests"), "ZK0DESK_TEST_PATIENCE": "0.2"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rA", str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_behind_fails_the_test_and_is_named(report, what):
    line = next(line for line in report.splitlines() if re.match(rf"ERROR .*::test_{what}\b", line))
    named = report.split(f"ERROR at teardown of test_{what} ")[1].split("ERROR at")[0]
    assert f"The test left behind: {LEFT[what]}" in named, line


def test_a_test_that_cleans_up_passes(report):
    assert re.search(r"^PASSED .*::test_clean$", report, re.MULTILINE)
    assert not re.search(r"^ERROR .*::test_clean\b", report, re.MULTILINE)
