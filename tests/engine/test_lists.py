"""Lists of wheels are read strictly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from zk0desk.engine import lists
from zk0desk.engine.errors import EngineListError
from zk0desk.engine.lists import EngineList, Wheel

WHEEL = {
    "name": "torch", "version": "2.11.0+cu130", "file": "torch-2.11.0+cu130-cp312-cp312-manylinux_2_28_x86_64.whl",
    "size": 5, "sha256": "ab" * 32, "url": "https://example.org/torch-2.11.0%2Bcu130.whl",
}  # fmt: skip
LIST = {"schema": 1, "system": "linux", "arch": "x86_64", "backend": "cu130", "python": "cp312", "wheels": [WHEEL]}


def changed(**fields) -> str:
    return json.dumps({**LIST, "wheels": [{**WHEEL, **fields}]})


def test_a_list_is_read_and_written_back():
    one = lists.parse(json.dumps(LIST), "here")
    assert (one.backend, one.size, one.wheels[0].name) == ("cu130", 5, "torch")
    assert lists.parse(one.to_text(), "again") == one


def test_the_id_is_of_the_wheels_and_not_of_where_they_are():
    one = lists.parse(json.dumps(LIST), "here")
    elsewhere = replace(one, wheels=(replace(one.wheels[0], url="", unpacked=9, record="cd" * 32),))
    other = replace(one, wheels=(replace(one.wheels[0], sha256="cd" * 32),))
    assert one.id == elsewhere.id != other.id
    assert len(one.id) == 16 and replace(one, backend="cpu").id != one.id


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "nonsense", json.dumps({**LIST, "schema": 2}), json.dumps({**LIST, "more": 1}), json.dumps({**LIST, "wheels": []}),
        json.dumps({**LIST, "backend": "tpu"}), json.dumps({**LIST, "wheels": [WHEEL, WHEEL]}), json.dumps({**LIST, "python": 3}),
        changed(file="torch-2.11.0.tar.gz"), changed(file="../torch-2.11.0-cp312-cp312-any.whl"), changed(file="torch.whl"),
        changed(size=0), changed(size=-1), changed(size=True), changed(size=2**60), changed(size="5"), changed(sha256="ab"),
        changed(sha256="AB" * 32), changed(url="http://example.org/torch.whl"), changed(url="ftp://example.org/t.whl"),
        changed(url="https://me:secret@example.org/t.whl"),
        changed(url="https://example.org/a b.whl"), changed(url="file:///etc/passwd"), changed(url="https:///t.whl"), changed(url=None),
        changed(name="tor ch"), changed(more=1), changed(unpacked=-1), changed(record="x"), changed(url="https://[::1/t.whl"),
    ],
)  # fmt: skip
def test_what_a_list_must_not_say_is_refused(text):
    with pytest.raises(EngineListError, match="cannot be used: here") as raised:
        lists.parse(text, "here")
    assert raised.value.why and raised.value.remedy and "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["", "https://example.org/t.whl?x=1", "http://127.0.0.1:8000/t.whl", "http://localhost/t.whl", "http://[::1]:8/t.whl"]
)
def test_where_a_wheel_may_be(url):
    assert lists.parse(changed(url=url), "here").wheels[0].url == url


def test_the_lists_of_this_system_are_found_by_back_end(tmp_path, monkeypatch):
    monkeypatch.setenv("ZK0DESK_ENGINE_LISTS", str(tmp_path))
    system, arch = lists.this_system()
    assert lists.shipped() == {}

    def ship(backend: str, python: str = lists.PYTHON, name: str = "") -> None:
        one = EngineList(system, arch, backend, python, (Wheel("a", "1", "a-1-py3-none-any.whl", 3, "ab" * 32),))
        (tmp_path / f"{system}-{arch}-{name or backend}.json").write_text(one.to_text())

    ship("cpu")
    ship("cu130", python="cp399")
    assert list(lists.shipped()) == ["cpu"]
    ship("cpu", name="cu126")
    with pytest.raises(EngineListError, match="cannot be used"):
        lists.shipped()
