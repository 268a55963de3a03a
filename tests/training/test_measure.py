"""Real steps are timed on the real recordings, at the level that a run would have; nothing but the estimate is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zk0desk.control import NodeControl, Stopped
from zk0desk.events import Event, Notice, StepDone
from zk0desk.settings import Cache, ChosenRecording, Policy, Recordings, Settings, Training
from zk0desk.training import timed_steps
from zk0desk.training.estimate import Estimate
from zk0desk.training.hardware import Computer, Verdict
from zk0desk.training.kept_estimates import camera_sizes, expected_choice, kept
from zk0desk.training.measure import measure
from zk0desk.training.policy_files import read_policy
from zk0desk.training.prepare import prepare_chosen
from zk0desk.training.rounds import RoundPlan
from zk0desk.training.timed_steps import MeasureError

PLAN = RoundPlan(run="", round=1, rounds=3, seed=0, lr=1e-4, mu=0.01, batch_size=16, local_epochs=20.0)
CPU = Training(device="cpu", threads=1)
FRAMES = 2 * 20 + 2 * 18


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"


@pytest.fixture
def chosen(recordings: Path) -> tuple[ChosenRecording, ...]:
    return tuple(ChosenRecording(path=recordings / name) for name in ("node0", "node1"))


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each round that is timed: entries that were found, and that were asked for."""
    seen: list[tuple[int, int]] = []
    train = timed_steps.Rounds.train

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        steps = train(self, *args, **more)
        seen.append((steps.hits, steps.asked))
        return steps

    monkeypatch.setattr(timed_steps.Rounds, "train", watched)
    return seen


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is in a folder: when it was changed, and its content."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_lerobots_own_steps_are_measured_and_the_estimate_is_kept(
    demo_policy: Path, chosen: tuple[ChosenRecording, ...], home: Path
) -> None:
    before = (demo_policy / "model.safetensors").read_bytes()
    told: list[Event] = []
    found = measure(demo_policy, chosen, CPU, Cache(level="off"), PLAN, control=NodeControl(), emit=told.append)
    assert (found.device, found.precision, found.batch, found.frames) == ("cpu", "fp32", 16, FRAMES)
    assert (found.level, found.expected, found.prepare_s) == ("off", "off", 0.0)
    assert found.policy_id == read_policy(demo_policy).policy_id
    assert found.cameras == camera_sizes(demo_policy, chosen) and len(found.cameras) == 2
    assert 0 < found.compute_s < 60 and 0 <= found.frame_s <= found.compute_s / 16 and found.decode_s > 0 and 0 <= found.waiting < 1
    assert found.peak_memory > 10**8 and found.stays
    assert {type(event) for event in told} == {StepDone}
    assert (demo_policy / "model.safetensors").read_bytes() == before and not (home / "cache" / "frames").exists()
    assert looked_up(found) == found


@pytest.mark.parametrize("level", ["V", "P"])
def test_first_and_later_visits_are_measured_apart_and_the_operators_cache_is_left_alone(
    level: Any, demo_policy: Path, chosen: tuple[ChosenRecording, ...], tmp_path: Path, visits: list[tuple[int, int]]
) -> None:
    cache = Cache(folder=tmp_path / "cache", level=level)
    settings = Settings(policy=Policy(folder=demo_policy), recordings=Recordings(chosen=chosen), training=CPU, cache=cache)
    prepare_chosen(settings, emit=lambda _event: None, control=NodeControl())
    before, inside = files(tmp_path / "cache"), sorted(path.name for path in (tmp_path / "cache").iterdir())
    found = measure(demo_policy, chosen, CPU, cache, PLAN, control=NodeControl(), emit=lambda _event: None)
    assert (found.level, found.expected, found.batch, found.share) == (level, level, 16, 1.0)
    assert found.start_s > 0 and found.compute_s > 0 and found.prepare_s >= 0
    (none, four), again, (few, first), later, fewer = visits
    assert (none, four) == (0, 4) and again == (4, 4)
    assert (few, first) in ((4, 3 * 16), (4, 4 * 16)) and later == (first, first) and fewer[0] == fewer[1] > 0
    assert files(tmp_path / "cache") == before and sorted(path.name for path in (tmp_path / "cache").iterdir()) == inside
    assert looked_up(found) == found


