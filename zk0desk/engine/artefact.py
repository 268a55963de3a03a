"""Whether this zk0desk came as a package that is double-clicked (an artefact), and which."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from zk0desk.resources import resource


@dataclass(frozen=True)
class Artefact:
    """The package that this program runs from. `format` is such as "deb" or "appimage"; `stamp` says why it is not for release."""

    version: str
    format: str
    release: bool
    stamp: str = ""


@functools.cache
def artefact() -> Artefact | None:
    """The artefact that this program is, or None in a checkout and after `pip install`: there the environment is the engine."""
    try:
        told = json.loads(resource("artefact.json").read_text(encoding="utf-8"))
        return Artefact(str(told["version"]), str(told["format"]), bool(told["release"]), str(told.get("stamp", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
