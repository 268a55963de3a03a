"""What is estimated of the prefix cache from files agrees with what the loaded policy says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zk0desk import settings as files
from zk0desk.control import NodeControl
from zk0desk.settings import Cache, ChosenRecording, Policy, Recordings, Settings
from zk0desk.training.prefix_estimate import estimated_choice
from zk0desk.training.prepare import look, prepare_chosen


def settings_of(policy: Path, recordings: Path, cache: Path, **more: object) -> Settings:
    chosen = (ChosenRecording(path=recordings / "node0", leave_out=(1,)), ChosenRecording(path=recordings / "node1"))
    return Settings(policy=Policy(folder=policy), recordings=Recordings(chosen=chosen), cache=Cache(folder=cache, **more))


@pytest.mark.parametrize("level", ["V", "P"])
def test_it_agrees_with_the_policy_itself(level: str, demo_policy: Path, recordings: Path, tmp_path: Path) -> None:
    settings = settings_of(demo_policy, recordings, tmp_path / "cache", level=level)
    guess, seen = estimated_choice(settings), look(settings, control=NodeControl())
    assert guess is not None and (guess.level, guess.reason.partition(";")[0]) == (level, seen.reason.partition(";")[0])
    assert guess.bytes == pytest.approx(seen.bytes, rel=0.05)
    assert guess.gain == seen.gain


def test_what_is_kept_counts_as_room(demo_policy: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(demo_policy, recordings, tmp_path / "cache", level="V")
    prepare_chosen(settings, emit=lambda _event: None, control=NodeControl())
    monkeypatch.setattr("zk0desk.training.prefix_estimate.KEEP_FREE", 10**18)  # a disk without room
    guess = estimated_choice(settings)
    assert guess is not None and guess.share == 1.0
    elsewhere = settings.model_copy(update={"cache": Cache(folder=tmp_path / "empty", level="V")})
    none = estimated_choice(elsewhere)
    assert none is not None and none.level == "N" and "free on the disk" in none.reason


def test_without_a_policy_or_with_a_broken_one_there_is_none(recordings: Path, demo_policy: Path, tmp_path: Path) -> None:
    assert estimated_choice(Settings()) is None
    (tmp_path / "config.json").write_text("{}")
    assert estimated_choice(settings_of(tmp_path, recordings, tmp_path / "cache")) is None
    assert estimated_choice(settings_of(demo_policy, tmp_path / "gone", tmp_path / "cache")) is None


def test_it_loads_no_torch(demo_policy: Path, recordings: Path, tmp_path: Path) -> None:
    files.save(settings_of(demo_policy, recordings, tmp_path / "cache"), tmp_path / "settings.toml")
    code = (
        "import sys; from pathlib import Path; from zk0desk import settings;"
        "from zk0desk.training.prefix_estimate import estimated_choice;"
        f"found = estimated_choice(settings.load(Path({str(tmp_path / 'settings.toml')!r})));"
        "print(found.level, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split()[1] == "False"
