"""The engine is fetched from a server that behaves well, badly, or not at all; and goes on where a fetch ended."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.engine.wheel_parts import WheelServer, content_of, expected, list_of, noise, write_wheel
from zk0desk.control import NodeControl, Stopped
from zk0desk.engine import state, store
from zk0desk.engine.errors import EngineBusy, EngineRefused, EngineUnreachable, EngineWrongContent
from zk0desk.engine.fetch import Patience, kept_name
from zk0desk.folders import engines_folder


def test_an_engine_is_fetched_whole_and_nothing_else_stays(wanted, wheels, server, get):
    told = []
    got = get(wanted, told=told.append)
    assert content_of(got.engine) == expected(wheels)
    assert store.current() == got.engine and got.used
    assert server.sent.total() == wanted.size == got.received
    assert not list(store.wheels_folder().iterdir())
    assert got.engine.path.parent.joinpath(f"{wanted.id}.partial").exists() is False
    assert (got.engine.site / "middle/tool").stat().st_mode & 0o111 and not (got.engine.site / "small.py").stat().st_mode & 0o111
    assert told[-1].done == told[-1].total and {each.phase for each in told} <= {"fetching", "unpacking"}


def test_after_kill_9_at_each_tenth_no_byte_comes_twice(shelf, server, get_process):
    """Each life of the fetching process has addresses of its own, so that what a dead one asked for is not taken for the next one's."""
    wheels = [write_wheel(shelf, f"part{n}", {f"part{n}/library.so": noise(90_000 + 7_000 * n, n), f"part{n}/a.py": b""}) for n in range(6)]
    size = list_of(wheels).size
    received, before = 0, dict[str, int]()
    for tenth in range(1, 11):
        life = f"life{tenth}"
        wanted = list_of(wheels, f"{server.url}/{life}")
        if tenth < 10:
            server.close_gate(server.sent.total() + size * tenth // 10 - received)
        process = get_process(wanted)
        if tenth < 10:
            assert server.reached.wait(20), process.communicate()
            _until(lambda: _held(server, wanted) == Counter(before) + server.sent_below(life))  # noqa: B023 - asked at once
            process.send_signal(signal.SIGKILL)
        said, complaint = process.communicate(timeout=30)
        asked = {name: start for name, start in server.requests if name.startswith(life)}
        assert all(start == before.get(name.partition("/")[2], 0) for name, start in asked.items()), "it did not go on where it ended"
        before = _held(server, wanted)
        received = sum(before.values()) if tenth < 10 else received + server.sent_below(life).total()
        server.open_gate()
    assert process.returncode == 0, complaint
    assert received == size, "a byte came twice"
    assert content_of(store.find(said.split()[0])) == expected(wheels)


def _until(condition) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        threading.Event().wait(0.005)


def _held(server: WheelServer, wanted) -> dict[str, int]:
    """The bytes of each wheel that are on this computer: in its file, or unpacked."""
    partial = engines_folder() / f"{wanted.id}.partial"
    found = {}
    for wheel in wanted.wheels:
        path = store.wheels_folder() / kept_name(wheel)
        if (partial / "files" / f"{wheel.file}.tsv").exists():
            found[wheel.file] = wheel.size
        elif path.exists() and path.stat().st_size:
            found[wheel.file] = path.stat().st_size
    return found


def test_what_was_unpacked_before_a_stop_is_not_fetched_again(wanted, wheels, server, get, packaged):
    packaged(wanted)
    control = NodeControl()
    server.close_gate(wanted.size - 40_000)

    def stop() -> None:
        server.reached.wait()
        _until(lambda: _held(server, wanted) == server.sent)
        control.stop_now()

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(Stopped):
        get(wanted, control=control)
    stopping.join()
    server.open_gate()
    there = sum(_held(server, wanted).values())
    assert state.look().partial == there > wanted.size // 2
    got = get(wanted)
    assert got.received == wanted.size - there
    assert content_of(got.engine) == expected(wheels)


def test_a_fetch_holds_when_paused_and_goes_on(shelf, server, get):
    """So much that it does not fit into the buffers between server and client."""
    wheel = write_wheel(shelf, "huge", {"huge.so": noise(16_000_000)})
    wanted = list_of([wheel], server.url)
    control = NodeControl()
    server.close_gate(1_000_000, going_on=True)

    def pause_and_resume() -> None:
        server.reached.wait()
        control.pause()
        server.open_gate()
        for _ in range(2):
            threading.Event().wait(0.3)  # what is under way when a person pauses arrives, and no more is asked for
            paused.append(server.sent.total())
        control.resume()

    paused: list[int] = []
    other = threading.Thread(target=pause_and_resume)
    other.start()
    got = get(wanted, control=control)
    other.join()
    assert content_of(got.engine) == expected([wheel])
    assert paused[0] == paused[1] < wanted.size


def test_a_server_without_ranges_is_read_from_the_start_and_what_was_there_counts(wanted, wheels, server, get):
    large = wanted.wheels[0]
    (store.wheels_folder() / kept_name(large)).write_bytes(wheels[0].read_bytes()[:100_000])
    server.ranges = False
    got = get(wanted)
    assert content_of(got.engine) == expected(wheels)
    assert got.received == wanted.size - 100_000
    assert server.sent[large.file] == large.size


def test_a_damaged_beginning_is_thrown_away_and_fetched_anew(wanted, wheels, server, get):
    large = wanted.wheels[0]
    (store.wheels_folder() / kept_name(large)).write_bytes(b"\0" * 100_000)
    got = get(wanted)
    assert content_of(got.engine) == expected(wheels)


def test_a_wheel_with_another_hash_is_refused_and_not_kept(wanted, wheels, server, get):
    wheels[0].write_bytes(wheels[0].read_bytes()[:-1] + b"!")
    with pytest.raises(EngineWrongContent, match="large-1.0-py3-none-any.whl is not what the list names") as raised:
        get(wanted)
    assert "SHA-256" in raised.value.why and raised.value.remedy
    assert not (store.wheels_folder() / kept_name(wanted.wheels[0])).exists()
    assert store.current() is None


def _once(act):
    """Answer the first request in this way, later ones rightly."""
    counter = itertools.count()
    return lambda handler, name, start, content: next(counter) == 0 and act(handler, name, start, content)


def _cut_short(handler, name, start, content) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.owner.pour(handler, name, content[:50_000])
    handler.close_connection = True
    return True


def test_a_transfer_that_is_cut_goes_on(shelf, server, get):
    wanted = list_of([write_wheel(shelf, "one", {"one/library.so": noise(200_000)})], server.url)
    server.bad = [_once(_cut_short)]
    get(wanted)
    assert [start for _, start in server.requests] == [0, 50_000]
    assert server.sent.total() == wanted.size


def test_a_busy_server_is_asked_again_when_it_says_so(shelf, server, get):
    def busy(handler, *_) -> bool:
        handler.send_response(503)
        handler.send_header("Retry-After", "1")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    wanted = list_of([write_wheel(shelf, "one", {"one.py": b""})], server.url)
    server.bad = [_once(busy)]
    told = []
    began = time.monotonic()
    get(wanted, told=told.append)
    assert time.monotonic() - began >= 1
    assert any("answers 503" in each.words for each in told)


def test_a_server_that_goes_silent_is_asked_again_and_then_given_up(shelf, server, get):
    def silent(handler, name, start, content) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        server.go.wait()
        return True

    wanted = list_of([write_wheel(shelf, "one", {"one.py": b""})], server.url)
    server.bad = [silent]
    with pytest.raises(EngineUnreachable, match="cannot be fetched") as raised:
        get(wanted)
    assert len(server.requests) == 3 and "nothing came for" in raised.value.why


def test_a_stall_is_left_at_once_when_a_person_stops(wanted, server, get):
    control = NodeControl()
    server.close_gate(50_000)
    threading.Thread(target=lambda: (server.reached.wait(), control.stop_now())).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        get(wanted, control=control, patience=Patience(stall_s=60))
    assert time.monotonic() - began < 1.8


def test_nobody_at_the_address_is_told_with_what_to_do(wanted, server, get):
    server.stop()
    with pytest.raises(EngineUnreachable) as raised:
        get(wanted)
    assert "goes on where it ended" in raised.value.remedy


@pytest.mark.parametrize(("status", "word"), [(404, "404"), (403, "403"), (407, "login")])
def test_a_server_that_refuses_is_not_asked_again(wanted, server, get, status, word):
    def refuse(handler, *_) -> bool:
        handler.send_error(status)
        return True

    server.bad = [refuse]
    with pytest.raises(EngineRefused) as raised:
        get(wanted)
    assert word in str(raised.value) and len(server.requests) <= 4


def test_a_login_page_in_the_place_of_a_wheel_is_recognised(wanted, server, get):
    def page(handler, *_) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", "13")
        handler.end_headers()
        handler.wfile.write(b"<html></html>")
        return True

    server.bad = [page]
    with pytest.raises(EngineWrongContent, match="not what the list names") as raised:
        get(wanted)
    assert "13 bytes of text/html" in raised.value.why and "open a web page" in raised.value.remedy


@pytest.mark.parametrize(
    ("location", "works"),
    [("{url}/elsewhere/{name}", True), ("http://192.0.2.1/{name}", False), ("file:///etc/passwd", False), ("", False)],
)
def test_a_redirect_is_followed_only_where_a_list_could_have_led(shelf, server, get, location, works):
    wanted = list_of([write_wheel(shelf, "one", {"one.py": b""})], server.url)

    def elsewhere(handler, name, *_) -> bool:
        if "elsewhere" in handler.path:
            return False
        handler.send_response(302)
        handler.send_header("Location", location.format(url=server.url, name=name))
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    server.bad = [elsewhere]
    if works:
        assert get(wanted).used
    else:
        with pytest.raises(EngineRefused, match="sends to an address that is not used"):
            get(wanted)


def test_a_proxy_of_the_system_is_used_and_its_password_is_never_told(shelf, server, get, monkeypatch):
    """A plain http proxy gets the whole address as its request, so the server stands in for one."""
    wheel = write_wheel(shelf, "one", {"one.py": b""})
    wanted = list_of([wheel], "http://localhost:9")  # nobody is there
    seen = []

    def proxied(handler, *_) -> bool:
        seen.append((handler.path, handler.headers.get("Proxy-Authorization")))
        return False

    server.bad = [proxied]
    monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://me:se%40cret@"))
    monkeypatch.setenv("no_proxy", "")
    get(wanted)
    assert seen == [(f"http://localhost:9/{wheel.name}", "Basic bWU6c2VAY3JldA==")]
    server.stop()
    with pytest.raises(EngineUnreachable) as raised:
        get(list_of([write_wheel(shelf, "two", {"two.py": b""})], "http://localhost:9"))
    assert "cret" not in str(raised.value)


def test_two_starts_at_once_do_not_fight(wanted, wheels, server, get, get_process):
    server.close_gate(wanted.size // 2)
    first = get_process(wanted)
    assert server.reached.wait(20)
    with pytest.raises(EngineBusy, match="Another zk0desk works on the engine"):
        get(wanted)
    server.open_gate()
    first.communicate(timeout=30)
    assert first.returncode == 0
    assert get(wanted).received == 0
    # The gate cut what was under way, and that alone came again, from where it was cut.
    assert server.sent.total() == wanted.size


def test_what_was_begun_of_another_engine_goes(wanted, get, tmp_path: Path):
    (store.wheels_folder() / "0123456789abcdef-old-1.0-py3-none-any.whl").write_bytes(b"old")
    (engines_folder() / "0123456789abcdef.partial" / "site").mkdir(parents=True)
    get(wanted)
    assert sorted(path.name for path in engines_folder().iterdir()) == [wanted.id, "current", "lock", "wheels"]
