"""A second start raises the first window and hands over its invitation."""

from __future__ import annotations

import subprocess
import sys
import uuid

from PySide6.QtNetwork import QLocalServer

from zk0desk.ui.single_instance import SingleInstance, _Guest

SECOND = """
import sys
from PySide6.QtCore import QCoreApplication
from zk0desk.ui.single_instance import SingleInstance
app = QCoreApplication([])
sys.exit(7 if SingleInstance(sys.argv[1]).claim(sys.argv[2]) else 0)
"""


def test_a_second_start_hands_over_its_link_and_ends(qtbot) -> None:
    name = f"zk0desk-test-{uuid.uuid4().hex[:8]}"
    first = SingleInstance(name)
    assert first.claim()
    with qtbot.waitSignal(first.raised, timeout=30_000) as raised:
        second = subprocess.Popen([sys.executable, "-c", SECOND, name, "zk0desk:join?abc"])
    assert raised.args == ["zk0desk:join?abc"]
    assert second.wait(timeout=30) == 0
    first.close()


def test_when_the_first_is_gone_the_next_is_the_first(qtbot) -> None:
    name = f"zk0desk-test-{uuid.uuid4().hex[:8]}"
    first = SingleInstance(name)
    assert first.claim()
    first.close()
    next_one = SingleInstance(name)
    assert next_one.claim()
    next_one.close()


def test_rubbish_on_the_socket_is_not_taken_for_an_invitation(qtbot) -> None:
    from PySide6.QtNetwork import QLocalSocket

    name = f"zk0desk-test-{uuid.uuid4().hex[:8]}"
    first = SingleInstance(name)
    assert first.claim()
    socket = QLocalSocket()
    with qtbot.waitSignal(first.raised) as raised:
        socket.connectToServer(name)
        socket.write(b"[1, 2\n")
        socket.flush()
    assert raised.args == [""]
    socket.abort()
    first.close()


def test_what_is_too_long_is_cut_off(qtbot) -> None:
    from PySide6.QtNetwork import QLocalSocket

    name = f"zk0desk-test-{uuid.uuid4().hex[:8]}"
    first = SingleInstance(name)
    assert first.claim()
    socket = QLocalSocket()
    with qtbot.waitSignal(socket.disconnected, timeout=10_000):
        socket.connectToServer(name)
        socket.write(b"x" * 100_000)
        socket.flush()
    first.close()


# --- a start while the first window closes


def start_second(name: str, argument: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SECOND, name, argument])


def test_a_start_while_the_window_closes_waits_and_is_the_first_then(qtbot) -> None:
    name = f"zk0desk-test-{uuid.uuid4().hex[:8]}"
    first = SingleInstance(name)
    assert first.claim()
    first.leave()
    told: list[str] = []
    first.raised.connect(told.append)
    second = start_second(name, "zk0desk:join?abc")
    qtbot.waitUntil(lambda: any(guest.told_to_wait for guest in first.findChildren(_Guest)), timeout=30_000)
    assert second.poll() is None and told == []
    first.close()
    assert second.wait(timeout=30) == 7, "it is the first now, with what it was given"
    assert told == []


def test_a_start_that_the_closing_window_never_read_is_not_lost(qtbot) -> None:
    name = f"zk0desk-test-{uuid.uuid4().hex[:8]}"
    dying = QLocalServer()
    assert dying.listen(name)
    with qtbot.waitSignal(dying.newConnection, timeout=30_000):
        second = start_second(name, "zk0desk:join?abc")
    guest = dying.nextPendingConnection()
    dying.close()
    guest.abort()
    assert second.wait(timeout=30) == 7


CLOSING = """
import sys, threading, time
from zk0desk.ui import main
from zk0desk.ui.node_thread import NodeThread
from zk0desk.ui.window import MainWindow
def slow(self):
    while not self._control.stopping:
        time.sleep(0.01)
    print("closing", flush=True)
    sys.stdin.readline()
NodeThread._run_node = slow
MainWindow.ask_to_close = lambda self: True
def ready(window):
    window.model.join()
    window.close()
sys.exit(main.run([], on_ready=ready))
"""
NEXT = """
import sys
from zk0desk.ui import main
def ready(window):
    print("invited", window.current_page, window.page("federation").paste_problem.text(), flush=True)
    window.close()
sys.exit(main.run(["zk0desk:join?abc"], on_ready=ready))
"""


def test_an_invitation_that_is_opened_while_the_window_closes_is_shown_by_the_next(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", CLOSING], **pipes)  # type: ignore[call-overload]
    assert first.stdout.readline() == "closing\n"
    second = subprocess.Popen([sys.executable, "-c", NEXT], **pipes)  # type: ignore[call-overload]
    try:
        second.wait(timeout=4)
        raise AssertionError("the second start did not wait for the first")
    except subprocess.TimeoutExpired:
        pass
    _, trouble = first.communicate("go on\n", timeout=60)
    said, more_trouble = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), trouble + more_trouble
    assert "Traceback" not in trouble + more_trouble
    assert said.startswith("invited federation This invitation is damaged.")
