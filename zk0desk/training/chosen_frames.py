"""How many frames a chosen recording gives, counted from its description. Never imports torch."""

from __future__ import annotations

from zk0desk.settings import ChosenRecording
from zk0desk.training.recording_files import parquet_files, read_lines, read_table
from zk0desk.training.recordings import read_recording


def chosen_frames(chosen: ChosenRecording) -> int:
    """Frames of the episodes that are not left out. `RecordingError` where the recording or its table of episodes cannot be read."""
    recording = read_recording(chosen.path)
    if not chosen.leave_out:
        return recording.frames
    files = parquet_files(chosen.path / "meta" / "episodes")
    rows = [row for path in files for row in read_table(path, ["episode_index", "length"]).to_pylist()]
    if not files:
        rows = list(read_lines(chosen.path / "meta" / "episodes.jsonl"))
    left_out = sum(int(row["length"]) for row in rows if row.get("episode_index") in chosen.leave_out)
    return recording.frames - left_out
