"""The quick check: can this recording be read, and does it fit the policy? In well under a second for most recordings.

It reads the description, all number columns, the tables of episodes and tasks, and one frame of each camera. It never
writes, never asks the Hub, and answers with findings, whatever it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.training.camera_mapping import camera_findings
from zk0desk.training.recording_files import (
    MAX_TASKS,
    Episodes,
    parquet_files,
    pointer_error,
    read_columns,
    read_episodes,
    read_tasks,
    size_on_disk,
)
from zk0desk.training.recording_info import FETCH_AGAIN, Info, is_pointer, read_info, read_json, shown
from zk0desk.training.recording_schema import SCHEMAS, description_findings, schema_findings
from zk0desk.training.recording_types import Camera, CheckResult, Finding, PolicyNeeds, Recording, RecordingError, Severity, result_of
from zk0desk.training.thumbnails import first_frame, frame_count

if TYPE_CHECKING:
    import numpy as np

STATE, ACTION = "observation.state", "action"
NUMBERS = (STATE, ACTION, "timestamp", "frame_index", "episode_index", "index", "task_index")
TOLERANCE_S = 1e-4
"""LeRobot's own: how far a timestamp may lie from the frame that is fetched for it."""
MAX_ROWS = 20_000_000
HEADERS = 32
"""How many videos of a camera are opened; the rest is only looked for."""


def describe(folder: Path, info: Info) -> Recording:
    """The recording as it describes itself. `RecordingError` where its tasks cannot be read."""
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
        tasks=read_tasks(folder, info),
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
    try:
        info = read_info(path)
        recording = describe(path, info)
    except RecordingError as error:
        return result_of(path, None, [error.finding()])
    except OSError as error:
        return result_of(path, None, [_unreadable(error)])
    findings: list[Finding] = []
    if info.major > 3 or (info.major, info.minor) < (2, 0):
        return result_of(path, recording, [_version(info)])
    try:
        findings += description_findings(info)
        findings += _features(info, needs)
        findings += camera_findings(recording, needs)
        episodes = read_episodes(path, info)
        findings += _videos(info, episodes)
        findings += schema_findings(parquet_files(path / "data")[:SCHEMAS], info)
        findings += _data(path, info, recording, episodes)
        if info.major >= 3:
            findings += _statistics(path, info)
        if info.major < 3:
            findings.append(_version(info))
    except RecordingError as error:
        if error.code not in {finding.code for finding in findings}:  # the columns' types may have told it already
            findings.append(error.finding())
    except OSError as error:
        findings.append(_unreadable(error))
    return result_of(path, recording, findings)


