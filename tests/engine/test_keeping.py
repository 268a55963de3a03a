"""Engines on this computer: verified, mended, updated with links, gone back to, pruned, saved and read back without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.wheel_parts import HASTY, content_of, expected, list_of, noise, write_wheel
from zk0desk.control import NodeControl
from zk0desk.engine import activation, bytecode, install, portable, state, store
from zk0desk.engine.errors import EngineDamaged, EngineDiskFull, EngineError, EngineUnsupported, EngineWrongContent, WheelError
from zk0desk.engine.fetch import kept_name
from zk0desk.engine.selftest import SelfTest
from zk0desk.engine.verify import repair, verify
from zk0desk.folders import engines_folder

WORKS = SelfTest(True, True, "cpu", "It works.")


def mend(engine: store.Installed, **more):
    return repair(engine, **{"control": NodeControl(), "patience": HASTY, **more})


# --- verified and mended


def test_a_damaged_a_missing_and_a_shortened_file_are_named_and_mended_with_their_wheels_alone(wanted, wheels, server, get):
    engine = get(wanted).engine
    assert verify(engine).ok and verify(engine, thorough=True).ok
    library = engine.site / "large/library.so"
    library.write_bytes(library.read_bytes()[:-1] + b"!")
    (engine.site / "small.py").unlink()
    assert [(each.path, each.what) for each in verify(engine).damaged] == [("small.py", "missing")]
    found = verify(engine, thorough=True)
    assert {(each.path, each.what) for each in found.damaged} == {("large/library.so", "content"), ("small.py", "missing")}
    assert found.wheels == (wheels[0].name, wheels[2].name) and "large, small" in found.sentence
    server.sent.clear()
    mended = mend(engine, thorough=True)
    assert mended.ok and mended.repaired == 2
    assert set(server.sent) == {wheels[0].name, wheels[2].name}
    assert content_of(engine) == expected(wheels)
    assert not list(store.wheels_folder().iterdir())


def test_an_engine_is_mended_from_a_folder_without_a_network(wanted, wheels, server, get):
    engine = get(wanted).engine
    (engine.site / "small.py").write_bytes(b"")
    server.stop()
    assert mend(engine, source=wheels[0].parent).repaired == 1
    assert content_of(engine) == expected(wheels)
    (engine.site / "small.py").unlink()
    with pytest.raises(EngineWrongContent, match=r"small-1.0-py3-none-any.whl is not in"):
        mend(engine, source=engines_folder())


def test_notes_that_are_damaged_are_no_proof_of_anything(wanted, get):
    engine = get(wanted).engine
    notes = next((engine.path / "files").glob("large*.tsv"))
    notes.write_text(notes.read_text().replace("large/library.so", "large/another.so"))
    with pytest.raises(EngineDamaged, match="its own notes are damaged"):
        verify(engine)


def test_mending_does_not_write_into_the_file_of_another_engine(wheels, server, shelf, get):
    old = get(list_of(wheels, server.url)).engine
    new = get(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b"answer = 43\n"}, "2.0")], server.url)).engine
    library = new.site / "large/library.so"
    assert library.samefile(old.site / "large/library.so")
    library.unlink()
    mend(new)
    assert not library.samefile(old.site / "large/library.so") and verify(old, thorough=True).ok
    assert (new.site / "large/__init__.py").samefile(old.site / "large/__init__.py"), "what was whole is left alone"


def test_an_engine_that_is_not_whole_any_more_is_made_whole_from_what_is_left(wanted, wheels, server, get):
    engine = get(wanted).engine
    (engine.path / "valid").unlink()
    (engine.site / "small.py").unlink()
    assert store.current() is None and store.chosen_is_broken()
    server.sent.clear()
    assert install.plan(wanted).fetch == wheels[2].stat().st_size
    assert content_of(get(wanted).engine) == expected(wheels)
    assert set(server.sent) == {wheels[2].name}


def test_what_has_arrived_of_an_engine_is_told_with_what_is_unpacked_of_it(wanted, wheels, get, packaged):
    packaged(wanted)
    engine = get(wanted).engine
    engine.path.rename(engines_folder() / f"{wanted.id}.partial")
    (engines_folder() / f"{wanted.id}.partial/files/{wheels[0].name}.tsv").unlink()
    (store.wheels_folder() / kept_name(wanted.wheels[0])).write_bytes(bytes(1000))
    seen = state.look()
    assert seen.kind == "damaged" and seen.partial == wanted.size - wanted.wheels[0].size + 1000


def test_verifying_a_thousand_files_by_size_is_done_in_a_moment(shelf, get):
    wheel = write_wheel(shelf, "many", {f"many/folder{n % 50}/module_{n}.py": b"x = %d" % n for n in range(1000)})
    engine = get(list_of([wheel]), source=shelf).engine
    found = verify(engine)
    assert found.ok and found.files == 1003 and found.seconds < 0.2


# --- updated


def test_an_update_fetches_only_what_changed_and_links_the_rest(wheels, server, shelf, get):
    old = get(list_of(wheels, server.url)).engine
    fresh = write_wheel(shelf, "small", {"small.py": b"answer = 43\n"}, "2.0")
    wanted = list_of([*wheels[:2], fresh], server.url)
    server.sent.clear()
    plan = install.plan(wanted)
    assert (plan.wheels, plan.fetch) == (1, fresh.stat().st_size) and plan.linked > 200_000
    new = get(wanted).engine
    assert set(server.sent) == {fresh.name} and store.current() == new
    assert content_of(new) == expected([*wheels[:2], fresh])
    assert (new.site / "large/library.so").samefile(old.site / "large/library.so")
    assert store.disk_bytes(new.path) < 20_000
    assert content_of(old) == expected(wheels)


def test_bytecode_of_what_did_not_change_is_taken_over_and_python_takes_it(wheels, server, shelf, get, monkeypatch):
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    old = get(list_of(wheels, server.url)).engine
    bytecode.compile_modules(old, control=NodeControl())
    new = get(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b""}, "2.0")], server.url)).engine
    compiled = new.site / "large/__pycache__/__init__.cpython-312.pyc"
    assert compiled.samefile(old.site / "large/__pycache__/__init__.cpython-312.pyc")
    program = "import sys; sys.path.append(sys.argv[1]); import large; print(large.__cached__, large.size)"
    done = subprocess.run([sys.executable, "-v", "-c", program, str(new.site)], capture_output=True, text=True, check=True)
    assert f"matches {new.site}/large/__init__.py" in done.stderr and "150000" in done.stdout


def test_an_old_engine_whose_notes_are_damaged_does_not_stand_in_the_way(wheels, server, shelf, get):
    old = get(list_of(wheels, server.url)).engine
    next((old.path / "files").glob("*.tsv")).write_text("nonsense")
    fresh = write_wheel(shelf, "small", {"small.py": b""}, "2.0")
    assert verify(get(list_of([*wheels[:2], fresh], server.url)).engine).ok


def test_where_links_are_not_possible_files_are_copied(wheels, server, shelf, get, monkeypatch):
    get(list_of(wheels, server.url))

    def refuse(*_: object) -> None:
        raise OSError("not on this disk")

    monkeypatch.setattr(os, "link", refuse)
    new = get(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b""}, "2.0")], server.url)).engine
    assert verify(new, thorough=True).ok


def test_a_wheel_that_is_damaged_in_the_old_engine_is_fetched_and_not_linked(wheels, server, shelf, get):
    old = get(list_of(wheels, server.url)).engine
    (old.site / "large/library.so").write_bytes(b"cut")
    server.sent.clear()
    new = get(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b""}, "2.0")], server.url)).engine
    assert wheels[0].name in server.sent and verify(new, thorough=True).ok


def test_the_old_engine_stays_in_use_until_the_new_one_passed_its_test(wheels, server, shelf, get):
    old = get(list_of(wheels, server.url), test=lambda *_: WORKS).engine
    wanted = list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b""}, "2.0")], server.url)
    for broken in (SelfTest(False, False, "", "It cannot be loaded."), SelfTest(False, True, "cuda", "The GPU does not compute.")):
        got = get(wanted, test=lambda *_, broken=broken: broken)
        assert not got.used and store.current() == old and got.self_test == broken
    assert get(wanted, test=lambda *_: WORKS).used
    assert store.current() == got.engine


def test_a_first_engine_whose_gpu_fails_is_used_and_one_that_cannot_be_loaded_is_not(wanted, get):
    assert not get(wanted, test=lambda *_: SelfTest(False, False, "", "It cannot be loaded.")).used
    assert store.current() is None
    assert get(wanted, test=lambda *_: SelfTest(False, True, "cuda", "The GPU does not compute.")).used


def test_going_back_and_forth_between_two_engines(wheels, server, shelf, get):
    with pytest.raises(EngineError, match="no engine to go back to"):
        store.go_back()
    old = get(list_of(wheels, server.url)).engine
    new = get(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b""}, "2.0")], server.url)).engine
    assert store.go_back() == old == store.current()
    assert store.go_back() == new == store.current()


def test_going_back_is_to_the_engine_before_and_not_to_the_newest(wheels, server, get):
    first, second, third = (get(list_of(wheels[:count], server.url)).engine for count in (1, 2, 3))
    assert store.current() == third
    store.use(second)
    store.use(first)
    assert store.go_back() == second


def test_pruning_leaves_the_engine_in_use_and_what_it_shares(wheels, server, shelf, get):
    old = get(list_of(wheels, server.url)).engine
    new = get(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b""}, "2.0")], server.url)).engine
    (engines_folder() / "0123456789abcdef.partial" / "site").mkdir(parents=True)
    (engines_folder() / "0123456789abcdef.partial" / "site" / "half").write_bytes(noise(1000))
    pruned = store.prune()
    assert set(pruned.removed) == {old.id, "0123456789abcdef.partial"} and not pruned.in_use
    assert 1000 < pruned.bytes < 20_000, "what is shared is not freed"
    assert store.engines() == [new] and verify(new, thorough=True).ok


def test_an_engine_that_a_process_uses_is_not_pruned(wheels, server, shelf, get):
    old = get(list_of(wheels, server.url)).engine
    program = "import sys; from zk0desk.engine import activation; print(activation.use(sys.argv[1]), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program, old.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout and user.stdout.readline() == "True\n"
        get(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b""}, "2.0")], server.url))
        assert store.prune().in_use == (old.id,)
        user.communicate("")
    assert store.prune().removed == (old.id,)


# --- in a folder


def saved(engine: store.Installed, folder: Path) -> Path:
    return Path(portable.export(engine, folder, control=NodeControl(), patience=HASTY).folder)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Ships a list with this zk0desk."""
    folder = tmp_path / "lists"
    folder.mkdir()
    monkeypatch.setenv("ZK0DESK_ENGINE_LISTS", str(folder))

    def ship(wanted) -> None:
        (folder / f"{wanted.system}-{wanted.arch}-{wanted.backend}.json").write_text(wanted.to_text(), encoding="utf-8")

    return ship


