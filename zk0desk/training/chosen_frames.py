"""How many frames a chosen recording (format v3.0) gives, counted from its description. Never imports torch."""

from __future__ import annotations

from zk0desk.settings import ChosenRecording
from zk0desk.training.curation import require_current
from zk0desk.training.recording_files import parquet_files, read_table
from zk0desk.training.recordings import read_recording


def chosen_frames(chosen: ChosenRecording) -> int:
    """Frames of the episodes that are not left out. `RecordingError` where the recording or its table of episodes cannot be read."""
    recording = read_recording(chosen.path)
    if not chosen.leave_out:
        return recording.frames
    require_current(chosen)
    rows = [
        row
        for path in parquet_files(chosen.path / "meta" / "episodes")
        for row in read_table(path, ["episode_index", "length"]).to_pylist()
    ]  # fmt: skip
    return recording.frames - sum(int(row["length"]) for row in rows if row["episode_index"] in chosen.leave_out)
