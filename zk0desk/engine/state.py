"""What there is of an engine on this computer, in a moment and without reading any of its files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from zk0desk import __version__
from zk0desk.amounts import gigabytes
from zk0desk.engine import lists, missing, store
from zk0desk.engine.artefact import artefact
from zk0desk.engine.errors import EngineListError
from zk0desk.engine.store import Installed
from zk0desk.folders import engines_folder

PARTS = ("torch", "lerobot", "flwr")


@dataclass(frozen=True)
class EngineState:
    """`kind`: "environment" (a checkout or `pip install`: nothing is fetched), "none", "ready", or "damaged" (chosen, and not whole).

    `missing`: parts that an environment lacks. `older`: other engines that are there. `partial`: bytes of an engine that was begun.
    `newer`: this zk0desk brings a list of another engine than the one in use.
    """

    kind: Literal["environment", "none", "ready", "damaged"]
    sentence: str
    remedy: str = ""
    missing: tuple[str, ...] = ()
    engine: Installed | None = None
    older: tuple[Installed, ...] = ()
    partial: int = 0
    newer: bool = False
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        """The state as a JSON object."""
        return {
            "kind": self.kind,
            "sentence": self.sentence,
            "remedy": self.remedy,
            "missing": list(self.missing),
            "engine": self.engine.to_json() if self.engine else None,
            "older": [each.to_json() for each in self.older],
            "partial": self.partial,
            "newer": self.newer,
            "folder": self.folder,
        }


def look() -> EngineState:
    """Look at the engine of this installation."""
    if artefact() is None:
        return _environment()
    folder = str(engines_folder())
    engine = store.current()
    older = tuple(each for each in store.engines() if engine is None or each.id != engine.id)
    partial = _begun()
    if engine is None:
        if store.chosen_is_broken():
            return EngineState(
                "damaged",
                "The engine that was used is not whole any more.",
                "Get it again: zk0desk engine get",
                older=older,
                partial=partial,
                folder=folder,
            )
        begun = f" {gigabytes(partial)} of it have arrived." if partial else ""
        return EngineState(
            "none",
            f"The training engine is not on this computer yet.{begun}",
            missing.remedy(),
            older=older,
            partial=partial,
            folder=folder,
        )
    newer = _is_newer(engine)
    more = " This version of zk0desk brings another list: get it to update." if newer else ""
    sentence = f"The training engine is ready: {engine.backend}, {gigabytes(engine.bytes)}.{more}"
    return EngineState("ready", sentence, engine=engine, older=older, partial=partial, newer=newer, folder=folder)


def _environment() -> EngineState:
    lacking = tuple(name for name in PARTS if find_spec(name) is None)
    if lacking:
        sentence = f"The training engine is not installed: {', '.join(lacking)}."
        return EngineState("environment", sentence, missing.remedy(), lacking)
    return EngineState("environment", "This Python environment is the engine; nothing is fetched.")


def _is_newer(engine: Installed) -> bool:
    if engine.origin == "feed" and engine.version == __version__:
        return False
    try:
        offered = lists.shipped()
    except EngineListError:
        return False  # who gets an engine is told
    return bool(offered) and engine.id not in {each.id for each in offered.values()}


def _begun() -> int:
    """Bytes that have come of an engine that is not whole: wheels that are unpacked, and what there is of others."""
    total = 0
    try:
        for path in engines_folder().glob("*.partial"):
            unpacked = {note.name.removesuffix(".tsv") for note in (path / "files").glob("*.tsv")}
            total += sum(wheel.size for wheel in lists.read(path / "list.json").wheels if wheel.file in unpacked)
        total += sum(path.stat().st_size for path in (engines_folder() / "wheels").glob("*.whl"))
    except (OSError, EngineListError):
        return total
    return total
