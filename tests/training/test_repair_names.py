"""State and action that were recorded under names which LeRobot does not know: told with the mapping, and renamed in a copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.training.recording_parts import Info, Table, make_recording
from tests.training.test_repairs import DATA, NEEDS, column, digests, make_v2, opened
from zk0desk.training.recording_info import parse_info
from zk0desk.training.recording_schema import renames
from zk0desk.training.recordings import deep_check, quick_check
from zk0desk.training.repairs import plan_repair, repair

STATE, ACTION = "observation.state", "action"


def misnamed(folder: Path, state: str = "state", action: str = "actions", **changes: Any) -> Path:
    """A recording whose state and action have these names, in all its files."""
    names = {STATE: state, ACTION: action}

    def described(info: Info) -> None:
        info["features"] = {names.get(key, key): value for key, value in info["features"].items()}

    make_recording(folder, info=described, **changes)
    table = pq.read_table(folder / DATA)
    pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), folder / DATA)
    path = folder / "meta/stats.json"
    path.write_text(json.dumps({names[key]: value for key, value in json.loads(path.read_text()).items()}))
    return folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("state", "actions"), {"state": STATE, "actions": ACTION}),
        (("observation.qpos", "action.joint_commands"), {"observation.qpos": STATE, "action.joint_commands": ACTION}),
        (("joint_positions", "command"), {"joint_positions": STATE, "command": ACTION}),
        (("torque", "next.action"), {}),
        ((STATE, ACTION), {}),
    ],
)
def test_names_that_others_use_are_known(names: tuple[str, str], found: dict[str, str]) -> None:
    features = {name: {"dtype": "float32", "shape": [6]} for name in names}
    info = parse_info(json.dumps({"codebase_version": "v3.0", "fps": 10, "features": features}).encode())
    assert renames(info) == found


def test_misnamed_state_and_action_are_told_with_the_mapping_and_renamed_in_a_copy(tmp_path: Path) -> None:
    source = misnamed(tmp_path / "old")
    before = digests(source)
    for result in (quick_check(source, NEEDS), deep_check(source, NEEDS)):
        assert [(finding.code, finding.severity) for finding in result.findings] == [
            ("state-misnamed", "repairable"), ("action-misnamed", "repairable"),
        ]  # fmt: skip
        assert "`actions` to `action`" in result.findings[1].remedy
    plan = plan_repair(source, result, NEEDS)
    assert [step.code for step in plan.steps] == ["rename", "rename", "statistics"] and "`state` becomes" in plan.steps[0].what
    made = repair(source, tmp_path / "new", plan)
    assert (made.check.status, made.check.findings) == ("ok", ()) and digests(source) == before
    assert np.array_equal(column(made.path, ACTION), column(source, "actions"))


def test_a_misnamed_recording_of_v2_is_converted_and_renamed(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "old")
    for path in sorted((source / "data").glob("*/*.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns(["qpos" if name == STATE else name for name in table.column_names]), path)
    for path in (source / "meta/info.json", source / "meta/episodes_stats.jsonl"):
        path.write_text(path.read_text().replace(f'"{STATE}"', '"qpos"'))
    plan = plan_repair(source, deep_check(source, NEEDS), NEEDS)
    assert [step.code for step in plan.steps] == ["convert", "rename", "statistics"]
    made = repair(source, tmp_path / "new", plan)
    assert made.check.status == "ok" and opened(made.path)[3][STATE].shape == (3,)
    tables = pq.read_table(made.path / "meta/episodes/chunk-000/file-000.parquet").column_names
    assert f"stats/{STATE}/mean" in tables and not any("qpos" in name for name in tables)


def no_number(table: Table) -> None:
    table[STATE][3] = np.array([np.nan, 0, 0], np.float32)


def test_what_is_wrong_with_misnamed_values_is_found_before_the_copy(tmp_path: Path) -> None:
    source = misnamed(tmp_path / "old", data=no_number)
    result = deep_check(source, NEEDS)
    assert {finding.code: finding.episodes for finding in result.findings}["state-not-finite"] == (0,) and result.status == "repairable"
    plan = plan_repair(source, result, NEEDS)
    assert plan.left_out.keys() == {0}
    assert repair(source, tmp_path / "new", plan).check.status == "ok"


def test_a_misnamed_state_that_is_too_large_is_not_renamed(tmp_path: Path) -> None:
    source = misnamed(tmp_path / "old", dims=(40, 3))
    result = deep_check(source, NEEDS)
    assert result.findings[0].code == "state-too-large" and result.status == "unusable"
    assert not any("Rename" in finding.remedy for finding in result.findings)
