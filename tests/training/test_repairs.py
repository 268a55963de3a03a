"""Repairs of a recording: what is planned, what the copy is then, and that nothing else changes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.training import recording_parts
from tests.training.recording_parts import CAMERAS, FPS, LENGTHS, make_recording, write_video
from zk0desk.cli import main
from zk0desk.control import NodeControl, Stopped
from zk0desk.settings import ChosenRecording, Recordings
from zk0desk.training import repair_times, repairs
from zk0desk.training.recordings import PolicyNeeds, deep_check, quick_check
from zk0desk.training.repairs import RepairError, RepairProgress, RepairResult, clean_left_copies, clean_partials, plan_repair, repair

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
KEYS = [f"observation.images.{name}" for name in CAMERAS]
NEEDS = PolicyNeeds(chunk_size=4)


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def mend(source: Path, new: Path, **options: Any) -> RepairResult:
    """Plan and repair; the recording stays as it is, and nothing lies beside the copy."""
    before, beside = digests(source), set(new.parent.iterdir())
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS, **options)
    result = repair(source, new, plan)
    assert digests(source) == before
    assert set(new.parent.iterdir()) - beside == {new}
    return result


def steps(source: Path, **options: Any) -> list[str]:
    return [step.code for step in plan_repair(source, quick_check(source, NEEDS), NEEDS, **options).steps]


def column(folder: Path, name: str, file: str = DATA) -> np.ndarray:
    return np.array(pq.read_table(folder / file).column(name).to_pylist())


def make_v2(
    folder: Path, *, version: str = "v2.1", stats: bool = True, change: Callable[[dict[str, Any]], object] = lambda t: None
) -> Path:
    """The recording of `make_recording` in format v2: a data file and videos for each episode."""
    parts = make_recording(folder.parent / f"{folder.name}-parts", data=change)
    info = json.loads((parts / "meta/info.json").read_text())
    info |= {
        "codebase_version": version,
        "total_chunks": 1,
        "total_videos": 4,
        "splits": {"train": "0:2"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "Put the cube into the box."}\n')
    table, lines, statistics = pq.read_table(parts / DATA), [], []
    for number, length in enumerate(LENGTHS):
        rows = table.slice(sum(LENGTHS[:number]), length)
        pq.write_table(rows, folder / f"data/chunk-000/episode_{number:06d}.parquet")
        lines.append({"episode_index": number, "tasks": ["Put the cube into the box."], "length": length})
        for key in KEYS:
            write_video(folder / f"videos/chunk-000/{key}/episode_{number:06d}.mp4", length)
        said = {key: one_of(np.full((3, 1, 1), 0.5), length) for key in KEYS}
        for name in rows.column_names:
            values = np.array(rows.column(name).to_pylist(), np.float64).reshape(length, -1)
            said[name] = {w: getattr(values, w)(axis=0).tolist() for w in ("min", "max", "mean", "std")} | {"count": [length]}
        statistics.append({"episode_index": number, "stats": said})
    for name, rows_ in (("episodes", lines), ("episodes_stats", statistics)):
        if stats or name == "episodes":
            (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows_))
    return folder


def one_of(value: np.ndarray, count: int) -> dict[str, Any]:
    return {word: value.tolist() for word in ("min", "max", "mean", "std")} | {"count": [count]}


def opened(folder: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(f"local/{folder.name}", root=folder, video_backend="pyav")


def wall_clock(table: dict[str, Any]) -> None:
    draw = np.random.default_rng(1)
    table["timestamp"] = (table["timestamp"] + 0.02 + draw.uniform(0, 0.003, len(table["timestamp"]))).astype(np.float32)


# --- the conversion


def test_a_recording_of_v21_becomes_one_of_v30_with_the_same_frames(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "old")
    assert steps(source) == ["convert"]
    result = mend(source, tmp_path / "new")
    assert (result.check.status, result.check.recording.version) == ("ok", "v3.0")  # type: ignore[union-attr]
    dataset = opened(result.path)
    parts = tmp_path / "old-parts"
    assert np.allclose(np.array(dataset.hf_dataset["action"]), column(parts, "action"))
    for index in (0, 5, 6, 9):
        grey = dataset[index]["observation.images.top"].mean().item() * 255
        expected = 20 * (index if index < LENGTHS[0] else index - LENGTHS[0])
        assert abs(grey - expected) < 4, "an episode's pictures begin with its first"


def test_what_v20_does_not_have_is_computed(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "old", version="v2.0", stats=False)
    assert steps(source) == ["convert", "statistics"]
    mend(source, tmp_path / "new")
    said = json.loads((tmp_path / "new/meta/stats.json").read_text())
    action = column(tmp_path / "old-parts", "action")
    assert np.allclose(said["action"]["mean"], action.mean(axis=0)) and np.allclose(said["action"]["std"], action.std(axis=0))
    grey = np.mean([20 * n for length in LENGTHS for n in range(length)]) / 255
    assert np.asarray(said[KEYS[0]]["mean"]).shape == (3, 1, 1)
    assert np.allclose(said[KEYS[0]]["mean"], grey, atol=0.02)
    own = column(tmp_path / "new", "stats/action/mean", EPISODES)
    assert np.allclose(own[1], action[LENGTHS[0] :].mean(axis=0))
    assert opened(tmp_path / "new").meta.stats["action"]["mean"].shape == (3,)


def test_a_damaged_episode_of_v2_is_left_out_and_no_picture_of_the_others_is_encoded_again(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "old")
    (source / f"videos/chunk-000/{KEYS[0]}/episode_000000.mp4").write_bytes(b"junk" * 100)
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    assert plan.left_out == {0: "its video of top cannot be played"}
    assert "0 (its video of top cannot be played)" in plan.steps[0].what
    result = mend(source, tmp_path / "new")
    recording = result.check.recording
    assert recording is not None and (recording.episodes, recording.frames) == (1, LENGTHS[1])
    assert column(result.path, "index").tolist() == list(range(LENGTHS[1]))
    assert set(column(result.path, "episode_index")) == {0}
    assert np.allclose(column(result.path, "action"), column(tmp_path / "old-parts", "action")[LENGTHS[0] :])
    assert opened(result.path)[0]["observation.images.top"].max() < 0.05


def test_a_video_of_v2_at_another_rate_is_refused_with_the_figure_and_can_be_encoded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_parts, "FPS", 8)
    source = make_v2(tmp_path / "old")
    rate = json.loads((source / "meta/info.json").read_text())
    (source / "meta/info.json").write_text(json.dumps(rate | {"fps": FPS}))
    for number, path in enumerate(sorted((source / "data").rglob("*.parquet"))):
        table = pq.read_table(path)
        times = (np.arange(LENGTHS[number]) / FPS).astype(np.float32)
        pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", [times]), path)
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    with pytest.raises(RepairError, match="125.0 ms off 10 a second"):
        repair(source, tmp_path / "new", plan)
    dataset = opened(mend(source, tmp_path / "new", reencode=True).path)
    assert dataset[9]["observation.images.top"].mean() * 255 == pytest.approx(60, abs=4)


@pytest.mark.parametrize("name", ["it's here", "ünïcödé 日本語"])
def test_the_folders_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert mend(make_v2(tmp_path / name / "old"), tmp_path / name / "new").check.status == "ok"


# --- timestamps


def test_timestamps_of_a_wall_clock_are_re_laid_and_all_else_stays(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    assert steps(source) == ["retime", "statistics"]
    result = mend(source, tmp_path / "new")
    assert np.allclose(column(result.path, "timestamp"), column(source, "frame_index") / FPS)
    old, new = pq.ParquetFile(source / DATA), pq.ParquetFile(result.path / DATA)
    assert new.schema_arrow.equals(old.schema_arrow, check_metadata=True)
    for name in set(old.schema_arrow.names) - {"timestamp"}:
        assert np.array_equal(column(result.path, name), column(source, name))
    top = f"videos/{KEYS[0]}/chunk-000/file-000.mp4"
    assert (result.path / top).read_bytes() == (source / top).read_bytes()
    said = json.loads((result.path / "meta/stats.json").read_text())
    assert said["timestamp"]["max"] == pytest.approx([0.5])
    for index in (0, 5, 6, 9):
        assert opened(result.path)[index]["observation.images.top"].shape == (3, 48, 64)


def test_what_a_video_is_said_to_begin_at_is_laid_where_its_pictures_are(tmp_path: Path) -> None:
    def late(table: dict[str, Any]) -> None:
        table[f"videos/{KEYS[0]}/from_timestamp"] = [0.013, 0.64]

    result = mend(make_recording(tmp_path / "old", data=wall_clock, episodes=late), tmp_path / "new")
    assert column(result.path, f"videos/{KEYS[0]}/from_timestamp", EPISODES).tolist() == pytest.approx([0, 0.6])
    assert column(result.path, f"videos/{KEYS[0]}/to_timestamp", EPISODES).tolist() == pytest.approx([0.6, 1.0])


def times(count: int = 100, **changes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frame = changes.get("frame", np.arange(count))
    time = np.arange(count) / FPS * changes.get("slower", 1.0)
    for place, by in changes.get("held", ()):
        time[place:] += by / FPS
    for place in changes.get("nan", ()):
        time[place] = np.nan
    return np.zeros(count, int), frame, time


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"slower": 1.1}, "9.09 frames per second, not 10"),
        ({"held": [(50, 4.5)]}, "5.5 frame times"),
        ({"held": [(n, 0.8) for n in range(10, 60, 10)]}, "late"),
        ({"held": [(50, -1.5)]}, "do not increase, first at frame 50"),
        ({"frame": np.r_[0:50, 51:101]}, "not numbered"),
        ({"nan": range(60)}, "60 of its 100 timestamps"),
    ],
)
def test_timestamps_are_not_re_laid_where_that_could_be_wrong(changes: dict[str, Any], figure: str) -> None:
    assert figure in repair_times.refusal(repair_times.measure(*times(**changes), FPS), FPS)


@pytest.mark.parametrize(("changes", "said"), [({}, ""), ({"slower": 1.01}, ""), ({"nan": [3, 4]}, ""), ({"held": [(50, 1.4)]}, "2.4")])
def test_timestamps_are_re_laid_where_frames_came_late_now_and_then_and_it_is_told(changes: dict[str, Any], said: str) -> None:
    timings = repair_times.measure(*times(**changes), FPS)
    assert repair_times.refusal(timings, FPS) == ""
    told = repair_times.doubt(timings, FPS)
    assert said in told and bool(said) == bool(told)


def test_a_recording_whose_timestamps_are_unsafe_is_refused_with_the_figure(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old", data=lambda t: t.update(timestamp=t["timestamp"] * np.float32(1.5)))
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    assert not plan.possible and "6.67 frames per second" in plan.impossible[0].why
    with pytest.raises(RepairError, match=r"6\.67"):
        repair(source, tmp_path / "new", plan)
    assert not (tmp_path / "new").exists()


def test_timestamps_of_a_recording_of_v2_are_re_laid_after_its_conversion(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "old", change=wall_clock)
    assert steps(source) == ["convert", "retime", "statistics"]
    result = mend(source, tmp_path / "new")
    assert np.allclose(column(result.path, "timestamp"), column(result.path, "frame_index") / FPS)
    assert opened(result.path)[9]["observation.images.wrist"].mean() * 255 == pytest.approx(20 * 3, abs=4)


def test_a_timestamp_that_is_no_number_is_re_laid(tmp_path: Path) -> None:
    def gone(table: dict[str, Any]) -> None:
        table["timestamp"][2] = np.nan

    result = mend(make_recording(tmp_path / "old", data=gone), tmp_path / "new")
    assert column(result.path, "timestamp")[2] == pytest.approx(0.2)


# --- statistics


@pytest.mark.parametrize("stats", [None, '{"action": {"mean": [0], "std": [1]}}'])
def test_statistics_are_computed_again(stats: str | None, tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old")
    (source / "meta/stats.json").unlink() if stats is None else (source / "meta/stats.json").write_text(stats)
    assert steps(source) == ["statistics"]
    result = mend(source, tmp_path / "new")
    said = json.loads((result.path / "meta/stats.json").read_text())
    state = column(source, "observation.state")
    assert np.allclose(said["observation.state"]["std"], state.std(axis=0))
    assert np.allclose(said["observation.state"]["q50"], np.quantile(state, 0.5, axis=0))
    assert said["observation.state"]["count"] == [10]


def test_statistics_of_other_data_are_computed_again(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old")
    said = {key: {"mean": [50.0] * 3, "std": [1.0] * 3} for key in ("observation.state", "action")}
    (source / "meta/stats.json").write_text(json.dumps(said))
    plan = plan_repair(source, deep_check(source, NEEDS), NEEDS)
    assert [step.code for step in plan.steps] == ["statistics"]
    assert deep_check(repair(source, tmp_path / "new", plan).path, NEEDS).status == "ok"


def test_the_statistics_are_those_that_lerobot_computes(recordings: Path, tmp_path: Path) -> None:
    source = tmp_path / "old"
    result = mend_demo(recordings / "node0", source, tmp_path / "new")
    old, new = json.loads((recordings / "node0/meta/stats.json").read_text()), json.loads((result.path / "meta/stats.json").read_text())
    for key in ("action", "observation.state", "observation.images.top", "timestamp"):
        pictures = key.startswith("observation.images")  # LeRobot's are those before the video was encoded
        for word in ("mean", "std") if pictures else ("min", "max", "mean", "std"):
            close = 0.03 if pictures else 1e-5
            assert np.shape(new[key][word]) == np.shape(old[key][word])
            assert np.allclose(new[key][word], old[key][word], rtol=close, atol=close), (key, word)


def mend_demo(recording: Path, source: Path, new: Path) -> RepairResult:
    """A copy of a recording that LeRobot wrote, without any statistics, mended."""
    import shutil

    shutil.copytree(recording, source)
    (source / "meta/stats.json").unlink()
    table = pq.read_table(source / EPISODES)
    pq.write_table(
        table.drop_columns([n for n in table.column_names if n.startswith("stats/")]).replace_schema_metadata(), source / EPISODES
    )
    return mend(source, new)


# --- episodes


def no_number(table: dict[str, Any]) -> None:
    table["action"][3] = np.array([np.nan, 0, 0], np.float32)


def test_an_episode_with_values_that_are_no_numbers_is_left_out(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old", data=no_number)
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    assert plan.left_out == {0: "its action is no number in places"}
    result = mend(source, tmp_path / "new")
    assert (result.check.status, column(result.path, "episode_index").tolist()) == ("ok", [0] * 4)
    assert np.allclose(column(result.path, "action"), column(source, "action")[6:])
    assert column(result.path, "dataset_to_index", EPISODES).tolist() == [4]
    dataset = opened(result.path)
    assert (dataset.num_episodes, len(dataset)) == (1, 4)
    assert dataset[3]["observation.images.top"].mean() * 255 == pytest.approx(20 * 9, abs=4), "its own picture"


def test_episodes_that_a_person_names_are_left_out_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old")
    assert steps(source) == [], "a whole recording needs nothing"
    assert mend(source, tmp_path / "new", leave_out=[1]).check.recording.frames == 6  # type: ignore[union-attr]
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS, leave_out=[1, 7])
    assert "no episode 7" in plan.impossible[0].what
    assert "would be left" in plan_repair(source, quick_check(source, NEEDS), NEEDS, leave_out=[0, 1]).impossible[0].what


def test_files_that_hold_only_episodes_that_are_left_out_are_not_in_the_copy(tmp_path: Path) -> None:
    def second_files(table: dict[str, Any]) -> None:
        table["data/file_index"][1] = 1
        for key in KEYS:
            table[f"videos/{key}/file_index"][1] = 1
            table[f"videos/{key}/from_timestamp"][1], table[f"videos/{key}/to_timestamp"][1] = 0.0, 0.4

    source = make_recording(tmp_path / "old", episodes=second_files)
    table = pq.read_table(source / DATA)
    pq.write_table(table.slice(0, 6), source / DATA, row_group_size=4)
    pq.write_table(table.slice(6), source / DATA.replace("file-000", "file-001"))
    for key in KEYS:
        write_video(source / f"videos/{key}/chunk-000/file-001.mp4", frames=4)
    first, second = (mend(source, tmp_path / name, leave_out=[left]).path for name, left in (("a", 1), ("b", 0)))
    assert {path.name for path in first.rglob("file-00*") if path.suffix != ".parquet" or "data" in path.parts} == {
        "file-000.parquet",
        "file-000.mp4",
    }
    assert not (second / DATA).exists()
    assert opened(second)[3]["observation.images.wrist"].mean() * 255 == pytest.approx(60, abs=4)
    assert column(first, "index").tolist() == list(range(6))


def test_episodes_that_a_video_does_not_reach_are_left_out(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old")
    write_video(source / f"videos/{KEYS[1]}/chunk-000/file-000.mp4", frames=8)
    assert plan_repair(source, quick_check(source, NEEDS), NEEDS).left_out == {1: "its video of wrist ends too early"}
    assert mend(source, tmp_path / "new").check.recording.episodes == 1  # type: ignore[union-attr]


# --- video


def test_video_is_encoded_anew_with_every_frame_and_without_those_of_episodes_left_out(tmp_path: Path) -> None:
    import av

    source = make_recording(tmp_path / "old")
    result = mend(source, tmp_path / "new", reencode=True, leave_out=[0])
    for camera in result.check.recording.cameras:  # type: ignore[union-attr]
        with av.open(str(result.path / f"videos/{camera.key}/chunk-000/file-000.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.frames, camera.codec) == ("h264", "yuv420p", 4, "h264")
    dataset = opened(result.path)
    for frame in range(4):
        assert dataset[frame]["observation.images.top"].mean() * 255 == pytest.approx(20 * (6 + frame), abs=4)


def test_a_video_that_runs_at_another_rate_than_its_frames_is_encoded_at_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_recording(tmp_path / "old")
    monkeypatch.setattr(recording_parts, "FPS", 8)
    for key in KEYS:
        write_video(source / f"videos/{key}/chunk-000/file-000.mp4")
    result = mend(source, tmp_path / "new", reencode=True)
    dataset = opened(result.path)
    for frame in range(10):
        assert dataset[frame]["observation.images.top"].mean() * 255 == pytest.approx(20 * frame, abs=4)


def test_a_video_with_fewer_pictures_than_frames_is_not_encoded_anew(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old")
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS, reencode=True)
    write_video(source / f"videos/{KEYS[0]}/chunk-000/file-000.mp4", frames=9)
    with pytest.raises(RepairError, match="Episode 1 has 4 frames; 3 pictures"):
        repair(source, tmp_path / "new", plan)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


# --- the copy and its place


def test_a_target_that_is_taken_or_in_the_recording_is_refused(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").write_text("mine")
    for target, code in (
        (tmp_path / "taken", "target-exists"),
        (source / "new", "target-inside"),
        (source, "target-inside"),
        (tmp_path / "a/b", "target-missing"),
    ):
        with pytest.raises(RepairError) as caught:
            repair(source, target, plan)
        assert caught.value.code == code
    assert (tmp_path / "taken/mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert repair(source, tmp_path / "empty", plan).check.status == "ok"


def test_the_room_for_a_file_that_is_written_anew_is_asked_for(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    whole = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    needed = plan_repair(source, quick_check(source, NEEDS), NEEDS).bytes_needed
    assert needed == whole + (source / DATA).stat().st_size, "it is there twice for a while"
    convert = make_v2(tmp_path / "v2")
    whole = sum(path.stat().st_size for path in convert.rglob("*") if path.is_file())
    assert plan_repair(convert, quick_check(convert, NEEDS), NEEDS).bytes_needed == whole


def test_a_disk_that_is_too_full_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    monkeypatch.setattr(repairs.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(RepairError, match="too full"):
        repair(source, tmp_path / "new", plan)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


def test_a_disk_that_fills_up_meanwhile_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)

    def full(progress: RepairProgress) -> None:
        if progress.step == "retime":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RepairError, match="Free some space"):
        repair(source, tmp_path / "new", plan_repair(source, quick_check(source, NEEDS), NEEDS), progress=full)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


@pytest.mark.parametrize("at", ["copy", "retime", "statistics", "check"])
def test_a_repair_that_is_stopped_leaves_nothing(at: str, tmp_path: Path) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    before, control = digests(source), NodeControl()

    def stop(progress: RepairProgress) -> None:
        if progress.step == at:
            control.stop_now()

    with pytest.raises(Stopped):
        repair(source, tmp_path / "new", plan_repair(source, quick_check(source, NEEDS), NEEDS), control=control, progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"old"} and digests(source) == before


def test_a_conversion_stops_between_two_files(tmp_path: Path) -> None:
    source, control, seen = make_v2(tmp_path / "old"), NodeControl(), []

    def stop(progress: RepairProgress) -> None:
        seen.append(progress.done)
        if progress.step == "convert" and progress.done > 0.4:
            control.stop_now()

    with pytest.raises(Stopped):
        repair(source, tmp_path / "new", plan_repair(source, quick_check(source, NEEDS), NEEDS), control=control, progress=stop)
    assert 0.4 < seen[-1] < 0.8
    assert {path.name for path in tmp_path.iterdir()} == {"old", "old-parts"}


def test_a_copy_that_is_not_usable_is_told_and_removed_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    monkeypatch.setattr(repairs, "lay_times", lambda *_: None)
    with pytest.raises(RepairError, match="timestamps do not fit"):
        repair(source, tmp_path / "new", plan)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}
    with pytest.raises(RepairError, match="kept in"):
        repair(source, tmp_path / "new", plan, keep=True)
    assert {path.name for path in tmp_path.iterdir()} == {"old", "new"}


_KILLED = """
import sys, time
from pathlib import Path
from zk0desk.training.recordings import quick_check
from zk0desk.training.repairs import plan_repair, repair
source, new = map(Path, sys.argv[1:])
def hold(progress):
    if progress.step == "statistics":
        print("working", flush=True)
        time.sleep(600)
