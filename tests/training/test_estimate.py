"""How long a round takes: put together from measured steps, told, kept, and corrected by what training took."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zk0desk import folders
from zk0desk.amounts import duration
from zk0desk.events import Event, PrefixChosen, RoundStarted, RoundTimes, RoundTrained, StepDone
from zk0desk.settings import Cache, ChosenRecording
from zk0desk.training.asked_round import AskedRound
from zk0desk.training.estimate import Estimate
from zk0desk.training.hardware import Computer, Gpu, Verdict
from zk0desk.training.kept_estimates import Learning, keep, kept, with_what_is_prepared
from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.training.prefix_level import LevelChoice
from zk0desk.training.rounds import RoundPlan

GB = 10**9
A = Estimate(
    device="cuda", device_name="NVIDIA RTX 4070", precision="bf16", policy_id="0123456789abcdef", cameras=("320x240",), level="off",
    expected="off", frames=640, batch=64, micro_batch=64, steps=8, compute_s=1.0, frame_s=0.015, wait_s=0.1, decode_s=0.02,
    prepare_s=0.0, start_s=0.0, picture_bytes=230_400, peak_memory=9 * GB, date=1_700_000_000.0,
)  # fmt: skip
P = replace(A, level="P", expected="P", compute_s=0.5, frame_s=0.007, wait_s=0.0, decode_s=0.001, prepare_s=0.2, start_s=6.0)
"""A step of 0.5 s; 640 frames take 128 s to prepare."""
COMPUTER = Computer(
    system="Linux 6.8 x86_64", cpu="Some processor", cores=8, instructions=("avx2",), memory=32 * GB, memory_free=24 * GB,
    disk_free=200 * GB, versions={}, gpus=(Gpu("cuda", "NVIDIA RTX 4070", 12 * GB, 11 * GB, "580.65.06", (8, 9)),),
)  # fmt: skip
ANSWER = Verdict("ok", "", "cuda:0", 0, precision="bf16")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"


def look(expected: str = "off", frames: int = 640) -> Estimate | None:
    return kept(A.policy_id, A.cameras, frames, COMPUTER, ANSWER, expected)


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


# --- over prepared frames


def test_a_first_round_prepares_its_frames_once_and_checks_the_step_and_later_rounds_do_neither() -> None:
    later = 200 * 0.5
    assert P.round_seconds(plan(epochs=20), seen=True) == pytest.approx(later)
    assert P.round_seconds(plan(epochs=20)) == pytest.approx(6 + 640 * 0.2 + later)
    assert list(P.rounds_seconds(3, plan(epochs=20))) == pytest.approx([6 + 128 + later, later, later])
    assert P.run_seconds(3, plan(epochs=20)) == pytest.approx(134 + 3 * later)
    assert P.later_seconds(3, plan(epochs=20)) == pytest.approx(later) == P.later_seconds(1, plan(epochs=20))


def test_frames_that_are_prepared_already_cost_the_first_round_nothing() -> None:
    half, all_of_them = replace(P, prepared=320), replace(P, prepared=640)
    assert half.round_seconds(plan()) == pytest.approx(6 + 64 + 5) and half.new_frames(plan()) == 320
    assert all_of_them.round_seconds(plan()) == pytest.approx(6 + 5) and all_of_them.new_frames(plan()) == 0
    assert replace(P, prepared=1000).round_seconds(plan()) == pytest.approx(6 + 5), "entries of episodes that are left out now"


def test_while_rounds_meet_new_frames_they_prepare_them() -> None:
    # 5 steps of 64 of 640 frames: half of them in a round; of the next half, half is new.
    seconds = list(P.rounds_seconds(4, plan(steps=5)))
    assert seconds == pytest.approx([6 + 64 + 2.5, 32 + 2.5, 16 + 2.5, 8 + 2.5])
    assert P.later_seconds(4, plan(steps=5)) == pytest.approx((32 + 16 + 8) / 3 + 2.5)


def test_frames_that_do_not_fit_are_prepared_at_each_visit() -> None:
    part = replace(P, share=0.75)
    assert part.round_seconds(plan(epochs=2)) == pytest.approx(6 + 0.2 * (480 + 2 * 160) + 10)
    assert part.round_seconds(plan(epochs=2), seen=True) == pytest.approx(0.2 * 2 * 160 + 10)
    assert part.new_frames(plan(epochs=2)) == 480


def test_a_prepared_frame_is_never_decoded_again_however_large_the_recordings_are() -> None:
    many = replace(P, frames=64_000, decode_s=0.3)
    assert many.stays and many.round_seconds(plan(epochs=2), seen=True) == pytest.approx(2000 * 0.5)
    # Decoding goes on beside preparing and training: only what is longer than both adds to the round.
    first = 6 + 2000 * 0.5 + 64_000 * 0.2 + (64_000 * 0.3 - 64_000 * 0.2 - 1000 * 0.5)
    assert many.round_seconds(plan(epochs=2)) == pytest.approx(first)
    assert not replace(many, level="N").stays and not replace(many, level="off").stays


def test_what_is_done_of_a_first_round_in_a_time_is_little_while_it_prepares() -> None:
    # A pass takes 5 s, and the first one 128 s more.
    assert P.share_done(plan(epochs=20), 6 + 0.5 * 133) == pytest.approx(0.5 / 20, abs=1e-6)
    assert P.share_done(plan(epochs=20), 6 + 133 + 9 * 5) == pytest.approx(0.5, abs=1e-6)
    assert P.share_done(plan(epochs=20), 10**6) == pytest.approx(1) and P.share_done(plan(epochs=20), 1) == pytest.approx(0)


def test_the_first_round_is_told_beside_later_ones_with_the_level_and_why() -> None:
    said = AskedRound(plan(epochs=20), 3600).sentence(P)
    assert said == (
        "The first round takes about 4 min, 2 min of it to prepare 640 frames, 6 s to begin and check the step; later rounds take about"
        " 2 min; the federation allows 60 min. 3 rounds take about 7 min of training. Level P: all that follows from pictures is kept."
    )
    ready = AskedRound(plan(epochs=20), 0).sentence(replace(P, prepared=640, start_s=0.2))
    assert ready.startswith("A round takes about 2 min; the federation sets no limit. ") and "Level P" in ready
    part = AskedRound(plan(epochs=20), 0, transfer_s=30).sentence(replace(P, share=0.75, level="V"))
    assert ", 30 s to send the update; later" in part and part.endswith(
        "Level V, for 75% of the frames: the embeddings of pictures are kept."
    )
    assert AskedRound(plan(epochs=20), 0).sentence(A).endswith("Level off: LeRobot's own step, no frame is prepared.")


def test_a_first_round_that_is_too_long_for_its_preparing_can_be_prepared_before_joining() -> None:
    asked = AskedRound(plan(epochs=20), 120)
    finding = asked.finding(P)
    assert finding is not None and finding.why == "About 4% of the first will be done, which counts."
    assert finding.remedy.startswith("Prepare the frames before you join")
    assert asked.finding(replace(P, prepared=640)) is None
    never = AskedRound(plan(epochs=20), 60).finding(P)
    assert never is not None and never.remedy.startswith("Choose fewer recordings"), "later rounds do not fit either"


# --- told


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


def round_events(*, missed: int = 0, asked: int = 0, level: str = "") -> list[Event]:
    """A round of 8 steps of 64 frames that take 3 s each, with pauses between them."""
    chosen = [PrefixChosen(run="r", level=level, reason="")] if level else []
    steps = [
        StepDone(
            run="r", round=1, step=n, steps=8, epoch=1, loss=1, proximal=0, grad_norm=1, lr=1e-4, mu=0.01, frames=64, seconds=3.0,
            time=n * 1000.0,
        )
        for n in range(8)
    ]  # fmt: skip
    return [
        RoundStarted(run="r", round=1, rounds=1, lr=1e-4, mu=0.01, steps=8, epochs=1, batch_size=64, frames=640),
        *chosen,
        *steps,
        RoundTimes(run="r", round=1, seconds={}, hits=asked - missed, asked=asked),
        RoundTrained(run="r", round=1, metrics={}),
    ]


def test_what_a_round_took_corrects_the_kept_estimate_whatever_the_pauses() -> None:
    told: list[Event] = []
    learning, events = Learning(told.append), round_events()
    for event in events:
        learning(event)
    assert told == events and look() is None, "nothing was measured"
    keep(A)
    learning.watch(A.key)
    for event in events:
        learning(event)
    found = look()
    assert found is not None and found.trained_steps == 8 and found.factor == pytest.approx(2.0)


def test_a_round_in_which_frames_were_prepared_teaches_nothing() -> None:
    keep(P)
    learning = Learning(lambda _event: None)
    learning.watch(A.key)  # before the level is chosen
    for event in round_events(level="P", asked=512, missed=1):
        learning(event)
    assert look("P") == P
    for event in round_events(asked=512):
        learning(event)
    found = look("P")
    assert found is not None and found.trained_steps == 8 and found.factor > 2


def test_a_round_at_another_level_teaches_nothing() -> None:
    keep(P)
    learning = Learning(lambda _event: None)
    learning.watch(P.key)
    for event in round_events(level="off"):
        learning(event)
    assert look("P") == P


# --- kept


def test_an_estimate_is_kept_for_its_device_precision_policy_and_cameras(home: Path) -> None:
    keep(A)
    found = look()
    assert found == A and stat.S_IMODE((home / "state" / "estimates.json").stat().st_mode) == 0o600
    assert look(frames=900) == replace(A, frames=900)
    for other in (replace(ANSWER, precision="fp32"), replace(ANSWER, device="cpu")):
        assert kept(A.policy_id, A.cameras, 640, COMPUTER, other, "off") is None
    assert kept("another", A.cameras, 640, COMPUTER, ANSWER, "off") is None
    assert kept(A.policy_id, ("640x480+640x480",), 640, COMPUTER, ANSWER, "off") is None


def test_an_estimate_of_a_level_is_never_used_for_another() -> None:
    keep(P)
    assert P.key != A.key and look("off") is None and look("V") is None and look("P") == P
    keep(A)
    assert look("off") == A and look("P") == P


def test_what_was_measured_when_the_same_was_expected_is_used_whatever_level_it_had_in_the_end() -> None:
    keep(P)
    fallen_back = replace(A, expected="P", date=A.date + 1)  # its step differed from LeRobot's
    keep(fallen_back)
    assert look("P") == fallen_back
    keep(replace(P, date=A.date + 2))
    assert look("P") == replace(P, date=A.date + 2)
    keep(replace(P, expected="V", date=A.date + 3))
    assert look("V") == replace(P, expected="V", date=A.date + 3)


def test_frames_that_the_operators_cache_holds_are_counted_from_its_files(recordings: Path, tmp_path: Path) -> None:
    chosen, folder = [ChosenRecording(path=recordings / name) for name in ("node0", "node1")], tmp_path / "cache"

    def shelf(cache: PrefixCache, name: str, rows: int, entries: int = 40, **about: str) -> None:
        said = {"recording": name, "path": str(recordings / name), "level": "P", "policy": P.policy_id, "task": "push", **about}
        made = cache.shelf({"about": said, "entries": entries}, entries, (8,), "float16", said)
        made.write(range(rows), np.ones((rows, 8), np.float16))

    with PrefixCache(folder, keep_free=0) as cache:
        shelf(cache, "node0", 25)
        shelf(cache, "node0", 7, task="lift")
        shelf(cache, "node1", 30, entries=36)
        shelf(cache, "node1", 20, entries=35)  # before it grew
        shelf(cache, "node0", 40, level="V")
        shelf(cache, "node0", 40, policy="another")
        shelf(cache, "held-out", 20)
    expected = LevelChoice("P", "", share=0.9)
    found = with_what_is_prepared(replace(P, frames=76), chosen, Cache(folder=folder), expected)
    assert (found.prepared, found.share) == (25 + 7 + 30, 0.9)
    assert with_what_is_prepared(replace(P, frames=50), chosen, Cache(folder=folder), expected).prepared == 50
    assert with_what_is_prepared(A, chosen, Cache(folder=folder), expected) == A


def test_the_newest_estimate_takes_the_place_of_an_older_one_and_others_stay(home: Path) -> None:
    other = replace(A, policy_id="fedcba9876543210")
    keep(A)
    keep(other)
    keep(replace(A, compute_s=2.0, date=A.date + 1))
    found = look()
    assert found is not None and found.compute_s == 2.0
    assert kept(other.policy_id, A.cameras, 640, COMPUTER, ANSWER, "off") == other
    assert len(json.loads((home / "state" / "estimates.json").read_text())) == 2


def test_an_estimate_of_an_older_version_is_passed_over(home: Path) -> None:
    old = {
        key: value for key, value in A.to_json().items() if key not in ("level", "expected", "prepare-s", "start-s", "prepared", "share")
    }
    folders.private_folder(home / "state")
    (home / "state" / "estimates.json").write_text(json.dumps([old, P.to_json()]))
    assert look("off") is None and look("P") == P
    keep(A)
    assert look("off") == A and len(json.loads((home / "state" / "estimates.json").read_text())) == 2


@pytest.mark.parametrize("text", ["", "{", "{}", "[1, null]", '[{"device": "cpu"}]'])
def test_a_damaged_file_of_estimates_is_as_none_and_is_written_anew(home: Path, text: str) -> None:
    folders.private_folder(home / "state")
    (home / "state" / "estimates.json").write_text(text)
    assert look() is None
    keep(A)
    assert look() == A


def test_an_estimate_comes_back_from_json_as_it_was() -> None:
    assert Estimate.from_json(json.loads(json.dumps(A.to_json()))) == A
    with pytest.raises(ValueError, match="no estimate"):
        Estimate.from_json({**A.to_json(), "batch": 0})
    with pytest.raises(ValueError, match="no estimate"):
        Estimate.from_json({**A.to_json(), "level": "Q"})
