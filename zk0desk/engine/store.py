"""The engines on this computer: which there are, which one is used, going back, and taking away what is not needed.

engines/
  lock                      held by who changes anything here
  current                   the id of the engine that is used; in the second line the one before it
  wheels/                   wheels that came, until they are unpacked
  <id>.partial/             an engine that is being made
  <id>/site/                its packages
  <id>/list.json            its list
  <id>/files/WHEEL.tsv      the files of each wheel: path, size, SHA-256
  <id>/valid                made whole: facts about it, and the SHA-256 over files/
  <id>/in-use               locked by every process that uses it (`activation`)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zk0desk import process_lock
from zk0desk.engine.activation import IN_USE
from zk0desk.engine.errors import EngineBusy, EngineDamaged, EngineError
from zk0desk.engine.lists import EngineList, read
from zk0desk.engine.renaming import replace
from zk0desk.engine.unpack import Kept
from zk0desk.folders import engines_folder, private_folder, write_atomically

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Installed:
    """An engine on this computer.

    `bytes` of its files; `made`: Unix time; `origin`: "artefact", or "feed" with the zk0desk `version` it is for.
    """

    id: str
    backend: str
    folder: str
    bytes: int
    wheels: int
    made: float
    origin: str = "artefact"
    version: str = ""

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path(self.folder)

    @property
    def site(self) -> Path:
        """The folder of its packages."""
        return self.path / "site"

    def list(self) -> EngineList:
        """Its list of wheels."""
        return read(self.path / "list.json")

    def to_json(self) -> dict[str, Any]:
        """The engine as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Pruned:
    """What `prune` took away: bytes, and the names; `in_use`: ids of engines that stay because a process uses them."""

    bytes: int
    removed: tuple[str, ...]
    in_use: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """It as a JSON object."""
        return {"bytes": self.bytes, "removed": list(self.removed), "in-use": list(self.in_use)}


def lock() -> AbstractContextManager[None]:
    """Held while something is changed here. `EngineBusy` when another process holds it."""
    other = EngineBusy(
        "Another zk0desk works on the engine.",
        f"It holds {engines_folder() / 'lock'}.",
        "Wait until it is done, or stop it there. What it has fetched counts.",
    )
    return process_lock.held(engines_folder() / "lock", other)


def wheels_folder() -> Path:
    """Where wheels are until they are unpacked."""
    return private_folder(engines_folder() / "wheels")


def find(engine: str) -> Installed | None:
    """The engine with this id, if it is whole."""
    return _installed(engines_folder() / engine) if _ID.fullmatch(engine) else None


def engines() -> list[Installed]:
    """All engines that are whole, the newest first."""
    try:
        folders = [path for path in engines_folder().iterdir() if _ID.fullmatch(path.name)]
    except OSError:
        return []
    return sorted((found for path in folders if (found := _installed(path))), key=lambda each: -each.made)


def current() -> Installed | None:
    """The engine that is used, or None; one that was chosen and is not whole counts as none."""
    chosen = _chosen()
    return find(chosen[0]) if chosen else None


def chosen_is_broken() -> bool:
    """Whether an engine was chosen that is not there, or not whole."""
    return bool(_chosen()) and current() is None


def use(engine: Installed) -> None:
    """Make `engine` the one that is used, from the next start of each process on."""
    chosen = _chosen()
    before = [engine.id, *(each for each in chosen if each != engine.id)][:2]
    write_atomically(private_folder(engines_folder()) / "current", "\n".join(before) + "\n")


def go_back() -> Installed:
    """Use the engine that was used before, or else the newest other one. `EngineError` when there is none."""
    with lock():
        chosen = _chosen()
        others = [each for each in engines() if not chosen or each.id != chosen[0]]
        before = next((each for each in others if each.id in chosen[1:]), others[0] if others else None)
        if before is None:
            why = "An older engine stays after an update until it is pruned; there is none."
            raise EngineError("There is no engine to go back to.", why, "To fetch the engine again: zk0desk engine get")
        use(before)
        return before


def prune() -> Pruned:
    """Take away all engines but the one that is used, what was begun and not finished, and bytecode of what is gone."""
    removed, in_use, freed = [], [], 0
    with lock():
        kept = _chosen()[:1]
        for path in sorted(engines_folder().iterdir()):
            if path.name in kept or path.name in ("lock", "current") or not path.is_dir():
                continue
            if _ID.fullmatch(path.name) and _is_used(path):
                in_use.append(path.name)
                continue
            size = disk_bytes(path)
            try:
                remove(path)
            except OSError:
                in_use.append(path.name)
                continue
            freed += size
            if size or path.name != "wheels":
                removed.append(path.name)
    return Pruned(freed, tuple(removed), tuple(in_use))


