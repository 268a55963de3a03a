"""What there is of a training engine, which one this computer needs, and what getting it takes. Reads little: call it in the background."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    from zk0desk.engine.choice import Choice
    from zk0desk.engine.install import Plan
    from zk0desk.engine.state import EngineState

PARTS = {"torch": "torch", "lerobot": "LeRobot", "flwr": "flwr"}


@dataclass(frozen=True)
class EngineLook:
    """`backend` is the one that a person chose or this computer needs; `plan` what getting it takes (None: it is the one in use).

    `choice` is None in an environment, which is the engine itself; `versions` are then its parts. `trouble`: the plan cannot be made.
    """

    state: EngineState
    choice: Choice | None = None
    backend: str = ""
    plan: Plan | None = None
    versions: str = ""
    feed: bool = False
    trouble: OperatorError | None = None

    @property
    def missing(self) -> bool:
        """Whether there is no engine that can train."""
        return self.state.kind in ("none", "damaged") or bool(self.state.missing)


def look_at_engine(chosen: str = "") -> EngineLook:
    """Look now; `chosen`: the back end that a person chose, or "" for what is in use or needed."""
    from zk0desk.engine import choice, install, lists, state, updates

    seen = state.look()
    if seen.kind == "environment":
        return EngineLook(seen, versions=_versions())
    here = choice.here()
    offered = lists.shipped()
    used = seen.engine.backend if seen.engine is not None else ""
    backend = next((each for each in (chosen, used, here.backend or "") if each in offered), "")
    plan, trouble = None, None
    if backend and (seen.engine is None or seen.engine.id != offered[backend].id and (seen.newer or backend != used)):
        try:
            plan = install.plan(offered[backend])
        except OperatorError as error:
            trouble = error
    return EngineLook(seen, here, backend, plan, feed=updates.feed() is not None, trouble=trouble)


def _versions() -> str:
    found = []
    for name, title in PARTS.items():
        try:
            found.append(f"{title} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def take_into_use() -> bool:
    """Let this process use the engine that is current, which was just made; False where zk0desk has to be started again for it.

    On Windows a library of torch has to be loaded before Qt. A process that has another engine on its path, or has loaded torch, keeps it.
    """
    from zk0desk.engine import activation, store

    engine = store.current()
    if engine is None:
        return True
    others = [each for each in store.engines() if each.id != engine.id and str(each.site) in sys.path]
    if sys.platform == "win32" or others or "torch" in sys.modules:
        return str(engine.site) in sys.path and not others
    activation.use(engine.folder)
    return True