def test_a_budget_that_is_too_small_shows_in_the_estimate_and_not_in_the_measurement(
    demo_policy: Path, chosen: tuple[ChosenRecording, ...], visits: list[tuple[int, int]], home: Path
) -> None:
    whole = expected_choice(demo_policy, chosen[:1], CPU, Cache(level="P"))
    assert whole is not None
    small = Cache(level="P", budget_gb=whole.bytes / 2e9)
    found = measure(demo_policy, chosen[:1], CPU, small, PLAN, control=NodeControl(), emit=lambda _event: None)
    assert found.level == "P" and found.share == pytest.approx(0.5, abs=0.05)
    assert visits[3][0] == visits[3][1] > 20, "later visits find all that the measurement kept"
    assert not (home / "cache" / "frames").exists()


@pytest.mark.parametrize("level", ["off", "P"])
def test_measuring_can_be_stopped_and_then_nothing_is_left(
    level: Any, demo_policy: Path, chosen: tuple[ChosenRecording, ...], home: Path
) -> None:
    control, folders = NodeControl(), []

    def stop(_event: Event) -> None:
        folders.extend((home / "cache").rglob(".measuring-*"))
        control.stop_now()

    with pytest.raises(Stopped):
        measure(demo_policy, chosen, CPU, Cache(level=level), PLAN, control=control, emit=stop)
    assert len(folders) == (level == "P") and not (home / "cache" / "frames").exists()
    assert not (home / "state" / "estimates.json").exists()


def test_a_step_that_differs_from_lerobots_is_not_measured_but_lerobots_own_is(
    demo_policy: Path, chosen: tuple[ChosenRecording, ...], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0desk.training import prefix_forward

    right, told = prefix_forward.frozen_prefix, []

    def wrong(*args: Any) -> Any:
        prefix = right(*args)
        return replace(prefix, keys=[prefix.keys[0] * 1.05, *prefix.keys[1:]])

    monkeypatch.setattr(prefix_forward, "frozen_prefix", wrong)
    found = measure(demo_policy, chosen[:1], CPU, Cache(level="P"), PLAN, control=NodeControl(), emit=told.append)
    assert (found.level, found.expected, found.prepare_s) == ("off", "P", 0.0)
    assert [event.code for event in told if isinstance(event, Notice)] == ["prefix-differs"]
    assert looked_up(found) == found and not (home / "cache" / "frames").exists()


def test_a_disk_without_room_or_a_folder_that_cannot_be_written_is_told(
    demo_policy: Path, chosen: tuple[ChosenRecording, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def measured(cache: Cache) -> None:
        measure(demo_policy, chosen[:1], CPU, cache, PLAN, control=NodeControl(), emit=lambda _event: None)

    (tmp_path / "file").write_text("")
    with pytest.raises(MeasureError, match="Nothing can be written into the folder of prepared frames"):
        measured(Cache(level="P", folder=tmp_path / "file"))
    monkeypatch.setattr(timed_steps, "KEEP_FREE", 10**18)
    with pytest.raises(MeasureError, match="no room to prepare a few frames"):
        measured(Cache(level="P"))
    assert not (home / "cache" / "frames").exists() and not (home / "state" / "estimates.json").exists()


def looked_up(estimate: Estimate) -> Estimate | None:
    computer = Computer("Linux", estimate.device_name, 8, (), 32 * 10**9, 24 * 10**9, 10**11, {})
    return kept(estimate.policy_id, estimate.cameras, estimate.frames, computer, Verdict("ok", "", "cpu", 0), estimate.expected)
