"""The quick check: can this recording be read, and does it fit the policy? In well under a second for most recordings.

It reads the description, all number columns, the tables of episodes and tasks, and one frame of each camera. It never
writes, never asks the Hub, and answers with findings, whatever it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from zk0desk.training.camera_mapping import camera_findings
from zk0desk.training.recording_files import (
    MAX_TASKS,
    Episodes,
    VideoFile,
    parquet_files,
    pointer_error,
    read_episodes,
    read_tasks,
    size_on_disk,
)
from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, read_info, read_json, reason, shown
from zk0desk.training.recording_rows import ACTION, NUMBERS, STATE, TOLERANCE_S, read_rows
from zk0desk.training.recording_schema import SCHEMAS, description_findings, renames, schema_findings
from zk0desk.training.recording_types import Camera, CheckResult, Finding, PolicyNeeds, Recording, RecordingError, Severity, result_of
from zk0desk.training.thumbnails import first_frame, frame_count

__all__ = ["ACTION", "NUMBERS", "STATE", "TOLERANCE_S", "describe", "quick_check"]

OF_A_FILE = ("data-unreadable", "metadata-unreadable")
"""Findings that name a file: each file's is told."""
HEADERS = 32
"""How many videos of a camera are opened; the rest is only looked for."""


def describe(folder: Path, info: Info) -> Recording:
    """The recording as it describes itself. `RecordingError` where its tasks cannot be read."""
    return _described(folder, info, read_tasks(folder, info))


def _described(folder: Path, info: Info, tasks: tuple[str, ...]) -> Recording:
    state, action = info.features.get(STATE), info.features.get(ACTION)
    cameras = tuple(
        Camera(feature.key, *feature.size, feature.codec if feature.dtype == "video" else "images", feature.depth)
        for feature in info.cameras
    )
    return Recording(
        path=folder,
        name=_name(folder.absolute()),
        robot=info.robot,
        version=info.version,
        episodes=info.episodes,
        frames=info.frames,
        fps=info.fps,
        duration=info.frames / info.fps,
        cameras=cameras,
        state_names=state.names if state else (),
        action_names=action.names if action else (),
        state_dim=state.dim if state else 0,
        action_dim=action.dim if action else 0,
        tasks=tasks,
        bytes_on_disk=size_on_disk(folder),
    )


def _name(folder: Path) -> str:
    """The folder's own name; in the Hub's cache, where that is a revision, `user/name`."""
    if folder.parent.name == "snapshots" and folder.parts[-3].startswith("datasets--"):
        return shown("/".join(folder.parts[-3].split("--")[1:]))
    return shown(folder.name or folder)


def quick_check(path: Path, needs: PolicyNeeds = PolicyNeeds()) -> CheckResult:
    """Check the recording in `path` for a policy that asks for `needs`. Never raises for what is on the disk."""
    path = Path(path).expanduser()
    return result_of(path, *quick_findings(path, needs))


def quick_findings(path: Path, needs: PolicyNeeds) -> tuple[Recording | None, list[Finding]]:
    """The recording, as far as it can be described, and what the quick check finds, in no order."""
    try:
        info = read_info(path)
    except RecordingError as error:
        return None, [error.finding()]
    except OSError as error:
        return None, [_unreadable(error)]
    findings: list[Finding] = []
    tasks = _part(findings, lambda: read_tasks(path, info), None)
    recording = _described(path, info, tasks or ())
    if info.major > 3 or (info.major, info.minor) < (2, 0):
        return recording, [_version(info)]
    files = parquet_files(path / "data")
    if not files:
        _part(findings, lambda: _enter(path / "data"), None)
    findings += description_findings(info)
    findings += _features(info, needs)
    findings += camera_findings(recording, needs)
    listed = len(findings)
    episodes = _part(findings, lambda: read_episodes(path, info), None)
    known = len(findings) == listed
    findings += _part(findings, lambda: _videos(info, episodes), [])
    findings += _part(findings, lambda: schema_findings(files[:SCHEMAS], info), [])
    if files or "unreadable" not in {finding.code for finding in findings}:
        findings += _part(findings, lambda: _data(files, info, tasks, episodes, table_read=known), [])
    findings += _part(findings, lambda: _statistics(path, info), []) if info.major >= 3 else [_version(info)]
    try:
        require_there(path)
    except OSError as error:
        return recording, [_unreadable(error)]
    return recording, findings


