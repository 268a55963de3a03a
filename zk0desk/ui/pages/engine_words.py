"""Words about the training engine: what is done, what was done, what getting it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zk0desk.amounts import duration, gigabytes

if TYPE_CHECKING:
    from zk0desk.engine.choice import Option
    from zk0desk.engine.install import Plan

BADGES = {
    "environment": ("ok", "Ready"),
    "ready": ("ok", "Ready"),
    "none": ("warning", "Not here yet"),
    "missing": ("warning", "Not installed"),
    "damaged": ("error", "Damaged"),
}
"""By the kind of the engine's state, and "missing" for an environment that lacks parts."""

DOING = {
    "get": ("Fetching", "Beginning…"),
    "update": ("Updating", "Beginning…"),
    "import": ("Reading", "Looking into the folder…"),
    "export": ("Saving", "Beginning…"),
    "verify": ("Verifying", "Reading the engine's files…"),
    "repair": ("Repairing", "Looking for what is damaged…"),
    "back": ("Going back", "Changing to the engine before…"),
    "prune": ("Removing", "Removing engines that are not used…"),
    "test": ("Testing", "Testing the engine on this computer. It may take a minute."),
}
"""By what is done: the badge, and the words until the first progress is told."""

SLOW_LINE = 50e6 / 8
"""Bytes a second of a household's line, for what is said before anything is measured."""


def option_words(option: Option, best: str | None) -> str:
    """A back end to choose: `CUDA 13.0, 2.8 GB (for this computer)`."""
    from zk0desk.engine.choice import WORDS

    note = " (for this computer)" if option.backend == best else "" if option.works else " (not for this computer)"
    name = WORDS.get(option.backend, option.backend)
    return f"{name[0].upper()}{name[1:]}, {gigabytes(option.download)}{note}"


def plan_words(plan: Plan) -> str:
    """What getting the engine takes, before anything is fetched."""
    there = f" {gigabytes(plan.there)} are here already." if plan.there else ""
    linked = f" {gigabytes(plan.linked)} are taken over from an older engine." if plan.linked else ""
    if plan.fetch:
        fetched = f"Getting it fetches {gigabytes(plan.fetch)}, about {duration(plan.fetch / SLOW_LINE)} at 50 Mbit/s, and takes"
    else:
        fetched = "Everything of it is here; unpacking takes"
    room = "" if plan.fits else " Free some space, or set ZK0DESK_HOME to another disk."
    return f"{fetched} {gigabytes(plan.disk_needed)} of disk; {gigabytes(plan.disk_free)} are free.{there}{linked}{room}"


def _verified(found: dict[str, Any]) -> tuple[str, str]:
    told = found.get("verified") or {}
    return str(told.get("sentence") or "The engine was verified."), "" if told.get("ok", True) else "Repair fetches what is damaged again."


def _repaired(found: dict[str, Any]) -> tuple[str, str]:
    told = found.get("verified") or {}
    count = int(told.get("repaired", 0))
    return f"{count:,} files were brought back." if count else "Nothing had to be brought back.", str(told.get("sentence", ""))


def _updated(found: dict[str, Any]) -> tuple[str, str]:
    return ("The engine is up to date." if "engine" in found else "There is no newer engine."), ""


def _pruned(found: dict[str, Any]) -> tuple[str, str]:
    told = found.get("pruned") or {}
    stays = " Engines that a running zk0desk uses stay." if told.get("in-use") else ""
    return f"{gigabytes(told.get('bytes', 0))} were removed.{stays}", ""


def _saved(found: dict[str, Any]) -> tuple[str, str]:
    told = found.get("exported") or {}
    where = told.get("folder", "the folder")
    return f"The engine is in {where}.", "On another computer choose “Use a folder…” and that folder; no network is needed there."


DONE: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "get": lambda _found: ("The engine is here.", ""),
    "update": _updated,
    "import": lambda _found: ("The engine is here.", ""),
    "export": _saved,
    "verify": _verified,
    "repair": _repaired,
    "back": lambda _found: ("The engine before is used again.", ""),
    "prune": _pruned,
    "test": lambda _found: ("The engine was tested.", ""),
}
"""By what was done: two sentences from what the work told."""
