"""A wheel is checked before a byte of it is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.engine.wheel_parts import list_of, noise, write_wheel
from zk0desk.control import NodeControl
from zk0desk.engine.errors import WheelError
from zk0desk.engine.lists import Wheel
from zk0desk.engine.unpack import Places, unpack
from zk0desk.engine.wheel import describe, opened


def put(path: Path, site: Path, places: Places | None = None, wheel: Wheel | None = None) -> list:
    told = {**describe(path)} if wheel is None else None
    one = wheel or Wheel(**told)
    return unpack(path, one, site, places or Places(), control=NodeControl(), moved=lambda _: None)


SHARED = "shared/__init__.py"
HOSTILE = [
    "../outside.py", "one/../../outside.py", "/etc/outside.py", "one/./two.py", "one//two.py", "C:/outside.py", "C:outside.py",
    "one\\outside.py",    "..\\outside.py", "one/\x01.py", "one/two.py.", "one/two ", "one/ two", "one/nul.txt", "CON", "one/x:stream",
    "one.data/purelib/../../outside.py",
    "one/" + 250 * "a",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_leads_elsewhere_is_refused_and_nothing_is_written(tmp_path, path):
    wheel = write_wheel(tmp_path, "one", {"one/__init__.py": b"", path: b"evil"})
    with pytest.raises(WheelError, match="one-1.0-py3-none-any.whl is not unpacked") as raised:
        put(wheel, tmp_path / "site", wheel=Wheel("one", "1.0", wheel.name, 1, "0" * 64))
    assert "name that must not be" in raised.value.why
    assert not (tmp_path / "site").exists() and not list(tmp_path.glob("outside*"))


def rewritten(path: Path, change) -> Path:
    """The wheel written again, each entry as `change` returns it."""
    with zipfile.ZipFile(path) as archive:
        kept = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in kept:
            archive.writestr(*change(info, content))
    return path


def test_a_link_is_refused(tmp_path):
    def linked(info, content):
        if info.filename == "one/link.py":
            info.external_attr = 0o120777 << 16
        return info, content

    wheel = rewritten(write_wheel(tmp_path, "one", {"one/link.py": b"/etc/passwd"}), linked)
    with pytest.raises(WheelError, match="link or a device"), opened(wheel):
        pass


def test_files_that_are_one_where_capitals_do_not_count_are_refused(tmp_path):
    for other in ("one/READ.py", "ONE/read.py"):
        wheel = write_wheel(tmp_path, "one", {"one/read.py": b"", other: b""})
        with pytest.raises(WheelError, match="capitals do not count"), opened(wheel):
            pass
    wheel = write_wheel(tmp_path, "one", {"one/\u00e9.py": b"", "one/e\u0301.py": b""})
    with pytest.raises(WheelError, match="capitals do not count"), opened(wheel):
        pass


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    wheel = write_wheel(tmp_path, "one", {"one/two": b"", "one/two/three.py": b""})
    with pytest.raises(WheelError, match="where a folder has to be"), opened(wheel):
        pass


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    wheel = write_wheel(tmp_path, "one", {"one/zeros.bin": bytes(100_000_000)})
    assert wheel.stat().st_size < 150_000
    with pytest.raises(WheelError, match="far more than such a file holds"), opened(wheel):
        pass


def test_a_file_that_is_not_what_the_record_says_is_refused(tmp_path):
    with zipfile.ZipFile(write_wheel(tmp_path, "one", {"one/__init__.py": b"right"})) as archive:
        record = archive.read("one-1.0.dist-info/RECORD")
    wheel = write_wheel(tmp_path, "one", {"one/__init__.py": b"wrong"}, record=record)
    with pytest.raises(WheelError, match="A file in it is not what its RECORD says"):
        put(wheel, tmp_path / "site")
    assert not (tmp_path / "site/one/__init__.py").exists()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"", "does not describe"),
        (b"one/__init__.py,md5=abc,0\n", "no SHA-256"),
        (b"\xff\xfe", "cannot be read"),
        (b"a,b\n", "cannot be read"),
        (b"one.py,,\none.py,,\n", "twice"),
    ],
)
def test_a_record_that_does_not_describe_the_files_is_refused(tmp_path, record, words):
    wheel = write_wheel(tmp_path, "one", {"one/__init__.py": b"x"}, record=record)
    with pytest.raises(WheelError, match=words), opened(wheel):
        pass


def test_what_is_no_wheel_is_refused(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"<html>")
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive:
        archive.writestr("one.py", b"")
    whole = write_wheel(tmp_path, "one", {"one.py": noise(5000)})
    (tmp_path / "c.whl").write_bytes(whole.read_bytes()[:-100])
    for name in ("a.whl", "b.whl", "c.whl"):
        with pytest.raises(WheelError), opened(tmp_path / name):
            pass


def test_packages_in_the_data_part_go_beside_the_others_and_scripts_nowhere(tmp_path):
    files = {"one.data/purelib/two/a.py": b"a", "one.data/platlib/b.so": b"b", "one.data/scripts/run": b"#!", "one.data/data/share/x": b"x"}
    put(write_wheel(tmp_path, "one", files), tmp_path / "site")
    found = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert {name for name in found if "dist-info" not in name} == {"two/a.py", "b.so"}


def test_one_wheel_does_not_change_a_file_of_another_but_may_bring_the_same(tmp_path):
    first, same, other = (
        write_wheel(tmp_path, name, {"shared/__init__.py": text}) for name, text in (("a", b"1"), ("b", b"1"), ("c", b"2"))
    )
    places = Places()
    places.add(first.name, put(first, tmp_path / "site", places))
    places.add(same.name, put(same, tmp_path / "site", places))
    with pytest.raises(WheelError, match="It would change a file of"):
        put(other, tmp_path / "site", places)
    assert (tmp_path / "site" / SHARED).read_bytes() == b"1"


def test_a_file_that_is_linked_from_another_engine_is_replaced_and_not_written_into(tmp_path):
    old = tmp_path / "old.py"
    old.write_bytes(b"old")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/one.py").hardlink_to(old)
    put(write_wheel(tmp_path, "one", {"one.py": b"new"}), tmp_path / "site")
    assert (old.read_bytes(), (tmp_path / "site/one.py").read_bytes()) == (b"old", b"new")


def test_a_wheel_whose_files_or_record_the_list_does_not_know_is_refused(tmp_path):
    path = write_wheel(tmp_path, "one", {"one.py": b"x"})
    told = describe(path)
    with pytest.raises(WheelError, match="the list says"):
        put(path, tmp_path / "site", wheel=Wheel(**{**told, "unpacked": told["unpacked"] + 1}))
    with pytest.raises(WheelError, match="RECORD is not the one"):
        put(path, tmp_path / "site", wheel=Wheel(**{**told, "record": "0" * 64}))


def test_the_description_of_a_wheel_is_what_a_list_says_of_it(tmp_path):
    path = write_wheel(tmp_path, "one", {"one.py": noise(1000)})
    (entry,) = list_of([path]).wheels
    put(path, tmp_path / "site", wheel=entry)
    size = sum(each.stat().st_size for each in (tmp_path / "site").rglob("*") if each.is_file())
    assert (entry.name, entry.version, entry.size, entry.unpacked) == ("one", "1.0", path.stat().st_size, size)
