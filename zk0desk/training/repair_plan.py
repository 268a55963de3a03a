"""What a repair would do, what it needs, and what it cannot do. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.training.episode_table import Episode
from zk0desk.training.recording_check import ACTION, STATE
from zk0desk.training.recording_files import parquet_files, size_on_disk
from zk0desk.training.recording_info import Info, read_info, shown
from zk0desk.training.recording_schema import renames
from zk0desk.training.recording_types import BY_EPISODE, CheckResult, Finding, PolicyNeeds, RecordingError, Severity
from zk0desk.training.repair_convert import episode_statistics_whole
from zk0desk.training.repair_tables import episodes_of, numbers, video_keys
from zk0desk.training.repair_times import doubt, measure, refusal
from zk0desk.training.thumbnails import frame_count

COPY_BYTES_S, ROWS_S, ENGINE_S, PIXELS_S, SAMPLED_PIXELS_S, LOOK_S = 350e6, 300e3, 12.0, 25e6, 60e6, 0.01
"""Measured on two cores of a server: bytes copied, rows written anew, seconds to load LeRobot, pixels re-encoded (AV1 to H.264)
and pixels decoded, a second; seconds that the check of the copy looks for a picture."""
REENCODED = 2.0
"""Times the size that a video may take in H.264: AV1 is half as large."""


class Step(StrEnum):
    """The steps of a repair, in their order."""

    LEAVE_OUT = "leave-out"
    CONVERT = "convert"
    RENAME = "rename"
    RETIME = "retime"
    REENCODE = "reencode"
    STATISTICS = "statistics"


@dataclass(frozen=True)
class RepairStep:
    """A step: what it does, in a sentence, what should be known of it (may be empty), and estimated seconds."""

    code: Step
    what: str
    note: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The step as a JSON object with keys `code`, `what`, `note`, `seconds`."""
        return {"code": str(self.code), "what": self.what, "note": self.note, "seconds": round(self.seconds, 1)}