def test_an_engine_is_saved_to_a_folder_and_read_back_without_a_network(wanted, wheels, server, get, shipped, tmp_path, monkeypatch):
    engine = get(wanted).engine
    server.stop()
    folder = saved(engine, tmp_path / "stick")
    assert {path.name for path in folder.iterdir()} == {"engine.json", *(path.name for path in wheels)}
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "another computer"))
    shipped(wanted)
    for given in (folder, folder.parent):
        found, source = portable.found_list(given)
        assert (found, source) == (wanted, folder)
    got = get(found, source=source)
    assert got.received == 0 and got.engine.id == engine.id
    assert content_of(got.engine) == expected(wheels)
    assert (got.engine.site / "middle/tool").stat().st_mode & 0o111


def test_a_saved_folder_that_was_changed_is_refused(wanted, get, shipped, tmp_path, monkeypatch):
    folder = saved(get(wanted).engine, tmp_path / "stick")
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "another computer"))
    evil = write_wheel(tmp_path, "small", {"small.py": b"evil"})
    (folder / evil.name).write_bytes(evil.read_bytes())
    with pytest.raises(EngineWrongContent, match="small-1.0-py3-none-any.whl is not what the list names"):
        get(wanted, source=folder)
    # The original RECORD does not help a wheel whose file is another.
    record = expected([folder / "large-1.0-py3-none-any.whl"])["large-1.0.dist-info/RECORD"]
    evil = write_wheel(tmp_path, "large", {"large/__init__.py": b"evil", "large/library.so": noise(150_000)}, record=record)
    (folder / evil.name).write_bytes(evil.read_bytes())
    with pytest.raises((EngineWrongContent, WheelError)):
        get(wanted, source=folder)
    assert store.current() is None


