"""The page about this computer: the verdict in words, what was seen, and the base policy with its fingerprints."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QPushButton

from tests.federation.node_parts import invitation
from tests.federation.test_probe import answering
from tests.ui.page_parts import settle, words
from zk0desk import settings as files
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings, Training
from zk0desk.training import hardware, load_look
from zk0desk.training.decoder import decoder_of
from zk0desk.training.hardware import Computer, Gpu
from zk0desk.training.load_look import DeviceLoad
from zk0desk.training.policy_files import read_policy
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages import devices_card
from zk0desk.ui.pages.computer import ComputerPage
from zk0desk.ui.widgets import FindingRow

GB = 10**9
WORKSTATION = Computer(
    system="Linux 6.8 x86_64",
    cpu="Some processor",
    cores=8,
    instructions=("avx", "avx2", "fma"),
    memory=32 * GB,
    memory_free=24 * GB,
    disk_free=200 * GB,
    versions={"torch": "2.11.0", "lerobot": "0.6.1", "flwr": "1.41.0"},
    gpus=(Gpu("cuda", "NVIDIA RTX 4070", 12 * GB, 11 * GB, "580.65.06", (8, 9)),),
)


@pytest.fixture
def model(tmp_path: Path, qapp) -> Iterator[AppModel]:
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


def open_page(model: AppModel, qtbot) -> ComputerPage:
    """The page after it has looked."""
    page = ComputerPage(model)
    qtbot.addWidget(page)
    page.resize(1084, 740)
    page.show()
    qtbot.waitExposed(page)
    looked(page, qtbot)
    return page


def looked(page: ComputerPage, qtbot) -> None:
    qtbot.waitUntil(lambda: page.computer is not None and page.again.isEnabled(), timeout=60_000)
    settle(qtbot)


def described(monkeypatch: pytest.MonkeyPatch, computer: Computer) -> None:
    monkeypatch.setattr(hardware, "inspect_computer", lambda: computer)


def test_this_very_computer_is_told(model: AppModel, qtbot) -> None:
    page = open_page(model, qtbot)
    told = dict(page.rows())
    assert told["Processor"] and "free" in told["Memory"] and "free" in told["Disk"] and "torch" in told["Versions"]
    assert page.verdict is not None and "Choose the base policy's folder." in page.header.answer.text()


def test_a_gpu_is_told_with_its_memory_and_driver(model: AppModel, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    assert page.badge.text() == "Ready" and "Memory, disk, drivers and versions are as training needs them." in words(page)
    told = dict(page.rows())
    assert "NVIDIA RTX 4070" in told["GPU"] and "driver 580.65.06" in told["GPU"]
    assert told["Instructions"] == "avx, avx2, fma" and "8 cores" in told["Processor"]


def test_a_missing_engine_is_explained_and_the_page_lives(model: AppModel, qtbot, monkeypatch) -> None:
    described(monkeypatch, replace(WORKSTATION, versions={"torch": "", "lerobot": "", "flwr": ""}))
    page = open_page(model, qtbot)
    assert page.verdict is not None and page.verdict.findings
    for finding in page.verdict.findings:
        assert finding.what in words(page) and finding.remedy in words(page)
    assert page.badge.text() != "Ready" and "torch not installed" in dict(page.rows())["Versions"]


def test_the_device_of_the_settings_is_judged_and_another_one_anew(model: AppModel, demo_policy: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    model.update_settings(Settings(policy=Policy(folder=demo_policy), training=Training(device="cpu")))
    page = open_page(model, qtbot)
    assert "on the processor" in page.header.answer.text()
    model.update_settings(model.settings.model_copy(update={"training": Training(device="cuda")}))
    looked(page, qtbot)
    assert "on NVIDIA RTX 4070" in page.header.answer.text()
    assert model.hardware is not None and model.hardware.asked.device == "cuda"


def test_the_line_under_the_title_does_not_repeat_the_findings(model: AppModel, demo_policy: Path, qtbot, monkeypatch) -> None:
    model.update_settings(Settings(policy=Policy(folder=demo_policy)))
    for computer, answer in (
        (WORKSTATION, "The policy trains here, on NVIDIA RTX 4070."),
        (replace(WORKSTATION, memory_free=GB // 50), "The policy trains here, on NVIDIA RTX 4070, with limits."),
        (replace(WORKSTATION, memory=GB // 4), "The policy cannot be trained here. What stands in the way is below."),
    ):
        described(monkeypatch, computer)
        page = open_page(model, qtbot)
        assert page.header.answer.text() == answer
        rows = [row for row in page.findings.findChildren(FindingRow) if not row.isHidden()]
        assert rows and all(row.what.text() not in answer and row.why.text() for row in rows)
        page.close()


def test_a_computer_that_is_too_small_cannot_go_on(model: AppModel, demo_policy: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, replace(WORKSTATION, gpus=(), memory=GB // 4, memory_free=GB // 50))
    model.update_settings(Settings(policy=Policy(folder=demo_policy)))
    page = open_page(model, qtbot)
    assert page.badge.text() == "Not here" and not page.go_on.isEnabled()


def test_looking_again_sees_what_changed(model: AppModel, qtbot, monkeypatch) -> None:
    described(monkeypatch, replace(WORKSTATION, gpus=()))
    page = open_page(model, qtbot)
    assert dict(page.rows())["GPU"] == "none that can train"
    described(monkeypatch, WORKSTATION)
    qtbot.mouseClick(page.again, Qt.MouseButton.LeftButton)
    looked(page, qtbot)
    assert "RTX 4070" in dict(page.rows())["GPU"] and "RTX 4070" in words(page)


def test_the_computer_is_copied_as_text(model: AppModel, qapp, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    qtbot.mouseClick(page.copy, Qt.MouseButton.LeftButton)
    copied = qapp.clipboard().text()
    assert page.verdict is not None and copied.startswith(page.verdict.sentence) and "GPU: NVIDIA RTX 4070" in copied


def test_without_a_policy_the_page_asks_for_one_and_waits(model: AppModel, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    assert page.policy_badge.text() == "Not chosen" and "Choose its folder" in words(page) and not page.go_on.isEnabled()


def test_a_policy_is_shown_with_both_fingerprints_and_kept(model: AppModel, demo_policy: Path, tmp_path: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    page.set_policy(demo_policy)
    qtbot.waitUntil(lambda: page.files is not None, timeout=60_000)
    settle(qtbot)
    known = read_policy(demo_policy)
    for fact in (known.policy_id, known.backbone_sha256, known.layout.sha256, f"{known.trainable_parameters:,} of them train"):
        assert fact in words(page)
    assert files.load(tmp_path / "settings.toml").policy.folder == demo_policy
    with qtbot.waitSignal(model.showPage) as asked:
        qtbot.mouseClick(page.go_on, Qt.MouseButton.LeftButton)
    assert asked.args == ["federation"]


def test_a_folder_without_a_policy_is_told_with_what_to_do(model: AppModel, tmp_path: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    empty = tmp_path / "empty"
    empty.mkdir()
    model.update_settings(Settings(policy=Policy(folder=empty)))
    page = open_page(model, qtbot)
    assert page.policy_badge.text() == "Cannot be used" and str(empty) in page.policy_text.text() and not page.go_on.isEnabled()


def test_every_button_has_a_name_and_is_reached_by_the_keyboard(model: AppModel, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    buttons = [button for button in page.findChildren(QPushButton) if button.isVisible()]
    assert buttons and all(button.accessibleName() or button.text() for button in buttons)
    assert all(button.focusPolicy() & Qt.FocusPolicy.TabFocus for button in buttons)


def test_without_recordings_a_round_cannot_be_measured(model: AppModel, qtbot, monkeypatch: pytest.MonkeyPatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    qtbot.waitUntil(lambda: not page.round_time.button.isEnabled())
    assert "Choose recordings and the base policy first." in words(page)


@pytest.mark.timeout(180)
def test_a_round_is_measured_on_request_and_the_answer_stays(model: AppModel, demo_policy: Path, demo_recording: Path, qtbot) -> None:
    chosen = Recordings(chosen=(ChosenRecording(path=demo_recording),))
    model.update_settings(Settings(policy=Policy(folder=demo_policy), recordings=chosen, training=Training(device="cpu", threads=1)))
    page = open_page(model, qtbot)
    settle(qtbot)
    assert page.round_time.answer.text().startswith("Not measured yet")
    qtbot.mouseClick(page.round_time.button, Qt.MouseButton.LeftButton)
    assert page.round_time.progress.isVisible() and not page.round_time.button.isEnabled()
    qtbot.waitUntil(lambda: "round takes about" in page.round_time.answer.text(), timeout=150_000)
    assert "the federation allows" in page.round_time.answer.text() and " Level P: " in page.round_time.answer.text()
    assert not page.round_time.progress.isVisible()
    again = open_page(model, qtbot)
    qtbot.waitUntil(lambda: "round takes about" in again.round_time.answer.text(), timeout=30_000)


def test_each_choice_is_kept_and_the_verdict_follows_at_once(model: AppModel, demo_policy: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    model.update_settings(Settings(policy=Policy(folder=demo_policy)))
    page = open_page(model, qtbot)
    assert page.verdict is not None and page.verdict.device == "cuda:0"
    monkeypatch.setattr(hardware, "inspect_computer", lambda: pytest.fail("the computer is the same: it is not looked at again"))
    page.how.device.choose("cpu")
    assert page.verdict.device == "cpu" and "on the processor" in page.header.answer.text() and "Now: cpu, fp32" in words(page.how)
    page.how.batch.choose(4)
    assert page.verdict.micro_batch == 4 and "4 at once" in words(page.how)
    page.how.memory.choose(32.0)
    assert [finding.code for finding in page.verdict.findings][0] == "memory-kept-free" and "Leave less of it free." in words(page.findings)
    page.how.threads.choose(3)
    kept = files.load(model.settings_path).training
    assert (kept.device, kept.micro_batch, kept.memory_free, kept.threads) == ("cpu", 4, 32.0, 3)
    assert model.hardware is not None and model.hardware.asked.memory_free == 32.0
    settle(qtbot)


def test_a_choice_made_elsewhere_is_shown_and_devices_that_are_not_there_are_not_offered(model: AppModel, qtbot, monkeypatch) -> None:
    described(monkeypatch, replace(WORKSTATION, gpus=()))
    model.update_settings(Settings(training=Training(threads=12, memory_free=3.5, micro_batch=5)))
    page = open_page(model, qtbot)
    how = page.how
    assert (how.threads.value, how.memory.value, how.batch.value, how.device.value) == (12, 3.5, 5, "auto")
    assert [how.device.itemData(n) for n in range(how.device.count())] == ["auto", "cpu"]
    assert how.memory.currentText() == "3.5 GB" and how.threads.itemText(0) == "All but one (7)"


def test_the_invitations_batch_is_judged(model: AppModel, demo_policy: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    invited = Federation(invitation=invitation(batch_size=8).to_line())
    model.update_settings(Settings(policy=Policy(folder=demo_policy), federation=invited))
    page = open_page(model, qtbot)
    assert page.verdict is not None and page.verdict.micro_batch == 8


def test_the_decoder_is_said_with_its_reason(model: AppModel, demo_recording: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    assert "choose a recording" in page.how.decoder.text() and not page.how.try_decoder.isVisible()
    model.update_settings(Settings(recordings=Recordings(chosen=(ChosenRecording(path=demo_recording),))))
    settle(qtbot)
    assert page.how.decoder.text().startswith("Videos are decoded by ")
    qtbot.mouseClick(page.how.try_decoder, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(page.how.try_decoder.isEnabled, timeout=60_000)
    found = decoder_of(demo_recording, only_kept=True)
    assert page.how.decoder.text() == f"Videos are decoded by {found.name}. {found.why}"


def test_load_and_temperature_are_looked_at_while_the_page_is_seen_and_never_on_the_windows_thread(
    model: AppModel, qtbot, monkeypatch
) -> None:
    described(monkeypatch, WORKSTATION)
    threads: list[int] = []

    def loads() -> list[DeviceLoad]:
        threads.append(threading.get_ident())
        return [DeviceLoad("Some processor", 10 * len(threads), None, 32 * GB, 24 * GB), DeviceLoad("RTX", None, 61, 12 * GB, 11 * GB)]

    monkeypatch.setattr(load_look, "look_at_load", loads)
    monkeypatch.setattr(devices_card, "EVERY_MS", 20)
    page = open_page(model, qtbot)
    qtbot.waitUntil(lambda: len(threads) > 3, timeout=20_000)
    assert threading.get_ident() not in threads
    qtbot.waitUntil(lambda: len(page.devices.rows) == 2)
    said = words(page.devices)
    assert "% busy" in said and "load not told" in said and "61 °C" in said and "11.0 GB of 12.0 GB free" in said
    assert page.devices.rows[0].bar.isVisible() and not page.devices.rows[1].bar.isVisible()
    page.hide()
    settle(qtbot)
    seen = len(threads)
    qtbot.wait(100)
    settle(qtbot)
    assert len(threads) == seen, "nobody looks while it is hidden"


def test_this_very_computers_load_is_told() -> None:
    processor, *_ = load_look.look_at_load()
    assert processor.name and processor.busy is not None and 0 <= processor.busy <= 100 and 0 < processor.memory_free <= processor.memory


def test_disk_and_network_are_measured_on_request(model: AppModel, tmp_path: Path, qtbot, monkeypatch) -> None:
    described(monkeypatch, WORKSTATION)
    page = open_page(model, qtbot)
    assert "Not measured yet" in words(page.network)
    qtbot.mouseClick(page.network.button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(page.network.button.isEnabled, timeout=60_000)
    assert "open an invitation first" in words(page.network) and "it writes" in words(page.network)
    with answering(tmp_path) as port:
        model.update_settings(Settings(federation=Federation(invitation=invitation(port=port).to_line())))
        settle(qtbot)
        qtbot.mouseClick(page.network.button, Qt.MouseButton.LeftButton)
        qtbot.waitUntil(page.network.button.isEnabled, timeout=60_000)
    assert "answers in" in words(page.network) and "not known until the first round" in words(page.network)
    qtbot.mouseClick(page.network.button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(page.network.button.isEnabled, timeout=60_000)
    assert "refuses the connection" in words(page.network) and "Nothing of yours was sent." in words(page.network)
