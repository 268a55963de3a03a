"""Takes over the files of wheels that an older engine has unpacked already: linked where the disk can, else copied."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from zk0desk.control import NodeControl
from zk0desk.engine.errors import EngineDamaged, EngineListError
from zk0desk.engine.lists import EngineList, Wheel
from zk0desk.engine.store import Installed, kept_files
from zk0desk.engine.unpack import Kept, Places, no_room


def reusable(wanted: EngineList, engines: Iterable[Installed]) -> dict[str, tuple[Installed, list[Kept]]]:
    """For each wheel of `wanted` that a whole engine holds with every file in its size: that engine and the files.

    By the wheel's file name.
    """
    found: dict[str, tuple[Installed, list[Kept]]] = {}
    for engine in engines:
        try:
            there, kept = {wheel.sha256 for wheel in engine.list().wheels}, kept_files(engine.path)
        except (EngineDamaged, EngineListError):
            continue  # its own notes are damaged
        for wheel in wanted.wheels:
            if wheel.sha256 not in there or wheel.file in found:
                continue
            files = kept.get(wheel.file)
            if files and in_size(engine.site, files):
                found[wheel.file] = (engine, files)
    return found


def in_size(site: Path, files: Iterable[Kept]) -> bool:
    """Whether each of the files is below `site` in its size."""
    base = os.fspath(site)
    try:
        return all(os.stat(f"{base}/{kept.path}", follow_symlinks=False).st_size == kept.size for kept in files)
    except OSError:
        return False


def link(
    wheel: Wheel, files: list[Kept], old: Path, new: Path, places: Places, *, control: NodeControl, moved: Callable[[int], None]
) -> list[Kept]:
    """Put the files of `wheel` from the site `old` into the site `new`, with their bytecode; `moved` is told bytes.

    They are never written into.
    """
    folders: set[Path] = set()
    try:
        for kept in files:
            control.hold()
            if places.is_there(wheel.file, kept):
                continue
            target = new / kept.path
            if target.parent not in folders:
                target.parent.mkdir(parents=True, exist_ok=True)
                folders.add(target.parent)
            _link(old / kept.path, target)
            if kept.path.endswith(".py") and not sys.pycache_prefix:
                _link_bytecode(old / kept.path, target)
            moved(kept.size)
    except OSError as error:
        raise no_room(error, new) from error
    return files


def _link_bytecode(old: Path, new: Path) -> None:
    """Python takes bytecode by its source's time and size, which a link keeps."""
    compiled, target = (Path(importlib.util.cache_from_source(str(path))) for path in (old, new))
    if compiled.is_file():
        target.parent.mkdir(exist_ok=True)
        _link(compiled, target)


def _link(old: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)  # another disk, or one without links