def test_a_folder_from_another_version_is_refused_with_what_it_is(wanted, get, shipped, tmp_path):
    folder = saved(get(wanted).engine, tmp_path / "stick")
    shipped(replace(wanted, wheels=wanted.wheels[:2]))
    with pytest.raises(EngineUnsupported, match="not the one of this zk0desk"):
        portable.found_list(folder)


def test_wheels_whose_record_the_list_does_not_name_are_fetched_to_be_saved(wheels, server, get, tmp_path):
    wanted = list_of(wheels, server.url, record=False)
    engine = get(wanted).engine
    saved_to = portable.export(engine, tmp_path / "stick", control=NodeControl(), patience=HASTY)
    assert saved_to.fetched == 3
    assert {path.name: path.read_bytes() for path in wheels} == {
        path.name: (Path(saved_to.folder) / path.name).read_bytes() for path in wheels
    }


def test_an_engine_is_made_from_a_plain_folder_of_wheels_and_what_is_missing_is_named(wanted, wheels, server, get, shipped):
    shipped(wanted)
    server.stop()
    found, source = portable.found_list(wheels[0].parent, "cpu")
    wheels[2].rename(wheels[2].with_suffix(".away"))
    with pytest.raises(EngineWrongContent, match="does not hold the whole engine") as raised:
        get(found, source=source)
    assert "1 of 3 parts are missing, such as small-1.0-py3-none-any.whl" in raised.value.why
    wheels[2].with_suffix(".away").rename(wheels[2])
    assert content_of(get(found, source=source).engine) == expected(wheels)


