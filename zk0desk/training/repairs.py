"""Repairs of a recording, always on a copy. The recording itself is only read.

The copy grows in a hidden folder beside its place, `.NAME.partial`, and is moved there when it is whole and was checked. What
was interrupted leaves nothing; what was killed leaves such a folder, which the next repair to that place removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from zk0desk.control import NodeControl
from zk0desk.events import Event, Notice
from zk0desk.settings import Recordings
from zk0desk.training.deep_check import deep_check
from zk0desk.training.recording_files import files_below, size_on_disk
from zk0desk.training.recording_info import read_info, shown
from zk0desk.training.recording_schema import renames
from zk0desk.training.recording_types import CheckResult, RecordingError
from zk0desk.training.recordings import standard_folders
from zk0desk.training.repair_convert import convert
from zk0desk.training.repair_episodes import leave_out
from zk0desk.training.repair_names import rename
from zk0desk.training.repair_plan import RepairError, RepairPlan, RepairStep, Step, plan_repair
from zk0desk.training.repair_statistics import write_statistics
from zk0desk.training.repair_tables import Tell
from zk0desk.training.repair_times import lay_times, lay_videos
from zk0desk.training.repair_videos import reencode

__all__ = [
    "RepairError", "RepairPlan", "RepairProgress", "RepairResult", "RepairStep", "Step",
    "clean_left_copies", "clean_partials", "plan_repair", "repair",
]  # fmt: skip

OWNER = "owner.json"
"""Names the process that a partial copy belongs to."""
PIECE = 8 * 2**20
SPARE = 64 * 2**20
"""Bytes that stay free on the target's disk."""
_ours: set[Path] = set()
"""Partial copies that this process works on."""


@dataclass(frozen=True)
class RepairProgress:
    """How far a repair is: the step ("copy", a `Step`, or "check") and what is done of it, from 0 to 1."""

    step: str
    done: float


@dataclass(frozen=True)
class RepairResult:
    """A repair that was done: the copy, what the check says of it, how long it took, and its size."""

    path: Path
    plan: RepairPlan
    check: CheckResult
    seconds: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object with keys `path`, `plan`, `check`, `seconds`, `bytes`."""
        return {
            "path": str(self.path),
            "plan": self.plan.to_json(),
            "check": self.check.to_json(),
            "seconds": round(self.seconds, 1),
            "bytes": self.bytes,
        }


def repair(
    path: Path,
    new: Path,
    plan: RepairPlan,
    *,
    control: NodeControl | None = None,
    progress: Callable[[RepairProgress], None] = lambda _: None,
    emit: Callable[[Event], None] = lambda _: None,
    keep: bool = False,
) -> RepairResult:
    """Make a repaired copy of the recording in `path` at `new`, as `plan` says. Takes minutes for a large recording.

    `RepairError` when it cannot be done, or when the copy is not usable (then it is removed, unless `keep`); `Stopped` when
    `control` is told to stop. `emit` gets a `Notice` of what a person should know.
    """
    path, new, control = Path(path).expanduser().absolute(), Path(new).expanduser().absolute(), control or NodeControl()
    began = time.monotonic()
    _refuse(path, new, plan)
    for step in plan.steps:
        if step.note:
            emit(Notice(severity="note", code=f"repair-{step.code}", what=step.what, why=step.note))
    try:
        with _partial(new) as folder:
            copy = folder / new.name
            told = _Told(control, progress)
            _make(path, copy, folder, plan, told)
            check = deep_check(copy, plan.needs, control=control, progress=lambda step: told("check")(step.done / max(1, step.total)))
            failed = check.status != "ok"
            if not failed or keep:
                control.check()
                _move(copy, new)
    except RecordingError as error:
        raise RepairError("The repair did not succeed.", f"{error.what} {error.why}", error.remedy, code=error.code) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        remedy = "Free some space, or choose a place on another disk." if full else "Check the disk and the permissions."
        raise RepairError("The copy could not be written.", f"{shown(error)}.", remedy, code="copy-failed") from error
    if failed:
        first = check.findings[0]
        where = f"It was kept in {new}" if keep else "It was removed again"
        raise RepairError("The copy cannot be trained on either.", f"{first.what} {first.why}", f"{where}; {first.remedy}")
    return RepairResult(
        new, plan, CheckResult(new, check.recording, check.status, check.findings), time.monotonic() - began, size_on_disk(new)
    )


def clean_partials(folder: Path) -> list[Path]:
    """Remove what killed repairs left in `folder`; those that were removed. Copies that are still being made stay."""
    removed = []
    for entry in sorted(Path(folder).glob(".*.partial")):
        if entry.is_dir() and not entry.is_symlink() and _stale(entry):
            shutil.rmtree(entry)
            removed.append(entry)
    return removed


def clean_left_copies(recordings: Recordings) -> list[Path]:
    """`clean_partials` where this operator's recordings are looked for, and beside the chosen ones. Unreadable folders are passed over."""
    places = {*recordings.folders, *(chosen.path.parent for chosen in recordings.chosen), *standard_folders()}
    removed = []
    for place in sorted(place.expanduser() for place in places):
        with contextlib.suppress(OSError):
            removed += clean_partials(place)
    return removed


def partial_of(new: Path) -> Path:
    """Where the copy at `new` grows."""
    return new.with_name(f".{new.name}.partial")


