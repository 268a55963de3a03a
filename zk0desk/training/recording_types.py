"""What is said about a recording: its description, findings, and what a policy asks of it. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from zk0desk.errors import ExitStatus, OperatorError

Status = Literal["ok", "repairable", "unusable"]


class Severity(StrEnum):
    """How much a finding matters."""

    BLOCKS = "blocks"
    """The recording cannot be trained on; a copy may leave the episodes out that it touches."""
    REPAIRABLE = "repairable"
    """It can be trained on after a repair that keeps its frames."""
    NOTE = "note"
    """It can be trained on; the operator should know this."""


_ORDER = tuple(Severity)
BY_EPISODE = {
    "state-not-finite", "action-not-finite", "frames-gap", "timestamps-unsafe", "video-missing", "video-too-short", "video-unreadable",
}  # fmt: skip
"""Codes of findings that are mended by leaving the episodes out that they touch."""
FETCH_AGAIN = "Copy or download the recording again, with all of its files."
OR_LEAVE_OUT = f"{FETCH_AGAIN} Or leave these episodes out in a copy."
LEAVE_OUT = "Leave these episodes out in a copy, or record them again."
REENCODE = "Re-encode the video in a copy, or record these episodes again."
RECORD_AGAIN = "Record these episodes again."
LATER = "This can be mended once nothing blocks any more."


@dataclass(frozen=True)
class Finding:
    """Something that was found: a stable kebab-case `code`, what it is, why it matters, what to do, and the episodes that it touches.

    No episodes: it is about the whole recording.
    """

    code: str
    severity: Severity
    what: str
    why: str = ""
    remedy: str = ""
    episodes: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object with keys `code`, `severity`, `what`, `why`, `remedy`, and `episodes` where there are any."""
        said = {"code": self.code, "severity": str(self.severity), "what": self.what, "why": self.why, "remedy": self.remedy}
        return said | ({"episodes": list(self.episodes)} if self.episodes else {})


def in_order(findings: list[Finding], episodes: int = 0) -> tuple[Finding, ...]:
    """The findings, what blocks first, otherwise as they were found. `episodes` are those of the recording that they are of.

    No remedy is offered that must fail: repairs wait while something blocks that none of them mends.
    """
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
    if not ordered or ordered[0].severity is not Severity.BLOCKS:
        return tuple(ordered)
    remedy = _beside_others if _a_copy_helps(ordered, episodes) else _while_blocked
    return tuple(replace(finding, remedy=remedy(finding)) for finding in ordered)


def _beside_others(finding: Finding) -> str:
    return OR_LEAVE_OUT if finding.code in BY_EPISODE and finding.remedy == FETCH_AGAIN else finding.remedy


def _while_blocked(finding: Finding) -> str:
    if finding.severity is Severity.REPAIRABLE:
        return LATER
    return RECORD_AGAIN if finding.remedy in (LEAVE_OUT, REENCODE) else finding.remedy


def _a_copy_helps(findings: Sequence[Finding], episodes: int) -> bool:
    """Whether all that blocks is mended by leaving some of the `episodes` out of a copy, or by encoding its videos anew."""
    blocks = [finding for finding in findings if finding.severity is Severity.BLOCKS and finding.remedy != REENCODE]
    touched = {number for finding in blocks for number in finding.episodes}
    return all(finding.code in BY_EPISODE and finding.episodes for finding in blocks) and len(touched) < max(1, episodes)


class RecordingError(OperatorError):
    """A recording cannot be read. `code` is that of the finding it was made from."""

    code = "recording-unusable"
    exit_status = ExitStatus.UNUSABLE

    def __init__(self, what: str, why: str = "", remedy: str = "", *, code: str = "recording-unusable") -> None:
        super().__init__(what, why, remedy)
        self.code = code

    def finding(self) -> Finding:
        """The error as a finding that blocks."""
        return Finding(self.code, Severity.BLOCKS, self.what, self.why, self.remedy)


@dataclass(frozen=True)
class Camera:
    """A camera of a recording: LeRobot's feature key, size in pixels (0: not said), codec ("images" when not a video)."""

    key: str
    width: int
    height: int
    codec: str
    depth: bool = False

    @property
    def name(self) -> str:
        """The key's last part: `top` of `observation.images.top`."""
        return self.key.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Recording:
    """A LeRobot recording as it describes itself. `duration` in seconds, dimensions 0 where a feature is missing."""

    path: Path
    name: str
    robot: str
    version: str
    episodes: int
    frames: int
    fps: float
    duration: float
    cameras: tuple[Camera, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    state_dim: int
    action_dim: int
    tasks: tuple[str, ...]
    bytes_on_disk: int

    def to_json(self) -> dict[str, Any]:
        """The recording as a JSON object, keys in kebab-case."""
        return {
            "path": str(self.path),
            "name": self.name,
            "robot": self.robot,
            "version": self.version,
            "episodes": self.episodes,
            "frames": self.frames,
            "fps": self.fps,
            "duration": round(self.duration, 3),
            "cameras": [{"key": c.key, "width": c.width, "height": c.height, "codec": c.codec, "depth": c.depth} for c in self.cameras],
            "state-names": list(self.state_names),
            "action-names": list(self.action_names),
            "state-dim": self.state_dim,
            "action-dim": self.action_dim,
            "tasks": list(self.tasks),
            "bytes-on-disk": self.bytes_on_disk,
        }


@dataclass(frozen=True)
class CheckResult:
    """The answer of a check. `recording` is None where not even its description can be read."""

    path: Path
    recording: Recording | None
    status: Status
    findings: tuple[Finding, ...] = ()

    @property
    def exit_status(self) -> ExitStatus:
        """What the command line returns: 0 usable, 3 repairable, 4 unusable."""
        return {"ok": ExitStatus.OK, "repairable": ExitStatus.REPAIRABLE, "unusable": ExitStatus.UNUSABLE}[self.status]

    def to_json(self) -> dict[str, Any]:
        """The answer as a JSON object with keys `path`, `status`, `findings`, `recording`."""
        return {
            "path": str(self.path),
            "status": self.status,
            "findings": [finding.to_json() for finding in self.findings],
            "recording": self.recording.to_json() if self.recording else None,
        }


def result_of(path: Path, recording: Recording | None, findings: list[Finding]) -> CheckResult:
    """The check's answer: unusable if anything blocks that no copy mends, repairable if anything must be mended, else ok."""
    severities, episodes = {finding.severity for finding in findings}, recording.episodes if recording else 0
    status: Status = "ok"
    if severities - {Severity.NOTE}:
        status = "repairable" if Severity.BLOCKS not in severities or _a_copy_helps(findings, episodes) else "unusable"
    return CheckResult(path, recording, status, in_order(findings, episodes))


@dataclass(frozen=True)
class PolicyNeeds:
    """What a policy asks of a recording. Defaults are SmolVLA's; state and action are padded to the largest size."""

    max_state_dim: int = 32
    max_action_dim: int = 32
    camera_slots: tuple[str, ...] = ("observation.images.camera1", "observation.images.camera2", "observation.images.camera3")
    chunk_size: int = 50


@dataclass(frozen=True)
class CameraMapping:
    """Which camera fills which slot of the policy.

    `slots` maps full slot keys to full camera keys. `missing` slots are masked, `unused` cameras are not trained on.
    `ambiguous`: names did not decide it, `slots` holds the cameras in their order and the operator should look.
    """

    slots: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    ambiguous: bool = False