def test_wheels_that_come_with_zk0desk_are_not_fetched(wheels, server, get, shipped, tmp_path):
    wanted = list_of(wheels, server.url)
    wanted = replace(wanted, wheels=(*wanted.wheels[:2], replace(wanted.wheels[2], url="")))
    shipped(wanted)
    with pytest.raises(EngineWrongContent, match="comes with zk0desk"):
        get(wanted)
    (tmp_path / "lists/wheels").mkdir()
    (tmp_path / "lists/wheels" / wheels[2].name).write_bytes(wheels[2].read_bytes())
    assert content_of(get(wanted).engine) == expected(wheels)
    assert (tmp_path / "lists/wheels" / wheels[2].name).exists()


# --- room


def test_without_the_room_nothing_is_fetched(wanted, server, get, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(EngineDiskFull, match="of disk, and") as raised:
        get(wanted)
    assert "Nothing was fetched" in raised.value.why and not server.requests


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "zk0", str(place)], capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_told_and_what_came_counts(small_disk, shelf, server, get, monkeypatch):
    wheels = [write_wheel(shelf, f"part{n}", {f"part{n}.so": noise(100_000, n)}) for n in range(3)]
    wanted = list_of(wheels, server.url)
    monkeypatch.setenv("ZK0DESK_HOME", str(small_disk))
    (small_disk / "others").write_bytes(bytes(850_000))
    monkeypatch.setattr(install, "_SPARE", -1.0)  # the room is there when it is asked for, and gone when it is needed
    monkeypatch.setattr(install.Plan, "fits", True)
    with pytest.raises(EngineDiskFull, match="The disk is full") as raised:
        get(wanted)
    assert "goes on where it ended" in raised.value.remedy
    there = server.sent.total()
    (small_disk / "others").unlink()
    got = get(wanted)
    assert content_of(got.engine) == expected(wheels)
    assert got.received < wanted.size and there > 0


