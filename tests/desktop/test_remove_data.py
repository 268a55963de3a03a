"""Removing what zk0desk keeps: sizes first, everything of ours and nothing of anybody else's, and never under a running node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend

from zk0desk import cli, folders
from zk0desk import settings as settings_file
from zk0desk.desktop import menu, remove_data
from zk0desk.desktop.autostart import LinuxAutostart, switch_on
from zk0desk.errors import ExitStatus
from zk0desk.federation.credentials import load_or_make_key
from zk0desk.federation.identity import restore
from zk0desk.journal import Journal
from zk0desk.settings import Cache, ChosenRecording, Federation, Recordings, Settings


class MemoryKeyring(KeyringBackend):
    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryKeyring:
    backend = MemoryKeyring()
    monkeypatch.setattr(keyring.core, "_keyring_backend", backend)
    return backend


@pytest.fixture
def home(tmp_path: Path, memory: MemoryKeyring, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer on which zk0desk was used, with recordings in the neighbourhood."""
    home = tmp_path / "Röbot Ärm"
    monkeypatch.setenv("ZK0DESK_HOME", str(home))
    recording = home.parent / "recordings" / "cubes"
    recording.mkdir(parents=True)
    (recording / "info.json").write_text("mine")
    settings_file.save(Settings(recordings=Recordings(chosen=(ChosenRecording(path=recording),))))
    Journal().close()
    load_or_make_key(Federation())
    from zk0desk.federation.hub_token import keep_token

    keep_token("hf_0123456789")
    for folder, size in ((folders.runs_folder(), 3000), (folders.engines_folder() / "ab" / "site", 5000), (folders.state_folder(), 70)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_bytes(b"x" * size)
    (folders.engines_folder() / "cd").mkdir()
    os.link(folders.engines_folder() / "ab" / "site" / "file", folders.engines_folder() / "cd" / "linked")
    prefix = folders.prefix_cache_folder()
    prefix.mkdir(parents=True)
    (prefix / "shelf").write_bytes(b"x" * 900)
    (folders.cache_folder() / "thumbnail").write_bytes(b"x" * 40)
    switch_on(LinuxAutostart(), ["/opt/zk0desk"])
    menu.install(["/opt/zk0desk"])
    return home


def test_sizes_are_told_by_kind_and_a_linked_file_counts_once(home: Path) -> None:
    kept = remove_data.look(settings_file.load())
    sizes = {each.kind: each.bytes for each in kept.kinds}
    assert (sizes["runs"], sizes["engines"], sizes["frames"], sizes["cache"]) == (3000, 5000, 900, 40)
    assert sizes["journal"] > 0 and sizes["settings"] > 0 and kept.bytes == sum(sizes.values())
    assert kept.secrets == ("The node's key", "The token for the Hugging Face Hub")
    assert kept.entries == ("The start with the computer", "The entry in the applications' menu")
    assert kept.identity and kept.fingerprint == load_or_make_key(Federation()).fingerprint


def test_all_of_ours_goes_and_nothing_else(home: Path, memory: MemoryKeyring, tmp_path: Path) -> None:
    memory.kept["someone", "else"] = "theirs"
    removed = remove_data.remove(settings_file.load())
    assert removed.left == () and removed.bytes > 8000
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert memory.kept == {("someone", "else"): "theirs"}
    assert LinuxAutostart().command() == [] and menu.started() == []
    assert (home.parent / "recordings" / "cubes" / "info.json").read_text() == "mine"
    assert remove_data.look(Settings()).nothing


def test_a_link_out_of_our_folders_is_not_followed(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other disk"
    other.mkdir()
    (other / "precious").write_text("mine")
    (folders.policies_folder()).parent.mkdir(exist_ok=True)
    folders.policies_folder().symlink_to(other)
    (folders.runs_folder() / "linked").symlink_to(other)
    remove_data.remove(settings_file.load())
    assert (other / "precious").read_text() == "mine" and not folders.policies_folder().is_symlink()


def test_a_folder_of_prepared_frames_that_a_person_chose_loses_ours_alone(home: Path, tmp_path: Path) -> None:
    from zk0desk.training.prefix_cache import PrefixCache

    chosen = tmp_path / "fast disk"
    chosen.mkdir()
    (chosen / "precious").write_text("mine")
    with PrefixCache(chosen) as cache:
        cache.shelf({"a": 1}, 2, (4,), "float16", {"recording": "cubes"}).close()
    settings = Settings(cache=Cache(folder=chosen))
    assert remove_data.remove(settings).left == ()
    assert [path.name for path in chosen.iterdir() if not path.name.startswith(".")] == ["precious"]


@pytest.mark.parametrize("who", ["node", "window"])
def test_it_refuses_while_a_node_or_a_window_runs(home: Path, who: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = "import sys; from zk0desk.journal import Journal; j = Journal(); print('here', flush=True); sys.stdin.read()"
    window = "import sys; from zk0desk.ui.crash import CrashGuard as C; g = C(); g.arm(); print('here', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", node if who == "node" else window], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stdin is not None
        assert running.stdout.readline() == "here\n"
        assert cli.main(["--remove-data", "--yes"]) == ExitStatus.FAILED
        assert "zk0desk is running, so nothing was removed." in capsys.readouterr().err
        assert folders.journal_file().exists() and folders.settings_file().exists()
        running.stdin.close()
    assert cli.main(["--remove-data", "--yes"]) == ExitStatus.OK


def test_a_computer_without_keyring_holds_no_secrets_and_a_locked_one_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from keyring.backends.fail import Keyring as NoKeyring
    from keyring.errors import KeyringLocked

    from zk0desk.federation.keyring_record import record_file

    def locked(*_given: str) -> None:
        raise KeyringLocked("locked")

    monkeypatch.setattr(MemoryKeyring, "get_password", locked)
    assert "KeyringLocked" in " ".join(remove_data.remove(settings_file.load()).left)
    assert not record_file().exists()
    folders.runs_folder().mkdir(parents=True)
    monkeypatch.setattr(keyring.core, "_keyring_backend", NoKeyring())
    assert remove_data.remove(Settings()).left == ()


# --- the command


def test_without_yes_and_without_a_terminal_sizes_are_shown_and_nothing_goes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--remove-data"]) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert "Training engines" in out and "5.0 KB" in out and "without a backup" in out and "Nothing was removed" in err
    assert folders.settings_file().exists()
    assert cli.main(["--remove-data", "--json"]) == ExitStatus.OK
    told = json.loads(capsys.readouterr().out)
    assert {each["kind"]: each["bytes"] for each in told["kinds"]}["engines"] == 5000 and told["identity"] is True
    assert folders.settings_file().exists()


def test_a_backup_is_made_before_anything_goes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = load_or_make_key(Federation())
    monkeypatch.setenv("ZK0DESK_PASSPHRASE", "a long passphrase")
    backup = tmp_path / "backup.pem"
    backup.write_text("in the way")
    assert cli.main(["--remove-data", "--yes", "--backup", str(backup)]) == ExitStatus.USAGE
    assert folders.settings_file().exists(), "a backup that fails removes nothing"
    backup.unlink()
    assert cli.main(["--remove-data", "--yes", "--backup", str(backup)]) == ExitStatus.OK
    assert not folders.settings_file().exists()
    assert restore(Federation(), backup, "a long passphrase").fingerprint == key.fingerprint


def test_settings_that_cannot_be_read_keep_nothing_from_being_removed(home: Path) -> None:
    folders.settings_file().write_text("not [ toml")
    assert cli.main(["--remove-data", "--yes"]) == ExitStatus.OK
    assert not folders.settings_file().exists() and not folders.runs_folder().exists()


def test_where_there_is_nothing_that_is_said(memory: MemoryKeyring, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--remove-data"]) == ExitStatus.OK
    assert "keeps nothing on this computer" in capsys.readouterr().out
