"""The table of episodes against the data, and the command that checks to the last frame."""

from __future__ import annotations

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

from tests.training.recording_parts import Table, make_recording
from zk0desk.training.deep_check import deep_check
from zk0desk.training.deep_places import place_findings
from zk0desk.training.episode_table import Episode, Span
from zk0desk.training.recordings import PolicyNeeds, RecordingError, Severity, policy_needs, quick_check

NEEDS = PolicyNeeds(chunk_size=4)
DATA = "data/chunk-000/file-000.parquet"


def episode(number: int, length: int, first: int, start: float = 0.0, path: str = "a.mp4") -> Episode:
    return Episode(number, length, (first, first + length), {"observation.images.top": Span(Path(path), start, start + length / 10)})


GOOD = [episode(0, 6, 0), episode(1, 4, 6, 0.6), episode(2, 5, 10, path="b.mp4")]
HELD = {0: 6, 1: 4, 2: 5}


@pytest.mark.parametrize(
    ("listed", "held", "code", "touched"),
    [
        (GOOD, HELD, "", ()),
        ([], HELD, "", ()),
        ([GOOD[1], GOOD[0], GOOD[2]], HELD, "episodes-unordered", (0, 1)),
        (GOOD, {0: 6, 1: 5, 2: 5}, "lengths-differ", (1,)),
        (GOOD, {0: 6, 1: 4}, "lengths-differ", (2,)),
        ([GOOD[0], episode(1, 4, 5, 0.6), GOOD[2]], HELD, "rows-differ", (1,)),
        ([GOOD[0], episode(1, 4, 6, 0.4), GOOD[2]], HELD, "videos-overlap", (0, 1)),
        # Rounding of half a frame is no overlap, and a gap between two episodes is none.
        ([GOOD[0], episode(1, 4, 6, 0.5999), GOOD[2]], HELD, "", ()),
        ([GOOD[0], episode(1, 4, 6, 2.0), GOOD[2]], HELD, "", ()),
    ],
)
def test_the_table_is_compared_with_the_data(listed: list[Episode], held: dict[int, int], code: str, touched: tuple[int, ...]) -> None:
    found = place_findings(listed, held, 10)
    assert [finding.code for finding in found] == ([code] if code else [])
    assert not found or (found[0].severity, found[0].episodes) == (Severity.BLOCKS, touched)


def other_rows(table: Table) -> None:
    table |= {"dataset_from_index": [0, 5], "dataset_to_index": [5, 10]}


def same_pictures(table: Table) -> None:
    for key in ("top", "wrist"):
        table[f"videos/observation.images.{key}/from_timestamp"] = [0.0, 0.0]


@pytest.mark.parametrize(("change", "code"), [(other_rows, "rows-differ"), (same_pictures, "videos-overlap")])
def test_a_table_of_other_places_blocks(change: Any, code: str, tmp_path: Path) -> None:
    result = deep_check(make_recording(tmp_path / "cubes", episodes=change), NEEDS)
    assert (result.status, [finding.code for finding in result.findings]) == ("unusable", [code])


def test_a_value_that_is_no_number_in_another_vector_names_its_episode_and_frame(tmp_path: Path) -> None:
    def effort(table: Table) -> None:
        values = np.zeros((10, 3), np.float32)
        values[9, 2] = np.nan
        table["observation.effort"] = pa.array(values.tolist(), pa.list_(pa.float32()))

    described = {"dtype": "float32", "shape": [3], "names": None}
    result = deep_check(
        make_recording(tmp_path / "cubes", data=effort, info=lambda i: i["features"].update({"observation.effort": described})), NEEDS
    )
    (finding,) = result.findings
    assert (finding.code, finding.severity, finding.episodes) == ("value-not-finite", Severity.NOTE, (1,))
    assert "observation.effort, frame 3" in finding.why


