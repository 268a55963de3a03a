"""What is told of a recording: a small whole one, and the same one broken in every way that was met."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.recording_parts import CAMERAS, Info, Table, make_recording, write_video
from zk0desk.training.recording_info import is_inside, parse_info
from zk0desk.training.recordings import (
    CheckResult,
    PolicyNeeds,
    RecordingError,
    find_recordings,
    policy_needs,
    quick_check,
    read_recording,
    thumbnail,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "recordings"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
TOP = "videos/observation.images.top/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"


def codes(result: CheckResult) -> list[str]:
    return [finding.code for finding in result.findings]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_whole_recording_is_usable_and_nothing_is_written_into_it(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    before = snapshot(folder)
    result = quick_check(folder)
    assert (result.status, result.findings, result.exit_status) == ("ok", (), 0)
    assert snapshot(folder) == before


def test_a_recording_describes_itself(tmp_path: Path) -> None:
    recording = read_recording(make_recording(tmp_path / "cubes"))
    assert (recording.name, recording.robot, recording.version, recording.episodes, recording.frames) == (
        "cubes",
        "desk-arm",
        "v3.0",
        2,
        10,
    )
    assert (recording.fps, recording.duration, recording.state_dim, recording.action_dim) == (10, 1.0, 3, 3)
    assert recording.action_names == recording.state_names == ("joint_0.pos", "joint_1.pos", "joint_2.pos")
    assert [(camera.name, camera.width, camera.height, camera.codec) for camera in recording.cameras] == [
        ("top", 64, 48, "mpeg4"),
        ("wrist", 64, 48, "mpeg4"),
    ]
    assert recording.tasks == ("Put the cube into the box.",)
    assert recording.bytes_on_disk == sum(path.stat().st_size for path in recording.path.rglob("*") if path.is_file())


def second_video(table: Table) -> None:
    table["videos/observation.images.top/file_index"][1] = 1


def no_number(table: Table) -> None:
    table["action"][3] = np.array([np.nan, 0, 0], np.float32)


def no_rows(table: Table) -> None:
    for name, values in table.items():
        table[name] = pa.array(values).slice(0, 0) if name in ("observation.state", "action") else values[:0]


def still(table: Table) -> None:
    table["observation.state"] = [np.ones(3, np.float32)] * 10


def no_file_numbers(table: Table) -> None:
    del table["videos/observation.images.top/file_index"]


def wall_clock(table: Table) -> None:
    table["timestamp"] = table["timestamp"] + np.float32(0.02)


def strange_camera(info: Info) -> None:
    info["features"]["../x"] = {"dtype": "video", "shape": [1]}


CHANGED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no camera": ({"cameras": ()}, "unusable", "camera-missing"),
    "a state too large for the policy": ({"dims": (33, 3)}, "unusable", "state-too-large"),
    "an action too large for the policy": ({"dims": (3, 40)}, "unusable", "action-too-large"),
    "no action": ({"info": lambda i: i["features"].pop("action")}, "unusable", "action-missing"),
    "a second video that is not there": ({"episodes": second_video}, "repairable", "video-missing"),
    "a table of episodes without videos": ({"episodes": no_file_numbers}, "unusable", "episodes-wrong"),
    "more episodes told than held": ({"info": lambda i: i.update(total_episodes=5)}, "unusable", "counts-differ"),
    "fewer frames told than held": ({"info": lambda i: i.update(total_frames=9)}, "unusable", "counts-differ"),
    "a value that is no number": ({"data": no_number}, "repairable", "action-not-finite"),
    "a missing column": ({"data": lambda t: t.pop("action")}, "unusable", "column-missing"),
    "a column of another size": ({"info": lambda i: i["features"]["action"].update(shape=[4])}, "unusable", "column-wrong"),
    "a task that is not listed": ({"data": lambda t: t.update(task_index=np.full(10, 7))}, "unusable", "task-unknown"),
    "no frames": ({"data": no_rows, "info": lambda i: i.update(total_episodes=0, total_frames=0)}, "unusable", "recording-empty"),
    "timestamps of a wall clock": ({"data": wall_clock}, "repairable", "timestamps-jitter"),
    "an arm that stands still": ({"data": still}, "ok", "state-constant"),
    "a format of the past": ({"info": lambda i: i.update(codebase_version="v1.6")}, "unusable", "version-too-old"),
    "a format of the future": ({"info": lambda i: i.update(codebase_version="v4.0")}, "unusable", "version-newer"),
    "videos outside of the folder": ({"info": lambda i: i.update(video_path="../../{video_key}.mp4")}, "unusable", "path-outside"),
    "data outside of the folder": ({"info": lambda i: i.update(data_path="/etc/{chunk_index}")}, "unusable", "path-outside"),
    "a path that runs code": ({"info": lambda i: i.update(data_path="data/{chunk_index.__class__}")}, "unusable", "info-wrong"),
    "a path that fills the memory": ({"info": lambda i: i.update(data_path="data/{chunk_index:0999999999d}")}, "unusable", "info-wrong"),
    "a frame rate of zero": ({"info": lambda i: i.update(fps=0)}, "unusable", "info-wrong"),
    "a count that cannot be": ({"info": lambda i: i.update(total_frames=10**30)}, "unusable", "info-wrong"),
    "a camera's key with path signs": ({"info": strange_camera}, "unusable", "info-wrong"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_wrong_is_told_first_with_what_to_do(name: str, tmp_path: Path) -> None:
    change, status, code = CHANGED[name]
    result = quick_check(make_recording(tmp_path / "cubes", **change))
    assert (result.status, codes(result)[0]) == (status, code)
    for finding in result.findings:
        assert finding.what and finding.why and finding.remedy, "a finding has three parts"
    severities = [finding.severity for finding in result.findings]
    assert severities == sorted(severities, key=["blocks", "repairable", "note"].index)


REPLACED: dict[str, tuple[str, bytes | None, str, str]] = {
    "the description is missing": ("meta/info.json", None, "unusable", "info-missing"),
    "the description is empty": ("meta/info.json", b"", "unusable", "info-empty"),
    "the description is cut off": ("meta/info.json", b'{"codebase_version": "v3.', "unusable", "info-unreadable"),
    "the description is nested too deeply": ("meta/info.json", b"[" * 100_000, "unusable", "info-unreadable"),
    "the description is a pointer": ("meta/info.json", POINTER.encode(), "unusable", "lfs-pointers"),
    "the tasks are missing": ("meta/tasks.parquet", None, "unusable", "tasks-missing"),
    "the tasks are junk": ("meta/tasks.parquet", b"PAR1 junk", "unusable", "data-unreadable"),
    "the episodes are missing": ("meta/episodes/chunk-000/file-000.parquet", None, "unusable", "episodes-missing"),
    "the statistics are missing": ("meta/stats.json", None, "repairable", "statistics-missing"),
    "the statistics are of another robot": (
        "meta/stats.json",
        b'{"action": {"mean": [0], "std": [1]}}',
        "repairable",
        "statistics-missing",
    ),
    "the data are missing": (DATA, None, "unusable", "data-missing"),
    "the data are cut off": (DATA, b"PAR1", "unusable", "data-unreadable"),
    "the data are a pointer": (DATA, POINTER.encode(), "unusable", "lfs-pointers"),
    "a video is missing": (TOP, None, "unusable", "video-missing"),
    "a video is a pointer": (TOP, POINTER.encode(), "unusable", "lfs-pointers"),
    "a video is junk": (TOP, b"junk" * 1000, "unusable", "video-unreadable"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_damaged_file_is_told(name: str, tmp_path: Path) -> None:
    file, content, status, code = REPLACED[name]
    folder = make_recording(tmp_path / "cubes")
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    result = quick_check(folder)
    assert (result.status, codes(result)[0]) == (status, code)


def test_a_video_that_ends_before_its_episodes_is_told(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    write_video(folder / TOP, frames=3)
    result = quick_check(folder)
    assert codes(result) == ["video-too-short"]
    assert "3 frames" in result.findings[0].what and "10" in result.findings[0].what


def test_both_problems_are_told_when_there_are_two(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", info=lambda i: i.update(total_episodes=105))
    shutil.rmtree(folder / "videos")
    assert codes(quick_check(folder)) == ["video-missing", "counts-differ"]


@pytest.mark.parametrize("name", ["with spaces in it", "ünïcödé 日本語", 'it\'s "quoted" & 100%'])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = make_recording(tmp_path / name)
    assert quick_check(folder).status == "ok"
    assert thumbnail(folder, "observation.images.top").shape == (120, 160, 3)
    assert json.dumps(quick_check(folder).to_json())


def test_a_recording_may_be_links_to_another_disk(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    for inner in ("data/chunk-000", "videos/observation.images.top/chunk-000", "meta/episodes"):
        elsewhere = tmp_path / "disk" / inner
        elsewhere.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / inner, elsewhere)
        (folder / inner).symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(folder)
    assert quick_check(tmp_path / "link").status == "ok"


def test_a_recording_of_the_second_format_is_repairable_and_its_videos_are_looked_for(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", info=to_second_format)
    rows = pq.read_table(folder / DATA).to_pylist()
    shutil.rmtree(folder / "meta/episodes")
    (folder / DATA).unlink()
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "Put the cube into the box."}\n')
    with (folder / "meta/episodes.jsonl").open("w") as file:
        for episode, length in enumerate((6, 4)):
            file.write(json.dumps({"episode_index": episode, "length": length}) + "\n")
            part = [row for row in rows if row["episode_index"] == episode]
            pq.write_table(pa.Table.from_pylist(part), folder / f"data/chunk-000/episode_{episode:06d}.parquet")
            for camera in CAMERAS:
                write_video(folder / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4", length)
    assert (quick_check(folder).status, codes(quick_check(folder))) == ("repairable", ["version-older"])
    assert thumbnail(folder, "observation.images.wrist", 32).shape == (24, 32, 3)
    (folder / "videos/chunk-000/observation.images.top/episode_000001.mp4").unlink()
    assert codes(quick_check(folder)) == ["video-missing", "version-older"]


def to_second_format(info: Info) -> None:
    info["codebase_version"] = "v2.1"
    del info["data_path"], info["video_path"]


def test_recordings_are_found_below_a_folder_once_each_and_no_loop_of_links_is_followed(tmp_path: Path) -> None:
    first, second = make_recording(tmp_path / "a" / "one"), make_recording(tmp_path / "b" / "deep" / "er" / "two")
    (tmp_path / "a" / "again").symlink_to(first)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = find_recordings([tmp_path, tmp_path / "a"], standard=False)
    assert len(found) == 2
    assert {path.resolve() for path in found} == {first, second}
    assert find_recordings([tmp_path / "nowhere"], standard=False) == []


def test_recordings_are_found_where_lerobot_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "lerobot"))
    own = make_recording(tmp_path / "lerobot/someone/cubes")
    fetched = make_recording(tmp_path / "lerobot/hub/datasets--someone--bananas/snapshots/0123abc")
    assert set(find_recordings([])) == {own, fetched}
    assert read_recording(fetched).name == "someone/bananas"


def test_a_thumbnail_is_the_first_frame_and_a_camera_that_is_not_there_is_told(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    picture = thumbnail(folder, "observation.images.top", 32)
    assert (picture.shape, picture.dtype) == ((24, 32, 3), np.uint8)
    assert picture.max() < 20, "the first frame is black"
    with pytest.raises(RecordingError, match="no camera"):
        thumbnail(folder, "observation.images.side")


def test_a_policy_says_what_it_needs(tmp_path: Path, demo_policy: Path) -> None:
    needs = policy_needs(demo_policy)
    assert (needs.max_state_dim, len(needs.camera_slots), needs.chunk_size) == (32, 3, 16)
    with pytest.raises(RecordingError):
        policy_needs(tmp_path)


LEAF = st.none() | st.booleans() | st.floats() | st.integers() | st.text()
ANY_JSON = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(raw=st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_description_gets_an_answer(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "meta").mkdir(exist_ok=True)
    (tmp_path / "meta/info.json").write_bytes(raw)
    assert quick_check(tmp_path).status == "unusable"


JUNK = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.integers())
)
KEYS = ("codebase_version", "fps", "total_episodes", "total_frames", "chunks_size", "features", "data_path", "video_path", "robot_type")


@given(key=st.sampled_from(KEYS), value=JUNK)
def test_any_value_of_a_key_gets_an_answer(tmp_path: Path, key: str, value: object) -> None:
    folder = tmp_path / "cubes"
    if not folder.exists():
        make_recording(folder)
        shutil.copy(folder / "meta/info.json", tmp_path / "info.json")
    info = json.loads((tmp_path / "info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps({**info, key: value}))
    assert json.dumps(quick_check(folder).to_json())


@given(path=st.text(st.sampled_from("./\\:~ab{}"), max_size=12))
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    info = {"codebase_version": "v3.0", "fps": 10, "features": {"action": {"dtype": "float32", "shape": [1]}}, "data_path": path}
    try:
        parsed = parse_info(json.dumps(info).encode())
    except RecordingError:
        return
    file = parsed.data_file(chunk_index=1, file_index=2, episode_index=3, episode_chunk=4)
    assert (tmp_path / os.path.normpath(tmp_path / file)).is_relative_to(tmp_path)


def test_paths_of_other_systems_are_seen_through() -> None:
    assert not any(is_inside(path) for path in ("..", "a/../..", "/a", "C:\\a", "C:a", "\\\\host\\share", "..\\a", "a\0b", ""))
    assert is_inside("data/chunk-000/file.parquet")


FILES = ("meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", DATA, TOP, "meta/stats.json")


@given(file=st.sampled_from(FILES), places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_damage_to_a_file_gets_an_answer(tmp_path: Path, file: str, places: list[tuple[float, int]]) -> None:
    folder = tmp_path / "cubes"
    if not folder.exists():
        make_recording(folder)
    whole = (folder / file).read_bytes()
    damaged = bytearray(whole)
    for place, value in places:
        damaged[int(place * len(damaged))] = value
    try:
        (folder / file).write_bytes(damaged)
        assert quick_check(folder).status in ("ok", "repairable", "unusable")
    finally:
        (folder / file).write_bytes(whole)


def test_a_check_loads_neither_torch_nor_pandas_nor_asks_the_hub(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    code = (
        "import sys, pathlib; from zk0desk.training.recordings import quick_check, thumbnail; folder = pathlib.Path(sys.argv[1]);"
        "assert quick_check(folder).status == 'ok'; thumbnail(folder, 'observation.images.top');"
        "print([name for name in ('torch', 'lerobot', 'transformers', 'pandas', 'huggingface_hub', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


ANSWERS = {
    "cr5-cube": ("ok", []),
    "cr5-banana": ("ok", []),
    "cr5-cube-v21": ("repairable", ["version-older"]),
    "broken/cr5-banana-jitter": ("repairable", ["timestamps-jitter"]),
    "broken/so101-novideo": ("unusable", ["video-missing"]),
    "broken/lfs-pointers-v30": ("unusable", ["lfs-pointers"]),
    "broken/empty-info-json": ("unusable", ["info-empty"]),
    "broken/piper-info-says-105-has-19": ("unusable", ["video-missing", "counts-differ"]),
    "broken/so101-frozen-sim": ("ok", ["state-constant", "action-constant"]),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real recordings are not beside the checkout")
@pytest.mark.parametrize("name", ANSWERS)
def test_a_real_recording_is_told_right(name: str) -> None:
    result = quick_check(SHARED / name, PolicyNeeds())
    assert (result.status, codes(result)) == ANSWERS[name]
