"""Episodes in or out, kept by what the recording holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.recording_parts import LENGTHS, Table, make_recording
from zk0desk import settings as files
from zk0desk.cli import main
from zk0desk.settings import ChosenRecording, Recordings, Settings
from zk0desk.training import curation
from zk0desk.training.chosen_frames import chosen_frames
from zk0desk.training.recordings import Finding, RecordingError, Severity


def second_still(table: Table) -> None:
    """The second episode's arm stands still."""
    state = np.stack(table["observation.state"])
    state[LENGTHS[0] :] = state[LENGTHS[0]]
    table["observation.state"] = list(state)


def other_rows(table: Table) -> None:
    table["action"] = [row + 1 for row in table["action"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_recording(tmp_path / "cubes", data=second_still)


def test_the_content_is_that_of_the_rows_wherever_they_are(folder: Path, tmp_path: Path) -> None:
    word = curation.content_of(folder)
    assert word and curation.content_of(folder) == word
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    folder.rename(tmp_path / "moved")
    assert curation.content_of(tmp_path / "copy") == curation.content_of(tmp_path / "moved") == word
    other = make_recording(tmp_path / "other", data=lambda table: (second_still(table), other_rows(table)))
    assert curation.content_of(other) not in ("", word)
    assert curation.content_of(tmp_path / "nothing") == ""


def test_filters_take_what_the_deep_check_found() -> None:
    findings = [
        Finding("values-jump", Severity.NOTE, "", episodes=(1, 4)),
        Finding("episodes-short", Severity.NOTE, "", episodes=(2,)),
        Finding("statistics-stale", Severity.NOTE, ""),
    ]
    found = curation.proposals(findings, left_out=(4,))
    assert [(each.filter, each.episodes) for each in found] == [("too-short", (2,)), ("jumps", (1,))]


def test_a_moved_recording_keeps_what_was_left_out(folder: Path, tmp_path: Path) -> None:
    content = curation.content_of(folder)
    start = Recordings(chosen=(ChosenRecording(path=folder, cameras={"camera1": "top"}),))
    curated = curation.curate(start, folder, content, {1: "the cube fell"})
    assert curated.chosen[0].leave_out == (1,) and curation.reasons_of(curated, folder, content) == {1: "the cube fell"}
    new = tmp_path / "moved"
    folder.rename(new)
    (moved,) = curation.choose(curated, new, curation.content_of(new)).chosen
    assert moved.path == new and moved.leave_out == (1,) and moved.cameras == {"camera1": "top"}
    curation.require_current(moved)
    assert chosen_frames(moved) == LENGTHS[0]


def test_what_is_given_up_and_chosen_again_is_left_out_again(folder: Path) -> None:
    content = curation.content_of(folder)
    curated = curation.curate(curation.choose(Recordings(), folder, content), folder, content, {0: "too short"})
    given_up = curation.give_up(curated, folder)
    assert given_up.chosen == () and given_up.curated[0].name == "cubes"
    assert curation.reasons_of(given_up, folder, content) == {0: "too short"}
    again = curation.choose(given_up, folder, content)
    assert again.chosen == curated.chosen and again.curated == ()


def test_nothing_is_trained_on_of_a_recording_that_changed(folder: Path) -> None:
    chosen = ChosenRecording(path=folder, leave_out=(1,), content=curation.content_of(folder))
    shutil.rmtree(folder)
    make_recording(folder, data=other_rows)
    with pytest.raises(RecordingError, match="has changed since episodes were left out"):
        chosen_frames(chosen)
    assert chosen_frames(chosen.model_copy(update={"content": ""})) == LENGTHS[0], "a list of numbers by hand holds for any content"


def test_training_refuses_stale_numbers_and_takes_current_ones(demo_policy: Path, folder: Path) -> None:
    from zk0desk.training.frames import Frames
    from zk0desk.training.policy import TrainablePolicy

    policy = TrainablePolicy.load(demo_policy)
    content = curation.content_of(folder)
    assert len(Frames(policy, [ChosenRecording(path=folder, leave_out=(1,), content=content)])) == LENGTHS[0]
    with pytest.raises(RecordingError, match="has changed since"):
        Frames(policy, [ChosenRecording(path=folder, leave_out=(1,), content="another")])


def test_the_node_refuses_stale_numbers_before_it_connects(demo_policy: Path, tmp_path: Path) -> None:
    from zk0desk.federation.node_checks import check_recordings
    from zk0desk.training.policy_files import read_policy

    folder, policy = make_recording(tmp_path / "arm", cameras=("top",)), read_policy(demo_policy)
    for content in (curation.content_of(folder), ""):
        chosen = (ChosenRecording(path=folder, leave_out=(1,), content=content),)
        assert check_recordings(Settings(recordings=Recordings(chosen=chosen)), policy) > 0
    stale = (ChosenRecording(path=folder, leave_out=(1,), content="another"),)
    with pytest.raises(RecordingError, match="has changed since"):
        check_recordings(Settings(recordings=Recordings(chosen=stale)), policy)


reasons = st.dictionaries(st.integers(0, 99), st.text(max_size=20), max_size=6)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["choose", "give-up", "curate"]), reasons), max_size=8))
def test_whatever_is_done_the_last_word_on_a_recording_holds_and_the_file_tells_it(steps: list[tuple[str, str, Any]]) -> None:
    recordings, last = Recordings(), {"a": {}, "b": {}}
    for name, what, out in steps:
        path, content = Path("/nowhere") / name, f"content-{name}"
        if what == "curate":
            recordings = curation.curate(recordings, path, content, out)
            last[name] = out
        elif what == "give-up":
            recordings = curation.give_up(recordings, path)
        elif not any(each.path == path for each in recordings.chosen):
            recordings = curation.choose(recordings, path, content)
    for name, out in last.items():
        assert curation.reasons_of(recordings, Path("/nowhere") / name, f"content-{name}") == out
        assert sum(each.content == f"content-{name}" for each in (*recordings.chosen, *recordings.curated)) <= 1


