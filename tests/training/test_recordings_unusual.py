"""Recordings that are unusual: those that are right get no finding, those that are hostile or damaged a sentence."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.recording_parts import LENGTHS, Info, Table, make_recording, write_video
from zk0desk.training import recording_rows, recordings
from zk0desk.training.recordings import CheckResult, RecordingError, deep_check, find_recordings, map_cameras, quick_check, read_recording

SHARED = Path(__file__).resolve().parents[3] / "shared" / "recordings"
TOP = "videos/observation.images.top/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"


def codes(result: CheckResult) -> list[str]:
    return [finding.code for finding in result.findings]


def told(result: CheckResult) -> str:
    return " ".join(f"{finding.what} {finding.why} {finding.remedy}" for finding in result.findings)


# --- right, though unusual


def channels_first(info: Info) -> None:
    for key, feature in info["features"].items():
        if key.startswith("observation.images"):
            feature |= {"shape": [3, 48, 64], "names": ["channels", "height", "width"]}


def nested_names(info: Info) -> None:
    info["features"]["action"]["names"] = {"axes": {"motors": ["a", "b", "c"]}}


def a_list_of_words(info: Info) -> None:
    info["features"]["action"]["names"] = {"a": 0, "b": 1, "c": 2}


def extra_columns(info: Info) -> None:
    info["features"]["next.done"] = {"dtype": "bool", "shape": [1], "names": None}


RIGHT: dict[str, dict[str, Any]] = {
    "state and action of different sizes": {"dims": (7, 3)},
    "pictures that are described channel first": {"info": channels_first},
    "no robot": {"info": lambda i: i.pop("robot_type")},
    "a robot that is null": {"info": lambda i: i.update(robot_type=None)},
    "nested names of dimensions": {"info": nested_names},
    "a table of names": {"info": a_list_of_words},
    "no names": {"info": lambda i: i["features"]["action"].update(names=None)},
    "a frame rate with a fraction": {"info": lambda i: i.update(fps=10.0)},
    "keys that LeRobot may add": {"info": lambda i: i.update(splits={"train": "0:2"}, data_files_size_in_mb=100)},
    "a version with a third number": {"info": lambda i: i.update(codebase_version="v3.0.1")},
    "columns of double precision": {"data": lambda t: t.update(timestamp=t["timestamp"].astype(np.float64).round(6))},
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_unusual_but_right_is_no_finding(name: str, tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "cubes", **RIGHT[name]))
    assert (result.status, codes(result)) == ("ok", []), told(result)


def test_sizes_of_pictures_are_read_in_either_order(tmp_path: Path) -> None:
    cameras = read_recording(make_recording(tmp_path / "cubes", info=channels_first)).cameras
    assert {(camera.width, camera.height) for camera in cameras} == {(64, 48)}


def test_a_file_for_every_episode_is_no_finding(tmp_path: Path) -> None:
    def apart(table: Table) -> None:
        for key in ("data", "videos/observation.images.top"):
            table[f"{key}/file_index"][1] = 1
        table["videos/observation.images.top/from_timestamp"] = [0.0, 0.0]
        table["videos/observation.images.top/to_timestamp"] = [length / 10 for length in LENGTHS]

    folder = make_recording(tmp_path / "cubes", cameras=("top",), episodes=apart)
    whole = pq.read_table(folder / DATA)
    for number, (start, length) in enumerate(zip((0, LENGTHS[0]), LENGTHS, strict=True)):
        name = f"chunk-000/file-{number:03d}"
        pq.write_table(whole.slice(start, length), folder / f"data/{name}.parquet")
        write_video(folder / f"videos/observation.images.top/{name}.mp4", frames=length)
    result = quick_check(folder)
    assert (result.status, codes(result)) == ("ok", []), told(result)


# --- damaged


def test_no_state_is_told(tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "cubes", info=lambda i: i["features"].pop("observation.state")))
    assert (result.status, codes(result)[0]) == ("unusable", "state-missing")


def words_for_numbers(table: Table) -> None:
    table["timestamp"] = ["soon"] * 10


def holes(table: Table) -> None:
    table["timestamp"] = pa.array([None, *table["timestamp"][1:].tolist()], pa.float32())


def ragged(table: Table) -> None:
    table["action"] = pa.array([[1.0, 2.0, 3.0]] * 9 + [[1.0]], pa.list_(pa.float32()))


@pytest.mark.parametrize("change", [words_for_numbers, holes, ragged])
def test_a_column_of_another_kind_is_told(change: Any, tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "cubes", data=change))
    assert (result.status, codes(result)) == ("unusable", ["column-wrong"])


def test_timestamps_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    def broken(table: Table) -> None:
        table["timestamp"][4] = np.nan

    result = quick_check(make_recording(tmp_path / "cubes", data=broken))
    assert (result.status, codes(result)) == ("repairable", ["timestamps-not-finite"])


def test_a_table_of_other_episodes_is_told(tmp_path: Path) -> None:
    def one_more(table: Table) -> None:
        for values in table.values():
            values.append(values[-1])

    result = quick_check(make_recording(tmp_path / "cubes", episodes=one_more))
    assert (result.status, codes(result)) == ("unusable", ["episodes-differ"])
    assert "lists 3" in told(result) and "holds 2" in told(result)


def test_a_v2_recording_with_damaged_lines_is_told(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", info=lambda i: i.update(codebase_version="v2.1"))
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "Put it"}\n{"task_ind')
    result = quick_check(folder)
    assert (result.status, codes(result)[0]) == ("unusable", "metadata-unreadable")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_video_that_was_cut_in_the_middle_is_told(share: float, tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    whole = (folder / TOP).read_bytes()
    (folder / TOP).write_bytes(whole[: int(share * len(whole))])
    result = quick_check(folder)
    assert (result.status, codes(result)[0]) == ("unusable", "video-unreadable")


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_recording(tmp_path / "cubes")
    monkeypatch.setattr(recording_rows, "MAX_ROWS", 9)
    assert codes(quick_check(folder)) == ["too-large"]
    (folder / "meta/info.json").write_bytes(b" " * (4 * 2**20 + 1))
    assert codes(quick_check(folder)) == ["info-empty"]
    (folder / "meta/info.json").write_bytes(b'{"x": "' + b"y" * (4 * 2**20) + b'"}')
    result = quick_check(folder)
    assert codes(result) == ["info-unreadable"] and "larger than 4 MB" in told(result)


def test_a_folder_that_is_not_there_or_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        result = quick_check(path)
        assert (result.status, codes(result)) == ("unusable", ["folder-missing"])


# --- cameras


def test_names_that_do_not_say_the_view_are_told(tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "cubes", cameras=("a", "b")))
    assert (result.status, codes(result)) == ("ok", ["cameras-unclear"])
    assert "a as camera1" in told(result)


def test_a_camera_too_many_is_told(tmp_path: Path) -> None:
    result = quick_check(make_recording(tmp_path / "cubes", cameras=("top", "wrist", "side", "front")))
    assert (result.status, codes(result)) == ("ok", ["camera-unused"])


@pytest.mark.parametrize(
    ("chosen", "code"),
    [
        ({"camera1": "top", "camera2": "top"}, "camera-chosen-twice"),
        ({"camera1": "roof"}, "camera-unknown"),
        ({"x": "top"}, "camera-unknown"),
    ],
)
def test_a_choice_of_cameras_that_cannot_be_says_why(chosen: dict[str, str], code: str, tmp_path: Path) -> None:
    recording = read_recording(make_recording(tmp_path / "cubes"))
    with pytest.raises(RecordingError) as raised:
        map_cameras(recording, recordings.PolicyNeeds(), chosen)
    assert raised.value.code == code


# --- looking for recordings


def test_the_search_ends_at_its_depth(tmp_path: Path) -> None:
    reached = make_recording(tmp_path / "/".join("12345") / "cubes" if recordings.MAX_DEPTH > 5 else tmp_path / "1/2/3/4/cubes")
    make_recording(tmp_path / "a/b/c/d/e/cubes")
    assert find_recordings([tmp_path], standard=False) == [reached]


def test_folders_that_cannot_be_read_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = make_recording(tmp_path / "b")
    closed = tmp_path / "a"
    closed.mkdir()
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_recordings([tmp_path], standard=False) == [there]


def test_a_recording_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_recording(tmp_path / "cubes")
    opened = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "info.json":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    result = quick_check(folder)
    assert codes(result) == ["info-unreadable"] and "Permission denied" in told(result)


# --- the command, and what it leaves alone


@pytest.mark.parametrize(
    ("change", "status"), [({}, 0), ({"data": lambda t: t.update(timestamp=t["timestamp"] + 1)}, 3), ({"cameras": ()}, 4)]
)
def test_the_command_says_it_with_its_exit_status(change: dict[str, Any], status: int, tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", **change)
    done = subprocess.run(
        [sys.executable, "-m", "zk0desk", "recordings", "check", str(folder), "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == {0: "ok", 3: "repairable", 4: "unusable"}[status]
    assert bool(answer["findings"]) == bool(status)


def test_a_first_check_loads_nothing_large(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    code = f"""
import sys
from pathlib import Path
from zk0desk.training.recordings import quick_check
assert quick_check(Path({str(folder)!r})).status == "ok"
print(sorted({{"torch", "lerobot", "pandas", "datasets", "pydantic", "transformers", "huggingface_hub"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_of_the_checks_are_there_before_anything_large_is_loaded() -> None:
    code = "import sys, zk0desk.training.recordings; print(sorted({'numpy', 'pyarrow', 'av', 'PIL', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real recordings beside the checkout")
def test_nothing_is_written_into_real_recordings() -> None:
    def state(folder: Path) -> dict[str, tuple[int, str]]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}

    found = find_recordings([SHARED], standard=False) + [SHARED / "broken" / "empty-info-json"]
    for folder in found:
        before = state(folder)
        quick_check(folder)
        deep_check(folder, again=True)
        assert state(folder) == before
