import pytest

from zk0desk.federation.node_state import RUNNING, SENTENCES, TRANSITIONS, NodeState, check_transition


@pytest.mark.parametrize("state", NodeState)
def test_every_state_says_what_happens_why_and_what_comes_next(state):
    assert all(part.strip() for part in SENTENCES[state])


@pytest.mark.parametrize("state", NodeState)
def test_every_state_can_be_reached_from_idle(state):
    reached, edge = {NodeState.IDLE}, [NodeState.IDLE]
    while edge:
        for after in TRANSITIONS[edge.pop()] - reached:
            reached.add(after)
            edge.append(after)
    assert state in reached


@pytest.mark.parametrize("state", sorted(RUNNING))
def test_every_running_state_can_be_stopped_and_can_fail(state):
    assert NodeState.STOPPED in TRANSITIONS[state]
    assert NodeState.FAILED in TRANSITIONS[state]


def test_a_stopped_or_failed_node_can_join_again():
    check_transition(NodeState.STOPPED, NodeState.CHECKING)
    check_transition(NodeState.FAILED, NodeState.CHECKING)


def test_nothing_is_trained_before_the_superlink_was_called():
    with pytest.raises(ValueError, match="cannot go from"):
        check_transition(NodeState.CHECKING, NodeState.TRAINING)


def test_staying_in_a_state_is_no_transition():
    for state in NodeState:
        check_transition(state, state)
