"""Columns and counts that LeRobot refuses, or reads as something else, are told before training; what it takes is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.training.recording_parts import Info, Table, make_recording
from zk0desk.training.recordings import Severity, quick_check


def declare(key: str, dtype: str, shape: list[int]) -> dict[str, Any]:
    return {"info": lambda info: info["features"].update({key: {"dtype": dtype, "shape": shape, "names": None}})}


def say(key: str, **words: Any) -> dict[str, Any]:
    return {"info": lambda info: info["features"][key].update(words)}


def numbered(first: int, second: int) -> dict[str, Any]:
    def data(table: Table) -> None:
        table["episode_index"] = np.repeat([first, second], [6, 4])

    def episodes(table: Table) -> None:
        table["episode_index"] = [first, second]

    return {"data": data, "episodes": episodes}


def without(key: str) -> dict[str, Any]:
    return {"data": lambda table: table.pop(key), "info": lambda info: info["features"].pop(key)}


def nested(table: Table) -> None:
    table["timestamp"] = pa.array([[float(value)] for value in table["timestamp"]], pa.list_(pa.float32()))


# LeRobot 0.6.1 fails on each of these when it loads the recording or gives its first frame.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a column that nothing describes": ({"data": lambda t: t.update(extra=np.arange(10.0))}, "columns-differ"),
    "a column of words that nothing describes": ({"data": lambda t: t.update(extra=["x"] * 10)}, "columns-differ"),
    "the episodes' numbers not described": ({"info": lambda i: i["features"].pop("episode_index")}, "columns-differ"),
    "no task numbers": (without("task_index"), "column-missing"),
    "no row numbers": (without("index"), "column-missing"),
    "no timestamps": (without("timestamp"), "column-missing"),
    "a shape of two sizes over plain lists": (say("observation.state", shape=[1, 3]), "column-wrong"),
    "lists where single values are described": ({"data": nested}, "column-wrong"),
    "fractions described as whole numbers": (say("action", dtype="int64"), "column-wrong"),
    "a type of no library": (say("action", dtype="floaty"), "info-wrong"),
    "a timestamp of words": (say("timestamp", dtype="string"), "feature-refused"),
    "no shape": (declare("observation.effort", "float32", []), "info-wrong"),
    "a shape of six sizes": (declare("observation.effort", "float32", [1] * 6), "info-wrong"),
    "episodes that are numbered with a gap": (numbered(0, 2), "episodes-misnumbered"),
    "episodes that are numbered from one": (numbered(1, 2), "episodes-misnumbered"),
    "tasks that are not counted": ({"info": lambda i: i.pop("total_tasks")}, "tasks-uncounted"),
    "a depth map or not, as a number": (say("observation.images.top", info={"video.is_depth_map": 3.5}), "info-wrong"),
    "no path of the videos": ({"info": lambda i: i.update(video_path=None)}, "info-wrong"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_lerobot_refuses_is_told(name: str, tmp_path: Path) -> None:
    changes, code = REFUSED[name]
    result = quick_check(make_recording(tmp_path / "cubes", **changes))
    finding = next((each for each in result.findings if each.code == code), None)
    assert result.status == "unusable" and finding is not None, result.findings
    assert finding.what and finding.why and finding.remedy
    assert [each.code for each in result.findings].count(code) == 1, "each is told once"


def float_index(table: Table) -> None:
    table["index"] = table["index"].astype(np.float64)


def short_numbers(table: Table) -> None:
    table["episode_index"] = table["episode_index"].astype(np.int32)


def fixed(table: Table) -> None:
    table["action"] = pa.array([list(map(float, row)) for row in table["action"]], pa.list_(pa.float32(), 3))


def matrices(table: Table) -> None:
    table["observation.force"] = pa.array([[[1.0, 2.0], [3.0, 4.0]]] * 10)


def no_videos(info: Info) -> None:
    info["video_path"] = None
    for feature in info["features"].values():
        if feature["dtype"] == "video":
            feature["dtype"] = "image"


TAKEN: dict[str, dict[str, Any]] = {
    "row numbers with a point": {"data": float_index},
    "shorter whole numbers": {"data": short_numbers},
    "lists of a fixed size": {"data": fixed},
    "a matrix in every row": {"data": matrices, **declare("observation.force", "float64", [2, 2])},
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_lerobot_takes_is_no_finding(name: str, tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "cubes", **TAKEN[name]))
    assert (result.status, result.findings) == ("ok", ())


def test_a_described_column_that_the_data_lacks_is_a_note_and_blocks_where_it_holds_pictures(tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "one", **declare("observation.effort", "float32", [3])))
    (finding,) = result.findings
    assert (result.status, finding.code, finding.severity) == ("ok", "columns-absent", Severity.NOTE)
    assert "observation.effort" in finding.what
    result = quick_check(make_recording(tmp_path / "two", **declare("observation.images.side", "image", [48, 64, 3])))
    assert result.status == "unusable" and "columns-differ" in {finding.code for finding in result.findings}


def test_pictures_without_videos_need_no_path_of_videos(tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "cubes", info=no_videos))
    assert "info-wrong" not in {finding.code for finding in result.findings}


def test_a_task_without_words_is_a_note(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = make_recording(tmp_path / "cubes")
    pq.write_table(pa.table({"task_index": [0], "task": [" "]}), folder / "meta/tasks.parquet")
    result = quick_check(folder)
    assert (result.status, [finding.code for finding in result.findings]) == ("ok", ["task-empty"])
