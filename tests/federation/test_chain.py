"""A run's journal: whatever is changed in it is found and named."""

import json
from pathlib import Path

import pytest

from zk0desk.federation import chain
from zk0desk.federation.chain import ChainedJournal


@pytest.fixture
def journal(tmp_path: Path) -> tuple[Path, dict[str, tuple[int, str]]]:
    """Eight entries, and what run.json knew of them."""
    path = tmp_path / "journal.jsonl"
    opened = ChainedJournal(path)
    for number in range(8):
        opened.append({"event": "reply-accepted", "loss": number / 3})
    anchors = {"run.json": (opened.length, opened.head)}
    opened.close()
    return path, anchors


def found(journal, change) -> list[tuple[int, str]]:
    path, anchors = journal
    path.write_bytes(change(path.read_bytes()))
    return [(each.entry, each.code) for each in chain.breaks(path, anchors)]


def lines(act):
    """A change of the list of lines."""

    def change(data: bytes) -> bytes:
        return b"".join(act(data.splitlines(keepends=True)))

    return change


def test_an_untouched_journal_has_no_break_and_gives_back_what_was_told(journal):
    assert found(journal, lambda data: data) == []
    assert [entry.data["loss"] for entry in chain.entries(journal[0])] == [number / 3 for number in range(8)]


@pytest.mark.parametrize("number", range(8))
def test_each_changed_entry_is_named(journal, number):
    assert found(journal, lines(lambda all_: [*all_[:number], all_[number].replace(b"accepted", b"accepteD"), *all_[number + 1 :]])) == [
        (number, "changed")
    ]


@pytest.mark.parametrize("number", range(7))
def test_each_missing_entry_is_named(journal, number):
    gone = found(journal, lines(lambda all_: all_[:number] + all_[number + 1 :]))
    assert (number, "missing") in gone
    assert {code for _, code in gone} == {"missing", "cut"}


@pytest.mark.parametrize("number", range(7))
def test_entries_that_changed_places_are_named(journal, number):
    assert found(journal, lines(lambda all_: [*all_[:number], all_[number + 1], all_[number], *all_[number + 2 :]])) == [(number, "moved")]


def test_an_entry_that_is_there_twice_is_named(journal):
    assert found(journal, lines(lambda all_: [*all_[:4], *all_[3:]])) == [(3, "moved")]


@pytest.mark.parametrize("left", [0, 3, 7])
def test_a_journal_that_ends_too_early_is_named(journal, left):
    assert found(journal, lines(lambda all_: all_[:left])) == [(left, "cut")]


def test_a_last_line_that_is_cut_short_is_named(journal):
    assert (7, "cut") in found(journal, lambda data: data[:-10])


def test_a_line_that_is_no_entry_is_named(journal):
    assert (3, "unreadable") in found(journal, lines(lambda all_: [*all_[:3], b"rubbish\n", *all_[4:]]))


def test_an_entry_that_was_written_anew_with_all_that_follow_is_named_by_what_was_known_before(journal):
    path, anchors = journal

    def forged(data: bytes) -> bytes:
        path.unlink()
        anew = ChainedJournal(path)
        for number, line in enumerate(data.splitlines()):
            told = {key: value for key, value in json.loads(line).items() if key not in ("entry", "previous")}
            anew.append({**told, "loss": 0.0} if number == 2 else told)
        anew.close()
        return path.read_bytes()

    assert found((path, anchors), forged) == [(7, "changed")]


def test_a_line_that_a_kill_left_half_written_is_taken_away_and_the_chain_goes_on(journal):
    path, _ = journal
    path.write_bytes(path.read_bytes()[:-10])
    again = ChainedJournal(path)
    assert again.length == 7
    again.append({"event": "run-started"})
    anchors = {"run.json": (again.length, again.head)}
    again.close()
    assert chain.breaks(path, anchors) == []
    assert [entry.number for entry in chain.entries(path)] == list(range(8))
