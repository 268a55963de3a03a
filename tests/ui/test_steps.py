"""The way in: which step is done, which is next, and which cannot be taken on this computer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.federation.coordinator_parts import make_policy, make_server
from zk0desk.errors import OperatorError
from zk0desk.federation.consent import consent_digest
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings
from zk0desk.training.hardware import Computer, Gpu, verdict
from zk0desk.ui.hardware_look import Asked, HardwareLook
from zk0desk.ui.pages.steps import Stepper, steps_of
from zk0desk.ui.widgets import IconLabel, Text

GB = 10**9
COMPUTER = Computer(
    system="Linux 6.8 x86_64", cpu="Some processor", cores=8, instructions=("avx", "avx2"), memory=32 * GB, memory_free=24 * GB,
    disk_free=200 * GB, versions={"torch": "2.11.0", "lerobot": "0.6.1", "flwr": "1.41.0"},
    gpus=(Gpu("cuda", "NVIDIA RTX 4070", 12 * GB, 11 * GB, "580.65.06", (8, 9)),),
)  # fmt: skip


def look(folder: Path, computer: Computer = COMPUTER, trouble: OperatorError | None = None) -> HardwareLook:
    return HardwareLook(Asked(folder), computer, verdict(computer), None, trouble)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    invitation = make_server(tmp_path / "coordinator", batch_size=64).invitation(9443)
    return Settings(
        recordings=Recordings(chosen=(ChosenRecording(path=tmp_path / "arm"),)),
        policy=Policy(folder=make_policy(tmp_path / "policy")),
        federation=Federation(invitation=invitation.to_line(), consent=consent_digest(invitation)),
    )


def folder(settings: Settings) -> Path:
    assert settings.policy.folder is not None
    return settings.policy.folder


def test_all_is_done_but_joining(settings: Settings) -> None:
    steps = steps_of(settings, look(folder(settings)), agreed=True)
    assert [step.done for step in steps] == [True, True, True, True, False]
    assert not any(step.blocked or step.warning or step.fails for step in steps)


def test_consent_is_asked_again_although_the_settings_hold_an_earlier_one(settings: Settings) -> None:
    assert settings.federation.consent
    assert [step.done for step in steps_of(settings, look(folder(settings)))] == [True, True, True, False, False]


def test_a_computer_that_cannot_train_blocks_join_and_says_what_to_do(settings: Settings) -> None:
    small = replace(COMPUTER, gpus=(), memory=GB, memory_free=GB)
    steps = steps_of(settings, look(folder(settings), small))
    assert steps[1].fails and not steps[1].done and "Training needs" in steps[1].blocked and "Use a computer" in steps[1].blocked
    assert steps[4].blocked == "The steps before it are not done."


def test_a_computer_with_limits_warns_and_blocks_nothing(settings: Settings) -> None:
    steps = steps_of(settings, look(folder(settings), replace(COMPUTER, gpus=())), agreed=True)
    assert steps[1].done and "trains on the processor" in steps[1].warning and not steps[4].blocked


def test_what_was_seen_with_another_policy_does_not_count(settings: Settings, tmp_path: Path) -> None:
    on_cpu = replace(look(folder(settings)), asked=Asked(settings.policy.folder, "cpu"))
    for seen in (None, look(tmp_path / "another"), on_cpu):
        step = steps_of(settings, seen)[1]
        assert not step.done and step.blocked == "This computer is being looked at."


def test_a_policy_that_cannot_be_read_blocks(settings: Settings) -> None:
    step = steps_of(settings, look(folder(settings), trouble=OperatorError("It is damaged.", "A tensor is cut.", "Fetch it again.")))[1]
    assert step.fails and "It is damaged." in step.blocked and "Fetch it again." in step.blocked


def test_the_row_shows_limits_and_failure_by_sign_and_word(settings: Settings, qtbot) -> None:
    stepper = Stepper()
    qtbot.addWidget(stepper)
    for computer, sign, word in (
        (replace(COMPUTER, gpus=(), memory=GB), "close-circle", "not possible"),
        (replace(COMPUTER, gpus=()), "alert-circle", "done, with limits"),
        (COMPUTER, "check-circle", "done"),
    ):
        stepper.show_steps(steps_of(settings, look(folder(settings), computer)))
        row = [stepper.layout().itemAt(n).widget() for n in range(stepper.layout().count() - 1)]
        icons = [each for each in row if isinstance(each, IconLabel)]
        texts = [each for each in row if isinstance(each, Text) and each.text() != "—"]
        assert icons[1].name == sign and f"Step 2, This computer: {word}." in texts[1].accessibleName()