def test_the_most_that_the_disk_takes_is_what_stays_and_one_wheel(small_disk, shelf, server, get, monkeypatch):
    """Twelve wheels of 60 kB on a disk of 1 MB: with all wheels kept to the end it would be full."""
    wheels = [write_wheel(shelf, f"part{n}", {f"part{n}.so": noise(60_000, n)}) for n in range(12)]
    wanted = list_of(wheels, server.url)
    monkeypatch.setenv("ZK0DESK_HOME", str(small_disk))
    assert 2 * wanted.size > 1_048_576
    assert verify(get(wanted).engine).ok


# --- used


def test_an_activated_engine_is_imported_after_what_is_there_already(wanted, get, monkeypatch):
    engine = get(wanted).engine
    use = "import sys; from zk0desk.engine import activation as a; print(a.use(sys.argv[1]), a.use(sys.argv[1]))"
    program = f"{use}; import small; print(small.answer, sys.path[-1])"
    done = subprocess.run([sys.executable, "-c", program, engine.folder], capture_output=True, text=True, check=True)
    assert done.stdout == f"True False\n42 {engine.site}\n"
    (engine.path / "valid").unlink()
    assert activation.use(engine.folder) is False


@pytest.mark.parametrize(
    ("home", "data", "engines"),
    [("/one", None, None), ("~/two", None, None), ("", None, None), ("", "/three", None), ("", " ", None), ("/one", None, "~/four")],
)
def test_the_engine_is_looked_for_where_all_else_is_kept_or_is_shared(monkeypatch, home, data, engines):
    for name, value in (("ZK0DESK_HOME", home), ("XDG_DATA_HOME", data), ("ZK0DESK_ENGINES", engines)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert Path(activation.engines_folder()) == engines_folder()


def test_activating_takes_no_time(wanted, get):
    engine = get(wanted).engine
    before = list(sys.path)
    began = time.perf_counter()
    assert activation.use(engine.folder)
    took = time.perf_counter() - began
    sys.path[:] = before
    os.close(activation._held.pop())
    assert took < 0.005


def test_an_interpreter_of_an_artefact_has_the_current_engine_and_a_checkout_has_none(wanted, get, tmp_path, monkeypatch):
    engine = get(wanted).engine
    before = list(sys.path)
    activation.activate()
    assert sys.path == before, "a checkout is its own engine"
    (tmp_path / "zk0desk/_resources").mkdir(parents=True)
    (tmp_path / "zk0desk/_resources/artefact.json").touch()
    monkeypatch.setattr(activation, "__file__", str(tmp_path / "zk0desk/engine/activation.py"))
    for chosen in ("none", "../..", "0123456789abcdef"):
        monkeypatch.setenv(activation.CHOSEN, chosen)
        activation.activate()
        assert sys.path == before
    monkeypatch.delenv(activation.CHOSEN)
    activation.activate()
    assert sys.path == [*before, str(engine.site)]
    sys.path[:] = before
    os.close(activation._held.pop())
    (engines_folder() / "current").write_bytes(b"\xff\xff")
    activation.activate()
    assert sys.path == before


def test_the_demos_nodes_have_homes_of_their_own_and_the_operators_engine(tmp_path, monkeypatch):
    from zk0desk.demo import federation

    monkeypatch.setattr(federation, "Guard", lambda *_, **__: types.SimpleNamespace(folder=tmp_path))
    made = federation.DemoFederation(federation.DemoPlan(), lambda *_: None, own_node=True)
    assert made.environment["ZK0DESK_ENGINES"] == str(engines_folder())
