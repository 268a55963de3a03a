"""The deep check: what only reading everything shows, the episodes that it touches, and an answer that is kept."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.training.recording_parts import FPS, Info, Table, make_recording, write_video
from zk0desk.control import NodeControl, Stopped
from zk0desk.training import deep_rows
from zk0desk.training.deep_check import Progress, content_key, deep_check, kept_answer
from zk0desk.training.recordings import CheckResult, Finding, PolicyNeeds, Severity

NEEDS = PolicyNeeds(chunk_size=4)
"""The recordings of these tests are short; their length is no finding."""
TOP = "videos/observation.images.top/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "recordings"


def only(result: CheckResult) -> Finding:
    (finding,) = result.findings
    return finding


def codes(result: CheckResult) -> list[str]:
    return [finding.code for finding in result.findings]


def test_a_whole_recording_has_no_findings(tmp_path: Path) -> None:
    result = deep_check(make_recording(tmp_path / "cubes"), NEEDS)
    assert (result.status, result.findings) == ("ok", ())


# --- the columns


def rows_apart(table: Table) -> None:
    table["episode_index"] = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 0])


def index_doubled(table: Table) -> None:
    table["index"][5] = 4


def frame_lost(table: Table) -> None:
    table["frame_index"][8:] += 1
    table["timestamp"][8:] += np.float32(1 / FPS)


def jitter(table: Table) -> None:
    table["timestamp"][7] += np.float32(0.03)


def no_number(table: Table) -> None:
    table["action"][8] = np.array([np.inf, 0, 0], np.float32)


def twins(table: Table) -> None:
    for name in ("observation.state", "action"):
        table[name][5:] = table[name][:5]


def halves(info: Info) -> None:
    info["total_episodes"] = 2


def two_of_five(table: Table) -> None:
    table["episode_index"] = np.repeat([0, 1], 5)
    table["frame_index"] = np.tile(np.arange(5), 2)
    table["timestamp"] = (table["frame_index"] / FPS).astype(np.float32)


def listed_as_five(table: Table) -> None:
    table["length"] = [5, 5]
    for key in ("top", "wrist"):
        table[f"videos/observation.images.{key}/from_timestamp"] = [0.0, 0.5]
        table[f"videos/observation.images.{key}/to_timestamp"] = [0.5, 1.0]


def still(table: Table) -> None:
    table["observation.state"][6:] = [np.ones(3, np.float32)] * 4


def lengths(table: Table) -> None:
    table["length"] = [5, 5]


COLUMNS: dict[str, tuple[dict[str, Any], str, Severity, tuple[int, ...]]] = {
    "rows of an episode that lie apart": ({"data": rows_apart}, "episode-scattered", Severity.BLOCKS, (0,)),
    "a row that is numbered twice": ({"data": index_doubled}, "index-wrong", Severity.BLOCKS, (0,)),
    "a frame that is missing": ({"data": frame_lost}, "frames-gap", Severity.BLOCKS, (1,)),
    "a timestamp beside the grid": ({"data": jitter}, "timestamps-jitter", Severity.REPAIRABLE, (1,)),
    "an action without a number": ({"data": no_number}, "action-not-finite", Severity.BLOCKS, (1,)),
    "an arm that stands still": ({"data": still}, "episodes-still", Severity.NOTE, (1,)),
    "another length in the table": ({"episodes": lengths}, "lengths-differ", Severity.BLOCKS, (0, 1)),
    "an episode twice": (
        {"data": lambda t: (two_of_five(t), twins(t)), "episodes": listed_as_five, "info": halves},
        "episodes-duplicate", Severity.NOTE, (1,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_what_the_rows_show_is_told_with_its_episodes(name: str, tmp_path: Path) -> None:
    change, code, severity, episodes = COLUMNS[name]
    result = deep_check(make_recording(tmp_path / "cubes", **change), NEEDS)
    finding = next((each for each in result.findings if each.code == code), None)
    assert finding is not None, codes(result)
    assert (finding.severity, finding.episodes) == (severity, episodes)
    assert finding.what and finding.why
    told = [(each.code, each.what) for each in result.findings]
    assert len(told) == len(set(told)), "each is told once"


def test_the_first_bad_frame_and_the_jitter_are_measured(tmp_path: Path) -> None:
    finding = only(deep_check(make_recording(tmp_path / "cubes", data=jitter), NEEDS))
    assert finding.what.startswith("1 of 10 timestamps") and "30.0 ms" in finding.why and "episode 1, frame 1" in finding.why


@pytest.mark.parametrize(
    ("key", "feature", "code", "words"),
    [
        ("qpos", {"dtype": "float32", "shape": [3], "names": None}, "state-misnamed", "`qpos` to `observation.state`"),
        ("torque", {"dtype": "float32", "shape": [3], "names": None}, "feature-ignored", "Nothing"),
    ],
)
def test_a_column_that_lerobot_does_not_know_is_told(key: str, feature: dict[str, Any], code: str, words: str, tmp_path: Path) -> None:
    def rename(info: Info) -> None:
        info["features"][key] = feature
        if "observation.state" in words:
            del info["features"]["observation.state"]

    def column(table: Table) -> None:
        table[key] = table.pop("observation.state") if "observation.state" in words else table["observation.state"]

    result = deep_check(make_recording(tmp_path / "cubes", info=rename, data=column), NEEDS)
    finding = next(each for each in result.findings if each.code == code)
    assert words in finding.remedy


def test_a_column_of_another_type_is_a_note(tmp_path: Path) -> None:
    def doubles(table: Table) -> None:
        table["timestamp"] = (table["frame_index"] / FPS).astype(np.float64)

    finding = only(deep_check(make_recording(tmp_path / "cubes", data=doubles), NEEDS))
    assert (finding.code, finding.severity) == ("type-differs", Severity.NOTE)
    assert "timestamp holds double" in finding.what and "float32" in finding.what


def test_statistics_of_other_data_are_repairable_and_slightly_old_ones_a_note(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    path = folder / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["mean"][1] += 0.1 * stats["action"]["std"][1]
    path.write_text(json.dumps(stats))
    finding = only(deep_check(folder, NEEDS))
    assert (finding.code, finding.severity) == ("statistics-stale", Severity.NOTE)
    stats["action"]["std"][1] *= 3
    path.write_text(json.dumps(stats))
    finding = only(deep_check(folder, NEEDS))
    assert (finding.code, finding.severity) == ("statistics-stale", Severity.REPAIRABLE)


def test_one_episode_and_short_episodes_are_notes(tmp_path: Path) -> None:
    result = deep_check(make_recording(tmp_path / "cubes"), PolicyNeeds(chunk_size=5))
    assert only(result).code == "episodes-short" and only(result).episodes == (1,)

    def first_only(table: Table) -> None:
        for name, values in table.items():
            table[name] = values[:6]

    def first_row(table: Table) -> None:
        for name, values in table.items():
            table[name] = values[:1]

    one = make_recording(tmp_path / "one", data=first_only, episodes=first_row, info=lambda i: i.update(total_episodes=1, total_frames=6))
    assert only(deep_check(one, NEEDS)).code == "one-episode"


def moving(folder: Path, reset: bool, still: bool = False) -> Path:
    """Two episodes of 60 frames of smooth motion with a gripper that opens and closes; with a reset in the second."""
    rng = np.random.default_rng(3)
    count = 60
    states = []
    for _ in range(2):
        path = np.cumsum(rng.normal(0, 0.02, (count, 6)), axis=0)
        path[:, 5] = (np.arange(count) // 20) % 2
        states.append(path)
    if reset:
        states[1][30:, :5] += 1.5
    if still:
        for path in states:
            path[:, 3:5] = 1e-4 * (np.arange(count) == 20)[:, None]
    vectors = list(np.concatenate(states).astype(np.float32))

    def data(table: Table) -> None:
        frame = np.tile(np.arange(count), 2)
        table |= {
            "observation.state": vectors, "action": vectors, "timestamp": (frame / FPS).astype(np.float32), "frame_index": frame,
            "episode_index": np.repeat([0, 1], count), "index": np.arange(2 * count), "task_index": np.zeros(2 * count, np.int64),
        }  # fmt: skip

    def episodes(table: Table) -> None:
        table |= {"length": [count, count], "dataset_from_index": [0, count], "dataset_to_index": [count, 2 * count]}
        table |= {"videos/observation.images.top/from_timestamp": [0.0, 6.0], "videos/observation.images.top/to_timestamp": [6.0, 12.0]}

    make_recording(folder, data=data, episodes=episodes, cameras=("top",), dims=(6, 6), info=lambda i: i.update(total_frames=2 * count))
    write_video(folder / TOP, frames=2 * count)
    return folder


def test_a_reset_inside_an_episode_is_told_and_a_gripper_is_none(tmp_path: Path) -> None:
    assert deep_check(moving(tmp_path / "smooth", reset=False), NEEDS).findings == ()
    finding = only(deep_check(moving(tmp_path / "reset", reset=True), NEEDS))
    assert (finding.code, finding.severity, finding.episodes) == ("values-jump", Severity.NOTE, (1,))
    assert "episode 1, frame 30" in finding.why


def test_the_noise_of_joints_that_stand_still_is_no_jump(tmp_path: Path) -> None:
    assert deep_check(moving(tmp_path / "cubes", reset=False, still=True), NEEDS).findings == ()


def test_the_answer_does_not_depend_on_how_rows_are_cut_into_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = moving(tmp_path / "reset", reset=True)
    once = deep_check(folder, NEEDS, again=True)
    monkeypatch.setattr(deep_rows, "BATCH_ROWS", 7)
    assert deep_check(folder, NEEDS, again=True).to_json() == once.to_json()


# --- the videos


def test_a_video_that_is_damaged_in_the_middle_names_the_episodes(tmp_path: Path) -> None:
    folder = moving(tmp_path / "cubes", reset=False)
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with av.open(str(folder / TOP), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 60
        for number in range(120):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, number, axis=1))))
        container.mux(stream.encode(None))
    assert deep_check(folder, NEEDS).status == "ok"
    with av.open(str(folder / TOP)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.is_keyframe]
    second = keys[1]
    assert second.pos is not None
    raw = bytearray((folder / TOP).read_bytes())
    inside = second.pos + second.size // 2
    raw[inside : inside + 40] = bytes(40)  # the decoder goes on over it, with pictures that are partly grey
    (folder / TOP).write_bytes(raw)
    finding = only(deep_check(folder, NEEDS))
    assert (finding.code, finding.severity, finding.episodes) == ("video-unreadable", Severity.BLOCKS, (1,))
    assert "damaged" in finding.why and "PyAV" in finding.why


def test_a_video_with_too_few_frames_for_the_last_episode_is_told(tmp_path: Path) -> None:
    folder = moving(tmp_path / "cubes", reset=False)
    write_video(folder / TOP, frames=100)
    result = deep_check(folder, NEEDS)
    assert codes(result) == ["video-too-short"]
    assert only(result).episodes == (1,)


def test_pictures_of_another_size_are_a_note(tmp_path: Path) -> None:
    def wide(info: Info) -> None:
        info["features"]["observation.images.top"]["shape"] = [480, 640, 3]

    finding = only(deep_check(make_recording(tmp_path / "cubes", info=wide), NEEDS))
    assert (finding.code, finding.severity) == ("video-size-differs", Severity.NOTE)
    assert "64 x 48" in finding.what and "640 x 480" in finding.what


def test_a_video_at_another_rate_has_no_pictures_where_frames_are(tmp_path: Path) -> None:
    folder = moving(tmp_path / "cubes", reset=False)
    with av.open(str(folder / TOP), "w") as container:
        stream = container.add_stream("mpeg4", rate=3)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(120):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8))))
        container.mux(stream.encode(None))
    assert "video-frames-off" in codes(deep_check(folder, NEEDS))


# --- several at once, and what is asked first


def test_several_defects_are_all_told_and_a_repair_waits_for_what_blocks(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", data=lambda t: (jitter(t), no_number(t)))
    (folder / TOP).unlink()
    result = deep_check(folder, NEEDS)
    assert set(codes(result)) == {"video-missing", "action-not-finite", "timestamps-jitter"}
    assert [finding.severity for finding in result.findings] == [Severity.BLOCKS, Severity.BLOCKS, Severity.REPAIRABLE]
    assert "once nothing blocks" in result.findings[-1].remedy


# --- progress, cancel, what is kept


def test_it_tells_how_far_it_is_and_can_be_cancelled(tmp_path: Path) -> None:
    folder = moving(tmp_path / "cubes", reset=False)
    seen: list[Progress] = []
    deep_check(folder, NEEDS, progress=seen.append)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total
    control = NodeControl()

    def stop(_: Progress) -> None:
        control.stop_now()

    with pytest.raises(Stopped):
        deep_check(folder, NEEDS, progress=stop, control=control, again=True)


def test_an_answer_is_kept_until_the_recording_changes(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", data=jitter)
    assert kept_answer(folder, NEEDS) is None
    first = deep_check(folder, NEEDS)
    asked: list[Progress] = []
    assert deep_check(folder, NEEDS, progress=asked.append).to_json() == first.to_json()
    assert not asked
    kept = kept_answer(folder, NEEDS)
    assert kept is not None and kept.findings == first.findings
    # A policy that asks for something else is another question; so is a recording that was changed or moved.
    assert content_key(folder, NEEDS) != content_key(folder, replace(NEEDS, chunk_size=5))
    moved = folder.rename(tmp_path / "elsewhere")
    assert kept_answer(moved, NEEDS) is not None
    shutil.copy2(moved / DATA, moved / DATA.replace("000.parquet", "001.parquet"))
    assert kept_answer(moved, NEEDS) is None


def test_a_disk_that_vanishes_is_told_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path, *_: Any) -> Any:
        raise OSError(5, "Input/output error", str(path))

    folder = make_recording(tmp_path / "cubes")
    monkeypatch.setattr(deep_rows, "batches", gone)
    result = deep_check(folder, NEEDS)
    assert (result.status, codes(result)) == ("unusable", ["unreadable"])
    assert "Input/output error" in result.findings[0].why
    monkeypatch.undo()
    assert kept_answer(folder, NEEDS) is None


def test_what_cannot_be_read_at_all_is_the_quick_checks_answer(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert codes(deep_check(tmp_path / "nothing")) == ["info-missing"]
    newer = make_recording(tmp_path / "newer", info=lambda i: i.update(codebase_version="v9.0"))
    assert codes(deep_check(newer)) == ["version-newer"]


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("broken", "expected"), [(None, ()), (0, (0,)), (5, (0,)), (9, (1,))])
def test_pictures_inside_the_rows_are_decoded_at_both_ends_of_an_episode(
    broken: int | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    def images(info: Info) -> None:
        info["features"]["observation.images.top"]["dtype"] = "image"

    def column(table: Table) -> None:
        table["observation.images.top"] = pa.array([{"bytes": png(row)[: 40 if row == broken else None], "path": ""} for row in range(10)])

    drop: Callable[[Table], object] = lambda t: [t.pop(k) for k in list(t) if k.startswith("videos/observation.images.top")]  # noqa: E731
    result = deep_check(make_recording(tmp_path / "cubes", info=images, data=column, episodes=drop), NEEDS)
    assert [(finding.code, finding.episodes) for finding in result.findings] == [("image-unreadable", expected)] * (broken is not None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real recordings beside the checkout")
@pytest.mark.parametrize(
    ("name", "status", "expected"),
    [
        ("cr5-cube", "ok", set()),
        ("cr5-banana", "ok", set()),
        ("cr5-cube-v21", "repairable", {"version-older"}),
        ("broken/cr5-banana-jitter", "repairable", {"timestamps-jitter"}),
        ("broken/so101-novideo", "unusable", {"video-missing"}),
        ("broken/lfs-pointers-v30", "unusable", {"lfs-pointers"}),
        ("broken/empty-info-json", "unusable", {"info-empty"}),
        ("broken/piper-info-says-105-has-19", "unusable", {"video-missing", "counts-differ"}),
        ("broken/so101-frozen-sim", "ok", set()),
    ],
)
def test_real_recordings_get_the_right_answer(name: str, status: str, expected: set[str]) -> None:
    result = deep_check(SHARED / name)
    assert result.status == status
    assert {finding.code for finding in result.findings if finding.severity is not Severity.NOTE} == expected


@pytest.mark.timeout(240)
def test_recordings_that_are_damaged_at_random_get_an_answer_that_holds(tmp_path: Path) -> None:
    """A share of what `tests/training/mutations.py` does."""
    from tests.training.mutations import judge, mutants

    base = make_recording(tmp_path / "base")
    said = {judge(folder, train=True).status for _number, folder, _done in mutants(base, 60, 0)}
    assert said == {"ok", "repairable", "unusable"}
