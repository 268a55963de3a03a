"""Noticing by itself that a recording came, changed or went."""

from __future__ import annotations

import os
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.recording_parts import make_recording
from zk0desk.training import recording_watch
from zk0desk.training.recording_watch import Look, Tree, Watch, changed_at, mark_of


class Heard:
    """What a watch told, one after the other."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[Path, Look]] = queue.Queue()

    def take(self, folder: Path, look: Look) -> None:
        self.told.put((folder, look))

    def next(self) -> Look:
        return self.told.get(timeout=10)[1]


@pytest.fixture
def watch() -> Iterator[Callable[..., Heard]]:
    opened: list[Watch] = []

    def start(*folders: Path) -> Heard:
        heard = Heard()
        opened.append(Watch(folders, heard.take, every_s=0.05))
        return heard

    yield start
    for each in opened:
        each.close()
        assert not any(thread.is_alive() for thread in each._threads)


def test_what_comes_changes_and_goes_is_told(tmp_path: Path, watch) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    heard = watch(folder)
    assert heard.next() == Look({}, True)
    make_recording(folder / "deep" / "cubes")
    first = heard.next()
    assert list(first.marks) == [folder / "deep" / "cubes"]
    info = folder / "deep" / "cubes" / "meta" / "info.json"
    info.write_text(info.read_text() + " ")
    second = heard.next()
    assert list(second.marks) == list(first.marks) and second.marks != first.marks
    (folder / "deep").rename(folder / "other")
    assert list(heard.next().marks) == [folder / "other" / "cubes"]
    shutil.rmtree(folder / "other")
    assert heard.next() == Look({}, True)
    assert heard.told.empty(), "nothing changed, nothing is told"


def test_a_disk_that_goes_and_comes_back_is_told(tmp_path: Path, watch) -> None:
    make_recording(tmp_path / "disk" / "cubes")
    heard = watch(tmp_path / "disk")
    assert heard.next().marks
    (tmp_path / "disk").rename(tmp_path / "away")
    assert heard.next() == Look({}, False)
    (tmp_path / "away").rename(tmp_path / "disk")
    assert list(heard.next().marks) == [tmp_path / "disk" / "cubes"]


def test_what_is_being_copied_is_told_when_it_rests(tmp_path: Path, watch) -> None:
    heard = watch(tmp_path)
    heard.next()
    folder = make_recording(tmp_path / "cubes")
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        with (folder / "data/chunk-000/file-000.parquet").open("ab") as file:
            file.write(b"more")
        time.sleep(0.01)  # the copy's own pace
    looks = [heard.next()]
    while looks[-1].marks.get(folder) != mark_of(folder):
        looks.append(heard.next())
    assert len(looks) <= 3, "not each piece of a copy is told"


def test_a_folder_that_hangs_holds_up_neither_the_others_nor_the_end(tmp_path: Path, monkeypatch) -> None:
    import threading

    release = threading.Event()
    look = recording_watch._look

    def slow(turn) -> Look:
        if turn.folder.name == "lost":
            release.wait(20)
        return look(turn)

    monkeypatch.setattr(recording_watch, "_look", slow)
    make_recording(tmp_path / "here" / "cubes")
    heard = Heard()
    each = Watch([tmp_path / "lost", tmp_path / "here"], heard.take, every_s=0.05)
    assert list(heard.next().marks) == [tmp_path / "here" / "cubes"]
    began = time.monotonic()
    each.close(0.1)
    assert time.monotonic() - began < 2
    release.set()
    each.close()
    assert heard.told.empty()


def test_a_second_look_reads_no_names_again(tmp_path: Path, monkeypatch) -> None:
    for number in range(5):
        make_recording(tmp_path / f"group{number}" / "cubes")
    old = time.time() - 60
    for folder, _, _ in os.walk(tmp_path):
        os.utime(folder, (old, old))
    tree, listed = Tree(), []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert len(list(tree.recordings(tmp_path, set()))) == 5 and len(listed) == 6
    assert len(list(tree.recordings(tmp_path, set()))) == 5 and len(listed) == 6
    make_recording(tmp_path / "group0" / "cups")
    assert len(list(tree.recordings(tmp_path, set()))) == 6 and len(listed) == 7


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    folder = make_recording(tmp_path / "cubes")
    (folder / "data" / "back").symlink_to(folder)
    (tmp_path / "back").symlink_to(tmp_path)
    assert list(Tree().recordings(tmp_path, set())) == [folder]
    assert mark_of(folder) and mark_of(tmp_path / "none") == "" and changed_at(tmp_path / "none") == 0.0
    assert abs(changed_at(folder) - time.time()) < 60
