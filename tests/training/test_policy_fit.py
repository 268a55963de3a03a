"""A recording's numbers beside the policy's, and what keeps two recordings apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.recording_parts import make_recording
from zk0desk.settings import ChosenRecording
from zk0desk.training.policy import save_processors
from zk0desk.training.policy_fit import RecordingFit, apart, recording_fit, unit_of
from zk0desk.training.policy_statistics import policy_statistics
from zk0desk.training.recordings import PolicyNeeds, read_recording

NEEDS = PolicyNeeds()


def with_state(folder: Path, low: list[float], high: list[float], names: tuple[str, ...] = ()) -> RecordingFit:
    """A recording whose state goes from `low` to `high`."""

    def named(info: dict[str, Any]) -> None:
        if names:
            info["features"]["observation.state"]["names"] = list(names)

    make_recording(folder, info=named, dims=(len(low), 3))
    path = folder / "meta" / "stats.json"
    stats = json.loads(path.read_text())
    stats["observation.state"] = {"min": low, "max": high, "mean": low, "std": high}
    path.write_text(json.dumps(stats))
    return recording_fit(read_recording(folder), NEEDS)


def test_each_number_has_its_place_name_unit_and_range(tmp_path: Path) -> None:
    fit = with_state(tmp_path / "a", [-1.0, -90.0, 0.0], [1.0, 90.0, 0.0], ("pan", "lift_deg", "grip"))
    told = [(each.place, each.name, each.unit) for each in fit.state.dimensions]
    assert told == [(0, "pan", "rad, m?"), (1, "lift_deg", "°"), (2, "grip", "")]
    assert (fit.state.dimensions[1].low, fit.state.dimensions[1].high, fit.state.dimensions[1].reach) == (-90.0, 90.0, 180.0)
    assert fit.state.sentence == "Places 1 to 3 of the policy's 32; the other 29 are filled with zeros and do not count."
    small = recording_fit(fit.recording, PolicyNeeds(max_state_dim=3, max_action_dim=2))
    assert small.state.sentence == "Places 1 to 3 of the policy's 3." and "does not fit" in small.action.sentence


def test_degrees_against_radians_are_told_in_words(tmp_path: Path) -> None:
    one = with_state(tmp_path / "one", [-1.0, -1.5, -0.5], [1.0, 1.5, 0.5])
    reach = [180 / math.pi * each for each in (1.0, 1.5, 0.5)]
    other = with_state(tmp_path / "other", [-each for each in reach], reach)
    (finding,) = [each for each in apart([one, other]) if "state" in each.what]
    assert finding.code == "units-differ" and "seems to be in different units" in finding.what
    assert "The joints of other reach about 57 times as far as those of one, as degrees against radians do." in finding.why
    (back,) = [each for each in apart([other, one]) if "state" in each.what]
    assert "The joints of other reach about 57 times" in back.why


def test_units_in_the_names_decide(tmp_path: Path) -> None:
    one = with_state(tmp_path / "one", [-1.0] * 2, [1.0] * 2, ("pan_rad", "lift_rad"))
    other = with_state(tmp_path / "other", [-1.0] * 2, [1.0] * 2, ("pan_deg", "lift_deg"))
    assert [each.code for each in apart([one, one])] == []
    # Other names are no twins by name; without names, places are.
    assert "units-differ" not in [each.code for each in apart([one, other])]


def test_ranges_that_never_meet_are_told_with_their_joint(tmp_path: Path) -> None:
    one = with_state(tmp_path / "one", [-1.0, 0.1, -0.5], [1.0, 0.7, 0.5])
    other = with_state(tmp_path / "other", [-1.0, 2.0, -0.5], [1.0, 2.5, 0.5])
    (finding,) = [each for each in apart([one, other]) if "state" in each.what]
    assert finding.code == "ranges-differ" and "joint_1.pos: 0.1 to 0.7 in one, 2 to 2.5 in other." in finding.why


def test_real_recordings_of_one_robot_have_the_same_units(shared_recordings: Path) -> None:
    fits = [recording_fit(read_recording(shared_recordings / name), NEEDS) for name in ("cr5-cube", "cr5-banana")]
    assert [each.name for each in fits[0].action.dimensions][-1] == "gripper"
    assert not [each for each in apart(fits) if each.code == "units-differ"]


def test_each_recording_is_compared_with_all_before_it(tmp_path: Path) -> None:
    usual = [with_state(tmp_path / name, [-1.0, -1.5, -0.5], [1.0, 1.5, 0.5]) for name in ("a", "b")]
    still = with_state(tmp_path / "still", [0.0] * 3, [0.0] * 3)  # nothing follows from an arm that stands still
    wide = with_state(tmp_path / "wide", [-60.0, -80.0, -30.0], [60.0, 80.0, 30.0])
    for fits in ([still, *usual, wide], [wide, *usual, still], [usual[0], still, wide]):
        (finding,) = [each for each in apart(fits) if "state" in each.what][:1]
        assert finding.code == "units-differ" and "wide reach" in finding.why
    assert apart([still, *usual]) == []


def test_what_the_policy_was_trained_with_stands_beside_it(tmp_path: Path, demo_policy: Path, demo_recording: Path) -> None:
    assert policy_statistics(demo_policy) == {}, "it was never trained"
    trained = save_processors(tmp_path / "trained", demo_policy, [ChosenRecording(path=demo_recording)])
    recording = read_recording(demo_recording)
    fit = recording_fit(recording, NEEDS, policy_statistics(trained))
    for vector in (fit.state, fit.action):
        assert [(each.mean, each.std) for each in vector.before] == [
            (pytest.approx(each.mean, rel=1e-5), pytest.approx(each.std, rel=1e-5)) for each in vector.dimensions
        ]
    assert recording_fit(recording, NEEDS).state.before == ()


NO_STEPS = ("", "[]", "{}", '{"steps": 3}', '{"steps": [{"registry_name": "normalizer_processor", "state_file": 5}]}')


@pytest.mark.parametrize("text", NO_STEPS)
def test_a_policy_whose_statistics_cannot_be_read_has_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy_preprocessor.json").write_text(text)
    (tmp_path / "5").write_bytes(b"no safetensors")
    assert policy_statistics(tmp_path) == {}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["min", "max", "mean", "std"]), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_recording(tmp_path_factory.mktemp("fit") / "cubes")


@given(_json, _json)
def test_whatever_the_statistics_hold_there_is_an_answer(folder: Path, state: Any, action: Any) -> None:
    (folder / "meta" / "stats.json").write_text(json.dumps({"observation.state": state, "action": action}))
    fit = recording_fit(read_recording(folder), NEEDS)
    assert len(fit.state.dimensions) == len(fit.action.dimensions) == 3
    for each in (*fit.state.dimensions, *fit.action.dimensions):
        assert all(number is None or math.isfinite(number) for number in (each.low, each.high, each.mean, each.std))
    apart([fit, fit])


@given(st.text(max_size=20), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_guess_is_marked_as_one(name: str, low: float, high: float) -> None:
    unit = unit_of(name, min(low, high), max(low, high))
    assert unit in ("", "rad, m?", "°, %?", "ticks?") or unit_of(name, None, None) == unit
