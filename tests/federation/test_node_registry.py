"""The nodes' keys and limited invitations on disk; what is missing, empty or damaged lets nobody in."""

import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from tests.federation.coordinator_parts import make_server
from zk0desk.federation.credentials import NodeKey
from zk0desk.federation.invitation import Invitation
from zk0desk.federation.node_registry import InvitationUnknownError, NodeRegistry, RegistryError
from zk0desk.federation.server_folder import ServerFolderError
from zk0desk.settings import save
from zk0desk.ui.pages.invitation_facts import facts


@pytest.fixture
def registry(tmp_path: Path) -> NodeRegistry:
    return NodeRegistry.make(tmp_path / "nodes.sqlite")


KEYS = [NodeKey.make() for _ in range(4)]
A, B, C, D = (key.public_key_bytes for key in KEYS)


def test_a_change_is_seen_at_once_whoever_made_it(registry, tmp_path):
    other = NodeRegistry(tmp_path / "nodes.sqlite")
    for _ in range(30):
        registry.admit(KEYS[0].public_line)
        assert other.status(A) == "admitted"
        registry.revoke(KEYS[0].public_line)
        assert other.status(A) == "revoked"


def test_an_invitation_serves_as_many_nodes_as_it_is_for_and_each_as_often_as_it_calls(registry):
    code = registry.invite(uses=2)
    assert [registry.use_code(code, key) for key in (A, A, B, A, B)] == [""] * 5
    assert registry.judge_code(code, C) == registry.use_code(code, C) == "invitation-used-up"
    (told,) = registry.invitations()
    assert (told.used, told.uses, told.state(time.time())) == (2, 2, "used up")


def test_an_invitation_ends_for_those_who_have_not_called_yet(registry):
    code = registry.invite(ends=time.time() + 0.2)
    assert registry.use_code(code, A) == ""
    time.sleep(0.21)
    assert registry.use_code(code, A) == "" and registry.use_code(code, B) == "invitation-ended"


def test_a_code_that_nobody_made_is_wrong_and_codes_are_not_on_disk(registry, tmp_path):
    code = registry.invite(uses=1)
    assert registry.use_code("", A) == registry.use_code("guess", A) == registry.use_code(code[:-1], A) == "wrong-code"
    assert code.encode() not in (tmp_path / "nodes.sqlite").read_bytes()


def test_the_last_use_goes_to_one_of_many_who_call_at_once(registry, tmp_path):
    code, verdicts = registry.invite(uses=1), []

    def call(key: bytes) -> None:
        verdicts.append(NodeRegistry(tmp_path / "nodes.sqlite").use_code(code, key))

    threads = [threading.Thread(target=call, args=(key.public_key_bytes,)) for key in KEYS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(verdicts) == ["", *["invitation-used-up"] * 3]


@pytest.mark.parametrize("harm", ["missing", "empty", "garbage", "cut"])
def test_a_registry_that_cannot_be_read_admits_nobody_and_says_so(registry, tmp_path, harm):
    path = tmp_path / "nodes.sqlite"
    for key in KEYS:
        registry.admit(key.public_line)
    assert registry.status(A) == "admitted"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "garbage": b"x" * 5000, "cut": path.read_bytes()[:3000]}[harm])
    for look in (lambda: registry.status(A), lambda: registry.use_code("guess", A), lambda: NodeRegistry(path)):
        with pytest.raises(RegistryError, match="missing|empty or damaged") as caught:
            look()
        assert "--new" in caught.value.remedy
    assert harm != "missing" or not path.exists(), "an empty list would look like one without nodes"


def test_a_list_of_before_gets_what_is_new(tmp_path):
    path = tmp_path / "nodes.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE nodes (public_key BLOB PRIMARY KEY, fingerprint TEXT, status TEXT, first_seen REAL, last_seen REAL, address TEXT)"
        )
    connection.close()
    assert NodeRegistry(path).invitations() == []


def test_a_new_list_keeps_the_old_file(tmp_path):
    folder = make_server(tmp_path)
    folder.nodes_path.write_bytes(b"damaged")
    assert folder.new_nodes().nodes() == []
    assert folder.nodes_path.with_name("nodes.sqlite.old").read_bytes() == b"damaged"
    assert folder.nodes_path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [None, b"", b"\n", b"\x00\xff", b"short", b"with spaces in it"])
def test_an_admission_code_that_is_missing_empty_or_damaged_is_refused(tmp_path, text):
    folder = make_server(tmp_path)
    if text is None:
        folder.code_path.unlink()
    else:
        folder.code_path.write_bytes(text)
    with pytest.raises(ServerFolderError, match="holds no admission code"):
        folder.code()
    with pytest.raises(ServerFolderError, match="holds no admission code"):
        folder.invitation(port=8000)


def test_a_limited_invitation_has_a_code_of_its_own_and_says_how_long(tmp_path):
    folder = make_server(tmp_path)
    ends = time.time() + 86_400
    limited, plain = folder.invitation(port=8000, ends=ends, uses=1), folder.invitation(port=8000)
    assert limited.code not in ("", plain.code) and plain.code == folder.code() and plain.valid_until == 0
    assert Invitation.parse(limited.to_line()).valid_until == pytest.approx(ends)
    limited.write(tmp_path / "a.zk0invite")
    assert "valid until" in (tmp_path / "a.zk0invite").read_text()
    assert "valid until" in str(facts(limited, "")) and "valid until" not in str(facts(limited, "7c1e", admitted=True)) + str(
        facts(plain, "")
    )


def test_files_with_secrets_that_others_may_open_are_closed(tmp_path):
    folder = make_server(tmp_path)
    secret = (folder.key_path, folder.code_path, folder.nodes_path, folder.settings_path)
    assert folder.make_private() == []
    for path in secret:
        os.chmod(path, 0o644)
    assert set(folder.make_private()) == set(secret)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in secret)


def test_invite_makes_limited_invitations_and_lists_them_and_nodes_begins_a_new_list(tmp_path):
    from typer.testing import CliRunner

    from zk0desk.commands.server import app

    folder = make_server(tmp_path)
    settings = folder.settings()
    save(settings.model_copy(update={"network": settings.network.model_copy(update={"port": 8000})}), folder.settings_path)

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, str(folder.path)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "No invitation is limited." in said("invite", "--list")
    invitation = Invitation.parse(said("invite", "--valid-days", "7", "--uses", "3"))
    assert invitation.valid_until == pytest.approx(time.time() + 7 * 86_400, abs=60)
    assert folder.nodes().use_code(invitation.code, A) == ""
    assert "open      used by 1 of 3, until" in said("invite", "--list")
    assert json.loads(said("invite", "--uses", "1", "--json"))["valid-until"] == 0
    assert [each["uses"] for each in json.loads(said("invite", "--list", "--json"))] == [3, 1]
    assert Invitation.parse(said("invite")).code == folder.code()
    name = json.loads(said("invite", "--list", "--json"))[0]["name"]
    assert f"The invitation {name} has ended." in said("invite", "--withdraw", name)
    assert f"{name}  ended" in said("invite", "--list")
    assert folder.nodes().judge_code(invitation.code, B) == "invitation-ended"
    assert folder.nodes().judge_code(invitation.code, A) == "", "who joined with it stays"
    with pytest.raises(InvitationUnknownError, match=r"No limited invitation is called nobody\."):
        folder.nodes().withdraw("nobody")
    folder.nodes().withdraw(name)  # a second time changes nothing
    folder.nodes_path.unlink()
    assert "No node has called yet." in said("nodes", "--new")
