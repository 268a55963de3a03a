"""Whether an engine is still what was unpacked: by size in a moment, thoroughly by hash; and mending what is damaged."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zk0desk.control import NodeControl
from zk0desk.engine import lists, store
from zk0desk.engine.errors import EngineDamaged, EngineWrongContent
from zk0desk.engine.fetch import Fetching, Folder, Meter, Network, Patience, Source
from zk0desk.engine.lists import Wheel
from zk0desk.engine.progress import Pace, Told, nobody
from zk0desk.engine.store import Installed
from zk0desk.engine.unpack import Kept, Places, unpack
from zk0desk.engine.wheel import PIECE


@dataclass(frozen=True)
class Damage:
    """A file that is not what it was:

    `path` below `site`, the `wheel` that it came from, and what is wrong: "missing", "size", "content".
    """

    path: str
    wheel: str
    what: str


@dataclass(frozen=True)
class Verified:
    """What verifying found: number of files, their bytes, the seconds it took, and what is damaged.

    `thorough`: by hash, not by size alone.
    """

    files: int
    bytes: int
    seconds: float
    damaged: tuple[Damage, ...] = ()
    thorough: bool = False
    repaired: int = 0
    received: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged

    @property
    def wheels(self) -> tuple[str, ...]:
        """The wheels that something is wrong with."""
        return tuple(sorted({each.wheel for each in self.damaged}))

    @property
    def sentence(self) -> str:
        """It in words."""
        how = "read and compared" if self.thorough else "there in their size"
        if self.ok:
            return f"The engine is whole: {self.files:,} files {how}."
        names = ", ".join(name.partition("-")[0] for name in self.wheels[:5]) + (" and others" if len(self.wheels) > 5 else "")
        return f"{len(self.damaged):,} of {self.files:,} files are missing or damaged, in {names}."

    def to_json(self) -> dict[str, Any]:
        """It as a JSON object."""
        return {**asdict(self), "ok": self.ok, "wheels": list(self.wheels), "sentence": self.sentence}


def verify(engine: Installed, *, thorough: bool = False, control: NodeControl | None = None, told: Told = nobody) -> Verified:
    """Compare every file of `engine` with what was unpacked. `EngineDamaged` when even the notes of that are damaged; `Stopped`."""
    began = time.monotonic()
    if store.files_digest(engine.path) != store.noted_digest(engine.path):
        raise store.notes_damaged(engine.path)
    kept = store.kept_files(engine.path)
    total = sum(one.size for files in kept.values() for one in files)
    pace = Pace(told, "verifying", total)
    damaged, count, done = [], 0, 0
    for wheel, files in kept.items():
        for one in files:
            if control:
                control.hold()
            count += 1
            done += one.size
            if what := _wrong_with(f"{engine.site}/{one.path}", one, thorough):
                damaged.append(Damage(one.path, wheel, what))
            if thorough:
                pace.at(done)
    return Verified(count, total, time.monotonic() - began, tuple(damaged), thorough)


def _wrong_with(path: str, kept: Kept, thorough: bool) -> str:
    try:
        if os.stat(path, follow_symlinks=False).st_size != kept.size:
            return "size"
        if thorough:
            with open(path, "rb", buffering=0) as file:
                digest = hashlib.sha256()
                while piece := file.read(PIECE):
                    digest.update(piece)
            return "" if digest.hexdigest() == kept.sha256 else "content"
        return ""
    except OSError:
        return "missing"


def repair(
    engine: Installed,
    *,
    thorough: bool = False,
    control: NodeControl,
    told: Told = nobody,
    source: Path | None = None,
    patience: Patience | None = None,
) -> Verified:
    """Verify `engine`, bring the damaged files back, and verify those again. Only wheels with damaged files are fetched, only these files
    written.

    From the folder `source` alone where one is given. Raises what `verify` and `install.get` do.
    """
    with store.lock():
        found = verify(engine, thorough=thorough, control=control, told=told)
        if found.ok:
            return found
        by_file = {wheel.file: wheel for wheel in engine.list().wheels}
        damaged = {name: frozenset(each.path for each in found.damaged if each.wheel == name) for name in found.wheels}
        with ExitStack() as stack:
            meter = Meter()
            pairs = list(_sources([by_file[name] for name in damaged], source, patience or Patience()))
            pace = Pace(told, "fetching" if source is None else "checking", sum(wheel.size for wheel, _ in pairs))
            fetching = stack.enter_context(Fetching(pairs, control, meter))
            for arrived in fetching:
                pace.at(meter.done, meter.words)
                if arrived:
                    wheel, path = arrived
                    kept = unpack(path, wheel, engine.site, Places(), control=control, moved=lambda _: None, only=damaged[wheel.file])
                    if kept != store.kept_files(engine.path)[wheel.file]:
                        raise EngineDamaged("The engine's notes do not fit its list.", f"{wheel.file} holds other files.", _ANEW)
                    if path.parent == store.wheels_folder():
                        path.unlink()
        again = verify(engine, thorough=thorough, control=control, told=told)
        if not again.ok:
            raise EngineDamaged(
                f"The engine was mended, and is damaged again: {again.damaged[0].path}.",
                "The disk may be failing, or another program changes the files.",
                "Look at the disk, and keep cleaners and antivirus away from the folder.",
            )
        return replace(again, repaired=len(found.damaged), received=meter.received)


_ANEW = "Remove the engine and fetch it again: zk0desk engine prune, then zk0desk engine get"


def _sources(wheels: list[Wheel], source: Path | None, patience: Patience) -> Iterator[tuple[Wheel, Source]]:
    shipped = Folder([place / "wheels"] if (place := lists.folder()) else [])
    network = Network(store.wheels_folder(), patience)
    for wheel in wheels:
        given = Folder([source]) if source else None
        if given and not given.find(wheel) and not shipped.find(wheel):
            raise EngineWrongContent(f"{wheel.file} is not in {source}.", "It is needed to mend the engine.", "Choose another folder.")
        yield wheel, given if given and given.find(wheel) else shipped if shipped.find(wheel) else network
