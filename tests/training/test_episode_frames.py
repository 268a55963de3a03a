"""The pictures and numbers of an episode: the right frame, in whatever order it is asked for."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.training.recording_parts import LENGTHS, make_recording
from zk0desk.training.episode_frames import EpisodeFrames, list_episodes
from zk0desk.training.recordings import RecordingError

TOP = "observation.images.top"


def frames_of(folder: Path, number: int) -> EpisodeFrames:
    listed = list_episodes(folder)
    return EpisodeFrames(folder, listed.episodes[number], listed.info)


def grey(picture: np.ndarray) -> float:
    return float(picture.mean())


def test_a_frame_in_the_middle_of_a_shared_file_is_the_right_one(tmp_path: Path) -> None:
    frames = frames_of(make_recording(tmp_path / "r"), 1)
    for number in (2, 0, 3, 1):
        picture = frames.picture(TOP, number)
        assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8
        assert abs(grey(picture) - 20 * (LENGTHS[0] + number)) < 5
    frames.close()
    assert abs(grey(frames.picture(TOP, 0)) - 20 * LENGTHS[0]) < 5, "it opens again"
    frames.close()


def test_random_order_gives_what_sequential_order_gives(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "r")
    steady, jumping = frames_of(folder, 0), frames_of(folder, 0)
    expected = [steady.picture(TOP, number) for number in range(LENGTHS[0])]
    assert steady._videos[TOP].seeks == 1, "one after the other is decoded without seeking"
    order = [number for number in range(LENGTHS[0]) for _ in range(3)]
    random.Random(0).shuffle(order)
    for number in order:
        jumping._videos.get(TOP) and jumping._videos[TOP]._kept.clear()  # what is kept would hide a wrong seek
        assert np.array_equal(jumping.picture(TOP, number), expected[number])
    steady.close()
    jumping.close()


def test_a_picture_is_made_no_wider_than_asked(tmp_path: Path) -> None:
    frames = frames_of(make_recording(tmp_path / "r"), 0)
    assert frames.picture(TOP, 0, 32).shape == (24, 32, 3)
    assert frames.picture(TOP, 0, 640).shape == (48, 64, 3)
    frames.close()


def test_states_and_actions_are_those_of_the_episode(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "r")
    rows = frames_of(folder, 1).rows()
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet").slice(LENGTHS[0])
    assert np.allclose(rows.state, table.column("observation.state").to_pylist())
    assert np.allclose(rows.action, table.column("action").to_pylist())
    assert rows.state_names == rows.action_names == ("joint_0.pos", "joint_1.pos", "joint_2.pos")


def test_episodes_carry_their_instructions(tmp_path: Path) -> None:
    listed = list_episodes(make_recording(tmp_path / "r"))
    assert [episode.length for episode in listed.episodes] == list(LENGTHS)
    assert listed.tasks == {0: ("Put the cube into the box.",), 1: ("Put the cube into the box.",)}


def test_what_cannot_be_played_is_said(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "r")
    (folder / f"videos/{TOP}/chunk-000/file-000.mp4").write_bytes(b"no video" * 500)
    frames = frames_of(folder, 0)
    with pytest.raises(RecordingError, match="cannot be played"):
        frames.picture(TOP, 0)
    with pytest.raises(IndexError):
        frames.picture(TOP, LENGTHS[0])
    with pytest.raises(RecordingError, match="no camera"):
        frames.picture("observation.images.other", 0)
    frames.close()
    shutil.rmtree(folder / "meta/episodes")
    with pytest.raises(RecordingError, match="no episodes"):
        list_episodes(folder)


def test_a_video_that_ends_too_early_is_said(tmp_path: Path) -> None:
    def later(table):
        for key in ("from_timestamp", "to_timestamp"):
            table[f"videos/{TOP}/{key}"][1] += 0.2

    frames = frames_of(make_recording(tmp_path / "r", episodes=later), 1)
    assert abs(grey(frames.picture(TOP, 0)) - 20 * (LENGTHS[0] + 2)) < 5
    with pytest.raises(RecordingError, match="cannot be played"):
        frames.picture(TOP, 3)
    assert abs(grey(frames.picture(TOP, 1)) - 20 * (LENGTHS[0] + 3)) < 5, "what is there can still be seen"
    frames.close()


def test_pictures_in_the_table_are_those_of_the_episode(tmp_path: Path) -> None:
    def embedded(info):
        info["features"][TOP] |= {"dtype": "image", "info": None}

    folder = make_recording(tmp_path / "r", info=embedded)
    path = folder / "data/chunk-000/file-000.parquet"
    pictures = []
    for number in range(sum(LENGTHS)):
        raw = io.BytesIO()
        Image.new("RGB", (64, 48), (20 * number,) * 3).save(raw, "PNG")
        pictures.append({"bytes": raw.getvalue(), "path": None})
    pq.write_table(pq.read_table(path).append_column(TOP, pa.array(pictures)), path)
    frames = frames_of(folder, 1)
    assert grey(frames.picture(TOP, 2)) == 20 * (LENGTHS[0] + 2)
    assert frames.picture(TOP, 2, 32).shape == (24, 32, 3)


def test_real_recordings_can_be_looked_at(shared_recordings: Path) -> None:
    for name in ("cr5-cube", "cr5-cube-v21"):
        if not (shared_recordings / name / "meta/info.json").is_file():
            continue
        frames = frames_of(shared_recordings / name, 1)
        camera = frames.cameras[0]
        assert frames.picture(camera, frames.episode.length // 2).ndim == 3
        assert len(frames.rows().state) == frames.episode.length
        frames.close()