def _enter(folder: Path) -> None:
    """`OSError` where there is a folder that may not be looked into: its files only seem to be missing."""
    if folder.exists():
        next(folder.iterdir(), None)


def require_there(folder: Path) -> None:
    """`OSError` where the recording is gone: its disk vanished while it was looked at, and its files only seem to be missing."""
    (folder / "meta" / "info.json").stat()


def _part[T](findings: list[Finding], look: Callable[[], T], otherwise: T) -> T:
    """What `look` gives; where it cannot, a finding more, and `otherwise`: the other parts are looked at all the same."""
    try:
        return look()
    except RecordingError as error:
        found = error.finding()
    except OSError as error:
        found = _unreadable(error)
    # Of pointers and columns one is told for all; the columns' types may have told it already.
    same = [each for each in findings if each.code == found.code]
    if not any(each.what == found.what or found.code not in OF_A_FILE for each in same):
        findings.append(found)
    return otherwise


def _unreadable(error: OSError) -> Finding:
    remedy = "Check the disk and the permissions, then look again."
    why = f"{reason(error)}: {shown(error.filename)}." if error.filename else f"{shown(error)}."
    return Finding("unreadable", Severity.BLOCKS, "The recording cannot be read.", why, remedy)


def _version(info: Info) -> Finding:
    if info.major > 3:
        return Finding(
            "version-newer",
            Severity.BLOCKS,
            f"Its format {info.version} is newer than zk0desk knows.",
            "LeRobot's format v3.0 is what can be read.",
            "Update zk0desk.",
        )
    if info.major == 2:
        return Finding(
            "version-older",
            Severity.REPAIRABLE,
            f"Its format is {info.version}; LeRobot reads v3.0.",
            "The frames are the same; only their files are arranged differently.",
            "Convert a copy to v3.0; the recording itself stays as it is.",
        )
    return Finding(
        "version-too-old",
        Severity.BLOCKS,
        f"Its format {info.version} is older than LeRobot can convert.",
        "Conversion begins at v2.0.",
        "Record again, or convert it with the LeRobot version that made it.",
    )


def _features(info: Info, needs: PolicyNeeds) -> list[Finding]:
    findings = []
    known = {wanted: info.features[other] for other, wanted in renames(info).items()}
    for key, what, most in ((STATE, "state", needs.max_state_dim), (ACTION, "action", needs.max_action_dim)):
        feature = info.features.get(key) or known.get(key)
        if feature is not None and feature.key != key:
            name = f"`{shown(feature.key, 60)}`"
            said, why = f"The recording has no feature `{key}`, but {name}.", "LeRobot leaves a column of that name aside without a word."
            remedy = f"Rename {name} to `{key}` in a copy."
            findings.append(Finding(f"{what}-misnamed", Severity.REPAIRABLE, said, why, remedy))
        if feature is None:
            findings.append(
                Finding(
                    f"{what}-missing",
                    Severity.BLOCKS,
                    f"The recording has no feature `{key}`.",
                    f"The policy learns from the robot's {what}.",
                    "Record again, with the robot's joints.",
                )
            )
        elif feature.dim > most:
            findings.append(
                Finding(
                    f"{what}-too-large",
                    Severity.BLOCKS,
                    f"Its {what} has {feature.dim} dimensions; the policy takes {most}.",
                    "More dimensions cannot be padded into fewer.",
                    "Choose a policy with more dimensions, or record fewer joints.",
                )
            )
    return findings


def _videos(info: Info, episodes: Episodes | None) -> list[Finding]:
    findings: list[Finding] = []
    missing: dict[str, list[VideoFile]] = {}
    for feature in info.cameras:
        # A file that is not there makes LeRobot ask the Hub for the whole recording, so none may be missing.
        videos = [video for video in episodes.videos if video.camera == feature.key] if episodes else []
        there = [video for video in videos if video.path.is_file()]
        if feature.dtype != "video" or episodes is None or not episodes.count:
            continue
        if len(there) < len(videos):
            missing[feature.key] = [video for video in videos if video not in there]
            continue
        for place, video in enumerate(there):
            try:
                if is_pointer(video.path):
                    raise pointer_error("/".join(video.path.parts[-4:]))
                if not place and not feature.depth:
                    first_frame(video.path)
                frames = frame_count(video.path) if place < HEADERS else 0
                if 0 < frames < round(video.ends_at * info.fps):
                    findings.append(_short(video, frames, info.fps))
            except RecordingError as error:
                touched = tuple(number for number, _ in video.episodes) if error.code == "video-unreadable" else ()
                findings.append(replace(error.finding(), episodes=touched))
                break
    if missing:
        count, names = sum(map(len, missing.values())), ", ".join(shown(key) for key in missing)
        touched = tuple(sorted({number for videos in missing.values() for video in videos for number, _ in video.episodes}))
        findings.append(
            Finding(
                "video-missing",
                Severity.BLOCKS,
                f"{'A video is' if count == 1 else f'{count:,} videos are'} missing, of {names}.",
                "The recording names files that are not in `videos`.",
                FETCH_AGAIN,
                touched,
            )
        )
    return findings


