"""`zk0desk hub`, and the token in the keyring."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keyring
import keyring.errors
import pytest

from tests.federation.hub_parts import (
    BASE,
    CUBES,
    TOKEN,
    ForgetfulKeyring,
)
from tests.federation.hub_stand_in import HubStandIn
from zk0desk import cli
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.credentials import KeyringUnavailable
from zk0desk.federation.hub_errors import (
    HubError,
)
from zk0desk.federation.hub_token import TokenInvalid, forget_token, keep_token, read_token
from zk0desk.training.policy_files import read_policy

pytestmark = pytest.mark.usefixtures("nothing_chosen")


# --- the token


def test_that_a_token_is_in_the_keyring_under_its_own_name_and_in_no_file(memory_keyring: ForgetfulKeyring) -> None:
    keep_token(f"  {TOKEN}\n")
    assert read_token() == TOKEN
    ((service, _),) = memory_keyring.kept
    assert service == "zk0desk-hub"
    home = Path(os.environ["ZK0DESK_HOME"])
    assert not [path for path in home.rglob("*") if path.is_file() and TOKEN in path.read_text()]
    assert forget_token() and read_token() is None and not forget_token()


def test_that_homes_of_their_own_have_tokens_of_their_own(memory_keyring: ForgetfulKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_token(TOKEN)
    monkeypatch.setenv("ZK0DESK_HOME", os.environ["ZK0DESK_HOME"] + "-2")
    assert read_token() is None


@pytest.mark.parametrize("text", ["", "  \n", "hf_x y", "short", "hf_\x00abcdefgh", "hf_" + "x" * 5000])
def test_that_what_cannot_be_a_token_is_neither_kept_nor_quoted(memory_keyring: ForgetfulKeyring, text: str) -> None:
    with pytest.raises(TokenInvalid) as error:
        keep_token(text)
    assert not memory_keyring.kept
    assert not text.strip() or text.strip() not in str(error.value)


def test_that_without_a_keyring_a_token_is_kept_nowhere(memory_keyring: ForgetfulKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_keyring.forgets = True
    with pytest.raises(KeyringUnavailable, match="kept nowhere else") as error:
        keep_token(TOKEN)
    assert TOKEN not in str(error.value)
    from keyring.backends.fail import Keyring

    monkeypatch.setattr(keyring.core, "_keyring_backend", Keyring())
    for call in (lambda: keep_token(TOKEN), read_token, forget_token):
        with pytest.raises(KeyringUnavailable):
            call()


# --- the command line


def test_that_the_command_tells_folder_commit_and_policy(the_hub: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["hub", "get", "policy", BASE, "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["commit"] == "a" * 40 and told["policy-id"] == read_policy(Path(told["folder"])).policy_id
    assert "100 %" in err
    assert cli.main(["hub", "get", "recording", CUBES]) == 0
    assert "c" * 40 in capsys.readouterr().out


def test_that_the_command_has_the_exit_status_of_its_error(the_hub: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["hub", "get", "policy", "nonsense"]) == ExitStatus.USAGE
    assert cli.main(["hub", "get", "policy", "lab/nothing", "--json"]) == ExitStatus.REFUSED
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "hub-token-missing"
    assert "Traceback" not in err


def test_that_ctrl_c_ends_the_command_at_once(the_hub: HubStandIn) -> None:
    the_hub.slow = 0.3
    process = subprocess.Popen(
        [sys.executable, "-m", "zk0desk", "hub", "get", "policy", BASE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not [request for request in the_hub.requests if request.host == "store"]:
        assert process.poll() is None
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.INTERRUPTED and time.monotonic() - began < 2
    assert "the same command goes on" in err and "Traceback" not in err


def test_that_login_reads_standard_input_and_logout_forgets(
    memory_keyring: ForgetfulKeyring, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TOKEN}\n"))
    assert cli.main(["hub", "login"]) == 0
    assert read_token() == TOKEN
    assert cli.main(["hub", "logout"]) == 0
    assert read_token() is None
    out, err = capsys.readouterr()
    assert TOKEN not in out + err and "out of the keyring" in out


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are others there")
def test_that_on_a_terminal_the_token_is_asked_for_and_not_shown() -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "zk0desk", "hub", "login"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    try:
        while b"Token" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, f"{TOKEN}\n".encode())
        with contextlib.suppress(OSError):  # how a terminal ends
            while piece := os.read(ours, 1000):
                shown += piece
    finally:
        os.close(ours)
        process.wait(20)
    assert process.returncode == ExitStatus.USAGE and b"No keyring is installed" in shown
    assert TOKEN.encode() not in shown


@pytest.mark.parametrize("arguments", [[TOKEN], ["--token", TOKEN], [f"--token={TOKEN}"]])
def test_that_a_token_on_the_command_line_is_refused_and_not_repeated(
    memory_keyring: ForgetfulKeyring, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert cli.main(["hub", "login", *arguments]) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert TOKEN not in out + err and "does not belong on the command line" in err
    assert not memory_keyring.kept


def test_that_all_errors_are_for_a_person() -> None:
    assert all(issubclass(each, OperatorError) for each in (HubError, TokenInvalid, KeyringUnavailable))
