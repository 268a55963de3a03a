import threading
import time

import pytest

from zk0desk.control import NodeControl, Stopped


def _in_thread(action):
    outcome = []

    def body():
        try:
            outcome.append(action())
        except Stopped:
            outcome.append("stopped")

    thread = threading.Thread(target=body)
    thread.start()
    return thread, outcome


def test_a_paused_node_holds_until_it_is_resumed():
    control = NodeControl()
    control.pause()
    thread, outcome = _in_thread(control.hold)
    assert control.paused and thread.is_alive()
    control.resume()
    thread.join(5)
    assert isinstance(outcome[0], float)


def test_a_pause_ends_at_the_deadline():
    control = NodeControl()
    control.pause()
    assert control.hold(until=time.time() + 0.05) < 5
    assert control.paused


def test_stop_now_ends_a_pause_and_a_wait():
    control = NodeControl()
    control.pause()
    holding, held = _in_thread(control.hold)
    sleeping, slept = _in_thread(lambda: control.sleep(60))
    control.stop_now()
    holding.join(5)
    sleeping.join(5)
    assert held == slept == ["stopped"]


def test_finish_ends_a_wait_between_rounds_without_an_error():
    control = NodeControl()
    thread, outcome = _in_thread(lambda: control.sleep(60))
    control.finish_round()
    thread.join(5)
    assert outcome == [None]
    assert control.finishing and not control.stopping


def test_finish_resumes_a_paused_node_so_that_it_can_finish():
    control = NodeControl()
    control.pause()
    control.finish_round()
    assert not control.paused


def test_the_check_between_layers_raises_only_after_stop_now():
    control = NodeControl()
    control.check()
    control.stop_now()
    with pytest.raises(Stopped):
        control.check()
