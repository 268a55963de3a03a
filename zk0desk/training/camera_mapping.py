"""Which camera of a recording fills which camera slot of the policy, and whether recordings fit together. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from zk0desk.training.recording_info import shown
from zk0desk.training.recording_types import Camera, CameraMapping, Finding, PolicyNeeds, Recording, RecordingError, Severity, in_order

_ROLES = {
    "wrist": {"wrist", "gripper", "hand", "eef", "effector", "endeffector", "arm"},
    "top": {"top", "overhead", "above", "up", "ceiling", "bird", "birdseye", "high", "topdown"},
    "side": {"side", "lateral", "profile", "left", "right"},
    "scene": {"front", "scene", "main", "workspace", "table", "external", "exterior", "third", "laptop", "phone", "head"},
}
"""Words in camera names, and the view that they mean. A wrist word decides before a side's: `left_wrist` is a wrist."""
_NUMBERED = {"camera1": "top", "camera2": "wrist", "camera3": "side"}
"""SmolVLA's base policy numbers its slots in this order."""


def map_cameras(recording: Recording, needs: PolicyNeeds, chosen: Mapping[str, str] | None = None) -> CameraMapping:
    """Map the recording's cameras to the policy's slots: by the operator's choice, else by key, else by name, else in order.

    `chosen` maps slots to cameras, each by its full key or the key's last part. `RecordingError` if it names one that is not there.
    """
    cameras = [camera for camera in recording.cameras if not camera.depth]
    slots: dict[str, str] = {}
    ambiguous = False
    if chosen:
        for slot_name, camera_name in chosen.items():
            slot = _find(slot_name, needs.camera_slots, "the policy has no camera slot", recording)
            slots[slot] = _find(camera_name, tuple(camera.key for camera in cameras), "the recording has no camera", recording)
        if len(set(slots.values())) != len(slots):
            raise RecordingError(
                f"A camera of {recording.name} was chosen for two slots.", "", "Choose each camera once.", code="camera-chosen-twice"
            )
    else:
        _by_key(cameras, needs.camera_slots, slots)
        _by_view(cameras, needs.camera_slots, slots)
        ambiguous = _in_order(cameras, needs.camera_slots, slots)
    slots = {slot: slots[slot] for slot in needs.camera_slots if slot in slots}
    return CameraMapping(
        slots=slots,
        missing=tuple(slot for slot in needs.camera_slots if slot not in slots),
        unused=tuple(camera.key for camera in recording.cameras if camera.key not in slots.values()),
        ambiguous=ambiguous,
    )


def _find(name: str, keys: Sequence[str], trouble: str, recording: Recording) -> str:
    fits = [key for key in keys if key == name] or [key for key in keys if _last(key) == name]
    if len(fits) != 1:
        raise RecordingError(
            f"The cameras of {recording.name} cannot be mapped as chosen: {trouble} `{shown(name)}`.",
            f"There is {', '.join(_last(key) for key in keys) or 'none'}.",
            "Choose the cameras again.",
            code="camera-unknown",
        )
    return fits[0]


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _free(cameras: Sequence[Camera], slots: Mapping[str, str]) -> list[Camera]:
    return [camera for camera in cameras if camera.key not in slots.values()]


def _by_key(cameras: Sequence[Camera], keys: Sequence[str], slots: dict[str, str]) -> None:
    for slot in keys:
        for camera in _free(cameras, slots):
            if camera.key == slot or camera.name == _last(slot):
                slots[slot] = camera.key
                break


def view_of(name: str) -> str:
    """The view that a camera's or slot's name speaks of: wrist, top, side, scene, or nothing."""
    name = _NUMBERED.get(name, name)
    words = set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))
    return next((role for role, known in _ROLES.items() if words & known), "")


def _by_view(cameras: Sequence[Camera], keys: Sequence[str], slots: dict[str, str]) -> None:
    views = {slot: view_of(_last(slot)) for slot in keys}
    # A camera that sees the whole scene takes the place of the top view, or of the side view where that is taken.
    for view, wanted in (("wrist", "wrist"), ("top", "top"), ("side", "side"), ("scene", "scene"), ("scene", "top"), ("scene", "side")):
        for slot in keys:
            fits = [camera for camera in _free(cameras, slots) if view_of(camera.name) == view]
            if fits and slot not in slots and views[slot] == wanted:
                slots[slot] = fits[0].key


