"""Memory that is to stay free: how many frames are computed at once for it, and what the verdict on a described computer says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.training.test_hardware import GB, PLAIN, RTX
from zk0desk.control import NodeControl
from zk0desk.settings import ChosenRecording
from zk0desk.training import memory_reserve
from zk0desk.training.hardware import PARAMETERS, TRAINABLE, memory_needed, verdict
from zk0desk.training.memory_reserve import fits_on, frames_at_once
from zk0desk.training.policy_size import LIBRARIES
from zk0desk.training.rounds import RoundFailedError

SMOLVLA = SimpleNamespace(parameters=PARAMETERS, trainable_parameters=TRAINABLE)


@pytest.fixture
def cpu():
    import torch

    return torch.device("cpu")


def on_cpu(monkeypatch: pytest.MonkeyPatch, device, *, room: float, wanted: int = 0, leave: float = 0.0, told: list | None = None) -> int:
    """Frames at once on a processor that has `room` bytes for training, nothing kept free."""
    monkeypatch.setattr(memory_reserve, "_shared_budget", lambda leave: int(room - leave))
    return frames_at_once(SMOLVLA, device, wanted, leave, bf16=False, emit=(told if told is not None else []).append)


def test_nothing_to_keep_free_changes_nothing(cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_cpu(monkeypatch, cpu, room=1) == 0
    assert on_cpu(monkeypatch, cpu, room=1, wanted=7) == 7


def test_the_frames_at_once_are_halved_until_the_memory_stays_free(cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    room = memory_needed(frames=16) + 1
    assert on_cpu(monkeypatch, cpu, room=room + 2 * GB, leave=2.0) == 16
    assert on_cpu(monkeypatch, cpu, room=room + 2 * GB, leave=2.1) == 8
    assert on_cpu(monkeypatch, cpu, room=room + 2 * GB, leave=2.0, wanted=12) == 12
    assert on_cpu(monkeypatch, cpu, room=memory_needed(frames=5000) + GB, leave=1.0) == 0, "the whole of any batch fits"


def test_on_a_processor_one_frame_is_trained_all_the_same_and_it_is_told(cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list = []
    assert on_cpu(monkeypatch, cpu, room=8 * GB, leave=7.5, told=told) == 1
    (notice,) = told
    assert notice.code == "memory-kept-free" and "500 MB" not in notice.what and notice.what.startswith("0.5 GB of memory is left")
    assert "Memory free in Settings" in notice.remedy


def test_the_trainer_keeps_it_free(demo_policy, demo_recording, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.trainer import LocalTrainer

    policy = TrainablePolicy.load(demo_policy)
    files = policy.files
    room = memory_needed(files.parameters, files.trainable_parameters, frames=4) + 1
    monkeypatch.setattr(memory_reserve, "_shared_budget", lambda leave: room + GB - leave)
    chosen = [ChosenRecording(path=demo_recording)]
    made = [
        LocalTrainer(policy, chosen, node="a", device="cpu", memory_free=leave, emit=lambda _: None, control=NodeControl())
        for leave in (0.0, 1.0)
    ]
    assert [trainer.micro_batch for trainer in made] == [0, 4]


def test_what_this_process_holds_counts_as_memory_that_it_may_use() -> None:
    import psutil

    budget, free = memory_reserve._shared_budget(GB), psutil.virtual_memory().available
    assert budget < free + psutil.Process().memory_info().rss - LIBRARIES - GB + GB // 4


def test_the_verdict_on_a_gpu_keeps_it_free() -> None:
    computer = replace(PLAIN, gpus=(RTX,))
    plain, kept = verdict(computer), verdict(computer, memory_free=4)
    assert kept.device == plain.device == "cuda:0" and kept.micro_batch < plain.micro_batch
    assert kept.memory_needed + kept.memory_left <= RTX.memory_free - 4 * GB
    refused = verdict(computer, memory_free=10)
    assert refused.device == "cpu" and [finding.code for finding in refused.findings][0] == "memory-kept-free"
    assert "10.0 GB of NVIDIA RTX 4070's memory is to stay free" in refused.sentence and "Leave less of it free." in refused.sentence


def test_the_verdict_on_a_processor_keeps_it_free() -> None:
    computer = replace(PLAIN, memory=8 * GB, memory_free=7 * GB)
    assert verdict(computer).micro_batch == 2
    found = verdict(computer, memory_free=1.1)
    assert (found.micro_batch, found.answer) == (1, "limits")
    assert "7.0 GB of memory is free, 1.1 GB of it to stay so; 2 frames at once need 6.0 GB." in found.sentence
    assert "leave less of it free" in found.sentence
    found = verdict(computer, memory_free=3)
    assert found.findings[0].code == "memory-kept-free" and found.answer == "limits"


def test_the_verdict_follows_the_chosen_frames_at_once() -> None:
    gpu, cpu = replace(PLAIN, gpus=(RTX,)), PLAIN
    assert verdict(gpu, micro_batch=4).micro_batch == 4 and verdict(gpu, micro_batch=4).memory_left > verdict(gpu).memory_left
    assert verdict(cpu, micro_batch=8).micro_batch == 8
    assert verdict(gpu, micro_batch=4, batch=2).micro_batch == 2


def test_auto_takes_no_gpu_whose_memory_is_too_small_as_the_verdict_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from zk0desk.training.devices import choose_device

    free, told = [11 * GB], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 12 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)

    def chosen(wanted: str = "auto", leave: float = 0.0) -> str:
        return choose_device(wanted, lambda gpu: fits_on(gpu, SMOLVLA, leave, bf16=True, emit=told.append)).type

    assert chosen() == "cuda" and not told
    assert chosen(leave=9.0) == "cpu" and told[-1].code == "gpu-memory"
    free[0] = int(2.1 * GB)
    assert chosen() == "cpu" and "2.1 GB" in told[-1].what
    assert verdict(replace(PLAIN, gpus=(replace(RTX, memory_free=free[0]),))).device == "cpu"
    assert chosen("cuda") == "cuda", "who asks for it gets it"


def test_a_device_that_is_asked_for_and_not_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for computer, why in ((PLAIN, "No such GPU"), (replace(PLAIN, gpus=(replace(RTX, driver="470.82"),)), "older than CUDA 13")):
        answer = verdict(computer, device="cuda")
        assert (answer.answer, answer.findings[0].code) == ("no", "device-missing"), "the trainer refuses, too"
        assert why in answer.findings[0].why and "device = auto" in answer.findings[0].remedy
    assert "Install 580" in answer.findings[0].remedy
    assert verdict(replace(PLAIN, gpus=(RTX,)), device="cuda").answer == "ok"


def test_on_cuda_torch_is_given_the_rest_and_too_little_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    given: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * GB, 12 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: given.append(fraction))
    gpu = torch.device("cuda", 0)
    assert frames_at_once(SMOLVLA, gpu, 0, 4.0, bf16=True, emit=lambda _: None) == 16
    assert frames_at_once(SMOLVLA, gpu, 8, 4.0, bf16=True, emit=lambda _: None) == 8
    assert given == [pytest.approx(6 / 12)] * 2, "9 free and 1 that torch holds already, less 4, of 12"
    assert frames_at_once(SMOLVLA, gpu, 0, 0.0, bf16=True, emit=lambda _: None) == 0 and given[-1] == 1.0
    with pytest.raises(RoundFailedError, match=r"1\.0 GB of memory is left for training when 9\.0 GB stay free"):
        frames_at_once(SMOLVLA, gpu, 0, 9.0, bf16=True, emit=lambda _: None)
