"""An engine in a folder: saved from one computer, and used on another without a network.

What an engine was unpacked from is not kept, so its wheels are written anew; each has the RECORD of the original, by whose hash in the list
of the other computer's own zk0desk every file is known to be the original's. A folder of original wheels can be used just as well.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zk0desk.amounts import gigabytes
from zk0desk.control import NodeControl
from zk0desk.engine import lists, store
from zk0desk.engine.errors import EngineDamaged, EngineDiskFull, EngineListError, EngineUnsupported
from zk0desk.engine.fetch import Fetching, Meter, Network, Patience
from zk0desk.engine.lists import EngineList, Wheel
from zk0desk.engine.progress import Pace, Told, nobody
from zk0desk.engine.renaming import replace
from zk0desk.engine.store import Installed
from zk0desk.engine.unpack import Kept, no_room
from zk0desk.engine.verify import verify
from zk0desk.engine.wheel import PIECE, files_of, installed_path

LIST = "engine.json"
"""The list in a saved folder."""
_LEVEL = 1
"""Of zlib: fast, and two thirds of the gain."""
_STORED = (".so", ".dll", ".dylib", ".lib", ".a")
"""Large libraries; packing them costs minutes."""


@dataclass(frozen=True)
class Exported:
    """A saved engine: its folder, the bytes in it, and how many of its wheels came over the network again."""

    folder: str
    bytes: int
    wheels: int
    fetched: int

    def to_json(self) -> dict[str, Any]:
        """It as a JSON object."""
        return asdict(self)


def export(engine: Installed, folder: Path, *, control: NodeControl, told: Told = nobody, patience: Patience | None = None) -> Exported:
    """Save `engine` into a folder of its own below `folder`. Wheels that are there already are kept, so that an export that ended goes
    on.

    A wheel whose RECORD the list does not name is fetched again. Raises `EngineDamaged`, `EngineDiskFull`, `Stopped`, and what fetching
    raises.
    """
    wanted = engine.list()
    found = verify(engine, control=control)
    if not found.ok:
        raise EngineDamaged("The engine is damaged and is not saved.", found.sentence, "Mend it first: zk0desk engine repair")
    target = folder.absolute() / f"zk0desk-engine-{wanted.system}-{wanted.arch}-{wanted.backend}-{wanted.id}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        _check_room(target, engine)
        missing = [wheel for wheel in wanted.wheels if not (target / wheel.file).exists()]
        fetched = [wheel for wheel in missing if not wheel.record]
        _write(engine, [wheel for wheel in missing if wheel.record], target, control, told)
        _fetch(fetched, target, control, told, patience or Patience())
        (target / LIST).write_text(wanted.to_text(), encoding="utf-8")
    except OSError as error:
        raise no_room(error, target) from error
    return Exported(str(target), store.disk_bytes(target), len(wanted.wheels), len(fetched))


def found_list(folder: Path, backend: str | None = None) -> tuple[EngineList, Path]:
    """The list of this zk0desk for what `folder` holds, and the folder with the wheels: `folder`, or the one saved engine in it.

    Only the lists that came with this zk0desk are trusted; the folder's own says which one. Without one, `backend` says it.
    """
    offered = lists.shipped()
    here = folder if (folder / LIST).is_file() else next(iter(sorted(folder.glob(f"zk0desk-engine-*/{LIST}"))), folder / LIST).parent
    if (here / LIST).is_file():
        told = lists.read(here / LIST)
        if found := next((each for each in offered.values() if each.id == told.id), None):
            return found, here
        what = f"The engine in {here} is not the one of this zk0desk."
        why = f"It is for {told.system} on {told.arch}, {told.backend}, from another version of zk0desk or another system."
        raise EngineUnsupported(what, why, "Save it from the same version of zk0desk, or fetch it: zk0desk engine get")
    if backend is None or backend not in offered:
        why = "It has no engine.json, and no back end was named that this zk0desk brings."
        raise EngineListError(
            f"{folder} holds no saved engine.", why, "Choose the folder that was saved, or name the back end of its wheels."
        )
    return offered[backend], folder


def _check_room(target: Path, engine: Installed) -> None:
    import shutil

    there, free = store.disk_bytes(target), shutil.disk_usage(target).free
    if engine.bytes - there > free:
        what = f"The engine needs up to {gigabytes(engine.bytes)} there, and {gigabytes(free)} is free."
        raise EngineDiskFull(what, f"It would be in {target}.", "Free some space, or choose another disk.")


def _write(engine: Installed, wheels: list[Wheel], target: Path, control: NodeControl, told: Told) -> None:
    kept = store.kept_files(engine.path)
    pace = Pace(told, "writing", sum(one.size for wheel in wheels for one in kept[wheel.file]))
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        pace.at(done)

    for wheel in wheels:
        partial = target / f"{wheel.file}.partial"
        try:
            _write_wheel(engine.site, kept[wheel.file], partial, control, moved)
            replace(partial, target / wheel.file)
        finally:
            partial.unlink(missing_ok=True)


def _write_wheel(site: Path, files: list[Kept], path: Path, control: NodeControl, moved: Callable[[int], None]) -> None:
    """Write a wheel with these files under the names that their RECORD has for them."""
    record = next(one.path for one in files if one.path.endswith(".dist-info/RECORD"))
    names = {installed_path(name, path.name): name for name in files_of((site / record).read_bytes(), path.name)}
    with zipfile.ZipFile(path, "w", compresslevel=_LEVEL) as archive:
        for one in files:
            control.hold()
            info = zipfile.ZipInfo(names[one.path])
            info.external_attr = (0o100755 if os.access(site / one.path, os.X_OK) else 0o100644) << 16
            info.compress_type = zipfile.ZIP_STORED if one.path.endswith(_STORED) or ".so." in one.path else zipfile.ZIP_DEFLATED
            info._compresslevel = _LEVEL  # type: ignore[attr-defined]
            info.file_size = one.size
            with open(site / one.path, "rb") as source, archive.open(info, "w") as packed:
                while piece := source.read(PIECE):
                    control.check()
                    packed.write(piece)
                    moved(len(piece))


def _fetch(wheels: list[Wheel], target: Path, control: NodeControl, told: Told, patience: Patience) -> None:
    if not wheels:
        return
    network, meter = Network(target, patience), Meter()
    pace = Pace(told, "fetching", sum(wheel.size for wheel in wheels))
    with Fetching([(wheel, network) for wheel in wheels], control, meter) as fetching:
        for arrived in fetching:
            pace.at(meter.done, meter.words)
            if arrived:
                replace(arrived[1], target / arrived[0].file)
