"""Recordings with several defects at once: all are told, and no remedy is offered that must fail because of another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.training.recording_parts import FPS, Table, make_recording, write_video
from tests.training.test_repairs import make_v2
from zk0desk.training.deep_check import content_key
from zk0desk.training.recording_content import pictures_digest
from zk0desk.training.recording_files import size_on_disk
from zk0desk.training.recordings import CheckResult, Finding, PolicyNeeds, Progress, deep_check, kept_answer, quick_check
from zk0desk.training.repairs import plan_repair, repair

NEEDS = PolicyNeeds(chunk_size=4)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
TOP, WRIST = (f"videos/observation.images.{name}/chunk-000/file-000.mp4" for name in ("top", "wrist"))
DATA, EPISODES, STATS = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/stats.json"


def by_code(result: CheckResult) -> dict[str, Finding]:
    return {finding.code: finding for finding in result.findings}


def no_number(*rows: int) -> Callable[[Table], object]:
    def change(table: Table) -> None:
        for row in rows:
            table["action"][row] = np.array([np.nan, 0, 0], np.float32)

    return change


def wall_clock(table: Table) -> None:
    table["timestamp"] = (table["timestamp"] + np.float32(0.02)).astype(np.float32)


# --- all are told


@pytest.mark.parametrize(
    ("junk", "told"),
    [
        (EPISODES, {"data-unreadable", "action-not-finite", "statistics-missing"}),
        (DATA, {"data-unreadable", "statistics-missing"}),
        ("meta/tasks.parquet", {"data-unreadable", "action-not-finite", "statistics-missing"}),
    ],
)
@pytest.mark.parametrize("check", [quick_check, deep_check])
def test_what_can_be_read_is_looked_at_beside_what_cannot(
    junk: str, told: set[str], check: Callable[..., CheckResult], tmp_path: Path
) -> None:
    folder = make_recording(tmp_path / "cubes", data=no_number(3))
    (folder / junk).write_bytes(b"PAR1 junk")
    (folder / STATS).unlink()
    result = check(folder, NEEDS)
    assert set(by_code(result)) == told
    assert Path(junk).name in result.findings[0].what, "what decides comes first"


def test_each_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    for name in (EPISODES, DATA, "meta/tasks.parquet"):
        (folder / name).write_bytes(b"PAR1 junk")
    said = [finding.what for finding in deep_check(folder, NEEDS).findings]
    assert len(said) == 3 and all(any(word in each for each in said) for word in ("episodes/", "data/", "tasks.parquet"))


def test_two_cameras_that_cannot_be_decoded_are_both_told(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    for name in (TOP, WRIST):
        (folder / name).write_bytes(b"junk" * 1000)
    said = " ".join(finding.what for finding in deep_check(folder, NEEDS).findings)
    assert "video of top" in said and "video of wrist" in said


@pytest.mark.parametrize("name", [TOP, DATA, EPISODES])
def test_a_pointer_is_told_once_and_not_as_damage(name: str, tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    (folder / name).write_text(POINTER)
    assert [finding.code for finding in deep_check(folder, NEEDS).findings] == ["lfs-pointers"]


# --- no remedy that must fail


def test_broken_episodes_are_left_out_and_times_re_laid_in_one_repair(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", data=lambda t: (wall_clock(t), no_number(3)(t)))
    for result in (quick_check(folder, NEEDS), deep_check(folder, NEEDS)):
        found = by_code(result)
        assert found["action-not-finite"].episodes == (0,)
        assert "Leave these episodes out" in found["action-not-finite"].remedy and "Re-lay" in found["timestamps-jitter"].remedy
        assert result.status == "repairable"
    plan = plan_repair(folder, result, NEEDS)
    assert repair(folder, tmp_path / "new", plan).check.status == "ok"


@pytest.mark.parametrize(
    "change",
    [
        {"data": no_number(3, 8)},
        {"data": no_number(3), "info": lambda info: info.update(total_episodes=9)},
        {"data": no_number(3), "info": lambda info: info["features"].pop("observation.state")},
    ],
    ids=["in every episode", "beside counts that differ", "beside a state that is missing"],
)
def test_nothing_is_left_out_where_that_does_not_help(change: dict[str, Any], tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", **change)
    for result in (quick_check(folder, NEEDS), deep_check(folder, NEEDS)):
        assert result.status == "unusable"
        assert not any("eave" in finding.remedy for finding in result.findings if finding.severity == "blocks")
    assert not plan_repair(folder, result, NEEDS).possible


def test_a_video_that_is_missing_names_its_episodes_which_can_be_left_out(tmp_path: Path) -> None:
    folder = make_v2(tmp_path / "old")
    (folder / "videos/chunk-000/observation.images.top/episode_000001.mp4").unlink()
    for result in (quick_check(folder, NEEDS), deep_check(folder, NEEDS)):
        found = by_code(result)
        assert found["video-missing"].episodes == (1,) and "leave these episodes out" in found["video-missing"].remedy
        assert "Convert a copy" in found["version-older"].remedy and result.status == "repairable"
    assert plan_repair(folder, result, NEEDS).left_out.keys() == {1}


def test_a_video_at_another_rate_is_re_encoded_only_where_nothing_else_blocks(tmp_path: Path) -> None:
    def make(name: str, **changes: Any) -> CheckResult:
        folder = make_recording(tmp_path / name, cameras=("top",), **changes)
        os.truncate(folder / TOP, 0)
        write_video_at(folder / TOP, 7)
        return deep_check(folder, NEEDS)

    alone, blocked = make("alone"), make("blocked", info=lambda info: info.update(total_episodes=9))
    assert "Re-encode" in by_code(alone)["video-frames-off"].remedy and alone.status == "repairable"
    assert "Re-encode" not in by_code(blocked)["video-frames-off"].remedy and blocked.status == "unusable"


def write_video_at(path: Path, fps: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8))))
        container.mux(stream.encode(None))


def test_statistics_of_a_v2_recording_that_are_not_its_datas_are_computed_again_after_the_conversion(tmp_path: Path) -> None:
    folder = make_v2(tmp_path / "old")
    assert "statistics-stale" not in by_code(deep_check(folder, NEEDS))
    path = folder / "meta/episodes_stats.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["stats"]["action"]["mean"] = [9.0, 9.0, 9.0]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = deep_check(folder, NEEDS)
    assert set(by_code(result)) == {"version-older", "statistics-stale"}
    plan = plan_repair(folder, result, NEEDS)
    assert [step.code for step in plan.steps] == ["convert", "statistics"]
    assert repair(folder, tmp_path / "new", plan).check.status == "ok"


def test_the_pictures_statistics_need_no_picture_of_an_episode_that_is_left_out(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", cameras=("top",))
    raw = bytearray((folder / TOP).read_bytes())
    with av.open(str(folder / TOP)) as container:
        second = [packet.pos for packet in container.demux(video=0) if packet.pos is not None][1]
    raw[second : second + 200] = b"\xff" * 200
    (folder / TOP).write_bytes(raw)
    result = deep_check(folder, NEEDS)
    if result.status != "repairable":
        pytest.skip("this decoder goes on over it")
    plan = plan_repair(folder, result, NEEDS)
    assert repair(folder, tmp_path / "new", plan).check.status == "ok"


# --- timestamps that no repair may re-lay


def test_timestamps_at_another_rate_are_told_with_the_rate_and_not_re_laid(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", data=lambda t: t.update(timestamp=t["timestamp"] * np.float32(2)))
    result = deep_check(folder, NEEDS)
    finding = by_code(result)["timestamps-unsafe"]
    assert (result.status, finding.episodes) == ("unusable", (0, 1))
    assert "5.00 frames per second, not 10" in finding.why and "recorded at 5 frames per second" in finding.remedy
    assert "Re-lay" not in by_code(result)["timestamps-jitter"].remedy


def test_an_episode_whose_timestamps_are_unsafe_is_left_out_of_the_copy(tmp_path: Path) -> None:
    def held(table: Table) -> None:
        wall_clock(table)
        table["timestamp"][8:] += np.float32(8 / FPS)

    folder = make_recording(tmp_path / "cubes", data=held)
    result = deep_check(folder, NEEDS)
    assert by_code(result)["timestamps-unsafe"].episodes == (1,) and result.status == "repairable"
    plan = plan_repair(folder, result, NEEDS)
    assert plan.left_out.keys() == {1} and [step.code for step in plan.steps] == ["leave-out", "retime", "statistics"]
    assert repair(folder, tmp_path / "new", plan).check.status == "ok"


# --- a disk that goes, and what may not be read


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_disk_that_vanishes_meanwhile_is_told_and_not_files_that_are_missing(share: float, tmp_path: Path) -> None:
    folder = make_v2(tmp_path / "old")

    def vanish(step: Progress) -> None:
        if step.done >= share * step.total and folder.exists():
            folder.rename(tmp_path / "gone")

    result = deep_check(folder, NEEDS, progress=vanish)
    assert (result.status, result.findings[0].code) == ("unusable", "unreadable")
    (tmp_path / "gone").rename(folder)
    assert deep_check(folder, NEEDS).status == "repairable", "what was said is not kept"


@pytest.mark.parametrize("name", ["data", STATS, TOP, DATA])
def test_what_may_not_be_read_is_neither_missing_nor_damaged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_recording(tmp_path / "cubes")
    refuse(folder / name, monkeypatch)
    for result in (quick_check(folder, NEEDS), deep_check(folder, NEEDS)):
        assert [finding.code for finding in result.findings] == ["unreadable"]
        assert "permissions" in result.findings[0].remedy


def refuse(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `place` could not be opened; the tests may run as a user who can open all."""
    import pyarrow.parquet as pq

    def guard(call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(what: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(what, str | os.PathLike) and Path(what) == place:
                raise PermissionError(13, "Permission denied", str(what))
            return call(what, *arguments, **named)

        return guarded

    for owner, call in ((Path, "open"), (Path, "iterdir"), (av, "open"), (pq, "ParquetFile")):
        monkeypatch.setattr(owner, call, guard(getattr(owner, call)))
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()) if self == place else glob(self, pattern))


