"""What is said where the training engine is missing: one sentence for all places."""

from __future__ import annotations

from zk0desk.engine.artefact import artefact
from zk0desk.errors import EngineMissingError

NEEDED = "Training needs torch, LeRobot and flwr; the window and the checks of recordings do not."


def remedy(*, broken: bool = False) -> str:
    """What a person does about a missing, or with `broken` a damaged, engine."""
    if artefact() is None:
        return (
            'Install it again: pip install --force-reinstall "zk0desk[engine]"' if broken else 'Install it: pip install "zk0desk[engine]"'
        )
    if broken:
        return "Open This computer, Engine, and choose Repair, or run: zk0desk engine repair"
    return "Open This computer, Engine, and choose Get the engine, or run: zk0desk engine get"


def build_remedy(need: str, backend: str) -> str:
    """What a person does whose torch was built without `need` ("CUDA", "ROCm"); `backend` is the build's name."""
    if artefact() is None or need != "CUDA":
        return f"Install torch's {need} build, from pytorch.org ({backend})."
    return "Open This computer, Engine, and choose the engine for this GPU, or run: zk0desk engine get"


def missing(what: str, why: str = NEEDED) -> EngineMissingError:
    """The error of what cannot be imported, with the remedy that fits this installation."""
    return EngineMissingError(what, why, remedy())
