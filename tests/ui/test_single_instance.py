"""A second start raises the first window and hands over its invitation."""

from __future__ import annotations

import subprocess
import sys
import uuid

from zk0desk.ui.single_instance import SingleInstance

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
