"""Makes an engine: what is unchanged is linked, what is missing is fetched and unpacked as it arrives, one rename makes it valid.

However it ends, the same call goes on where it ended.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zk0desk import __version__
from zk0desk.amounts import gigabytes
from zk0desk.control import NodeControl
from zk0desk.engine import linking, lists, store
from zk0desk.engine.errors import EngineDamaged, EngineDiskFull, EngineUnsupported, EngineWrongContent
from zk0desk.engine.fetch import Fetching, Folder, Meter, Network, Patience, Source, kept_name
from zk0desk.engine.lists import EngineList, Wheel
from zk0desk.engine.progress import Pace, Told, nobody, said
from zk0desk.engine.renaming import replace
from zk0desk.engine.selftest import SelfTest
from zk0desk.engine.store import Installed
from zk0desk.engine.unpack import Kept, Places, unpack
from zk0desk.folders import engines_folder, private_folder, write_atomically

_SPARE = 0.03
"""Of what is unpacked, how much is left free for bytecode and the rest."""


@dataclass(frozen=True)
class Plan:
    """What making an engine takes, known before anything is fetched. Bytes: `fetch` over the network, `there` of it already, `linked`
    from older engines, `disk_needed` at the highest, `disk_free`; `wheels`: how many come from the network or a folder.
    """

    id: str
    backend: str
    fetch: int
    there: int
    wheels: int
    linked: int
    disk_needed: int
    disk_free: int
    folder: str

    @property
    def fits(self) -> bool:
        """Whether the disk has the room."""
        return self.disk_needed <= self.disk_free

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object, keys in kebab-case."""
        return {key.replace("_", "-"): value for key, value in asdict(self).items()} | {"fits": self.fits}


@dataclass(frozen=True)
class Got:
    """An engine that was made, and what its self-test said (None where it was not tested). `used`: it is the one that is used now."""

    engine: Installed
    self_test: SelfTest | None
    used: bool
    received: int = 0

    def to_json(self) -> dict[str, Any]:
        """It as a JSON object; `received`: bytes that came over the network now."""
        test = self.self_test.to_json() if self.self_test else None
        return {"engine": self.engine.to_json(), "self-test": test, "used": self.used, "received": self.received}


def plan(wanted: EngineList, source: Path | None = None) -> Plan:
    """What making the engine of this list takes. With the folder `source` nothing comes over the network."""
    return _Making(wanted, source, Patience()).plan()


def get(
    wanted: EngineList,
    *,
    control: NodeControl,
    told: Told = nobody,
    source: Path | None = None,
    test: Callable[[Installed, NodeControl], SelfTest] | None = None,
    patience: Patience | None = None,
    origin: str = "artefact",
) -> Got:
    """Make the engine of the list `wanted`, test it, and use it.

    From the folder `source` alone where one is given, else from the network. `test` is run on the finished engine; what does not pass is
    not used as long as another engine is, and what cannot be imported is not used at all. `told` is called from this thread. Raises
    `EngineBusy`, `EngineDiskFull`, `EngineUnsupported`, `EngineUnreachable`, `EngineRefused`, `EngineWrongContent`, `WheelError`, and
    `Stopped` when `control` says so.
    """
    if (wanted.system, wanted.arch) != lists.this_system() or wanted.python != lists.PYTHON:
        what = f"This engine is for {wanted.system} on {wanted.arch} with {wanted.python}."
        why = f"This computer is {' on '.join(lists.this_system())}, and zk0desk runs with {lists.PYTHON}."
        raise EngineUnsupported(what, why, "Use the engine of this zk0desk: zk0desk engine get")
    private_folder(engines_folder())
    with store.lock():
        received = 0
        engine = store.find(wanted.id)
        if engine is None:
            making = _Making(wanted, source, patience or Patience())
            engine = making.make(control, told, origin)
            received = making.meter.received
        return _put_to_use(engine, control, told, test, received)


def _put_to_use(
    engine: Installed, control: NodeControl, told: Told, test: Callable[[Installed, NodeControl], SelfTest] | None, received: int
) -> Got:
    result = None
    if test is not None:
        told(said("testing"))
        result = test(engine, control)
    before = store.current()
    better = result is None or result.ok or (result.usable and (before is None or before.id == engine.id))
    if better:
        store.use(engine)
    return Got(engine, result, better, received)


