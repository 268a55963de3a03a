"""The line to the Hub: it breaks, is stopped, or is not there."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.federation.hub_parts import (
    BASE,
    WEIGHTS,
    get,
    incomplete,
)
from tests.federation.hub_stand_in import BIG, Answer, HubStandIn, git_id
from zk0desk import folders
from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import ExitStatus
from zk0desk.federation.hub import Patience
from zk0desk.federation.hub_errors import (
    HubFileWrong,
    HubLineCut,
    HubOffline,
    HubTimeout,
    HubUnavailable,
    HubUnreachable,
)
from zk0desk.quiet import chosen, quiet_libraries

pytestmark = pytest.mark.usefixtures("nothing_chosen")


# --- an interrupted line


def test_that_a_cut_line_is_gone_on_from_where_it_broke(the_hub: HubStandIn) -> None:
    cut_in_store(the_hub, after=100_000, times=1)
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.range for request in the_hub.requests if request.host == "store"]
    assert len(ranges) == 2 and ranges[0] == ""
    start = int(ranges[1].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 100_000


def test_that_a_later_fetch_goes_on_where_a_failed_one_ended(the_hub: HubStandIn) -> None:
    cut_in_store(the_hub, after=150_000, times=1, then_fails=True)
    with pytest.raises(HubUnavailable):
        get()
    (partial,) = incomplete(folders.policies_folder(), of=WEIGHTS)
    there = partial.stat().st_size
    assert 0 < there <= 150_000
    the_hub.interfere = lambda answer: False
    before = len(the_hub.requests)
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    asked = [request.range for request in the_hub.requests[before:] if request.host == "store"]
    assert asked == [f"bytes={there}-"]
    assert not incomplete(folders.policies_folder())


def cut_in_store(the_hub: HubStandIn, *, after: int, times: int, then_fails: bool = False) -> None:
    """Cut the first bodies that the store sends; afterwards its answers are errors, if so asked."""
    left = [times]

    def interfere(answer: Answer) -> bool:
        if not answer.is_store:
            return False
        if left[0] > 0:
            left[0] -= 1
            answer.cut_after = after
            return False
        if then_fails:
            answer.send(503, b"", {})
        return then_fails

    the_hub.interfere = interfere


def test_that_a_line_that_breaks_with_something_new_each_time_arrives_in_the_end(the_hub: HubStandIn) -> None:
    cut_in_store(the_hub, after=20_000, times=10)
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS


def test_that_a_line_that_breaks_with_nothing_new_is_given_up(the_hub: HubStandIn) -> None:
    left = [1]

    def interfere(answer: Answer) -> bool:
        if answer.is_store:
            answer.cut_after = 50_000 if left[0] else 0
            left[0] = 0
        return False

    the_hub.interfere = interfere
    with pytest.raises(HubLineCut, match="what has arrived is kept") as error:
        get()
    assert error.value.exit_status == ExitStatus.UNREACHABLE


def test_that_a_server_that_gives_no_parts_sends_the_whole(the_hub: HubStandIn) -> None:
    the_hub.gives_parts = False
    cut_in_store(the_hub, after=100_000, times=1)
    told: list[tuple[int, int]] = []
    assert (get(progress=lambda done, total: told.append((done, total))) / "model.safetensors").read_bytes() == WEIGHTS
    assert told[-1][0] == told[-1][1] > len(WEIGHTS)
    assert len([request for request in the_hub.requests if request.host == "store"]) == 2


def test_that_what_an_earlier_fetch_left_is_not_believed_if_the_hash_differs(the_hub: HubStandIn) -> None:
    cut_in_store(the_hub, after=150_000, times=1, then_fails=True)
    with pytest.raises(HubUnavailable):
        get()
    (partial,) = incomplete(folders.policies_folder(), of=WEIGHTS)
    partial.write_bytes(b"\0" * partial.stat().st_size)
    the_hub.interfere = lambda answer: False
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS


def test_that_a_file_that_comes_compressed_though_nobody_asked_is_taken(the_hub: HubStandIn) -> None:
    right = the_hub.repositories[BASE].files["policy_preprocessor.json"]

    def interfere(answer: Answer) -> bool:
        if answer.content == right:
            answer.send(200, gzip.compress(right), {"Content-Encoding": "gzip"})
            return True
        return False

    the_hub.interfere = interfere
    assert get()


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"!", lambda content: content + b"!", lambda content: content[:-1]])
@pytest.mark.parametrize("path", ["model.safetensors", "policy_preprocessor.json"])
def test_that_a_file_that_is_not_as_listed_is_refused_and_removed(the_hub: HubStandIn, path: str, change: Callable[[bytes], bytes]) -> None:
    right = the_hub.repositories[BASE].files[path]

    def interfere(answer: Answer) -> bool:
        if answer.content == right:
            answer.send_file(change(right), {})
            return True
        return False

    the_hub.interfere = interfere
    with pytest.raises(HubFileWrong, match=re.escape(path)):
        get()
    digest = hashlib.sha256(right).hexdigest() if len(right) >= BIG else git_id(right)
    assert not list(folders.policies_folder().rglob(f"{digest}*"))
    assert not list(folders.policies_folder().rglob("config.json"))


# --- stop


def stopped_after(control: NodeControl, begun: threading.Event, **options: Any) -> float:
    """Seconds from a Stop, given when `begun` is set, to the end of the fetch."""
    at: list[float] = []

    def stop() -> None:
        begun.wait(20)
        at.append(time.monotonic())
        control.stop_now()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(Stopped):
            get(control=control, **options)
        return time.monotonic() - at[0]
    finally:
        begun.set()
        thread.join()


def test_that_stop_in_the_middle_of_a_slow_file_ends_at_once_and_keeps_what_came(the_hub: HubStandIn) -> None:
    the_hub.slow = 0.2
    begun = threading.Event()

    def progress(done: int, total: int) -> None:
        if done > 20_000:
            begun.set()

    assert stopped_after(NodeControl(), begun, progress=progress) < 2
    assert incomplete(folders.policies_folder())
    the_hub.slow = 0
    before = len(the_hub.requests)
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in the_hub.requests[before:] if request.host == "store"][0].startswith("bytes=")


def test_that_stop_ends_the_wait_for_an_answer(the_hub: HubStandIn) -> None:
    begun = threading.Event()

    def interfere(answer: Answer) -> bool:
        begun.set()
        answer.stall()
        return True

    the_hub.interfere = interfere
    assert stopped_after(NodeControl(), begun, patience=Patience()) < 2


def test_that_stop_ends_the_wait_that_the_hub_asked_for(the_hub: HubStandIn) -> None:
    begun = threading.Event()

    def interfere(answer: Answer) -> bool:
        answer.send(429, b"", {"Retry-After": "50"})
        begun.set()
        return True

    the_hub.interfere = interfere
    assert stopped_after(NodeControl(), begun, patience=Patience()) < 2


def test_that_stop_does_not_wait_for_a_silent_name_server(the_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = threading.Event(), threading.Event()

    def silent(*_: Any, **__: Any) -> Any:
        begun.set()
        over.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        assert stopped_after(NodeControl(), begun, endpoint="http://hub.example:80") < 2
    finally:
        over.set()


def test_that_a_fetch_that_was_stopped_before_it_began_asks_nothing(the_hub: HubStandIn) -> None:
    control = NodeControl()
    control.stop_now()
    with pytest.raises(Stopped):
        get(control=control)
    assert not the_hub.requests


# --- the way to the Hub


def test_that_a_hub_that_does_not_listen_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(HubUnreachable, match="refuses the connection") as error:
        get(endpoint=f"http://127.0.0.1:{port}")
    assert error.value.exit_status == ExitStatus.UNREACHABLE


def test_that_a_computer_without_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    with pytest.raises(HubUnreachable, match=r"huggingface\.co was not found.*no network"):
        get(endpoint="https://huggingface.co")


def test_that_a_hub_that_says_nothing_is_told(the_hub: HubStandIn) -> None:
    def interfere(answer: Answer) -> bool:
        answer.stall()
        return True

    the_hub.interfere = interfere
    with pytest.raises(HubTimeout, match="does not answer in time"):
        get(patience=Patience(silence=0.2, tries=2, first_wait=0.01))


def test_that_the_persons_own_offline_mode_is_respected_at_once(the_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZK0DESK_QUIET")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubOffline, match="Unset HF_HUB_OFFLINE") as error:
        get()
    assert not the_hub.requests and error.value.exit_status == ExitStatus.USAGE
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert get()


def test_that_what_the_person_chose_is_told_from_what_zk0desk_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ZK0DESK_QUIET", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    quiet_libraries()
    quiet_libraries()
    assert os.environ["HF_HUB_OFFLINE"] == "1" and chosen("HF_HUB_OFFLINE") is None
    for value in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        monkeypatch.delenv("ZK0DESK_QUIET", raising=False)
        quiet_libraries()
        assert chosen("HF_HUB_OFFLINE") == value


def test_that_a_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://proxy")
    with pytest.raises(HubUnreachable, match="Check HTTPS_PROXY"):
        get(endpoint="https://hub.example")


def test_that_a_fetch_leaves_the_libraries_offline(the_hub: HubStandIn) -> None:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    before = dict(os.environ)
    get()
    assert dict(os.environ) == before and os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(OfflineModeIsEnabled):
        huggingface_hub.HfApi(endpoint=the_hub.endpoint).model_info(BASE)