def test_a_least_value_of_other_data_is_a_note(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    stats = json.loads((folder / "meta/stats.json").read_text())
    stats["action"]["min"][0] -= 5
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    (finding,) = deep_check(folder, NEEDS).findings
    assert (finding.code, finding.severity) == ("statistics-stale", Severity.NOTE)
    assert "least and largest" in finding.why


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError(13, "Permission denied"), "You may not read it"), (OSError(5, "Input/output error"), "Input/output")],
)
def test_a_data_file_that_the_system_refuses_is_not_called_damaged(
    error: OSError, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_recording(tmp_path / "cubes")
    opened = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == folder / DATA:
            raise error
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    result = deep_check(folder, NEEDS)
    finding = result.findings[0]
    assert (result.status, finding.code) == ("unusable", "unreadable")
    assert words in finding.why and "whole parquet" not in finding.why


def test_a_damaged_column_of_the_table_that_only_lerobot_reads_is_told_once(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    with pq.ParquetFile(path) as file:
        column = next(c for c in map(file.metadata.row_group(0).column, range(9)) if c.path_in_schema == "data/file_index")
        start = column.dictionary_page_offset or column.data_page_offset
    raw = bytearray(path.read_bytes())
    raw[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(raw)
    assert quick_check(folder).status == "ok"
    result = deep_check(folder, NEEDS)
    assert (result.status, [finding.code for finding in result.findings]) == ("unusable", ["data-unreadable"])


def test_a_state_that_is_no_number_is_told_by_both_checks(tmp_path: Path) -> None:
    def broken(table: Table) -> None:
        table["observation.state"][7] = np.array([0, np.inf, 0], np.float32)

    folder = make_recording(tmp_path / "cubes", data=broken)
    assert [finding.code for finding in quick_check(folder).findings] == ["state-not-finite"]
    (finding,) = deep_check(folder, NEEDS).findings
    assert (finding.code, finding.severity, finding.episodes) == ("state-not-finite", Severity.BLOCKS, (1,))
    assert "frame 1" in finding.why


@pytest.mark.parametrize("text", ["", "[]", '{"max_state_dim": "many"}', '{"input_features": 7}'])
def test_a_policy_that_cannot_be_read_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RecordingError) as raised:
        policy_needs(tmp_path)
    assert raised.value.code == "policy-unreadable"


# --- the command


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zk0desk", "recordings", "check", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"ZK0DESK_HOME": str(home)}, check=False)


def frame_lost(table: Table) -> None:
    table["frame_index"][8:] += 1
    table["timestamp"][8:] += np.float32(0.1)


def test_the_command_checks_deeply_keeps_its_answer_and_looks_again(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes", data=frame_lost)
    assert run(tmp_path / "home", str(folder)).returncode == 0, "the quick check does not see it"
    done = run(tmp_path / "home", str(folder), "--deep", "--json")
    assert done.returncode == 3, done.stderr
    answer = json.loads(done.stdout)
    finding = next(each for each in answer["findings"] if each["code"] == "frames-gap")
    assert (answer["status"], finding["episodes"]) == ("repairable", [1]), "without that episode it can be used"
    (kept,) = (tmp_path / "home/state/checks").glob("*.json")
    kept.write_text(json.dumps({"findings": []}))
    assert run(tmp_path / "home", str(folder), "--deep").returncode == 0, "the kept answer is given"
    done = run(tmp_path / "home", str(folder), "--deep", "--again")
    assert done.returncode == 3 and "Frames are missing or doubled, in episode 1." in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_the_command_shows_on_a_terminal_how_far_it_is_and_prints_nothing_of_it_elsewhere(tmp_path: Path) -> None:
    import pty

    folder = make_recording(tmp_path / "cubes")
    assert run(tmp_path / "home", str(folder), "--deep", "--again").stderr == ""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "zk0desk", "recordings", "check", str(folder), "--deep", "--again"]
    home = os.environ | {"ZK0DESK_HOME": str(tmp_path / "home")}
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, timeout=120, env=home, check=True)
    os.close(theirs)
    told = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "100 %" in told and "observation.images.top" in told