@dataclass(frozen=True)
class RepairPlan:
    """What a repair of `path` does. `left_out` says why of each episode; `impossible` is what no step mends: then nothing is done.

    `bytes_needed` on the target's disk, `seconds` of work on a computer like the one that it was measured on.
    """

    path: Path
    needs: PolicyNeeds
    steps: tuple[RepairStep, ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)
    kept: tuple[int, ...] = ()
    bytes_needed: int = 0
    seconds: float = 0.0
    impossible: tuple[Finding, ...] = ()

    @property
    def possible(self) -> bool:
        """Whether there is something to do and nothing stands in its way."""
        return bool(self.steps) and not self.impossible

    def has(self, code: Step) -> bool:
        """Whether the step is part of the plan."""
        return any(step.code is code for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object, keys in kebab-case."""
        return {
            "path": str(self.path),
            "steps": [step.to_json() for step in self.steps],
            "left-out": {str(number): why for number, why in self.left_out.items()},
            "bytes-needed": self.bytes_needed,
            "seconds": round(self.seconds, 1),
            "impossible": [finding.to_json() for finding in self.impossible],
        }


class RepairError(OperatorError):
    """A repair cannot be done, or failed. Nothing is left of it, and the recording is as it was."""

    code = "repair-failed"
    exit_status = ExitStatus.UNUSABLE

    def __init__(self, what: str, why: str = "", remedy: str = "", *, code: str = "repair-failed") -> None:
        super().__init__(what, why, remedy)
        self.code = code


def plan_repair(
    path: Path, check: CheckResult, needs: PolicyNeeds = PolicyNeeds(), *, leave_out: Iterable[int] = (), reencode: bool = False
) -> RepairPlan:
    """Plan the repair of the recording in `path`, of which `check` was told; on request leave episodes out, and re-encode videos.

    Never raises for what is on the disk: what cannot be is in the plan's `impossible`.
    """
    path = Path(path).expanduser()
    try:
        return _Planner(path, check, needs, sorted(set(leave_out)), reencode).plan()
    except RecordingError as error:
        return RepairPlan(path, needs, impossible=_unmended(check) or (error.finding(),))
    except OSError as error:
        what = Finding("unreadable", Severity.BLOCKS, "The recording cannot be read.", f"{shown(error)}.", "Check the disk.")
        return RepairPlan(path, needs, impossible=(what,))


def _unmended(check: CheckResult) -> tuple[Finding, ...]:
    return tuple(f for f in check.findings if f.severity is Severity.BLOCKS and f.code not in BY_EPISODE)


class _Planner:
    def __init__(self, path: Path, check: CheckResult, needs: PolicyNeeds, leave_out: Sequence[int], reencode: bool) -> None:
        self.path, self.check, self.needs, self.asked, self.reencode = path, check, needs, leave_out, reencode
        self.codes = {finding.code for finding in check.findings}
        self.impossible = [finding for finding in _unmended(check) if not (reencode and finding.code == "video-frames-off")]
        self.steps: list[RepairStep] = []
        self.names: dict[str, str] = {}

    def plan(self) -> RepairPlan:
        if self.impossible:
            return RepairPlan(self.path, self.needs, impossible=tuple(self.impossible))
        info = read_info(self.path)
        self.names = renames(info)
        episodes = episodes_of(self.path, info)
        left_out = self._left_out(info, episodes)
        kept = tuple(episode.number for episode in episodes if episode.number not in left_out)
        frames = sum(episode.length for episode in episodes if episode.number not in left_out)
        if not kept:
            self.impossible += [finding for finding in self.check.findings if finding.severity is Severity.BLOCKS]
            if not self.impossible:
                self._cannot("nothing-left", "No episode would be left.", "All are to be left out", "Leave in at least one.")
        old = info.major < 3
        if left_out:
            self._leave_out(left_out, len(episodes), old)
        if old:
            what = f"The files are arranged as LeRobot's format v3.0 has them (they are {info.version}); frames and pictures stay the same."
            self._step(Step.CONVERT, what, "", ENGINE_S + info.frames / ROWS_S)
        for other, wanted in self.names.items():
            what = f"The column `{shown(other, 60)}` becomes `{wanted}`, as LeRobot calls it; its values stay the same."
            self._step(Step.RENAME, what, "", info.frames / ROWS_S)
        if self.codes & {"timestamps-jitter", "timestamps-not-finite"} and kept:
            self._retime(info, kept, frames)
        if self.reencode:
            self._reencode(info, frames)
        whole = not old or episode_statistics_whole(self.path, info, kept)
        changed = {step.code for step in self.steps} & {Step.LEAVE_OUT, Step.RENAME, Step.RETIME}
        if not whole or changed or self._statistics_wrong():
            self._statistics(info, frames, whole)
        size = size_on_disk(self.path)
        need = int(size * (REENCODED if self.reencode else 1)) + self._beside(episodes)
        looked_at = 3 * len(kept) * len(video_keys(info)) * LOOK_S
        seconds = sum(step.seconds for step in self.steps) + size / COPY_BYTES_S + looked_at
        return RepairPlan(self.path, self.needs, tuple(self.steps), left_out, kept, need, seconds, tuple(self.impossible))

    def _statistics_wrong(self) -> bool:
        return bool(self.codes & {"statistics-missing", "statistics-stale"})

    def _step(self, code: Step, what: str, note: str, seconds: float) -> None:
        self.steps.append(RepairStep(code, what, note, seconds))

    def _cannot(self, code: str, what: str, why: str, remedy: str = "") -> None:
        self.impossible.append(Finding(code, Severity.BLOCKS, what, why if why.endswith(".") else f"{why}.", remedy))

    # --- which episodes

    def _left_out(self, info: Info, episodes: Sequence[Episode]) -> dict[int, str]:
        known = [episode.number for episode in episodes]
        left_out = dict.fromkeys(self.asked, "you asked for it")
        if unknown := [str(number) for number in self.asked if number not in known]:
            count = f"The recording has episodes 0 to {len(known) - 1}"
            self._cannot("episode-unknown", f"There is no episode {', '.join(unknown)} to leave out.", count, "Name other episodes.")
        if self.codes & {"state-not-finite", "action-not-finite"}:
            here = {wanted: other for other, wanted in self.names.items()}
            vectors = ((here.get(STATE, STATE), "state"), (here.get(ACTION, ACTION), "action"))
            columns = numbers(self.path, info, [*(key for key, _ in vectors), "episode_index"])
            for key, what in vectors:
                bad = ~np.isfinite(columns[key]).all(axis=1)
                left_out |= {int(n): f"its {what} is no number in places" for n in np.unique(columns["episode_index"][bad])}
        if self.codes & {"video-missing", "video-too-short", "video-unreadable"}:
            left_out |= self._without_video(info, episodes)
        for finding in self.check.findings:
            if finding.code in BY_EPISODE:
                left_out = dict.fromkeys(finding.episodes, finding.what.rstrip(".")) | left_out
        return {number: left_out[number] for number in known if number in left_out}

    def _without_video(self, info: Info, episodes: Sequence[Episode]) -> dict[int, str]:
        pictures: dict[Path, int | str] = {}
        bad = {}
        for episode in episodes:
            for key, span in episode.videos.items():
                if span.path not in pictures:
                    pictures[span.path] = _pictures(span.path)
                there, camera = pictures[span.path], key.rsplit(".", 1)[-1]
                if isinstance(there, str):
                    bad[episode.number] = f"its video of {camera} {there}"
                elif 0 < there < round(span.end * info.fps):
                    bad[episode.number] = f"its video of {camera} ends too early"
        return bad

    def _leave_out(self, left_out: dict[int, str], count: int, old: bool) -> None:
        names = ", ".join(map(str, list(left_out)[:12])) + (" and more" if len(left_out) > 12 else "")
        reasons = list(dict.fromkeys(left_out.values()))
        what = f"{len(left_out):,} of {count:,} episodes are left out: {names} ({'; '.join(reasons[:3])}). The others are numbered anew."
        note = "" if old or self.reencode else "Their pictures stay in the video files, where nothing points at them."
        self._step(Step.LEAVE_OUT, what, note, 1.0)

    # --- the other steps

    def _retime(self, info: Info, kept: Sequence[int], frames: int) -> None:
        columns = numbers(self.path, info, ["episode_index", "frame_index", "timestamp"])
        rows = np.isin(columns["episode_index"][:, 0], kept)
        episode, frame, time = (columns[name][rows, 0] for name in ("episode_index", "frame_index", "timestamp"))
        timings = measure(episode, frame, time, info.fps)
        if why := refusal(timings, info.fps):
            remedy = "Leave that episode out (--leave-out), or record again."
            self._cannot("timestamps-unsafe", "The timestamps cannot be re-laid.", why, remedy)
            return
        what = f"Each frame's timestamp becomes its number divided by {info.fps:g}, where its picture lies in the video."
        self._step(Step.RETIME, what, doubt(timings, info.fps), frames / ROWS_S + 0.1 * len(video_keys(info)))

    def _reencode(self, info: Info, frames: int) -> None:
        cameras = [feature for feature in info.cameras if feature.dtype == "video" and not feature.depth]
        odd = [feature.key for feature in cameras if any(side % 2 for side in feature.size)]
        if not cameras or odd:
            why = f"{odd[0]} has an odd number of pixels in a row or a column" if odd else "The recording has no colour video"
            self._cannot("video-not-encodable", "Its video cannot be re-encoded as H.264, yuv420p.", why, "Repair it without re-encoding.")
            return
        pixels = frames * sum(feature.size[0] * feature.size[1] for feature in cameras)
        what = "All videos are encoded anew as H.264, yuv420p, which every decoder reads."
        self._step(Step.REENCODE, what, "Pictures lose a little.", pixels / PIXELS_S)

    def _statistics(self, info: Info, frames: int, whole: bool) -> None:
        what = "The statistics of all number columns are computed from the copy."
        seconds = frames / ROWS_S
        if not whole or self._statistics_wrong() or self.codes & BY_EPISODE:
            what = "The statistics are computed from the copy; those of the pictures only where the recording has none that can be used."
            seconds += frames * sum(f.size[0] * f.size[1] for f in info.cameras if not f.depth) / SAMPLED_PIXELS_S
        self._step(Step.STATISTICS, what, "", seconds)

    def _beside(self, episodes: Sequence[Episode]) -> int:
        """Bytes of the largest file that is written anew: for a while it is there twice."""
        codes = {step.code for step in self.steps}
        paths = set(parquet_files(self.path / "data")) if codes & {Step.LEAVE_OUT, Step.RENAME, Step.RETIME} else set()
        if Step.REENCODE in codes:
            paths |= {span.path for episode in episodes for span in episode.videos.values()}
        return max((path.stat().st_size for path in paths if path.is_file()), default=0)


def _pictures(path: Path) -> int | str:
    """How many pictures a video tells of, or what is wrong with it."""
    if not path.is_file():
        return "is missing"
    try:
        return frame_count(path)
    except RecordingError:
        return "cannot be played"
