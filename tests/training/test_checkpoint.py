"""A round that is cut off goes on from its checkpoint, to the bit what it had been without."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import LocalNode, a_plan
from zk0desk.control import Stopped
from zk0desk.events import Notice, RoundKept, RoundStarted, StepDone
from zk0desk.training.checkpoint import RoundCheckpoint, bytes_a_day, checkpoint_bytes

MakeNode = Callable[..., LocalNode]
ROUND: dict[str, Any] = {"mu": 0.05, "local_steps": 9, "mu_loss_std": 0.0}


def kept_in(folder: Path, every_s: float = 0.0) -> RoundCheckpoint:
    """A checkpoint that saves after every step: none is left out because the one before is still being written."""

    class Patient(RoundCheckpoint):
        @property
        def writing(self) -> bool:
            self._wait()
            return False

    return Patient(folder / "round", every_s)


class Killed(BaseException):
    """The process dies: nothing handles it."""


def cut_off(local_node: MakeNode, folder: Path, after: int, **plan: Any) -> None:
    """Train a round of `ROUND` and die after step `after`."""

    def die(event: object) -> None:
        if isinstance(event, StepDone) and event.round == 2 and event.step == after + 1:
            raise Killed

    node = local_node(on_event=die)
    node.trainer.train(a_plan(round=1, **ROUND), node.start)
    with pytest.raises(Killed):
        node.trainer.train(a_plan(round=2, **ROUND | plan), node.start, kept_in(folder))


def through(local_node: MakeNode) -> tuple[LocalNode, Any]:
    node = local_node()
    node.trainer.train(a_plan(round=1, **ROUND), node.start)
    return node, node.trainer.train(a_plan(round=2, **ROUND), node.start)


def test_a_round_goes_on_bitwise_where_it_was_cut_off(local_node: MakeNode, tmp_path: Path) -> None:
    _, whole = through(local_node)
    cut_off(local_node, tmp_path, after=5)
    node = local_node()
    result = node.trainer.train(a_plan(round=2, deadline=2e9, **ROUND), node.start, kept_in(tmp_path))
    assert [event.done for event in node.told(RoundStarted)] == [5]
    assert [event.step for event in node.told(StepDone)] == [6, 7, 8, 9]
    assert np.array_equal(result.delta, whole.delta)
    assert result.losses == whole.losses
    seconds = ("seconds",)
    assert {k: v for k, v in result.metrics.items() if k not in seconds} == {k: v for k, v in whole.metrics.items() if k not in seconds}


@pytest.mark.parametrize("other", [{"round": 3}, {"seed": 6}, {"lr": 2e-3}, {"batch_size": 4}, {"run": "another"}])
def test_another_round_does_not_take_it_over(local_node: MakeNode, tmp_path: Path, other: dict[str, Any]) -> None:
    cut_off(local_node, tmp_path, after=3)
    node = local_node()
    node.trainer.train(a_plan(**{"round": 2, **ROUND, **other}), node.start, kept_in(tmp_path, every_s=600))
    assert [event.done for event in node.told(RoundStarted)] == [0]
    assert not list(tmp_path.glob("round/*")), "it is of no use to anyone"


def test_other_weights_do_not_take_it_over(local_node: MakeNode, tmp_path: Path) -> None:
    cut_off(local_node, tmp_path, after=3)
    node = local_node()
    node.trainer.train(a_plan(round=2, **ROUND), node.start * np.float32(0.5), kept_in(tmp_path))
    assert [event.done for event in node.told(RoundStarted)] == [0]


@pytest.mark.parametrize("damage", ["cut", "facts", "gone"])
def test_a_damaged_checkpoint_is_left_aside_and_the_round_starts_anew(local_node: MakeNode, tmp_path: Path, damage: str) -> None:
    _, whole = through(local_node)
    cut_off(local_node, tmp_path, after=4)
    (kept,) = (tmp_path / "round").glob("step-*")
    part = min(kept.glob("*.safetensors"))
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:1000])
    elif damage == "facts":
        (kept / "facts.json").write_text("{")
    else:
        part.unlink()
    node = local_node()
    node.trainer.train(a_plan(round=1, **ROUND), node.start)
    result = node.trainer.train(a_plan(round=2, **ROUND), node.start, kept_in(tmp_path))
    assert node.told(RoundStarted)[-1].done == 0
    assert np.array_equal(result.delta, whole.delta)


def test_a_disk_without_room_costs_only_the_safety(local_node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    node = local_node()
    result = node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path))
    assert len(result.losses) == 9
    assert not list((tmp_path / "round").iterdir())
    said = node.told(Notice)
    assert {notice.code for notice in said} == {"round-not-kept"} and "1 GB is left free" in said[0].why


def test_a_stop_while_it_is_written_leaves_no_half_of_it(local_node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training import checkpoint

    monkeypatch.setattr(checkpoint, "PART_BYTES", 1000)
    node, kept = local_node(), RoundCheckpoint(tmp_path / "round", 0.0)
    write, written = checkpoint._write_part, []

    def stop_in_the_middle(path: Path, part: dict[str, Any]) -> None:
        write(path, part)
        written.append(path)
        if len(written) == 3:
            node.control.stop_now()
            assert kept._abandon.wait(30)

    monkeypatch.setattr(checkpoint, "_write_part", stop_in_the_middle)
    with pytest.raises(Stopped):
        node.trainer.train(a_plan(**ROUND), node.start, kept)
    assert len(written) == 3
    assert not list((tmp_path / "round").iterdir())


def test_only_the_newest_stays_and_it_is_not_written_too_often(local_node: MakeNode, tmp_path: Path) -> None:
    node = local_node()
    node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path))
    assert [path.name for path in (tmp_path / "round").iterdir()] == ["step-000000008"], "after the last step comes the update"
    node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path / "seldom", every_s=60))
    assert not (tmp_path / "seldom").exists()


def test_a_pause_keeps_what_was_done(local_node: MakeNode, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def pause(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            node.control.pause()
            threading.Timer(0.5, resume).start()

    def resume() -> None:
        seen.append([path.name for path in (tmp_path / "round").iterdir()])
        node.control.resume()

    node = local_node(on_event=pause)
    node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path, every_s=600))
    assert seen == [["step-000000002"]]


def test_training_goes_on_while_it_is_written_and_what_is_kept_is_of_one_moment(
    local_node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0desk.training import checkpoint

    _, whole = through(local_node)
    write, written, going_on = checkpoint._write_part, [], threading.Event()

    def slowly(path: Path, part: dict[str, Any]) -> None:
        written.append(path)
        if len(written) == 2:
            assert going_on.wait(30), "training waits for the disk"
        write(path, part)

    def watch(event: object) -> None:
        if isinstance(event, StepDone) and event.round == 2:
            if event.step == 5:
                going_on.set()
                kept._wait()
            if event.step == 6:
                raise Killed

    monkeypatch.setattr(checkpoint, "PART_BYTES", 1000)
    monkeypatch.setattr(checkpoint, "_write_part", slowly)
    node, kept = local_node(on_event=watch), RoundCheckpoint(tmp_path / "round", 1e-9)
    monkeypatch.setattr(RoundCheckpoint, "due", property(lambda self: not written))
    node.trainer.train(a_plan(round=1, **ROUND), node.start)
    with pytest.raises(Killed):
        node.trainer.train(a_plan(round=2, **ROUND), node.start, kept)
    again = local_node()
    result = again.trainer.train(a_plan(round=2, **ROUND), again.start, RoundCheckpoint(tmp_path / "round"))
    assert again.told(RoundStarted)[0].done == 1
    assert np.array_equal(result.delta, whole.delta)


def test_without_memory_for_a_copy_training_waits_and_nothing_else_changes(
    local_node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0desk.training import checkpoint

    _, whole = through(local_node)
    monkeypatch.setattr(checkpoint, "usable_memory", lambda: (10**9, 10**9))
    writers: list[str] = []
    write = checkpoint._write_part
    monkeypatch.setattr(checkpoint, "_write_part", lambda *part: (writers.append(threading.current_thread().name), write(*part)))
    cut_off(local_node, tmp_path, after=3)
    assert set(writers) == {threading.current_thread().name}
    node = local_node()
    assert np.array_equal(node.trainer.train(a_plan(round=2, **ROUND), node.start, kept_in(tmp_path)).delta, whole.delta)


def test_a_round_that_goes_on_keeps_its_micro_batch_and_threads_unless_the_operator_sets_others(
    local_node: MakeNode, tmp_path: Path
) -> None:
    import torch

    cut_off(local_node, tmp_path, after=4)
    (facts,) = (tmp_path / "round").glob("*/facts.json")
    memory = json.loads(facts.read_text())["memory"]
    assert (memory["threads"], memory["micro"], memory["level"]) == (1, 0, "off")
    facts.write_text(facts.read_text().replace('"micro": 0', '"micro": 3'))
    used: list[int] = []
    same = local_node(on_event=lambda event: used.append(torch.get_num_threads()) if isinstance(event, StepDone) else None)
    same.trainer._threads = 2  # as on a computer with more cores
    same.trainer.train(a_plan(round=2, **ROUND), same.start, kept_in(tmp_path, every_s=600))
    assert set(used) == {1} and same.trainer.micro_batch == 3
    other = local_node(micro_batch=2)
    other.trainer.train(a_plan(round=2, **ROUND), other.start, kept_in(tmp_path, every_s=600))
    assert other.told(RoundStarted)[0].done == 4 and other.trainer.micro_batch == 2


def test_a_power_cut_costs_at_most_the_setting_or_two_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training import checkpoint

    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    kept = RoundCheckpoint(tmp_path / "round", 60.0)
    kept._cost = 4.0  # it has to stand before the minute is over
    for seconds, due in ((1055.9, False), (1056.0, True)):
        now[0] = seconds
        assert kept.due is due
    kept.goes_on(10_000 - 56)
    assert kept.interval_s == pytest.approx(200)
    assert not kept.due


def test_what_is_written_is_said(local_node: MakeNode, tmp_path: Path) -> None:
    node = local_node()
    node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path))
    size = checkpoint_bytes(node.start.size)
    told = node.told(RoundKept)
    assert [event.step for event in told] == list(range(1, 9)), "after the last of nine comes the update"
    # Beside the weights and moments: the frames seen, and a step number for each parameter.
    assert size < told[-1].bytes < size + 10_000
    assert bytes_a_day(checkpoint_bytes(99_880_992), 60.0) == pytest.approx(1.73e12, rel=0.01)
    assert told[-1].bytes_a_day > told[-1].bytes
