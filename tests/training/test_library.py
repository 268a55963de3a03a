"""The library: searched, filtered and sorted, from the command line too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.recording_parts import make_recording
from zk0desk.cli import main
from zk0desk.training.library import HEALTHS, NO_ROBOT, ORDERS, Entry, View, arrange, choices
from zk0desk.training.recordings import Camera, CheckResult, Recording


def entry(name: str, status: str = "ok", robot: str = "so101", changed: float = 0.0, **facts: object) -> Entry:
    told = {"episodes": 3, "frames": 90, "duration": 9.0, "bytes_on_disk": 1000, "tasks": ("put the cube away",)} | facts
    cameras = told.pop("cameras", ("top",))
    recording = Recording(
        path=Path("/data") / name, name=name, robot=robot, version="v3.0", fps=10.0, state_names=(), action_names=(), state_dim=3,
        action_dim=3, cameras=tuple(Camera(f"observation.images.{each}", 64, 48, "av1") for each in cameras), **told,
    )  # type: ignore[arg-type,union-attr]  # fmt: skip
    return Entry(CheckResult(recording.path, recording, status), changed)  # type: ignore[arg-type]


def names(entries: list[Entry]) -> list[str]:
    return [each.name for each in entries]


ALL = [
    entry("cups", episodes=9, duration=30.0, bytes_on_disk=5, changed=3.0, cameras=("top", "wrist")),
    entry("Apples", "unusable", robot="", episodes=1, duration=90.0, bytes_on_disk=9, changed=1.0),
    entry("books", "repairable", robot="koch", episodes=4, duration=10.0, bytes_on_disk=7, changed=2.0, tasks=("sort the books",)),
]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("name", ["Apples", "books", "cups"]),
        ("robot", ["books", "cups", "Apples"]),
        ("episodes", ["cups", "books", "Apples"]),
        ("duration", ["Apples", "cups", "books"]),
        ("size", ["Apples", "books", "cups"]),
        ("health", ["cups", "books", "Apples"]),
        ("date", ["cups", "books", "Apples"]),
    ],
)
def test_each_order_begins_with_what_one_looks_for(order: str, expected: list[str]) -> None:
    assert names(arrange(ALL, View(order=order))) == expected  # type: ignore[arg-type]
    assert names(arrange(ALL, View(order=order, reverse=True))) == expected[::-1]  # type: ignore[arg-type]


def test_all_words_of_a_search_have_to_be_there_in_any_of_the_facts() -> None:
    for search, found in (("KOCH sort", ["books"]), ("wrist", ["cups"]), ("/data ap", ["Apples"]), ("koch cups", []), (" ", 3)):
        listed = names(arrange(ALL, View(search)))
        assert len(listed) == found if isinstance(found, int) else listed == found, search


def test_filters_let_through_what_has_one_of_each() -> None:
    assert names(arrange(ALL, View(healths=frozenset({"ok", "unusable"})))) == ["Apples", "cups"]
    assert names(arrange(ALL, View(robots=frozenset({NO_ROBOT})))) == ["Apples"]
    assert names(arrange(ALL, View(cameras=frozenset({"wrist"}), healths=frozenset({"repairable"})))) == []
    found = choices(ALL)
    assert list(found.healths) == list(HEALTHS) and found.robots == {"koch": 1, "not named": 1, "so101": 1}
    assert found.cameras == {"top": 3, "wrist": 1}


entries = st.lists(
    st.builds(
        entry, st.text(max_size=6), st.sampled_from(HEALTHS), st.sampled_from(["", "so101", "koch"]), st.floats(0, 1e9),
        episodes=st.integers(0, 50), duration=st.floats(0, 1e6), bytes_on_disk=st.integers(0, 10**12),
        cameras=st.lists(st.sampled_from(["top", "wrist", "side"]), max_size=3, unique=True),
    ),
    max_size=12,
)  # fmt: skip


@given(entries, st.text(max_size=4), st.sampled_from(ORDERS), st.booleans(), st.frozensets(st.sampled_from(HEALTHS)))
def test_whatever_is_asked_nothing_is_lost_doubled_or_invented(listed, search, order, reverse, healths) -> None:
    shown = arrange(listed, View(search, order, reverse, healths))
    assert all(listed.count(each) >= shown.count(each) for each in shown)
    assert sorted(names(arrange(listed, View(order=order, reverse=reverse)))) == sorted(names(listed))
    asked = search.casefold().split()
    for each in listed:
        wanted = (not healths or each.result.status in healths) and all(word in each.words for word in asked)
        assert wanted == (each in shown)


def test_the_command_line_sorts_and_filters_too(tmp_path: Path, capsys) -> None:
    make_recording(tmp_path / "a")
    make_recording(tmp_path / "b", cameras=("side",), info=lambda info: info.update(robot_type="koch"))

    def listed(*options: str) -> list[str]:
        assert main(["recordings", "list", str(tmp_path), "--json", *options]) == 0
        return [each["recording"]["name"] for each in json.loads(capsys.readouterr().out)]

    assert listed("--sort", "robot") == ["a", "b"] and listed("--robot", "koch") == ["b"] and listed("--camera", "top") == ["a"]
    assert listed("--search", "side") == ["b"] and listed("--health", "unusable") == []
    assert main(["recordings", "list", str(tmp_path), "--health", "unusable"]) == 0
    assert "None of the 2 recordings" in capsys.readouterr().out
    assert main(["recordings", "list", "--sort", "colour"]) == 2
