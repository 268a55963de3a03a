"""The deep check: all that the quick check asks, and every file, row and episode. Its answer is kept, so that it is done once.

Reads only, never asks the Hub, never imports torch. Memory does not grow with the recording: rows come in batches, an
episode at a time, and videos one file after another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zk0desk import folders
from zk0desk.control import NodeControl
from zk0desk.training.deep_videos import VideoCheck
from zk0desk.training.episode_table import Episode, Span, read_episode_table
from zk0desk.training.recording_check import OF_A_FILE, quick_check, quick_findings, require_there
from zk0desk.training.recording_files import files_below, parquet_files, read_lines
from zk0desk.training.recording_info import Info, read_info, read_json, shown
from zk0desk.training.recording_rows import ACTION, STATE
from zk0desk.training.recording_types import CheckResult, Finding, PolicyNeeds, RecordingError, Severity, result_of

CHECKER = 3
"""Grows when the check asks more: answers that are kept of an older one do not count."""
ENDS = 16 * 1024
"""Bytes of each file's beginning and end that the content's key takes in."""
KEEP = 500
"""How many answers are kept."""


@dataclass(frozen=True)
class Progress:
    """How far the check is: parts done of all, and what is looked at."""

    done: int
    total: int
    what: str


def deep_check(
    path: Path,
    needs: PolicyNeeds = PolicyNeeds(),
    *,
    control: NodeControl | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    again: bool = False,
) -> CheckResult:
    """Check the recording in `path` to its last frame, or give the answer that is kept of it (unless `again`).

    Never raises for what is on the disk; raises `Stopped` when `control` is told to stop.
    """
    path, control = Path(path).expanduser(), control or NodeControl()
    recording, quick = quick_findings(path, needs)
    control.check()
    if recording is None or any(finding.code in ("version-newer", "version-too-old", "unreadable") for finding in quick):
        return result_of(path, recording, quick)  # there is nothing that could be read
    key = content_key(path, needs)
    if key and not again and (kept := _kept(key)) is not None:
        return result_of(path, recording, kept)
    try:
        found = _look(path, read_info(path), needs, control, progress)
        require_there(path)
        whole = True
    except RecordingError as error:
        found, whole = [error.finding()], error.code != "unreadable"
    except OSError as error:
        remedy = "Connect the disk again, check the permissions, and look again."
        found = [Finding("unreadable", Severity.BLOCKS, "The recording can no longer be read.", f"{shown(error)}.", remedy)]
        whole = False
    findings = _together(quick, found)
    if key and whole and content_key(path, needs) == key:  # what changed meanwhile is not kept
        _keep(key, findings)
    return result_of(path, recording, findings)


def kept_answer(path: Path, needs: PolicyNeeds = PolicyNeeds()) -> CheckResult | None:
    """The deep check's answer where it is kept for the recording as it is now. Quick: nothing of the content is read."""
    answer, deep = best_answer(path, needs)
    return answer if deep else None


def best_answer(path: Path, needs: PolicyNeeds = PolicyNeeds()) -> tuple[CheckResult, bool]:
    """The deep check's answer where it is kept for the recording as it is now, else the quick check's; and whether it is the deep one's."""
    quick = quick_check(path, needs)
    key = content_key(path, needs) if quick.recording is not None else ""
    kept = _kept(key) if key else None
    return (quick, False) if kept is None else (result_of(path, quick.recording, kept), True)


def _together(quick: list[Finding], deep: list[Finding]) -> list[Finding]:
    """Both; where both tell the same, the deep ones, which name the episodes, in the quick one's place."""
    by_code: dict[str, list[Finding]] = {}
    for finding in deep:
        if finding.code not in OF_A_FILE:
            by_code.setdefault(finding.code, []).append(finding)
    taken = [each for finding in quick for each in by_code.get(finding.code, [finding])] + deep
    return list({(finding.code, finding.what): finding for finding in taken}.values())


