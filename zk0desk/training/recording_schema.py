"""Whether LeRobot can load the data files' columns as the types that are described, and whether those that it needs are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.training.recording_info import FETCH_AGAIN, Feature, Info, shown
from zk0desk.training.recording_rows import ACTION, STATE
from zk0desk.training.recording_types import Finding, Severity

if TYPE_CHECKING:
    import pyarrow as pa

NEEDED = ("episode_index", "index", "timestamp", "task_index")
"""Columns without which LeRobot gives no frame, whatever is described."""
VECTORS = (STATE, ACTION)
NUMERIC = {
    "bool",
    "float",
    "double",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
}
LANGUAGE = ("language_persistent", "language_events")
"""Columns that LeRobot knows by name, whatever is said of their type."""
ELSEWHERE = {
    STATE: ("state", "states", "qpos", "robot_state", "joint_positions", "joint_position", "joint_states", "joint_state", "proprio"),
    ACTION: ("actions", "action", "actions_raw", "act", "joint_commands", "commands", "command", "control", "target"),
}
"""Last words of the names under which state and action are found elsewhere, the likeliest first."""
SCHEMAS = 32
"""Files whose columns the quick check looks at. The deep check looks at those of all."""


def description_findings(info: Info) -> list[Finding]:
    """Columns that have to hold numbers, of which the description says something else."""
    wrong = [feature for feature in columns_of(info) if feature.key in (*NEEDED, *VECTORS) and feature.dtype not in NUMERIC]
    if not wrong:
        return []
    said = "; ".join(f"{shown(feature.key, 60)} is said to hold {shown(feature.dtype, 30)}" for feature in wrong[:3])
    what = f"A column that has to hold numbers is described as another one: {said}."
    return [Finding("feature-refused", Severity.BLOCKS, what, "LeRobot turns it into that, and fails.", "Mend meta/info.json in a copy.")]


def columns_of(info: Info) -> list[Feature]:
    """The features that are columns of the data files and of a described type."""
    return [feature for feature in info.features.values() if not feature.is_camera and feature.key not in LANGUAGE]


def schema_findings(files: list[Path], info: Info) -> list[Finding]:
    """What the columns of `files` show without their rows. A file that cannot be read is passed over: reading its rows tells it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    missing: dict[str, None] = {}
    wrong: dict[str, str] = {}
    for path in files:
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError, ValueError):
            continue
        missing |= dict.fromkeys(name for name in NEEDED if name not in schema.names)
        for feature in columns_of(info):
            if feature.key in schema.names and (words := difference(feature, schema.field(feature.key).type)):
                wrong.setdefault(feature.key, words)
    findings = []
    if missing:
        what = f"The data has no column {', '.join(missing)}."
        findings.append(Finding("column-missing", Severity.BLOCKS, what, "LeRobot finds frames by it.", FETCH_AGAIN))
    if wrong:
        what = f"Column {', '.join(shown(name, 60) for name in list(wrong)[:5])} is not what the description says."
        findings.append(Finding("column-wrong", Severity.BLOCKS, what, f"{next(iter(wrong.values()))}.", FETCH_AGAIN))
    return findings


def difference(feature: Feature, kind: pa.DataType) -> str:
    """Why a column of type `kind` cannot be loaded as `feature`; empty where it can, as far as the type shows."""
    import pyarrow as pa

    depth, inner = 0, kind
    while True:
        if isinstance(inner, pa.BaseExtensionType):
            inner = inner.storage_type
        elif pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
            depth, inner = depth + 1, inner.value_type
        else:
            break
    wanted = 0 if feature.shape == (1,) else len(feature.shape)
    number = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
    said = f"{shown(feature.dtype, 30)} of shape {list(feature.shape)}"
    if depth != wanted:
        return f"It holds lists in {depth} levels; {said} is declared, which takes {wanted}"
    if feature.dtype in NUMERIC and not number:
        return f"It holds {shown(inner, 30)}; {said} is declared"
    if feature.key in VECTORS and pa.types.is_floating(inner) and not feature.dtype.startswith("float"):
        return f"It holds {shown(inner, 30)}; {said} is declared, which has no fractions"
    return ""


def renames(info: Info) -> dict[str, str]:
    """State and action that are described under a name that LeRobot does not know: that name, and LeRobot's own."""
    found = {}
    for wanted, words in ELSEWHERE.items():
        other = ("action" if wanted == STATE else "obs", "next")
        parts = {feature.key: re.split(r"[./]", feature.key.lower()) for feature in info.features.values() if _is_vector(feature)}
        last = {path[-1]: key for key, path in reversed(parts.items()) if len(path) == 1 or not path[0].startswith(other)}
        if wanted not in info.features and (word := next((word for word in words if word in last), "")):
            found[last[word]] = wanted
    return found


def ignored_findings(info: Info) -> list[Finding]:
    """Columns of numbers that LeRobot leaves aside without a word, because their names are not its own."""
    unknown = [
        feature for feature in info.features.values()
        if _is_vector(feature) and not feature.key.startswith(("observation", "action")) and feature.key not in renames(info)
    ]  # fmt: skip
    if not unknown:
        return []
    names = ", ".join(shown(feature.key, 60) for feature in unknown[:5])
    why, remedy = "LeRobot does not know these names.", "Nothing, unless the policy should learn from it."
    return [Finding("feature-ignored", Severity.NOTE, f"Not used for training: {names}.", why, remedy)]


def _is_vector(feature: Feature) -> bool:
    return feature.key not in (*NEEDED, *VECTORS) and feature.dtype.startswith("float") and feature.dim > 1