def _unreadable(error: OSError) -> Finding:
    remedy = "Check the disk and the permissions, then look again."
    return Finding("unreadable", Severity.BLOCKS, "The recording cannot be read.", f"{shown(error)}.", remedy)


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
    for key, what, most in ((STATE, "state", needs.max_state_dim), (ACTION, "action", needs.max_action_dim)):
        feature = info.features.get(key)
        if feature is None:
            findings.append(
                Finding(
                    f"{what}-missing",
                    Severity.BLOCKS,
                    f"The recording has no feature `{key}`.",
                    f"The policy learns from the robot's {what}.",
                    "Record again, or rename the feature in a copy.",
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
    missing: dict[str, int] = {}
    for feature in info.cameras:
        # A file that is not there makes LeRobot ask the Hub for the whole recording, so none may be missing.
        videos = [video for video in episodes.videos if video.camera == feature.key] if episodes else []
        there = [video for video in videos if video.path.is_file()]
        if feature.dtype != "video" or episodes is None or not episodes.count:
            continue
        if len(there) < len(videos):
            missing[feature.key] = len(videos) - len(there)
            continue
        try:
            for video in there:
                if is_pointer(video.path):
                    raise pointer_error("/".join(video.path.parts[-4:]))
            if not feature.depth:
                first_frame(there[0].path)
            for video in there[:HEADERS]:
                needed, frames = round(video.ends_at * info.fps), frame_count(video.path)
                if 0 < frames < needed:
                    findings.append(_short(video.path, frames, needed))
        except RecordingError as error:
            findings.append(error.finding())
    if missing:
        count, names = sum(missing.values()), ", ".join(shown(key) for key in missing)
        findings.append(
            Finding(
                "video-missing",
                Severity.BLOCKS,
                f"{'A video is' if count == 1 else f'{count:,} videos are'} missing, of {names}.",
                "The recording names files that are not in `videos`.",
                FETCH_AGAIN,
            )
        )
    return findings


def _short(path: Path, frames: int, needed: int) -> Finding:
    return Finding(
        "video-too-short",
        Severity.BLOCKS,
        f"{shown('/'.join(path.parts[-3:]))} has {frames:,} frames; its episodes need {needed:,}.",
        "The video was cut off, or belongs to another recording.",
        FETCH_AGAIN,
    )


@dataclass
class _Columns:
    """All rows of the number columns. Vectors have shape (rows, dimensions), the others (rows,)."""

    rows: int
    values: dict[str, np.ndarray]


def _data(folder: Path, info: Info, recording: Recording, episodes: Episodes | None) -> list[Finding]:
    files = parquet_files(folder / "data")
    if not files:
        return [Finding("data-missing", Severity.BLOCKS, "The recording has no data files.", "`data` holds no parquet file.", FETCH_AGAIN)]
    columns = _read(files, info)
    if not columns.rows:
        why = "The recording ended before an episode was saved."
        return [Finding("recording-empty", Severity.BLOCKS, "The recording holds no frames.", why, "Record again.")]
    findings = _counts(info, columns, episodes)
    findings += _values(columns)
    findings += _times(info, columns)
    if not recording.tasks:
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
        findings += _task_numbers(recording, columns)
        findings += _task_words(info, recording)
    return findings


def _task_words(info: Info, recording: Recording) -> list[Finding]:
    findings = []
    if not info.tasks:
        what, why = "The description counts no tasks.", "LeRobot reads no instructions then, although `meta/tasks` lists them."
        remedy = f"Write `total_tasks`: {len(recording.tasks)} into meta/info.json of a copy."
        findings.append(Finding("tasks-uncounted", Severity.BLOCKS, what, why, remedy))
    if any(not task.strip() for task in recording.tasks):
        what, why = "A task has no words.", "The policy is told in words what to do; it cannot tell this task from another."
        findings.append(Finding("task-empty", Severity.NOTE, what, why, "Name the task in a copy, if you have others."))
    return findings


def _task_numbers(recording: Recording, columns: _Columns) -> list[Finding]:
    numbers = columns.values.get("task_index")
    if numbers is None or not len(numbers) or len(recording.tasks) == MAX_TASKS:
        return []
    bad = (numbers < 0) | (numbers >= len(recording.tasks))
    if not bad.any():
        return []
    return [
        Finding(
            "task-unknown",
            Severity.BLOCKS,
            f"{int(bad.sum()):,} frames belong to a task that is not listed.",
            f"The recording lists {len(recording.tasks)}; the first such frame names number {int(numbers[bad][0])}, counted from 0.",
            FETCH_AGAIN,
        )
    ]


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


def _read(files: list[Path], info: Info) -> _Columns:
    import numpy as np

    parts: dict[str, list[np.ndarray]] = {}
    rows = 0
    for path in files:
        table, names = read_columns(path, NUMBERS)
        missing = [name for name in NUMBERS if name not in table.column_names and (name in info.features or name == "episode_index")]
        if missing:
            raise RecordingError(
                f"{shown(path.name)} has no column {', '.join(missing)}.",
                "The description declares it.",
                FETCH_AGAIN,
                code="column-missing",
            )
        columns_differ(path, names, info)
        rows += table.num_rows
        if rows > MAX_ROWS:
            raise RecordingError(
                "The recording has more frames than zk0desk reads.", f"It has over {MAX_ROWS:,}.", "Cut it.", code="too-large"
            )
        for name in table.column_names:
            feature = info.features.get(name)
            parts.setdefault(name, []).append(as_array(table.column(name), name, feature.dim if feature else 1))
    return _Columns(rows, {name: np.concatenate(part) for name, part in parts.items()})


def columns_differ(path: Path, names: Sequence[str], info: Info) -> None:
    """LeRobot loads the data only when its columns are those that the description declares. `RecordingError` where they are not."""
    declared = {key for key, feature in info.features.items() if feature.dtype != "video"}
    unknown, absent = sorted(set(names) - declared), sorted(declared - set(names))
    if not unknown and not absent:
        return
    parts = []
    if unknown:
        parts.append(f"it has {', '.join(map(shown, unknown[:5]))}, which the description does not declare")
    if absent:
        parts.append(f"it lacks {', '.join(map(shown, absent[:5]))}")
    why = f"{shown('; '.join(parts).capitalize(), 300)}."
    what = f"{shown(path.name)} has other columns than the description declares."
    raise RecordingError(what, why, FETCH_AGAIN, code="columns-differ")


def as_array(column: object, name: str, dim: int) -> np.ndarray:
    """An Arrow column of `dim` numbers a row: (rows, dim) for state and action, else (rows,) or (rows * dim,). `RecordingError`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    assert isinstance(column, pa.ChunkedArray)
    flat = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    rows = len(flat)
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type) or pa.types.is_large_list(flat.type):
        flat = pc.list_flatten(flat)
    number = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
    if not number or flat.null_count or len(flat) != rows * dim:
        raise RecordingError(
            f"Column {name} is not what the description says.",
            f"It holds {len(flat):,} values of {flat.type} in {rows:,} rows where {dim} numbers a row are declared.",
            FETCH_AGAIN,
            code="column-wrong",
        )
    # Arrow's own conversion would import pandas, which takes longer than the whole check.
    array = np.from_dlpack(flat) if len(flat) else np.zeros(0)
    return array.reshape(rows, dim) if name in (STATE, ACTION) else array


def _counts(info: Info, columns: _Columns, listed: Episodes | None) -> list[Finding]:
    import numpy as np

    numbers = np.unique(columns.values["episode_index"])
    episodes = int(numbers.size)
    findings = []
    if episodes != info.episodes or columns.rows != info.frames:
        findings.append(
            Finding(
                "counts-differ",
                Severity.BLOCKS,
                f"The description says {info.episodes:,} episodes and {info.frames:,} frames; "
                f"the data holds {episodes:,} and {columns.rows:,}.",
                "Part of the recording is missing, or the description is of another one.",
                FETCH_AGAIN,
            )
        )
    elif not np.array_equal(numbers, np.arange(episodes)):
        what = f"The episodes are not numbered from 0 on without gaps: the data has numbers from {numbers[0]:g} to {numbers[-1]:g}."
        why = f"LeRobot asks for numbers 0 to {episodes - 1:,}, and for those that are missing it asks the Hub."
        findings.append(Finding("episodes-misnumbered", Severity.BLOCKS, what, why, "Number them anew in a copy."))
    if listed is None:
        findings.append(
            Finding("episodes-missing", Severity.BLOCKS, "The table of episodes is missing.", "`meta/episodes` holds no file.", FETCH_AGAIN)
        )
    elif listed.count not in (episodes, info.episodes):
        findings.append(
            Finding(
                "episodes-differ",
                Severity.BLOCKS,
                f"The table of episodes lists {listed.count:,}; the data holds {episodes:,}.",
                "LeRobot finds frames through that table.",
                FETCH_AGAIN,
            )
        )
    return findings


def _values(columns: _Columns) -> list[Finding]:
    import numpy as np

    findings = []
    for key, what in ((STATE, "state"), (ACTION, "action")):
        values = columns.values.get(key)
        if values is None or not len(values):
            continue
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            findings.append(
                Finding(
                    f"{what}-not-finite",
                    Severity.BLOCKS,
                    f"{int(bad.sum()):,} frames hold a {what} that is no number.",
                    f"The first is frame {int(np.argmax(bad))}; one such value spoils the whole policy.",
                    "Leave its episode out in a copy, or record it again.",
                )
            )
        elif len(values) > 1 and not (values.max(axis=0) - values.min(axis=0)).any():
            findings.append(
                Finding(
                    f"{what}-constant",
                    Severity.NOTE,
                    "The arm never moves." if what == "state" else "The action never changes.",
                    f"All {len(values):,} frames hold the same {what}: there is little to learn from it.",
                    "Check that this is the recording that you mean.",
                )
            )
    return findings


def _times(info: Info, columns: _Columns) -> list[Finding]:
    """LeRobot fetches the frame at a timestamp and refuses one that is further than its tolerance from the fps grid."""
    import numpy as np

    times = columns.values.get("timestamp")
    frames = columns.values.get("frame_index")
    if times is None or frames is None or not len(times):
        return []
    times = times.astype(np.float64)
    if not np.isfinite(times).all():
        return [
            Finding(
                "timestamps-not-finite",
                Severity.REPAIRABLE,
                "Some timestamps are no numbers.",
                "No frame is found by them.",
                "Re-lay them in a copy.",
            )
        ]
    # float32 carries the seconds of a long episode only to some digits.
    allowed = TOLERANCE_S + np.abs(times) * 2**-23
    off = np.abs(times - frames / info.fps)
    bad = off > allowed
    if not bad.any():
        return []
    first = int(np.argmax(bad))
    return [
        Finding(
            "timestamps-jitter",
            Severity.REPAIRABLE,
            f"{int(bad.sum()):,} of {len(times):,} timestamps do not fit {info.fps:g} frames per second.",
            f"They are off by up to {1000 * off.max():.1f} ms, first in episode {int(columns.values['episode_index'][first])}, frame "
            f"{int(frames[first])}; LeRobot then finds no picture for them.",
            "Re-lay the timestamps in a copy.",
        )
    ]
