"""`zk0desk cache`, as a person and a script see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.cache_parts import ENTRIES, ENTRY_BYTES, change_byte, entries_file, shelf, values
from zk0desk import cli, settings
from zk0desk.errors import ExitStatus
from zk0desk.training.prefix_cache import PrefixCache


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A settings file whose cache holds two recordings, one in part."""
    file = tmp_path / "settings.toml"
    settings.save(settings.Settings(cache=settings.Cache(folder=tmp_path / "cache", budget_gb=1)), file)
    with PrefixCache(tmp_path / "cache", 10**9, keep_free=0) as cache:
        shelf(cache, name="cubes").write(range(ENTRIES), values(range(ENTRIES)))
        shelf(cache, name="cups").write([0, 1], values([0, 1]))
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = cli.main(["cache", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_list_says_whose_frames_are_kept_and_what_they_take(kept: Path, capsys) -> None:
    status, out, _ = run(capsys, "list", "--settings", kept)
    assert status == 0 and f"cubes at level V: {ENTRIES} of {ENTRIES} frames, 0.3 MB" in out
    assert f"cups at level V: 2 of {ENTRIES} frames" in out and "of a budget of 1.0 GB" in out
    status, out, _ = run(capsys, "list", "--settings", kept, "--json")
    said = json.loads(out)
    assert status == 0 and said["usage"]["budget"] == 10**9
    assert {each["about"]["recording"]: each["filled"] for each in said["shelves"]} == {"cubes": ENTRIES, "cups": 2}


def test_nothing_kept_is_said_and_makes_no_folder(tmp_path: Path, capsys) -> None:
    file = tmp_path / "settings.toml"
    settings.save(settings.Settings(cache=settings.Cache(folder=tmp_path / "cache")), file)
    for command, words in {"list": "Nothing is kept", "verify": "Nothing is kept", "clear": "nothing to remove"}.items():
        status, out, _ = run(capsys, command, "--settings", file)
        assert status == 0 and words in out
    assert not (tmp_path / "cache").exists()


def test_clear_removes_one_recording_or_all(kept: Path, capsys) -> None:
    status, out, _ = run(capsys, "clear", "/recordings/cubes", "--settings", kept)
    assert status == 0 and "cubes at level V" in out and "cups" not in out
    status, out, _ = run(capsys, "clear", "--settings", kept, "--json")
    assert status == 0 and [each["about"]["recording"] for each in json.loads(out)["removed"]] == ["cups"]
    assert not list((kept.parent / "cache").iterdir())


def test_what_is_in_use_stays_and_the_exit_status_says_so(kept: Path, capsys) -> None:
    with PrefixCache(kept.parent / "cache", 10**9, keep_free=0) as cache:
        made = shelf(cache, name="cubes")
        status, out, err = run(capsys, "clear", "--settings", kept)
        assert status == ExitStatus.FAILED and "cups" in out and "In use, so it stays: cubes" in err
        assert made.read([0])[1].all()


def test_verify_finds_a_flipped_bit_and_is_content_afterwards(kept: Path, capsys) -> None:
    assert run(capsys, "verify", "--settings", kept)[:2][0] == 0
    with PrefixCache(kept.parent / "cache", 10**9, keep_free=0) as cache:
        change_byte(entries_file(shelf(cache, name="cubes")), 3 * ENTRY_BYTES)
    status, out, _ = run(capsys, "verify", "--settings", kept)
    assert status == ExitStatus.REPAIRABLE and f"cubes at level V: {ENTRIES} entries read, 1 damaged" in out
    status, out, _ = run(capsys, "verify", "--settings", kept, "--json")
    assert status == 0 and json.loads(out)["damaged"] == 0
