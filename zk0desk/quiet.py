"""Nothing phones home: the environment in which torch, LeRobot, flwr and the Hub's libraries are loaded.

Each of these libraries reads its switches from the environment, most of them once, at import. So `quiet_libraries` is
called before the first lazy import of any of them, and child processes inherit what it set.
"""

from __future__ import annotations

import os

ALWAYS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "ACCELERATE_DISABLE_RICH": "1",
}
"""Set whatever was there before: zk0desk promises it."""

UNLESS_CHOSEN = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set unless the person's environment says otherwise."""


_SET_HERE = "ZK0DESK_QUIET"
"""Names that were set by `quiet_libraries`, not by the person: children inherit it with them."""


def quiet_libraries() -> None:
    """Switch off telemetry, update checks and requests to the Hub, for this process and its children.

    Cheap and repeatable. It has no effect on a library that is already imported.
    """
    os.environ.update(ALWAYS)
    missing = [name for name in UNLESS_CHOSEN if name not in os.environ]
    os.environ.update({name: UNLESS_CHOSEN[name] for name in missing})
    os.environ[_SET_HERE] = " ".join(sorted({*os.environ.get(_SET_HERE, "").split(), *missing}))


def chosen(name: str) -> str | None:
    """What the person's own environment says of `name`; None where it says nothing, or where `quiet_libraries` did."""
    value = os.environ.get(name)
    ours = name in os.environ.get(_SET_HERE, "").split() and value == UNLESS_CHOSEN.get(name)
    return None if ours else value
