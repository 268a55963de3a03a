"""A digest of all that a recording's pictures are made from: every byte, so that a cache of what follows from them is never the wrong one.

Reading a large recording takes a while: what was found is kept, with the files' sizes, times and numbers, until one of these changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from zk0desk import folders
from zk0desk.training.recording_files import files_below

PIECE = 8 * 2**20
REMEMBERED = 20_000
"""Files whose digests are kept, the newest ones."""


def pictures_digest(root: Path, cameras: Iterable[str], check: Callable[[], None] = lambda: None) -> str:
    """Hex digest of the recording at `root`: its rows, its tables of episodes and tasks, and the videos of `cameras`.

    The folder's place, and other cameras, do not change it. `check` is called between pieces and may raise. OSError where a file
    cannot be read.
    """
    names = [root / "meta" / "info.json", *files_below(root / "meta" / "episodes"), *files_below(root / "data")]
    names += [file for camera in sorted(cameras) for file in files_below(root / "videos" / camera)]
    known = _read()
    before = dict(known)
    whole = hashlib.blake2b(digest_size=32)
    for file in names:
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        digest = known.pop(key, "") or _digest(file, check)
        known[key] = digest  # at the end: the newest
        whole.update(f"{file.relative_to(root).as_posix()}\0{digest}\0".encode("utf-8", "surrogateescape"))
    if known != before:
        _keep(dict(list(known.items())[-REMEMBERED:]))
    return whole.hexdigest()


def _digest(file: Path, check: Callable[[], None]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            check()
            digest.update(piece)
    return digest.hexdigest()


def _place() -> Path:
    return folders.state_folder() / "digests.json"


def _read() -> dict[str, str]:
    try:
        data: Any = json.loads(_place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}


def _keep(known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):  # a full disk costs only the time to read again
        place = folders.private_folder(_place().parent)
        handle, name = tempfile.mkstemp(dir=place, prefix="digests", suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(known, file)
            Path(name).replace(_place())
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
