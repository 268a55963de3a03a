"""Which camera fills which slot of the policy, and which recordings fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zk0desk.training.recordings import Camera, PolicyNeeds, Recording, RecordingError, Severity, fit_together, map_cameras

NEEDS = PolicyNeeds()
ONE = Recording(
    path=Path("/recordings/one"),
    name="one",
    robot="desk-arm",
    version="v3.0",
    episodes=2,
    frames=100,
    fps=10.0,
    duration=10.0,
    cameras=(Camera("observation.images.top", 64, 48, "h264"),),
    state_names=("a", "b"),
    action_names=("a", "b"),
    state_dim=2,
    action_dim=2,
    tasks=("Put the cube into the box.",),
    bytes_on_disk=1000,
)
TWO = replace(ONE, path=Path("/recordings/two"), name="two")


def seen_by(*names: str, depth: str = "") -> Recording:
    return replace(ONE, cameras=tuple(Camera(f"observation.images.{name}", 64, 48, "h264", name == depth) for name in names))


def slots(recording: Recording, **chosen: str) -> dict[str, str]:
    mapping = map_cameras(recording, NEEDS, chosen)
    return {slot.rpartition(".")[2]: camera.rpartition(".")[2] for slot, camera in mapping.slots.items()}


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        (("camera2", "camera1"), {"camera1": "camera1", "camera2": "camera2"}),
        (("top",), {"camera1": "top"}),
        (("wrist",), {"camera2": "wrist"}),
        (("anything",), {"camera1": "anything"}),
        (("wrist", "front"), {"camera1": "front", "camera2": "wrist"}),
        (("top", "front"), {"camera1": "top", "camera3": "front"}),
        (("side_view", "gripper_cam", "overhead"), {"camera1": "overhead", "camera2": "gripper_cam", "camera3": "side_view"}),
    ],
)
def test_cameras_are_mapped_by_name(cameras: tuple[str, ...], expected: dict[str, str]) -> None:
    assert slots(seen_by(*cameras)) == expected
    assert not map_cameras(seen_by(*cameras), NEEDS).ambiguous


def test_names_that_say_nothing_are_left_to_the_operator() -> None:
    recording = seen_by("cam_a", "cam_b")
    assert map_cameras(recording, NEEDS).ambiguous
    assert slots(recording, camera1="cam_b", camera2="cam_a") == {"camera1": "cam_b", "camera2": "cam_a"}
    assert not map_cameras(recording, NEEDS, {"camera1": "cam_b"}).ambiguous


def test_a_choice_may_be_named_in_full_and_leaves_the_rest_unused() -> None:
    chosen = {"observation.images.camera3": "observation.images.top"}
    mapping = map_cameras(seen_by("top", "wrist"), NEEDS, chosen)
    assert mapping.slots == chosen
    assert mapping.missing == NEEDS.camera_slots[:2]
    assert mapping.unused == ("observation.images.wrist",)


@pytest.mark.parametrize("chosen", [{"camera9": "top"}, {"camera1": "side"}, {"camera1": "top", "camera2": "top"}])
def test_a_choice_that_cannot_be_is_refused(chosen: dict[str, str]) -> None:
    with pytest.raises(RecordingError):
        map_cameras(seen_by("top", "wrist"), NEEDS, chosen)


def test_a_depth_camera_fills_no_slot() -> None:
    mapping = map_cameras(seen_by("depth", "top", depth="depth"), NEEDS)
    assert list(mapping.slots.values()) == ["observation.images.top"]
    assert mapping.unused == ("observation.images.depth",)


def test_more_cameras_than_slots_leave_some_unused() -> None:
    mapping = map_cameras(seen_by("top", "wrist", "side", "front"), NEEDS)
    assert len(mapping.slots) == 3
    assert mapping.unused == ("observation.images.front",)


def test_recordings_that_are_alike_have_nothing_to_tell() -> None:
    assert fit_together([], NEEDS) == []
    assert fit_together([ONE, TWO], NEEDS) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"robot": "other"}, "robots-differ"),
        ({"fps": 30.0}, "fps-differ"),
        ({"state_dim": 6, "state_names": ("a",) * 6}, "dimensions-differ"),
        ({"action_names": ("b", "a")}, "names-differ"),
        ({"cameras": (Camera("observation.images.wrist", 64, 48, "h264"),)}, "cameras-differ"),
    ],
)
def test_what_differs_is_told_as_a_note_that_names_both(change: dict[str, object], code: str) -> None:
    (finding,) = fit_together([ONE, replace(TWO, **change)], NEEDS)  # type: ignore[arg-type]
    assert (finding.code, finding.severity) == (code, Severity.NOTE)
    assert "one: " in finding.what and "two: " in finding.what


def test_a_recording_that_is_chosen_twice_blocks() -> None:
    assert [(f.code, f.severity) for f in fit_together([ONE, ONE], NEEDS)] == [("recording-twice", Severity.BLOCKS)]