def remove(path: Path) -> None:
    """Take a folder of the store away with its bytecode: renamed first, so that no half of it can be taken for whole."""
    gone = path.with_name(f"{path.name.partition('.')[0]}.gone")
    if path != gone:
        if gone.exists():
            shutil.rmtree(gone)
        path.rename(gone)
    shutil.rmtree(gone)
    if bytecode := bytecode_folder(path):
        shutil.rmtree(bytecode, ignore_errors=True)


def bytecode_folder(path: Path) -> Path | None:
    """Where Python keeps the bytecode of what is below `path`, when that is not beside it (PYTHONPYCACHEPREFIX)."""
    if not sys.pycache_prefix:
        return None
    return Path(sys.pycache_prefix, *path.absolute().parts[1:])


def disk_bytes(path: Path) -> int:
    """What taking `path` away gives back: bytes of the files in it that are nowhere else too."""
    total, stack = 0, [os.fspath(path)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    facts = os.stat(entry.path, follow_symlinks=False)  # scandir does not count links on Windows
                    total += facts.st_size if facts.st_nlink == 1 else 0
    return total


def make_valid(partial: Path, wanted: EngineList, *, origin: str, version: str) -> Installed:
    """Make the engine in the folder `partial` whole: write down what it is, have it on the disk, and give it its name."""
    facts = {
        "id": wanted.id,
        "backend": wanted.backend,
        "bytes": sum(kept.size for files in kept_files(partial).values() for kept in files),
        "wheels": len(wanted.wheels),
        "made": time.time(),
        "origin": origin,
        "version": version,
        "files": files_digest(partial),
    }
    (partial / IN_USE).touch()
    write_atomically(partial / "valid", json.dumps(facts))
    if hasattr(os, "sync"):
        os.sync()  # else a power cut after the rename leaves files without their content under a name that promises it
    replace(partial, engines_folder() / wanted.id)
    found = find(wanted.id)
    assert found is not None
    return found


def write_kept(engine: Path, wheel: str, files: list[Kept]) -> None:
    """Note which files a wheel has put into the engine in the folder `engine`: from now on it is unpacked."""
    text = "".join(f"{kept.path}\t{kept.size}\t{kept.sha256}\n" for kept in files)
    write_atomically(private_folder(engine / "files") / f"{wheel}.tsv", text)


def kept_files(engine: Path) -> dict[str, list[Kept]]:
    """The files of each unpacked wheel. `EngineDamaged` where the notes cannot be read."""
    found: dict[str, list[Kept]] = {}
    try:
        for path in sorted((engine / "files").glob("*.tsv")):
            rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
            found[path.name.removesuffix(".tsv")] = [Kept(name, int(size), digest) for name, size, digest in rows]
    except (OSError, ValueError) as error:
        raise notes_damaged(engine) from error
    return found


def files_digest(engine: Path) -> str:
    """SHA-256 over the notes of all wheels."""
    digest = hashlib.sha256()
    for path in sorted((engine / "files").glob("*.tsv")):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def noted_digest(engine: Path) -> str:
    """The SHA-256 over the notes, as it was when the engine was made. `EngineDamaged` where it cannot be read."""
    try:
        return str(json.loads((engine / "valid").read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise notes_damaged(engine) from error


def notes_damaged(engine: Path) -> EngineDamaged:
    """The error of an engine whose own notes are damaged."""
    what = "The engine cannot be checked: its own notes are damaged."
    return EngineDamaged(what, f"They are in {engine}.", "Remove that folder, then fetch the engine again: zk0desk engine get")


def _chosen() -> list[str]:
    try:
        lines = (engines_folder() / "current").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
    return [line for line in lines if _ID.fullmatch(line)]


def _installed(path: Path) -> Installed | None:
    try:
        told = json.loads((path / "valid").read_text(encoding="utf-8"))
        if told["id"] != path.name or not (path / "site").is_dir():
            return None
        return Installed(
            path.name,
            str(told["backend"]),
            str(path),
            int(told["bytes"]),
            int(told["wheels"]),
            float(told["made"]),
            str(told["origin"]),
            str(told["version"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_used(engine: Path) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    try:
        handle = os.open(engine / IN_USE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
