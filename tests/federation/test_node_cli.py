"""`zk0desk node` as a person or a service uses it: a real process against a real server, its lines and its exit statuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.federation.coordinator_parts import Events
from tests.federation.node_parts import Round, admitted, certificate, free_port, operator_settings
from zk0desk import folders
from zk0desk import settings as settings_file
from zk0desk.federation.consent import consent_digest
from zk0desk.federation.credentials import load_or_make_key
from zk0desk.federation.invitation import Invitation, certificate_sha256
from zk0desk.federation.server_folder import init_server
from zk0desk.federation.superlink import RunningServer, start_server
from zk0desk.federation.updates import encode
from zk0desk.settings import ServerNetwork, ServerPolicy, ServerRounds, ServerSettings, Settings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, demo_policy: Path) -> Iterator[RunningServer]:
    settings = ServerSettings(
        federation="Test arms",
        network=ServerNetwork(host="127.0.0.1", port=0, name="localhost"),
        policy=ServerPolicy(folder=demo_policy),
        rounds=ServerRounds(min_nodes=1),
    )
    folder = init_server(tmp_path_factory.mktemp("federation") / "server", settings)
    with start_server(folder.path, Events()) as running:
        yield running


@pytest.fixture
def chosen(server: RunningServer, demo_policy: Path, demo_recording: Path) -> Settings:
    """An operator's settings who agreed, saved where the command looks."""
    made = operator_settings(server.folder.invitation(), demo_policy, demo_recording)
    settings_file.save(made, folders.settings_file())
    return made


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "zk0desk", "node", *map(str, arguments)]


def node(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)


def changed(chosen: Settings, **federation: Any) -> None:
    settings_file.save(chosen.model_copy(update={"federation": chosen.federation.model_copy(update=federation)}), folders.settings_file())


def test_one_round_agreed_to_on_the_command_line_is_trained_and_told_in_lines_of_json(
    server: RunningServer, chosen: Settings, demo_policy: Path, tmp_path: Path
) -> None:
    from zk0desk.federation.grid import Grid

    changed(chosen, consent="", invitation="")
    invited = server.folder.invitation()
    (tmp_path / "lab.zk0invite").write_text(invited.to_line())
    admitted(server.folder, load_or_make_key(chosen.federation))
    running = server.folder.running()
    grid = Grid(running.superlink, running.secret)
    try:
        with (
            (tmp_path / "said").open("w") as said,
            subprocess.Popen(
                command("--invitation", tmp_path / "lab.zk0invite", "--agree", "--once"), stdout=subprocess.PIPE, stderr=said, text=True
            ) as process,
        ):
            try:
                assert process.stdout is not None
                events = []
                for line in process.stdout:
                    events.append(json.loads(line))
                    if events[-1]["event"] == "connected":
                        break
                asked = Round(demo_policy, local_steps=2, deadline_s=90.0)
                weights, config = encode(asked.weights, "fp32"), asked.request.to_config()
                node_id = events[-1]["node-id"]
                grid.send([node_id], "train", arrays=weights, config=config, ttl=100.0)
                events += [json.loads(line) for line in process.stdout]
                assert process.wait(20) == 0
            finally:
                process.kill()
    finally:
        grid.close()
    names = [event["event"] for event in events]
    assert names.count("step-done") == 2 and names.count("update-sent") == 1
    assert [event["state"] for event in events if event["event"] == "node-state-changed"][-1] == "stopped"
    text = (tmp_path / "said").read_text()
    assert "leaves" in text and "Traceback" not in text
    assert settings_file.load(folders.settings_file()).federation.consent == consent_digest(invited)


def test_sigterm_lets_a_node_that_waits_leave_in_sentences(server: RunningServer, chosen: Settings) -> None:
    key = load_or_make_key(chosen.federation)
    admitted(server.folder, key)
    with subprocess.Popen(command("--human"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("Waiting for the next round"):
                    break
            process.send_signal(signal.SIGTERM)
            lines += list(process.stdout)
            assert process.wait(20) == 0, process.stderr.read()
        finally:
            process.kill()
    text = "".join(lines)
    assert f"this node's fingerprint is {key.fingerprint}" in text
    assert "Stopped. The node left the federation." in text and "{" not in text


def test_without_agreement_nothing_is_called_and_the_exit_status_is_2(chosen: Settings) -> None:
    changed(chosen, consent="")
    done = node()
    assert done.returncode == 2
    assert "--agree" in done.stderr or "agree" in done.stderr.lower()
    assert [json.loads(line).get("state") for line in done.stdout.splitlines()].count("connecting") == 0


def test_a_recording_that_is_not_there_gives_exit_status_4(chosen: Settings, tmp_path: Path) -> None:
    gone = chosen.recordings.chosen[0].model_copy(update={"path": tmp_path / "gone"})
    settings_file.save(
        chosen.model_copy(update={"recordings": chosen.recordings.model_copy(update={"chosen": (gone,)})}), folders.settings_file()
    )
    done = node()
    assert done.returncode == 4, done.stderr
    assert "gone" in done.stderr


def test_a_server_that_once_is_not_reached_gives_exit_status_6(chosen: Settings) -> None:
    nowhere = Invitation.parse(chosen.federation.invitation).model_copy(update={"port": free_port()})
    changed(chosen, invitation=nowhere.to_line(), consent=consent_digest(nowhere))
    done = node("--once")
    assert done.returncode == 6, done.stderr
    states = [json.loads(line).get("state") for line in done.stdout.splitlines()]
    assert "reconnecting" in states and states[-1] == "failed"
    assert str(nowhere.port) in done.stderr


def test_a_server_with_another_certificate_gives_exit_status_5(chosen: Settings) -> None:
    pem = certificate("localhost")[0]
    invited = Invitation.parse(chosen.federation.invitation)
    other = invited.model_copy(update={"certificate": pem, "certificate_sha256": certificate_sha256(pem)})
    changed(chosen, invitation=other.to_line(), consent=consent_digest(other))
    done = node()
    assert done.returncode == 5, done.stderr
