"""How long a round takes: measured on real steps, put together, kept, and corrected by what training took."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zk0desk import folders
from zk0desk.control import NodeControl, Stopped
from zk0desk.events import Event, RoundStarted, RoundTrained, StepDone
from zk0desk.settings import ChosenRecording, Training
from zk0desk.training.asked_round import AskedRound
from zk0desk.training.estimate import Estimate, duration, measure
from zk0desk.training.hardware import Computer, Gpu, Verdict
from zk0desk.training.kept_estimates import Learning, camera_sizes, keep, kept
from zk0desk.training.policy_files import read_policy
from zk0desk.training.rounds import RoundPlan

GB = 10**9
A = Estimate(
    device="cuda", device_name="NVIDIA RTX 4070", precision="bf16", policy_id="0123456789abcdef", cameras=("320x240",), frames=640,
    batch=64, micro_batch=64, steps=8, compute_s=1.0, frame_s=0.015, wait_s=0.1, decode_s=0.02, picture_bytes=230_400, peak_memory=9 * GB,
    date=1_700_000_000.0,
)  # fmt: skip
COMPUTER = Computer(
    system="Linux 6.8 x86_64", cpu="Some processor", cores=8, instructions=("avx2",), memory=32 * GB, memory_free=24 * GB,
    disk_free=200 * GB, versions={}, gpus=(Gpu("cuda", "NVIDIA RTX 4070", 12 * GB, 11 * GB, "580.65.06", (8, 9)),),
)  # fmt: skip
ANSWER = Verdict("ok", "", "cuda:0", 0, precision="bf16")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"


def plan(batch: int = 64, epochs: float = 1.0, steps: int = 0) -> RoundPlan:
    return RoundPlan(run="r", round=1, rounds=3, seed=0, lr=1e-4, mu=0.01, batch_size=batch, local_epochs=epochs, local_steps=steps)


# --- put together


def test_a_round_is_its_steps_computing_and_waiting() -> None:
    assert A.round_seconds(plan(epochs=20), seen=True) == pytest.approx(200 * 1.1)
    assert A.round_seconds(plan(steps=7), seen=True) == pytest.approx(7 * 1.1)
    assert A.waiting == pytest.approx(0.1 / 1.1) and A.frames_per_second == pytest.approx(64 / 1.1)


def test_a_smaller_batch_saves_only_what_depends_on_its_frames() -> None:
    # 1 s for 64 frames of which each adds 15 ms: 40 ms are the optimiser's, whatever the batch.
    assert A.round_seconds(plan(batch=16, steps=1), seen=True) == pytest.approx(0.04 + 16 * (0.015 + 0.1 / 64))
    assert A.round_seconds(plan(batch=16), seen=True) > A.round_seconds(plan(batch=64), seen=True)


def test_a_pass_whose_last_batch_is_short_counts_its_frames_and_not_a_whole_batch() -> None:
    a = replace(A, frames=96, wait_s=0.0)
    assert a.round_seconds(plan(), seen=True) == pytest.approx(2 * 0.04 + 96 * 0.015)


def test_pictures_are_decoded_once_beside_training_and_each_time_where_they_do_not_stay() -> None:
    assert A.round_seconds(plan(epochs=2)) == pytest.approx(20 * 1.1 + 640 * 0.02 - 11)
    assert replace(A, decode_s=0.01).round_seconds(plan(epochs=2)) == pytest.approx(20 * 1.1), "it takes less than training on them"
    many = replace(A, frames=64_000, decode_s=0.05)
    assert not many.stays and many.round_seconds(plan(steps=10)) == pytest.approx(11)
    assert A.run_seconds(3, plan()) == pytest.approx(3 * 11 + 640 * 0.02 - 11)


@pytest.mark.parametrize(
    ("deadline", "sentence"),
    [
        (3600, "A round takes about 38 min; the federation allows 60 min."),
        (1200, "A round takes about 38 min; the federation allows 20 min: about 53% of it will be done, which counts."),
    ],
)
def test_a_round_is_told_against_the_deadline(deadline: float, sentence: str) -> None:
    asked, a = AskedRound(plan(epochs=20), deadline), replace(A, compute_s=2280 / 200 - 0.1, decode_s=0.0)
    assert asked.sentence(a).startswith(sentence) and asked.fits(a) == (deadline == 3600)
    assert [asked.finding(a) is None, AskedRound(plan(epochs=20), 0).fits(a)] == [deadline == 3600, True]


def test_sending_the_update_counts_to_a_rounds_time() -> None:
    asked, a = AskedRound(plan(epochs=20), 2400, transfer_s=300), replace(A, compute_s=2280 / 200 - 0.1, decode_s=0.0)
    assert asked.sentence(a).startswith(
        "A round takes about 43 min, 5 min of it to send the update; the federation allows 40 min: about 92%"
    )
    finding = asked.finding(a)
    assert finding is not None and finding.severity == "repairable" and finding.why.startswith("About 92% of it will be done")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (44.6, "45 s"), (130, "2 min"), (2280, "38 min"), (7800, "2 h 10 min"), (7200, "2 h"), (180_000, "50 h")],
)
def test_a_duration_is_told_as_a_person_does(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- corrected


def test_real_training_corrects_what_was_measured_and_counts_by_its_steps() -> None:
    slower = A.corrected(400, 400 * 2.2)
    assert slower.step_seconds == pytest.approx(2.2, rel=0.03) and slower.trained_steps == 400
    assert A.corrected(8, 8 * 2.2).step_seconds == pytest.approx(1.65)
    again = slower.corrected(400, 400 * 1.1)
    assert 1.1 < again.step_seconds < 2.2
    assert A.corrected(10, 10 * A.round_seconds(plan(batch=16, steps=1), seen=True), batch=16) == replace(A, trained_steps=10)
    assert A.corrected(0, 5.0) is A and A.corrected(5, 0.0) is A


def test_a_computer_that_changed_is_learned_anew_in_the_end() -> None:
    estimate = A.corrected(1_000_000, 1_000_000 * 1.1)
    for _ in range(30):
        estimate = estimate.corrected(500, 500 * 3.3)
    assert estimate.step_seconds == pytest.approx(3.3, rel=0.02)


def test_what_a_round_took_corrects_the_kept_estimate_whatever_the_pauses() -> None:
    told: list[Event] = []
    learning = Learning(told.append)
    events = [
        RoundStarted(run="r", round=1, rounds=1, lr=1e-4, mu=0.01, steps=8, epochs=1, batch_size=64, frames=640),
        *(
            StepDone(
                run="r", round=1, step=n, steps=8, epoch=1, loss=1, proximal=0, grad_norm=1, lr=1e-4, mu=0.01, frames=64, seconds=3.0,
                time=n * 1000.0,
            )
            for n in range(8)
        ),
        RoundTrained(run="r", round=1, metrics={}),
    ]  # fmt: skip
    for event in events:
        learning(event)
    assert told == events and kept(A.policy_id, A.cameras, 640, COMPUTER, ANSWER) is None, "nothing was measured"
    keep(A)
    learning.watch(A.key)
    for event in events:
        learning(event)
    found = kept(A.policy_id, A.cameras, 640, COMPUTER, ANSWER)
    assert found is not None and found.trained_steps == 8 and found.factor == pytest.approx(2.0)


# --- kept


def test_an_estimate_is_kept_for_its_device_precision_policy_and_cameras(home: Path) -> None:
    keep(A)
    found = kept(A.policy_id, A.cameras, 640, COMPUTER, ANSWER)
    assert found == A and stat.S_IMODE((home / "state" / "estimates.json").stat().st_mode) == 0o600
    assert kept(A.policy_id, A.cameras, 900, COMPUTER, ANSWER) == replace(A, frames=900)
    for other in (replace(ANSWER, precision="fp32"), replace(ANSWER, device="cpu")):
        assert kept(A.policy_id, A.cameras, 640, COMPUTER, other) is None
    assert kept("another", A.cameras, 640, COMPUTER, ANSWER) is None
    assert kept(A.policy_id, ("640x480+640x480",), 640, COMPUTER, ANSWER) is None


def test_the_newest_estimate_takes_the_place_of_an_older_one_and_others_stay(home: Path) -> None:
    other = replace(A, policy_id="fedcba9876543210")
    keep(A)
    keep(other)
    keep(replace(A, compute_s=2.0, date=A.date + 1))
    found = kept(A.policy_id, A.cameras, 640, COMPUTER, ANSWER)
    assert found is not None and found.compute_s == 2.0
    assert kept(other.policy_id, A.cameras, 640, COMPUTER, ANSWER) == other
    assert len(json.loads((home / "state" / "estimates.json").read_text())) == 2


@pytest.mark.parametrize("text", ["", "{", "{}", "[1, null]", '[{"device": "cpu"}]'])
def test_a_damaged_file_of_estimates_is_as_none_and_is_written_anew(home: Path, text: str) -> None:
    folders.private_folder(home / "state")
    (home / "state" / "estimates.json").write_text(text)
    assert kept(A.policy_id, A.cameras, 640, COMPUTER, ANSWER) is None
    keep(A)
    assert kept(A.policy_id, A.cameras, 640, COMPUTER, ANSWER) == A


def test_an_estimate_comes_back_from_json_as_it_was() -> None:
    assert Estimate.from_json(json.loads(json.dumps(A.to_json()))) == A
    with pytest.raises(ValueError, match="no estimate"):
        Estimate.from_json({**A.to_json(), "batch": 0})


# --- measured


def test_real_steps_are_measured_on_the_real_recording_and_the_estimate_is_kept(demo_policy: Path, recordings: Path) -> None:
    chosen = [ChosenRecording(path=recordings / "node0"), ChosenRecording(path=recordings / "node1")]
    before = (demo_policy / "model.safetensors").read_bytes()
    told: list[Event] = []
    found = measure(demo_policy, chosen, Training(device="cpu", threads=1), batch_size=16, control=NodeControl(), emit=told.append)
    assert (found.device, found.precision, found.batch, found.frames) == ("cpu", "fp32", 16, 76)
    assert found.policy_id == read_policy(demo_policy).policy_id
    assert found.cameras == camera_sizes(demo_policy, chosen) and len(found.cameras) == 2
    assert 0 < found.compute_s < 60 and 0 <= found.frame_s <= found.compute_s / 16 and found.decode_s > 0 and 0 <= found.waiting < 1
    assert found.peak_memory > 10**8 and found.stays
    assert {type(event) for event in told} == {StepDone}
    assert (demo_policy / "model.safetensors").read_bytes() == before
    computer = replace(COMPUTER, cpu=found.device_name)
    assert kept(found.policy_id, found.cameras, 76, computer, Verdict("ok", "", "cpu", 0)) == found


def test_measuring_can_be_stopped_and_then_nothing_is_kept(demo_policy: Path, recordings: Path, home: Path) -> None:
    control = NodeControl()
    chosen = [ChosenRecording(path=recordings / "node0")]
    with pytest.raises(Stopped):
        measure(demo_policy, chosen, Training(device="cpu", threads=1), control=control, emit=lambda _: control.stop_now())
    assert not (home / "state" / "estimates.json").exists()
