"""What stands in the way of a federation's first round is found before it, with what to do."""

import json
import shutil
import socket
from datetime import UTC, datetime, timedelta

import pytest

from tests.federation.coordinator_parts import make_policy, make_server
from zk0desk import process_lock
from zk0desk.cli import main
from zk0desk.federation import server_doctor
from zk0desk.federation.certificate import make_certificate
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.server_doctor import disk_needed, examine
from zk0desk.federation.server_folder import ServerFolderError
from zk0desk.settings import ChosenRecording, ServerSettings, save
from zk0desk.training import demo_data
from zk0desk.training.policy_files import read_policy
from zk0desk.training.privacy_account import PrivacyAccount


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return demo_data.make_demo_held_out(tmp_path_factory.mktemp("doctor") / "held-out", seed=3, episodes=1, frames=12)


@pytest.fixture
def server(tmp_path, held_out):
    """A federation that can begin: a held-out recording, two admitted nodes, a free port."""
    folder = make_server(tmp_path, rounds=30)
    change(folder, policy={"held_out": [{"path": held_out}], "evaluation_cache_gb": 0.1})
    for _ in range(2):
        folder.nodes().admit(NodeKey.make().public_line)
    return folder


def change(folder, **sections):
    data = folder.settings().model_dump()
    for section, values in sections.items():
        data[section] |= values
    save(ServerSettings.model_validate(data), folder.settings_path)


def codes(folder, **options):
    return {finding.code: finding for finding in examine(folder, **options).findings if finding.severity != "note"}


def test_a_federation_that_can_begin_is_told_so_with_what_was_looked_at(server, capsys):
    assert main(["server", "doctor", str(server.path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The federation can begin.\n")
    for what in ("port", "certificate", "clock", "2 admitted", "disk", "memory", "1 episodes, 12 frames", "camera1"):
        assert what in out
    assert main(["server", "doctor", str(server.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "ok"


def test_what_privacy_costs_is_told_before_it_is_chosen(server):
    change(server, privacy={"mechanism": "central", "noise_multiplier": 1.0, "epsilon": 8.0})
    found = codes(server, quick=True)
    parameters = read_policy(server.policy(server.settings())).trainable_parameters
    assert f"{parameters**0.5 / 2:.3g} times as long as the mean of 2 updates" in found["privacy-noise"].what
    assert "of the 30 rounds" in found["privacy-rounds"].what and "privacy.noise-multiplier" in found["privacy-rounds"].remedy
    account = PrivacyAccount(server.state / "privacy.json")
    for _ in range(account.left(1.0, 8.0, 1e-5)):
        account.count(1.0, 8.0, 1e-5)
    assert codes(server, quick=True)["privacy-spent"].severity == "blocks"
    change(server, privacy={"noise_multiplier": 900.0, "expected_nodes": 10_000})
    assert "privacy-rounds" not in codes(server, quick=True)


def test_a_port_that_another_program_has_blocks_and_the_servers_own_does_not(server):
    with socket.create_server(("127.0.0.1", 0)) as other:
        change(server, network={"port": other.getsockname()[1]})
        assert "Another program listens" in codes(server)["address-taken"].why
        running = {"pid": 1, "host": "127.0.0.1", "port": 8000, "superlink_port": 1, "secret": "s", "started": 0.0}
        server.running_path.write_text(json.dumps(running))
        server.running_path.chmod(0o600)
        with process_lock.held(server.lock_path, ServerFolderError("It runs.")):
            assert codes(server, quick=True) == {}


def test_a_certificate_of_another_name_another_key_or_another_time_is_told(server):
    change(server, network={"name": "arms.example.org"})
    assert "127.0.0.1" in codes(server, quick=True)["certificate-name"].why
    change(server, network={"name": "localhost"})
    certificate, key = make_certificate("localhost", now=datetime.now(UTC) + timedelta(days=9))
    server.certificate_path.write_text(certificate)
    assert "do not belong together" in codes(server, quick=True)["certificate"].what
    server.key_path.write_text(key)
    assert codes(server, quick=True)["clock-before-certificate"].remedy == "Set the clock."


def test_files_that_others_can_read_limit(server):
    server.key_path.chmod(0o644)
    assert "key.pem" in codes(server, quick=True)["secrets-open"].what
    assert main(["server", "doctor", str(server.path), "--quick"]) == 3


def test_a_recording_without_statistics_or_without_its_video_is_found_by_reading_it(server, held_out, tmp_path):
    broken = shutil.copytree(held_out, tmp_path / "broken")
    video = next(broken.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    change(server, policy={"held_out": [{"path": broken}]})
    found = examine(server)
    assert found.exit_status == 4 and any("broken (held-out)" in finding.what and finding.remedy for finding in found.findings)
    shutil.rmtree(broken)
    assert examine(server).exit_status == 4
    known = ChosenRecording(path=held_out, cameras={"camera1": "nowhere"})
    change(server, policy={"held_out": [known.model_dump()]})
    assert "no camera `nowhere`" in codes(server)["camera-unknown"].what


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"aggregation": {"method": "multi-krum"}}, "aggregation-unfit"),
        ({"policy": {"held_out": []}}, "schedule-blind"),
        ({"rounds": {"lr": 0.0}}, "rate-zero"),
        ({"rounds": {"min_nodes": 3}}, "nodes-few"),
    ],
)
def test_settings_that_refuse_each_other_are_told_before_the_first_round(server, sections, code):
    change(server, **sections)
    assert code in codes(server, quick=True)


def test_settings_that_cannot_be_read_are_the_one_finding(server, capsys):
    server.settings_path.write_text("[rounds]\nrounds = 0\n")
    assert main(["server", "doctor", str(server.path)]) == 4
    assert "rounds.rounds" in capsys.readouterr().out


def test_a_disk_or_a_memory_that_is_too_small_is_told_from_the_policys_size(server, monkeypatch):
    monkeypatch.setattr(server_doctor, "usable_memory", lambda: (2**33, 10**8))
    assert set(codes(server, quick=True)) == {"memory-small"}
    usage = shutil.disk_usage(server.path)
    monkeypatch.setattr(server_doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert "disk-small" in codes(server, quick=True)


def test_what_a_run_takes_of_the_disk_follows_the_policy_and_what_is_kept(tmp_path):
    files = read_policy(make_policy(tmp_path / "p"))
    size = (files.folder / "model.safetensors").stat().st_size

    def total(**rounds):
        return sum(disk_needed(ServerSettings.model_validate({"rounds": rounds}), files, nodes=4).values())

    ten, all_ = total(rounds=250), total(rounds=250, keep_checkpoints=0)
    assert 12 * size < ten < 40 * size and all_ > 15 * ten
    assert total(rounds=250, keep_updates=True) > ten + 250 * 4 * files.trainable_parameters


def test_a_policy_that_is_not_there_blocks_and_the_rest_is_told_all_the_same(server):
    change(server, policy={"folder": server.path / "nowhere"})
    found = examine(server, quick=True)
    assert "policy-unusable" in {finding.code for finding in found.findings} and "certificate" in found.looked_at


def test_the_computers_own_clock_may_be_apart_but_keep_local_time(tmp_path):
    import time

    for off, told in ((0, False), (7200, False), (1000, True), (-19_800, False), (-90_000, True)):
        rtc = tmp_path / "rtc"
        rtc.write_text(str(int(time.time() + off)))
        assert bool(list(server_doctor._clock({}, rtc))) is told, off
