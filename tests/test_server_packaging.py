"""What a coordinator's service and container are made from, checked as far as that goes without a service manager and a registry."""

import re
import shutil
import subprocess
import sys

import pytest

from zk0desk.cli import COMMANDS


@pytest.fixture
def unit(checkout):
    return (checkout / "packaging" / "server" / "zk0desk-server@.service").read_text()


@pytest.fixture
def container(checkout):
    return (checkout / "packaging" / "server" / "Containerfile").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_knows_every_line_of_the_unit_and_calls_it_well_closed(unit, tmp_path):
    file = tmp_path / "zk0desk-server@.service"
    file.write_text(unit.replace("/opt/zk0desk/bin/zk0desk", sys.executable))
    told = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "zk0desk-server@arms.service"], capture_output=True, text=True, timeout=60
    )
    assert "Unknown" not in told.stderr and "zk0desk-server" not in told.stderr, told.stderr
    security = subprocess.run(["systemd-analyze", "security", "--offline=yes", file], capture_output=True, text=True, timeout=60)
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", security.stdout)
    assert exposure is None or float(exposure[1]) < 2.5, security.stdout


def test_unit_and_container_run_a_user_of_their_own_and_keep_secrets_closed(unit, container):
    for line in (
        "User=zk0desk",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "UMask=0077",
        "StateDirectoryMode=0700",
        "CapabilityBoundingSet=",
    ):
        assert line in unit.splitlines()
    assert re.search(r"^USER 10001$", container, re.MULTILINE) and "--require-hashes" in container and "-m 0700 /data" in container


def test_what_they_call_and_copy_is_there(unit, container, checkout):
    import typer

    from zk0desk.commands import server

    assert "server" in COMMANDS
    known = {command.name or (command.callback.__name__ if command.callback else "") for command in server.app.registered_commands}
    called = set(re.findall(r"zk0desk server ([a-z]+)", unit + container)) | set(re.findall(r'^CMD \["([a-z]+)"', container, re.MULTILINE))
    assert called and called <= known and isinstance(server.app, typer.Typer)
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", container, re.MULTILINE) for word in line.split()[:-1]]
    assert {"requirements.lock", "zk0desk", "resources"} <= set(copied) and all((checkout / each).exists() for each in copied)
