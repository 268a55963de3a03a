"""How often a node asks for work."""

import pytest

from zk0desk.federation.node import FIRST_POLL_S, IDLE_POLL_S, LIVELY_S, POLL_S, poll_pause

CASES = {
    "right after an answer": (0.0, 0.001, FIRST_POLL_S),
    "while rounds come": (5.0, 0.01, POLL_S),
    "a little later": (LIVELY_S + 30, 0.01, POLL_S + 0.5),
    "when none came for long": (LIVELY_S + 3600, 0.01, IDLE_POLL_S),
    "a busy SuperLink": (0.0, 0.1, 0.8),
    "one that hardly answers": (0.0, 5.0, IDLE_POLL_S),
}


@pytest.mark.parametrize(("quiet", "took", "wanted"), CASES.values(), ids=CASES)
def test_that_a_node_polls_often_while_rounds_come_and_seldom_when_nothing_comes_or_the_superlink_is_busy(quiet, took, wanted):
    pauses = [poll_pause(quiet, took) for _ in range(200)]
    assert 0.9 * wanted <= min(pauses) < wanted < max(pauses) <= 1.1 * wanted
