"""A round on disk: one folder that appears whole or not at all, with a SHA-256 of every file in it.

round-0003/              a policy that LeRobot loads, with the global weights
round-0003/zk0/          what else a run needs to go on from there:
    record.json          how far the run is, and its losses (`RunRecord`)
    kept.json            the parts' own JSON by name: schedule, quarantine, clip history, accountant
    NAME.npy             the parts' own arrays: the server optimiser's moments, the codec's residual
    manifest.json        SHA-256 of every other file, written last
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk.training import policy_files

STATE, MANIFEST = "zk0", "manifest.json"
FORMAT = 1
_ROUND = re.compile(r"round-(\d{4,})")


class CheckpointDamaged(Exception):
    """A checkpoint is not what was written; the text says in what."""


@dataclass(frozen=True)
class Checkpoint:
    """A round as it was read back. `weights` are flat float32; `kept_arrays` are memory-mapped, copied when written to."""

    folder: Path
    weights: np.ndarray
    record: dict[str, Any]
    kept: dict[str, Any]
    kept_arrays: dict[str, np.ndarray]


def write(
    folder: Path,
    base: Path,
    weights: np.ndarray,
    *,
    record: Mapping[str, Any],
    kept: Mapping[str, Any],
    kept_arrays: Mapping[str, np.ndarray],
    processors: Path | None = None,
) -> None:
    """Write a round to `folder` in one piece: the policy of `base` with `weights` (flat float32), and the run's state.

    Names of arrays are lower-case words with hyphens. Raises OSError when the disk does not take it; then nothing is there.
    """

    def state(partial: Path) -> None:
        own = partial / STATE
        own.mkdir()
        (own / "record.json").write_text(json.dumps(dict(record), indent=1), encoding="utf-8")
        (own / "kept.json").write_text(json.dumps(dict(kept), indent=1, sort_keys=True), encoding="utf-8")
        for name, array in kept_arrays.items():
            _save(own / f"{name}.npy", array)
        files = {path.relative_to(partial).as_posix(): _sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()}
        (own / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1), encoding="utf-8")

    policy_files.write_policy(folder, base, weights, processors_from=processors, more=state)


def read(folder: Path) -> Checkpoint:
    """Read the round in `folder` after checking every file. `CheckpointDamaged` when one is changed or missing."""
    verify(folder)
    own = folder / STATE
    try:
        return Checkpoint(
            folder=folder,
            weights=policy_files.trainable_weights(folder),
            record=json.loads((own / "record.json").read_text(encoding="utf-8")),
            kept=json.loads((own / "kept.json").read_text(encoding="utf-8")),
            kept_arrays={path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in sorted(own.glob("*.npy"))},
        )
    except (OSError, ValueError, policy_files.PolicyError) as error:
        raise CheckpointDamaged(f"{error}") from error


def newest(run: Path, passed_over: Callable[[Path, str], None]) -> Checkpoint | None:
    """The last round in the run's folder that is whole, or None. `passed_over` is told each one that is not, and in what."""
    for _, folder in reversed(rounds(run)):
        try:
            return read(folder)
        except CheckpointDamaged as error:
            passed_over(folder, str(error))
    return None


def rounds(run: Path) -> list[tuple[int, Path]]:
    """The numbers and folders of the rounds in the run's folder, in order, whole or not."""
    found = ((_ROUND.fullmatch(path.name), path) for path in run.glob("round-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def aside(folder: Path) -> Path:
    """Where a damaged round is put, so that the run can write that round again."""
    return folder.with_name(f"{folder.name}.damaged")


def remove(folder: Path) -> None:
    """Remove a round: it is gone at once for every reader, however long its files take."""
    going = folder.with_name(f".{folder.name}.going")
    try:
        folder.replace(going)
    except OSError:
        return  # another time: this only costs room
    shutil.rmtree(going, ignore_errors=True)


def sweep(run: Path) -> None:
    """Remove what a killed process left half written or half removed in the run's folder."""
    for path in run.glob(".round-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in run.glob("*.partial"):
        path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def verify(folder: Path) -> None:
    """Compare every file of the round in `folder` with its SHA-256. `CheckpointDamaged` names the first that differs."""
    try:
        manifest = json.loads((folder / STATE / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            raise CheckpointDamaged(f"its format is {manifest['format']!r:.20}, not {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"its list of files cannot be read: {error}") from error
    for name, digest in files.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise CheckpointDamaged(f"{name} cannot be read: {error.strerror}") from error
        if found != digest:
            raise CheckpointDamaged(f"{name} is not what was written")


def _save(path: Path, array: np.ndarray) -> None:
    """Write an array; one that is a file already, and is only read, becomes another name of that file: large ones cost nothing then."""
    if isinstance(array, np.memmap) and array.mode == "r" and array.filename:
        source = Path(array.filename)
        if source.suffix == ".npy" and source.stat().st_size == array.offset + array.nbytes:
            try:
                os.link(source, path)
                return
            except OSError:
                pass  # this disk has no links
    np.save(path, array, allow_pickle=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