def _in_order(cameras: Sequence[Camera], keys: Sequence[str], slots: dict[str, str]) -> bool:
    """Give what is left the free slots in order; whether that was a guess."""
    left, empty = _free(cameras, slots), [slot for slot in keys if slot not in slots]
    alone = len(cameras) == 1
    slots.update(zip(empty, (camera.key for camera in left), strict=False))
    return bool(left) and bool(empty) and not alone


def camera_findings(recording: Recording, needs: PolicyNeeds) -> list[Finding]:
    """What an operator should know about the recording's cameras and this policy."""
    pictures = [camera for camera in recording.cameras if not camera.depth]
    if not pictures:
        return [
            Finding(
                "camera-missing",
                Severity.BLOCKS,
                "The recording has no camera.",
                "The policy decides from pictures and needs at least one camera.",
                "Record again with a camera.",
            )
        ]
    mapping = map_cameras(recording, needs)
    findings = []
    if mapping.ambiguous:
        guess = ", ".join(f"{_last(camera)} as {_last(slot)}" for slot, camera in mapping.slots.items())
        findings.append(
            Finding(
                "cameras-unclear",
                Severity.NOTE,
                "The names of the cameras do not say which view is which.",
                f"They are taken in order: {guess}.",
                "Choose the cameras yourself if that is wrong.",
            )
        )
    if mapping.unused:
        names = ", ".join(_last(key) for key in mapping.unused)
        findings.append(
            Finding(
                "camera-unused",
                Severity.NOTE,
                f"Not used for training: {names}.",
                f"The policy has {len(needs.camera_slots)} colour cameras.",
            )
        )
    return findings


def fit_together(recordings: Sequence[Recording], needs: PolicyNeeds) -> list[Finding]:
    """What differs between recordings that are to make one node's data. What blocks comes first; nothing: they are alike."""
    findings: list[Finding] = []
    seen: set[object] = set()
    for recording in recordings:
        place = recording.path.resolve()
        if place in seen:
            findings.append(
                Finding(
                    "recording-twice",
                    Severity.BLOCKS,
                    f"{recording.name} is chosen twice.",
                    "Its frames would count double.",
                    "Take one of the two away.",
                )
            )
        seen.add(place)

    def differ(code: str, what: str, values: Sequence[object], why: str, remedy: str = "") -> None:
        if len(set(values)) > 1:
            each = "; ".join(f"{recording.name}: {shown(value)}" for recording, value in zip(recordings, values, strict=True))
            findings.append(Finding(code, Severity.NOTE, f"{what} ({shown(each, 300)}).", why, remedy))

    differ(
        "robots-differ",
        "The recordings are of different robots",
        [recording.robot or "not said" for recording in recordings],
        "State and action are normalised for each recording on its own, so they can be mixed.",
        "Mix robots only if one policy is to drive them all.",
    )
    differ(
        "fps-differ",
        "The recordings have different frame rates",
        [f"{recording.fps:g} fps" for recording in recordings],
        f"The policy predicts {needs.chunk_size} actions at once, which are then different lengths of time.",
    )
    differ(
        "dimensions-differ",
        "State or action have different sizes",
        [f"state {recording.state_dim}, action {recording.action_dim}" for recording in recordings],
        f"Each is padded to {needs.max_state_dim} and {needs.max_action_dim}; only a recording's own dimensions count in the loss.",
    )
    if not any(finding.code == "dimensions-differ" for finding in findings):
        differ(
            "names-differ",
            "State or action dimensions have different names",
            [", ".join((*recording.state_names, *recording.action_names)) or "not said" for recording in recordings],
            "The same place in the vector may mean another joint.",
            "Check that the joints are in the same order.",
        )
    differ(
        "cameras-differ",
        "Different cameras are filled",
        [", ".join(_last(slot) for slot in map_cameras(recording, needs).slots) or "none" for recording in recordings],
        "Where a recording has no camera for a slot, the slot is masked.",
    )
    return list(in_order(findings))
