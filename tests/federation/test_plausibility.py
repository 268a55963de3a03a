"""What a node says of its round, and what cannot be."""

import pytest

from tests.federation.reply_parts import request
from zk0desk.federation.messages import MessageRefused
from zk0desk.federation.plausibility import check_plausible

TRUE = {"num-examples": 40.0, "frames-seen": 60.0, "steps-done": 2.0, "epochs-done": 1.5, "lr-used": 1e-3, "seconds": 8.0}


def check(changes, declared=0.0, elapsed=10.0, **asked):
    check_plausible({**TRUE, **changes}, request(**asked), declared=declared, elapsed=elapsed)


def test_that_a_round_as_it_was_asked_is_believed():
    check({})
    check({"num-examples": 10.0, "frames-seen": 20.0, "steps-done": 1.0})
    check({"num-examples": 640.0, "frames-seen": 1280.0, "steps-done": 40.0}, local_steps=0, local_epochs=2.0)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"steps-done": 3.0}, "steps-done"),
        ({"frames-seen": 65.0}, "frames-seen"),
        ({"num-examples": 61.0}, "num-examples"),
        ({"num-examples": 1e9}, "num-examples"),
        ({"lr-used": 1e-2}, "lr-used"),
        ({"seconds": 16.0}, "seconds"),
    ],
)
def test_that_more_than_was_asked_or_could_be_is_refused(changes, key):
    with pytest.raises(MessageRefused) as refused:
        check(changes)
    assert refused.value.key == key


def test_that_frames_without_visits_are_measured_by_the_steps():
    told = {key: value for key, value in TRUE.items() if key != "frames-seen"}
    check_plausible({**told, "num-examples": 64.0}, request(), elapsed=10.0)
    with pytest.raises(MessageRefused, match="num-examples"):
        check_plausible({**told, "num-examples": 65.0}, request(), elapsed=10.0)


def test_that_passes_over_frames_bound_the_steps_where_none_are_given():
    check({"steps-done": 5.0}, local_steps=0, local_epochs=2.0)
    with pytest.raises(MessageRefused, match="steps-done"):
        check({"steps-done": 6.0}, local_steps=0, local_epochs=2.0)
    with pytest.raises(MessageRefused, match="epochs-done"):
        check({"steps-done": 4.0, "epochs-done": 7.0}, local_steps=0, local_epochs=2.0)


def test_that_a_node_may_get_more_recordings_but_not_a_thousand_times_as_many():
    check({}, declared=20.0)
    with pytest.raises(MessageRefused, match="num-examples"):
        check({}, declared=19.0)


def test_that_steps_take_time_and_a_round_from_before_this_process_any():
    with pytest.raises(MessageRefused, match="steps-done"):
        check({"steps-done": 2e5, "seconds": 1.0}, local_steps=10**6, elapsed=100.0)
    check({"steps-done": 2e5, "seconds": 1e5}, local_steps=10**6, elapsed=None)