def _short(video: VideoFile, frames: int, fps: float) -> Finding:
    return Finding(
        "video-too-short",
        Severity.BLOCKS,
        f"{shown('/'.join(video.path.parts[-3:]))} has {frames:,} frames; its episodes need {round(video.ends_at * fps):,}.",
        "The video was cut off, or belongs to another recording.",
        FETCH_AGAIN,
        tuple(number for number, end in video.episodes if frames < round(end * fps)),
    )


def _data(
    files: Sequence[Path], info: Info, tasks: tuple[str, ...] | None, episodes: Episodes | None, *, table_read: bool
) -> list[Finding]:
    """`tasks` are None where they cannot be read; so are `episodes`, or (`table_read`) because there is no table of them."""
    if not files:
        return [Finding("data-missing", Severity.BLOCKS, "The recording has no data files.", "`data` holds no parquet file.", FETCH_AGAIN)]
    rows = read_rows(files, info, len(tasks) if tasks is not None and len(tasks) < MAX_TASKS else None)
    if not rows.count:
        why = "The recording ended before an episode was saved."
        return [Finding("recording-empty", Severity.BLOCKS, "The recording holds no frames.", why, "Record again.")]
    findings = rows.counts(episodes, table_read=table_read) + rows.values() + rows.times()
    if tasks is None:
        return findings
    if not tasks:
        findings.append(
            Finding(
                "tasks-missing",
                Severity.BLOCKS,
                "The recording names no task.",
                "The policy is told in words what to do.",
                "Copy the recording again with `meta/tasks`, or record again with a task.",
            )
        )
    else:
        findings += rows.tasks()
        findings += _task_words(info, tasks)
    return findings


def _task_words(info: Info, tasks: Sequence[str]) -> list[Finding]:
    findings = []
    if not info.tasks:
        what, why = "The description counts no tasks.", "LeRobot reads no instructions then, although `meta/tasks` lists them."
        remedy = f"Write `total_tasks`: {len(tasks)} into meta/info.json of a copy."
        findings.append(Finding("tasks-uncounted", Severity.BLOCKS, what, why, remedy))
    if any(not task.strip() for task in tasks):
        what, why = "A task has no words.", "The policy is told in words what to do; it cannot tell this task from another."
        findings.append(Finding("task-empty", Severity.NOTE, what, why, "Name the task in a copy, if you have others."))
    return findings


def _statistics(folder: Path, info: Info) -> list[Finding]:
    """State and action are normalised with the recording's own statistics."""
    import numpy as np

    path = folder / "meta" / "stats.json"
    try:
        if is_pointer(path):
            raise pointer_error("meta/stats.json")
        stats = read_json(path, 64 * 2**20)
        for key, words in stats.items():  # LeRobot makes an array of each
            for values in words.values():
                np.asarray(values, np.float64 if key in (STATE, ACTION) else None)
        for key in (STATE, ACTION):
            for word in ("mean", "std"):
                values = np.asarray(stats[key][word], np.float64) if key in info.features else np.zeros(0)
                if not np.isfinite(values).all() or (key in info.features and values.size != info.features[key].dim):
                    raise ValueError(f"`{word}` of {key} is not {info.features[key].dim} finite numbers")
    except FileNotFoundError:
        why = "There is no meta/stats.json."
    except PermissionError:
        raise  # a copy cannot be made of it either
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError) as error:
        why = f"meta/stats.json: {shown(error)}."
    else:
        return []
    return [
        Finding(
            "statistics-missing",
            Severity.REPAIRABLE,
            "The recording's statistics are missing or cannot be used.",
            f"{why} State and action are normalised with them.",
            "Compute them again in a copy; the frames are whole.",
        )
    ]