# --- before


def _refuse(path: Path, new: Path, plan: RepairPlan) -> None:
    """`RepairError` where nothing can be done, or not to that place."""
    if plan.impossible:
        first = plan.impossible[0]
        raise RepairError(f"{path.name} cannot be repaired.", f"{first.what} {first.why}", first.remedy, code=first.code)
    if not plan.steps:
        raise RepairError(f"{path.name} needs no repair.", "It can be trained on as it is.", "Use it.", code="nothing-to-repair")
    target, source = new.resolve(), path.resolve()
    if target == source or source in target.parents:
        raise RepairError(
            "A copy cannot lie in the recording itself.", f"{new} is in {path}.", "Choose another folder.", code="target-inside"
        )
    try:
        taken = new.is_symlink() or (new.exists() and (not new.is_dir() or any(new.iterdir())))
    except OSError as error:
        raise RepairError(f"{new} cannot be looked at.", f"{shown(error)}.", "Choose another folder.", code="target-unreadable") from error
    if taken:
        raise RepairError(f"{new} is there already.", "Nothing is written over.", "Choose a folder that is new.", code="target-exists")
    if not new.parent.is_dir():
        raise RepairError(f"There is no folder {new.parent}.", "The copy is made in it.", "Make it first.", code="target-missing")
    free = shutil.disk_usage(new.parent).free
    if free < plan.bytes_needed + SPARE:
        why = f"{plan.bytes_needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free."
        raise RepairError(f"The disk of {new.parent} is too full.", why, "Free some space, or choose another disk.", code="disk-full")


@contextlib.contextmanager
def _partial(new: Path) -> Iterator[Path]:
    """The folder in which the copy at `new` grows; gone afterwards, whatever happened."""
    folder = partial_of(new)
    if folder.exists() and not _stale(folder):
        why = f"{folder.name} belongs to a repair that runs, or is not ours."
        raise RepairError(f"A copy at {new} is being made already.", why, "Wait for it, or choose another folder.", code="target-busy")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    _ours.add(folder)
    try:
        owner = {"process": os.getpid(), "started": psutil.Process().create_time()}
        (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _ours.discard(folder)


def _stale(folder: Path) -> bool:
    """Whether a partial copy is ours and nobody works on it any more."""
    if folder in _ours:
        return False
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        process, started = int(owner["process"]), float(owner["started"])
    except FileNotFoundError:
        return not any(folder.iterdir())  # killed before it was named; anything else is not ours
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / OWNER).is_file() and (folder / OWNER).stat().st_size == 0
    if process == os.getpid():
        return True
    try:
        return abs(psutil.Process(process).create_time() - started) > 2
    except psutil.Error:
        return True


# --- doing it


class _Told:
    """Tells how far each step is; raises `Stopped` between two files when asked to stop."""

    def __init__(self, control: NodeControl, progress: Callable[[RepairProgress], None]) -> None:
        self._control, self._progress = control, progress

    def __call__(self, step: str) -> Tell:
        def tell(done: float) -> None:
            self._control.check()
            self._progress(RepairProgress(step, min(1.0, done)))

        return tell


def _make(path: Path, copy: Path, folder: Path, plan: RepairPlan, told: _Told) -> None:
    source = read_info(path)
    if plan.has(Step.CONVERT):
        work = folder / "work"
        work.mkdir()
        convert(path, source, plan.kept, copy, work, told(Step.CONVERT))
        shutil.rmtree(work)
        _copy(path, copy, told("copy"), only_top=True)
    else:
        _copy(path, copy, told("copy"))
        if plan.has(Step.LEAVE_OUT):
            leave_out(copy, source, plan.kept, told(Step.LEAVE_OUT))
    if plan.has(Step.RENAME):
        rename(copy, renames(source), told(Step.RENAME))
    info = read_info(copy)
    if plan.has(Step.REENCODE):
        reencode(copy, info, told(Step.REENCODE))
    if plan.has(Step.RETIME) or plan.has(Step.CONVERT):
        _lay(copy, plan, told)
    if plan.has(Step.STATISTICS):
        write_statistics(copy, info, told(Step.STATISTICS))


def _lay(copy: Path, plan: RepairPlan, told: _Told) -> None:
    info = read_info(copy)
    if plan.has(Step.RETIME):
        lay_times(copy, info, told(Step.RETIME))
    else:
        lay_videos(copy, info, told(Step.CONVERT))


def _copy(source: Path, target: Path, tell: Tell, *, only_top: bool = False) -> None:
    """Copy the recording's files, or only those that lie beside its folders (a README, a licence). Links become what they lead to."""
    files = [entry for entry in source.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    for name in () if only_top else ("meta", "data", "videos", "images"):
        files += files_below(source / name)
    total, done = sum(file.stat().st_size for file in files) or 1, 0
    target.mkdir(exist_ok=True)
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as old, place.open("wb") as new:
            while piece := old.read(PIECE):
                tell(done / total)
                new.write(piece)
                done += len(piece)


def _move(copy: Path, new: Path) -> None:
    """Put the finished copy in its place: it is there whole or not at all."""
    if new.is_dir():
        new.rmdir()  # empty; if that changed meanwhile, this fails
    os.rename(copy, new)
    with contextlib.suppress(OSError):
        handle = os.open(new.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