def _look(path: Path, info: Info, needs: PolicyNeeds, control: NodeControl, progress: Callable[[Progress], None]) -> list[Finding]:
    # Here, since they load numpy: the window imports this module before it is shown.
    from zk0desk.training.deep_columns import ColumnCheck
    from zk0desk.training.deep_rows import PictureCheck, batches, read_through

    findings: list[Finding] = []
    try:
        episodes = read_episode_table(path, info)
    except RecordingError as error:
        findings, episodes = [error.finding()], []
    try:
        for table in parquet_files(path / "meta" / "episodes"):
            read_through(table)
    except RecordingError as error:
        findings.append(error.finding())
    files = parquet_files(path / "data")
    cameras = [feature for feature in info.cameras if feature.dtype == "video" and not feature.depth]
    total, done = max(1, info.frames) + len(episodes) * len(cameras) * 20, 0

    def step(size: int, what: str) -> None:
        nonlocal done
        control.check()
        done += size
        progress(Progress(min(done, total), total, what))

    check, pictures = ColumnCheck(info, needs, episodes), PictureCheck(info)
    try:
        for file in files:
            for batch in batches(file, pictures, check.saw_type, lambda rows, name=file.name: step(rows, name)):  # type: ignore[misc]
                if "episode_index" not in batch:
                    break  # the quick check tells it
                check.take(batch)
        findings += pictures.findings() + check.findings(_stats(path))
    except RecordingError as error:
        findings.append(error.finding())
    for camera in cameras:
        seen = VideoCheck(info, camera)
        for file, listed in _by_file(episodes, camera.key):
            if not file.is_file():
                continue  # the quick check tells it
            seen.look(file, listed, lambda key=camera.key: step(20, key))  # type: ignore[misc]
        findings += seen.findings()
    return findings


def _by_file(episodes: list[Episode], camera: str) -> Iterator[tuple[Path, list[tuple[Episode, Span]]]]:
    files: dict[Path, list[tuple[Episode, Span]]] = {}
    for episode in episodes:
        if (span := episode.videos.get(camera)) is not None:
            files.setdefault(span.path, []).append((episode, span))
    yield from files.items()


def _stats(path: Path) -> Any:
    """The recording's statistics: of v2.1, which has only those of its episodes, of all of them together. None where there are none."""
    try:
        return read_json(path / "meta" / "stats.json", 64 * 2**20)
    except (OSError, ValueError):
        pass
    import numpy as np

    from zk0desk.training.repair_statistics import WORDS, together

    try:
        parts = [line["stats"] for line in read_lines(path / "meta" / "episodes_stats.jsonl")]
        with np.errstate(all="ignore"):
            return {
                key: together([{word: np.asarray(part[key][word], np.float64) for word in WORDS} for part in parts])
                for key in (STATE, ACTION)
            }
    except (RecordingError, KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None


# --- what is kept


def content_key(path: Path, needs: PolicyNeeds) -> str:
    """A digest of the recording's content: names, sizes, times of change, both ends of every file, and what is asked of it.

    Empty where a file cannot be read. A moved folder keeps its key; one that was changed has another.
    """
    digest = hashlib.blake2b(json.dumps([CHECKER, asdict(needs)]).encode(), digest_size=20)
    try:
        for file in files_below(path):
            stat = file.stat()
            digest.update(f"\0{file.relative_to(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            with file.open("rb") as opened:
                digest.update(opened.read(ENDS))
                if stat.st_size > 2 * ENDS:
                    opened.seek(-ENDS, os.SEEK_END)
                    digest.update(opened.read(ENDS))
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()


def _place() -> Path:
    return folders.state_folder() / "checks"


def _kept(key: str) -> list[Finding] | None:
    try:
        data = json.loads((_place() / f"{key}.json").read_text(encoding="utf-8"))
        return [
            Finding(each["code"], Severity(each["severity"]), each["what"], each["why"], each["remedy"], tuple(each.get("episodes", ())))
            for each in data["findings"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(key: str, findings: list[Finding]) -> None:
    with contextlib.suppress(OSError):  # a full disk costs only the next check's time
        place = folders.private_folder(_place())
        partial = place / f"{key}.partial"
        partial.write_text(json.dumps({"checked": time.time(), "findings": [finding.to_json() for finding in findings]}), encoding="utf-8")
        partial.replace(place / f"{key}.json")
        kept = sorted(place.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in kept[:-KEEP]:
            old.unlink()
