"""The frames that a chosen recording gives, without those of episodes that are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from zk0desk.settings import ChosenRecording
from zk0desk.training.chosen_frames import chosen_frames
from zk0desk.training.recordings import RecordingError


def test_frames_of_episodes_that_are_left_out_do_not_count(demo_recording: Path) -> None:
    counts = [chosen_frames(ChosenRecording(path=demo_recording, leave_out=left_out)) for left_out in ((), (0,), (1,), (0, 1), (7,))]
    assert counts == [80, 40, 40, 0, 80]


def test_episodes_of_other_lengths_count_by_their_own(shared_recordings: Path) -> None:
    whole, without = (chosen_frames(ChosenRecording(path=shared_recordings / "cr5-cube", leave_out=left_out)) for left_out in ((), (2,)))
    assert whole == 530 and 0 < whole - without < 530 and whole - without != 530 / 5


def test_a_recording_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordingError):
        chosen_frames(ChosenRecording(path=tmp_path / "gone"))