repair(source, new, plan_repair(source, quick_check(source)), progress=hold)
"""


def test_what_a_killed_repair_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    source, new = make_recording(tmp_path / "old", data=wall_clock), tmp_path / "new"
    (tmp_path / ".other.partial").mkdir()
    (tmp_path / ".other.partial/mine").write_text("mine")
    before = digests(source)
    child = subprocess.Popen([sys.executable, "-c", _KILLED, source, new], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "working\n"
    plan = plan_repair(source, quick_check(source, NEEDS), NEEDS)
    with pytest.raises(RepairError, match="being made already"):
        repair(source, new, plan)
    assert clean_partials(tmp_path) == []
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert (tmp_path / ".new.partial").is_dir() and digests(source) == before
    assert repair(source, new, plan).check.status == "ok"
    assert not (tmp_path / ".new.partial").exists() and (tmp_path / ".other.partial/mine").exists()


def test_folders_that_killed_repairs_left_are_cleaned(tmp_path: Path) -> None:
    for name, owner in ((".a.partial", '{"process": 999999999, "started": 0}'), (".b.partial", ""), (".c.partial", None)):
        (tmp_path / name).mkdir()
        if owner is not None:
            (tmp_path / name / "owner.json").write_text(owner)
    assert len(clean_partials(tmp_path)) == 3 and not list(tmp_path.iterdir())


def test_they_are_looked_for_where_the_recordings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "standard"))
    places = [tmp_path / name / ".half.partial" for name in ("standard", "folder", "beside")]
    for place in places:
        place.mkdir(parents=True)
    own = Recordings(folders=(tmp_path / "folder", tmp_path / "gone"), chosen=(ChosenRecording(path=tmp_path / "beside" / "cubes"),))
    assert sorted(clean_left_copies(own)) == sorted(places)


# --- the command line

_HELD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as whatever a script starts in the background has it
from zk0desk.cli import main
from zk0desk.training import repairs
make = repairs.repair
def hold(progress):
    if progress.step == "statistics":
        print("working", flush=True)
        time.sleep(600)
repairs.repair = lambda path, new, plan, progress, keep: make(path, new, plan, progress=hold, keep=keep)
sys.exit(main(["recordings", "repair", "--json", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("told", ["SIGTERM", "SIGINT"])
def test_a_repair_that_is_told_to_end_leaves_nothing(told: str, tmp_path: Path) -> None:
    source, new = make_recording(tmp_path / "old", data=wall_clock), tmp_path / "new"
    with subprocess.Popen(
        [sys.executable, "-c", _HELD, source, new], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "working\n"
        assert (tmp_path / ".new.partial").is_dir()
        child.send_signal(getattr(signal, told))
        assert child.wait(30) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_the_command_tells_its_plan_and_makes_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    assert main(["recordings", "repair", str(source), str(tmp_path / "new"), "--leave-out", "1", "--reencode"]) == 0
    told = capsys.readouterr()
    for words in ("1 of 2 episodes are left out: 1", "retime", "reencode", "of disk and about", "new can be trained on"):
        assert words in told.out
    assert "statistics\n" in told.err
    assert quick_check(tmp_path / "new").status == "ok"


def test_the_command_answers_in_json_and_with_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)
    assert main(["recordings", "repair", str(source), str(tmp_path / "new"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [step["code"] for step in said["plan"]["steps"]] == ["retime", "statistics"] and said["check"]["status"] == "ok"
    for arguments, code in (
        (["repair", str(source), str(tmp_path / "new")], "target-exists"),
        (["repair", str(tmp_path / "new"), str(tmp_path / "third")], "nothing-to-repair"),
        (["convert", str(source), str(tmp_path / "third")], "nothing-to-convert"),
        (["repair", str(tmp_path / "nothing"), str(tmp_path / "third")], "folder-missing"),
    ):
        assert main(["recordings", *arguments, "--json"]) == 4
        assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert main(["recordings", "repair", str(source), str(tmp_path / "third"), "--leave-out", "two"]) == 2


def test_a_command_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_recording(tmp_path / "old", data=wall_clock)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repairs, "write_statistics", interrupted)
    assert main(["recordings", "repair", str(source), str(tmp_path / "new")]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


# --- real recordings


def test_a_real_recording_of_v21_equals_what_was_published_as_v30(shared_recordings: Path, tmp_path: Path) -> None:
    import torch

    source = shared_recordings / "cr5-cube-v21"
    before = digests(source)
    result = repair(source, tmp_path / "new", plan_repair(source, deep_check(source)))
    assert digests(source) == before
    mine, theirs = opened(result.path), opened(shared_recordings / "cr5-cube")
    for key in ("observation.state", "action", "timestamp", "index", "episode_index"):
        assert np.array_equal(np.array(mine.hf_dataset[key]), np.array(theirs.hf_dataset[key])), key
    for index in (0, 107, 274, 350, 433, 529):
        assert torch.equal(mine[index]["observation.images.top"], theirs[index]["observation.images.top"])
    for key in ("observation.state", "action"):
        assert np.allclose(mine.meta.stats[key]["mean"], theirs.meta.stats[key]["mean"])


def test_a_real_recording_with_the_times_of_a_wall_clock_is_read_after_its_repair(shared_recordings: Path, tmp_path: Path) -> None:
    import torch

    source, told = shared_recordings / "broken/cr5-banana-jitter", []
    plan = plan_repair(source, deep_check(source))
    result = repair(source, tmp_path / "new", plan, emit=lambda event: told.append(event.why))  # type: ignore[attr-defined]
    assert result.check.status == "ok"
    assert "2.9 frame times" in told[0] and "9.72 frames per second" in told[0]
    mine, theirs = opened(result.path), opened(shared_recordings / "cr5-banana")
    for index in (0, 375, 751):
        assert torch.equal(mine[index]["observation.images.top"], theirs[index]["observation.images.top"])


@pytest.mark.parametrize("name", ["so101-novideo", "lfs-pointers-v30", "empty-info-json", "piper-info-says-105-has-19"])
def test_a_real_recording_that_cannot_be_repaired_is_told_so(name: str, shared_recordings: Path) -> None:
    source = shared_recordings / "broken" / name
    plan = plan_repair(source, quick_check(source))
    assert not plan.possible and plan.impossible[0].what