@given(reasons)
def test_the_file_keeps_every_reason(tmp_path_factory, out: dict[int, str]) -> None:
    path = tmp_path_factory.mktemp("s") / "settings.toml"
    recordings = curation.curate(Recordings(chosen=(ChosenRecording(path=Path("/a")),)), Path("/a"), "word", out)
    recordings = curation.curate(recordings, Path("/b"), "other", out)
    files.save(Settings(recordings=recordings), path)
    assert files.load(path).recordings == recordings


def test_old_settings_with_numbers_only_go_on_working() -> None:
    told = files.parse(Settings, '[[recordings.chosen]]\npath = "/data/cubes"\nleave-out = [3, 7]\n')
    assert told.recordings.chosen[0].leave_out == (3, 7)
    assert curation.reasons_of(told.recordings, Path("/data/cubes"), "any") == {3: "", 7: ""}


# --- the command line


def run(capsys, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main(["recordings", "curate", *arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_the_command_line_proposes_leaves_out_and_takes_back(folder: Path, tmp_path: Path, capsys) -> None:
    settings = ["--settings", str(tmp_path / "settings.toml")]
    files.save(Settings(recordings=Recordings(chosen=(ChosenRecording(path=folder),))), tmp_path / "settings.toml")
    said = run(capsys, str(folder), *settings)
    assert {each["filter"] for each in said["proposals"]} >= {"no-motion"} and said["left-out"] == [] and said["chosen"]
    said = run(capsys, str(folder), *settings, "--no-motion")
    assert said["left-out"] == [{"episode": 1, "reason": "no motion"}]
    kept = (tmp_path / "settings.toml").read_text()
    assert "no motion" in kept and files.load(tmp_path / "settings.toml").recordings.chosen[0].leave_out == (1,)
    said = run(capsys, str(folder), *settings, "--take-back", "1", "--leave-out", "0", "--reason", "a hand in the picture")
    assert said["left-out"] == [{"episode": 0, "reason": "a hand in the picture"}]
    said = run(capsys, str(folder), *settings, "--take-back", "all", "--shorter-than", "0.5")
    assert said["left-out"] == [{"episode": 1, "reason": "shorter than 0.5 s"}]
    assert main(["recordings", "curate", str(folder), *settings, "--leave-out", "0,1"]) == 4
    assert main(["recordings", "curate", str(folder), *settings, "--leave-out", "9"]) == 4
    assert main(["recordings", "curate", str(folder), *settings, "--leave-out", "two"]) == 2
    capsys.readouterr()


def test_the_command_line_asks_about_numbers_of_another_content(folder: Path, tmp_path: Path, capsys) -> None:
    settings = ["--settings", str(tmp_path / "settings.toml")]
    run(capsys, str(folder), *settings, "--leave-out", "1")
    recordings = files.load(tmp_path / "settings.toml").recordings
    files.save(Settings(recordings=curation.choose(recordings, folder, curation.content_of(folder))), tmp_path / "settings.toml")
    shutil.rmtree(folder)
    make_recording(folder, data=other_rows)
    assert run(capsys, str(folder), *settings, status=3)["stale"]
    assert main(["recordings", "curate", str(folder), *settings, "--leave-out", "0"]) == 4
    assert "has changed since" in capsys.readouterr().err
    assert run(capsys, str(folder), *settings, "--keep")["left-out"] == [{"episode": 1, "reason": "left out by hand"}]
    (chosen,) = files.load(tmp_path / "settings.toml").recordings.chosen
    curation.require_current(chosen)
