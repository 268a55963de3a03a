"""A round that is cut off goes on from its checkpoint, to the bit what it had been without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import LocalNode, a_plan
from zk0desk.control import Stopped
from zk0desk.events import RoundStarted, StepDone
from zk0desk.training.checkpoint import RoundCheckpoint

MakeNode = Callable[..., LocalNode]
ROUND: dict[str, Any] = {"mu": 0.05, "local_steps": 9, "mu_loss_std": 0.0}


def kept_in(folder: Path, every_s: float = 0.0) -> RoundCheckpoint:
    return RoundCheckpoint(folder / "round", every_s, share=0)


def cut_off(local_node: MakeNode, folder: Path, after: int, **plan: Any) -> None:
    """Train a round of `ROUND` and die after step `after`: with an exception that nothing handles."""

    class Killed(BaseException):
        pass

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
    node.trainer.train(a_plan(**{"round": 2, **ROUND, **other}), node.start, kept_in(tmp_path))
    assert [event.done for event in node.told(RoundStarted)] == [0]


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


def test_a_stop_while_it_is_written_leaves_no_half_of_it(local_node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training import checkpoint

    monkeypatch.setattr(checkpoint, "PART_BYTES", 1000)
    node = local_node()
    write, written = checkpoint._write_part, []

    def stop_in_the_middle(path: Path, part: dict[str, Any]) -> None:
        write(path, part)
        written.append(path)
        if len(written) == 3:
            node.control.stop_now()

    monkeypatch.setattr(checkpoint, "_write_part", stop_in_the_middle)
    with pytest.raises(Stopped):
        node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path))
    assert len(written) == 3
    assert not list((tmp_path / "round").iterdir())


def test_only_the_newest_stays_and_it_is_not_written_too_often(local_node: MakeNode, tmp_path: Path) -> None:
    node = local_node()
    node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path))
    assert [path.name for path in (tmp_path / "round").iterdir()] == ["step-000000009"]
    node.trainer.train(a_plan(**ROUND), node.start, kept_in(tmp_path / "seldom", every_s=60))
    assert not (tmp_path / "seldom").exists()


def test_a_pause_keeps_what_was_done(local_node: MakeNode, tmp_path: Path) -> None:
    import threading

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
