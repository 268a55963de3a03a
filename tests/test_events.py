import dataclasses
import json
import types
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk import events
from zk0desk.events import Event, StepDone


def _values(hint):
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([_values(part) for part in typing.get_args(hint)])
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), _values(typing.get_args(hint)[1]), max_size=3)
    if origin is list:
        return st.lists(_values(typing.get_args(hint)[0]), max_size=3)
    return {
        str: st.text(max_size=20), int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(), type(None): st.none(), typing.Any: st.integers() | st.text(max_size=5),
    }[hint]  # fmt: skip


def _events(kind):
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: _values(hints[f.name]) for f in dataclasses.fields(kind)})


any_event = st.one_of([_events(kind) for name, kind in sorted(Event.kinds.items())])


@given(any_event)
def test_every_event_comes_back_from_its_line_of_json(event):
    line = json.dumps(event.to_json())
    assert "\n" not in line
    assert Event.from_json(json.loads(line)) == event


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_null_so_that_the_line_stays_json(bad):
    event = StepDone(
        run="r", round=1, step=1, steps=2, epoch=0, loss=bad, proximal=0.0, grad_norm=1.0, lr=1e-4, mu=0.0, frames=8, seconds=0.1
    )
    data = json.loads(json.dumps(event.to_json(), allow_nan=False))
    assert data["event"] == "step-done"
    assert data["loss"] is None


def test_names_are_kebab_case():
    notice = events.Notice(severity="note", code="x", what="y")
    assert notice.name == "notice"
    finished = events.DemoFinished(rounds=3, eval_loss_first=1.0, eval_loss_last=0.5, policy="p").to_json()
    assert {"event", "time", "rounds", "eval-loss-first", "eval-loss-last", "policy"} == set(finished)


def test_keys_that_are_not_known_are_left_out():
    event = Event.from_json({"event": "update-sent", "run": "r", "round": 1, "bytes": 2, "sha256": "", "seconds": 1.0, "shiny": True})
    assert isinstance(event, events.UpdateSent)


def test_an_unknown_event_is_a_key_error():
    with pytest.raises(KeyError):
        Event.from_json({"event": "never-heard-of"})
