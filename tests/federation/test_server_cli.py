"""`zk0desk server` as a coordinator uses it: real processes, their output and exit statuses."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.federation.coordinator_parts import Events, TestNode, make_policy, make_server, steady
from zk0desk.errors import EngineMissingError
from zk0desk.events import Evaluated, RoundOpened, RunStarted
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.superlink import start_server
from zk0desk.federation.tracking import logged_values, tracked
from zk0desk.settings import ServerSettings, ServerTracking, load, save

pytestmark = pytest.mark.timeout(240)


def zk0desk(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "zk0desk", "server", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_init_makes_a_folder_whose_settings_have_comments(tmp_path):
    policy = make_policy(tmp_path / "policy")
    measured = ["--held-out", tmp_path / "r", "--retention", tmp_path / "known"]
    done = zk0desk("init", tmp_path / "s", "--name", "arms.example.org", "--policy", policy, *measured, "--port", "8443")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "s" / "server.toml").read_text()
    assert "# Rounds of a run." in text
    settings = load(tmp_path / "s" / "server.toml", ServerSettings)
    assert (settings.network.name, settings.network.port, settings.policy.folder) == ("arms.example.org", 8443, policy)
    assert settings.policy.held_out[0].path == tmp_path / "r" and settings.policy.retention[0].path == tmp_path / "known"


def test_init_with_a_folder_that_holds_no_policy_says_so_and_makes_nothing(tmp_path):
    done = zk0desk("init", tmp_path / "s", "--policy", tmp_path)
    assert done.returncode == 4
    assert "holds no policy" in done.stderr
    assert not (tmp_path / "s").exists()


def test_the_invitation_names_the_policy_and_the_certificate(tmp_path):
    policy = make_policy(tmp_path / "policy")
    zk0desk("init", tmp_path / "s", "--name", "arms.example.org", "--policy", policy, "--port", "8443")
    done = zk0desk("invite", tmp_path / "s", "--out", tmp_path / "a.zk0invite")
    invitation = Invitation.parse(done.stdout)
    assert invitation == Invitation.read(tmp_path / "a.zk0invite")
    assert invitation.address == "arms.example.org:8443"
    assert invitation.certificate == (tmp_path / "s" / "tls" / "certificate.pem").read_text()
    assert (invitation.parameters, invitation.trainable_parameters) == (150 + 180 + 120, 150 + 180)


@pytest.mark.parametrize("command", ["status", "start", "invite", "nodes"])
def test_a_folder_that_is_no_servers_folder_is_told_with_what_to_do(tmp_path, command):
    done = zk0desk(command, tmp_path)
    assert done.returncode == 2
    assert "zk0desk server init" in done.stderr


def test_status_and_run_without_a_server_say_how_to_start_it(tmp_path):
    folder = make_server(tmp_path)
    for command in ("status", "run"):
        done = zk0desk(command, folder.path)
        assert done.returncode == 6
        assert "zk0desk server start" in done.stderr


def test_a_key_is_admitted_and_revoked_without_a_running_server(tmp_path):
    folder, key = make_server(tmp_path), NodeKey.make()
    assert key.fingerprint in zk0desk("admit", folder.path, key.public_line).stdout
    assert json.loads(zk0desk("nodes", folder.path, "--json").stdout)[0]["status"] == "admitted"
    assert zk0desk("revoke", folder.path, key.fingerprint).returncode == 0
    assert json.loads(zk0desk("nodes", folder.path, "--json").stdout)[0]["status"] == "revoked"


def test_start_with_run_trains_and_prints_every_event_as_a_line_of_json(tmp_path):
    folder, key = make_server(tmp_path, min_nodes=1, rounds=1), NodeKey.make()
    zk0desk("admit", folder.path, key.public_line)
    process = subprocess.Popen(
        [sys.executable, "-m", "zk0desk", "server", "start", str(folder.path), "--run"], stdout=subprocess.PIPE, text=True
    )
    try:
        names, node = [], None
        for line in process.stdout:
            event = json.loads(line)
            names.append(event["event"])
            if event.get("state") == "serving":
                node = TestNode(folder.invitation(), key, steady(0.5))
                node.__enter__()
            if event["event"] == "run-finished":
                assert (Path(event["policy"]) / "model.safetensors").is_file()
                break
        status = json.loads(zk0desk("status", folder.path, "--json").stdout)
        assert (status["run"]["round"], status["run"]["finished"]) == (1, True)
        assert [each["status"] for each in status["nodes"]] == ["online"]
        node.__exit__()
        process.send_signal(signal.SIGTERM)
        assert process.wait(2.5) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait()
    assert {"run-started", "round-opened", "reply-accepted", "round-aggregated", "checkpoint-saved"} <= set(names)


def test_run_ends_on_ctrl_c_without_a_traceback(tmp_path):
    folder = make_server(tmp_path)
    with start_server(folder.path, lambda event: None):
        process = subprocess.Popen(
            [sys.executable, "-m", "zk0desk", "server", "run", str(folder.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            if "waiting-for-nodes" in line:
                os.kill(process.pid, signal.SIGINT)
                break
        out, err = process.communicate(timeout=10)
        assert json.loads(out.splitlines()[-1])["reason"] == "stopped"
        assert "Traceback" not in err


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_tracking_offline_writes_to_the_servers_folder(tmp_path):
    folder = make_server(tmp_path)
    save(folder.settings().model_copy(update={"tracking": ServerTracking(wandb="offline")}), folder.settings_path)
    events = Events()
    with tracked(folder.path, events) as emit:
        emit(RunStarted(run="0a1b2c3d", round=1, rounds=2, policy="p", settings={"lr": 1e-4}))
        emit(Evaluated(run="0a1b2c3d", round=1, loss=0.5, frames=40, recordings={"held-out": 0.5}))
    assert [event.name for event in events] == ["run-started", "evaluated"]
    assert list((folder.state / "wandb").glob("offline-run-*/*.wandb"))


def test_what_is_logged_has_rate_and_mu_each_recordings_loss_and_what_was_forgotten():
    opened = RoundOpened(run="r", round=2, nodes=["a", "b"], lr=1e-4, mu=0.01, weights_sha256="0")
    assert logged_values(opened, {}) == {"round": 2, "lr": 1e-4, "proximal-mu": 0.01, "nodes": 2}
    measured = Evaluated(run="r", round=2, loss=0.5, frames=40, recordings={"cubes": 0.5}, standard_error=0.1, retention={"cups": 1.25})
    assert logged_values(measured, {"cups": 1.0}) == {
        "round": 2, "eval-loss": 0.5, "eval-loss-standard-error": 0.1, "eval-loss/cubes": 0.5, "retention-loss/cups": 1.25,
        "forgetting/cups": 0.25,
    }  # fmt: skip
    assert logged_values(RunStarted(run="r", round=1, rounds=2, policy="p", settings={}), {}) == {}


def test_tracking_without_wandb_says_what_to_install(tmp_path, monkeypatch):
    folder = make_server(tmp_path)
    save(folder.settings().model_copy(update={"tracking": ServerTracking(wandb="offline")}), folder.settings_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EngineMissingError, match="Weights & Biases is not installed"), tracked(folder.path, Events()):
        pass
