"""`zk0desk cache prepare`, as a person, a script and the window see it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zk0desk import cli, settings
from zk0desk.errors import ExitStatus
from zk0desk.settings import Cache, ChosenRecording, Policy, Recordings, Settings


@pytest.fixture
def file(demo_policy: Path, demo_recording: Path, tmp_path: Path) -> Path:
    """A settings file with a policy and a recording of 80 frames."""
    made = tmp_path / "settings.toml"
    chosen = Recordings(chosen=(ChosenRecording(path=demo_recording),))
    settings.save(Settings(policy=Policy(folder=demo_policy), recordings=chosen, cache=Cache(folder=tmp_path / "cache")), made)
    return made


def lines_of(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_it_prepares_all_frames_and_tells_how_far_it_is(file: Path, capsys) -> None:
    assert cli.main(["cache", "prepare", "--settings", str(file), "--json"]) == 0
    said = lines_of(capsys.readouterr().out)
    assert [line.get("event") for line in said[:2]] == ["prefix-chosen", "prepared"]
    assert said[-1]["prepared"]["filled"] == said[-1]["prepared"]["computed"] == 80
    assert cli.main(["cache", "prepare", "--settings", str(file)]) == 0
    out = capsys.readouterr().out
    assert "fits the budget" in out and "80 of 80 frames are prepared, 0 of them now" in out


def test_a_look_keeps_nothing(file: Path, capsys) -> None:
    assert cli.main(["cache", "prepare", "--look", "--settings", str(file)]) == 0
    assert "for 80 frames" in capsys.readouterr().out and not (file.parent / "cache").exists()


def test_a_budget_of_nothing_is_a_limit_and_nothing_chosen_an_error(file: Path, capsys) -> None:
    chosen = settings.load(file)
    settings.save(chosen.model_copy(update={"cache": chosen.cache.model_copy(update={"budget_gb": 0.0})}), file)
    assert cli.main(["cache", "prepare", "--settings", str(file)]) == ExitStatus.REPAIRABLE
    assert "0 of 80 frames" in capsys.readouterr().out
    settings.save(Settings(), file)
    assert cli.main(["cache", "prepare", "--settings", str(file)]) == ExitStatus.USAGE
    assert "No base policy is chosen" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["line", "end of lines", "signal"])
def test_a_stop_ends_it_at_once_with_its_own_status(how: str, file: Path) -> None:
    command = [sys.executable, "-m", "zk0desk", "cache", "prepare", "--settings", str(file), "--json", "--steered"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"pause\n")
        process.stdin.flush()
        said = [json.loads(process.stdout.readline()) for _ in range(2)]  # then it holds
        assert said[1]["done"] == 0
        if how == "line":
            process.stdin.write(b"stop\n")
            process.stdin.flush()
        elif how == "signal":
            process.send_signal(signal.SIGINT)
        else:
            process.stdin.close()
        process.wait(30)
    assert process.returncode == ExitStatus.INTERRUPTED