class _Making:
    """One engine in the making: its `.partial` folder, and what of it is there."""

    def __init__(self, wanted: EngineList, source: Path | None, patience: Patience) -> None:
        self.wanted, self.source = wanted, source
        self.folder = engines_folder() / f"{wanted.id}.partial"
        self.site = self.folder / "site"
        self.meter = Meter()
        self._patience = patience
        self._shipped = Folder([place / "wheels"] if (place := lists.folder()) else [])
        # What was an engine and is not whole any more is one in the making again.
        self._broken = engines_folder() / wanted.id
        there = self._broken if self._broken.exists() and not self.folder.exists() else self.folder
        # After a power cut a file can be empty although the note of it is on the disk.
        self._unpacked = {name: files for name, files in _noted(there).items() if linking.in_size(there / "site", files)}
        self._open = [wheel for wheel in wanted.wheels if wheel.file not in self._unpacked]
        engines = [each for each in store.engines() if each.id != wanted.id]
        self._old = linking.reusable(EngineList(wanted.system, wanted.arch, wanted.backend, wanted.python, tuple(self._open)), engines)
        self._coming = [wheel for wheel in self._open if wheel.file not in self._old]

    def plan(self) -> Plan:
        """What is still to be done."""
        network = [wheel for wheel in self._coming if self.source is None and not self._shipped.find(wheel)]
        there = sum(self._partly(wheel) for wheel in network)
        # A wheel goes when it is unpacked; until then it takes less than its files will. So the most is all files and the largest wheel.
        room = sum(wheel.room for wheel in self._coming) - there + max((wheel.size for wheel in network), default=0)
        return Plan(
            self.wanted.id,
            self.wanted.backend,
            sum(wheel.size for wheel in network) - there,
            there,
            len(self._coming),
            sum(kept.size for _, files in self._old.values() for kept in files),
            int(room + _SPARE * sum(wheel.room for wheel in self._coming)),
            shutil.disk_usage(_above(engines_folder())).free,
            str(engines_folder()),
        )

    def make(self, control: NodeControl, told: Told, origin: str) -> Installed:
        """Do it."""
        self._begin()
        places = Places()
        for name, files in self._unpacked.items():
            places.add(name, files)
        self._link(places, control, told)
        pairs = [(wheel, self._source_of(wheel)) for wheel in self._coming]
        self._check_all_there(pairs)
        total = sum(wheel.size for wheel in self._coming)
        unpacking = sum(wheel.room for wheel in self._coming)
        fetched, unpacked = Pace(told, "fetching" if self.source is None else "checking", total), Pace(told, "unpacking", unpacking)
        written = 0

        def moved(count: int) -> None:
            nonlocal written
            written += count
            show()

        def show() -> None:
            if self.meter.done < total:
                fetched.at(self.meter.done, self.meter.words)
            else:
                unpacked.at(min(written, unpacking))

        with Fetching(pairs, control, self.meter) as fetching:
            for found in fetching:
                show()
                if found:
                    wheel, path = found
                    files = unpack(path, wheel, self.site, places, control=control, moved=moved)
                    places.add(wheel.file, files)
                    store.write_kept(self.folder, wheel.file, files)
                    if path.parent == store.wheels_folder():
                        path.unlink()
        unpacked.at(unpacking, now=True)
        control.check()
        return store.make_valid(self.folder, self.wanted, origin=origin, version=__version__)

    def _begin(self) -> None:
        needs = self.plan()
        if not needs.fits:
            raise EngineDiskFull(
                f"The engine needs {gigabytes(needs.disk_needed)} of disk, and {gigabytes(needs.disk_free)} is free.",
                f"It would be in {needs.folder}. Nothing was fetched.",
                "Free some space, or set ZK0DESK_HOME to a folder on another disk.",
            )
        if self._broken.exists():
            if self.folder.exists():
                store.remove(self._broken)
            else:
                replace(self._broken, self.folder)
                (self.folder / "valid").unlink(missing_ok=True)
        private_folder(self.site)
        write_atomically(self.folder / "list.json", self.wanted.to_text())
        for note in (self.folder / "files").glob("*.tsv"):
            if note.name.removesuffix(".tsv") not in self._unpacked:
                note.unlink()
        _forget_others(self.wanted)

    def _link(self, places: Places, control: NodeControl, told: Told) -> None:
        pace = Pace(told, "linking", sum(kept.size for _, files in self._old.values() for kept in files))
        done = 0

        def moved(count: int) -> None:
            nonlocal done
            done += count
            pace.at(done)

        for wheel in self._open:
            if wheel.file in self._old:
                engine, files = self._old[wheel.file]
                linking.link(wheel, files, engine.site, self.site, places, control=control, moved=moved)
                places.add(wheel.file, files)
                store.write_kept(self.folder, wheel.file, files)

    def _source_of(self, wheel: Wheel) -> Source:
        if self.source is not None:
            given = Folder([self.source])
            return self._shipped if self._shipped.find(wheel) and not given.find(wheel) else given
        return self._shipped if self._shipped.find(wheel) else self._network

    @functools.cached_property
    def _network(self) -> Network:
        return Network(store.wheels_folder(), self._patience)

    def _check_all_there(self, pairs: Iterable[tuple[Wheel, Source]]) -> None:
        if missing := [wheel.file for wheel, source in pairs if isinstance(source, Folder) and not source.find(wheel)]:
            why = f"{len(missing)} of {len(self.wanted.wheels)} parts are missing, such as {missing[0]}."
            remedy = "Choose the folder that was saved on another computer for the same version of zk0desk and the same back end."
            raise EngineWrongContent(f"{self.source} does not hold the whole engine.", why, remedy)

    def _partly(self, wheel: Wheel) -> int:
        try:
            return min(wheel.size, os.stat(store.wheels_folder() / kept_name(wheel)).st_size)
        except OSError:
            return 0


def _noted(folder: Path) -> dict[str, list[Kept]]:
    try:
        return store.kept_files(folder)
    except EngineDamaged:
        return {}  # it is unpacked anew


def _forget_others(wanted: EngineList) -> None:
    """Take away what was begun of other lists: wheels that this one does not name, and folders that were never finished."""
    names = {kept_name(wheel) for wheel in wanted.wheels}
    for path in store.wheels_folder().iterdir():
        if path.name not in names:
            path.unlink()
    for path in engines_folder().iterdir():
        if path.is_dir() and path.suffix in (".partial", ".gone") and path.name != f"{wanted.id}.partial":
            store.remove(path)


def _above(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