# --- what is no finding, and what is no file


def test_without_state_and_action_no_episode_repeats_another(tmp_path: Path) -> None:
    def renamed(table: Table) -> None:
        table["a"], table["b"] = table.pop("observation.state"), table.pop("action")

    def described(info: dict[str, Any]) -> None:
        info["features"]["a"], info["features"]["b"] = info["features"].pop("observation.state"), info["features"].pop("action")

    result = deep_check(make_recording(tmp_path / "cubes", info=described, data=renamed), NEEDS)
    assert "episodes-duplicate" not in by_code(result) and {"state-missing", "action-missing"} <= set(by_code(result))


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", ["meta/info.json", STATS, "meta/tasks.parquet", EPISODES, DATA, TOP])
def test_a_pipe_in_a_files_place_is_told_and_never_waited_for(name: str, tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert deep_check(folder, NEEDS).status != "ok"


def test_what_lies_behind_linked_folders_counts(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    size, elsewhere = size_on_disk(folder), tmp_path / "disk"
    elsewhere.mkdir()
    for inner in ("data/chunk-000", "videos/observation.images.top/chunk-000"):
        shutil.move(folder / inner, elsewhere / Path(inner).parts[0])
        (folder / inner).symlink_to(elsewhere / Path(inner).parts[0])
    (elsewhere / "videos/loop").symlink_to(folder)
    assert size <= size_on_disk(folder) <= 2 * size, "a loop ends"
    assert deep_check(folder, NEEDS).status == "ok" and kept_answer(folder, NEEDS) is not None
    key, digest = content_key(folder, NEEDS), pictures_digest(folder, ["observation.images.top"])
    write_video(elsewhere / "videos/file-000.mp4", frames=3)
    assert content_key(folder, NEEDS) != key and pictures_digest(folder, ["observation.images.top"]) != digest
    assert deep_check(folder, NEEDS).status == "unusable", "no answer of the content before"
    assert json.dumps(quick_check(folder, NEEDS).to_json())
