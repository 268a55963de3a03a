"""Policies and recordings from the Hub: against a real HTTP server on loopback that speaks as the Hub does, and fails as it does."""

from __future__ import annotations

import ast
import contextlib
import errno
import gzip
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import keyring
import keyring.errors
import pytest

from tests.federation.hub_stand_in import BIG, Answer, HubStandIn, Repository, git_id
from tests.federation.test_credentials import MemoryKeyring
from zk0desk import cli, folders
from zk0desk.control import NodeControl, Stopped
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation import hub, hub_errors
from zk0desk.federation.credentials import KeyringUnavailable
from zk0desk.federation.hub import Patience, fetch, origin
from zk0desk.federation.hub_errors import (
    DiskFull,
    DiskRefuses,
    FetchUnderWay,
    FolderInTheWay,
    HubAnswerUnknown,
    HubError,
    HubFileWrong,
    HubGated,
    HubLineCut,
    HubListingRefused,
    HubNameInvalid,
    HubNotFound,
    HubNotSuitable,
    HubOffline,
    HubRateLimited,
    HubTimeout,
    HubTokenMissing,
    HubTokenRefused,
    HubUnavailable,
    HubUnreachable,
)
from zk0desk.federation.hub_line import _seconds_asked_for
from zk0desk.federation.hub_token import TokenInvalid, forget_token, keep_token, read_token
from zk0desk.quiet import chosen, quiet_libraries
from zk0desk.training.policy_files import TRAINABLE_MODULES, read_policy
from zk0desk.training.recordings import PolicyNeeds, deep_check, find_recordings, quick_check

BASE, BACKBONE, CUBES = "lab/base", "lab/backbone", "lab/cubes"
TOKEN = "hf_aVerySecretToken0123456789"
QUICK = Patience(connect=2, silence=2, tries=3, first_wait=0.01)


class ForgetfulKeyring(MemoryKeyring):
    """The tests' backend of keyring's, from which a password can be taken out again."""

    def delete_password(self, service: str, username: str) -> None:
        if self.kept.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError("not there")


@pytest.fixture
def memory_keyring(monkeypatch: pytest.MonkeyPatch) -> ForgetfulKeyring:
    backend = ForgetfulKeyring()
    monkeypatch.setattr(keyring.core, "_keyring_backend", backend)
    return backend


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are run offline by their environment; the person in them chose nothing."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "ZK0DESK_QUIET"):
        monkeypatch.delenv(name, raising=False)
    quiet_libraries()


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.endpoint)
        stand_in.repositories = {BASE: Repository(policy_files()), BACKBONE: Repository(BACKBONE_FILES, commit="b" * 40)}
        stand_in.repositories[CUBES] = Repository(recording_files(), kind="datasets", commit="c" * 40)
        yield stand_in


def weights(numbers: int = 60_000) -> bytes:
    """A safetensors file with a tensor of each trainable module and one of a backbone."""
    header: dict[str, Any] = {}
    data = b""
    for name in [*(f"{module}.weight" for module in TRAINABLE_MODULES), "model.vlm_with_expert.vlm.weight"]:
        tensor = struct.pack("<f", len(data)) * (numbers // (len(TRAINABLE_MODULES) + 1))
        header[name] = {"dtype": "F32", "shape": [len(tensor) // 4], "data_offsets": [len(data), len(data) + len(tensor)]}
        data += tensor
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHTS = weights()
BACKBONE_FILES = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "merges.txt": b"a b", "model.safetensors": b"x" * 50, "run.py": b"1"}


def policy_files(**config: Any) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"type": "smolvla", "vlm_model_name": BACKBONE, **config}).encode(),
        "model.safetensors": WEIGHTS,
        "policy_preprocessor.json": b'{"steps": []}',
        "README.md": b"# card",
        "modeling.py": b"import os",
        "pytorch_model.bin": b"pickle",
        "old.pkl": b"pickle",
        ".gitattributes": b"*",
        "checkpoints/1/model.safetensors": b"y" * 10,
    }


def recording_files() -> dict[str, bytes]:
    return {
        "meta/info.json": b"{}",
        "meta/tasks.parquet": b"PAR1",
        "data/chunk-000/file-000.parquet": b"PAR1 data",
        "videos/observation.images.top/chunk-000/file-000.mp4": bytes(range(256)) * 1000,
        "videos/observation.images.wrist/chunk-000/file-000.mp4": bytes(range(256)) * 1000,
        "load.py": b"import os",
    }


def get(kind: hub.Kind = "policy", name: str = BASE, revision: str = "main", **options: Any) -> Path:
    return fetch(kind, name, revision, **({"control": NodeControl(), "patience": QUICK} | options))


def incomplete(base: Path, of: bytes | None = None) -> list[Path]:
    return list(base.rglob(f"{hashlib.sha256(of).hexdigest() if of else '*'}.incomplete"))


# --- what is fetched ----------------------------------------------------------------------------------------------


def test_that_a_policy_comes_with_its_backbones_description_and_nothing_that_runs(the_hub: HubStandIn) -> None:
    folder = get()
    assert folder.is_relative_to(folders.policies_folder())
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.json", "model.safetensors", "policy_preprocessor.json", hub.ORIGIN_FILE,
        "vlm/config.json", "vlm/tokenizer.json", "vlm/merges.txt",
    }  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((folder / "config.json").read_text())["vlm_model_name"] == str(folder / "vlm")
    assert read_policy(folder).parameters
    assert not [request for request in the_hub.requests if re.search(r"\.(py|bin|pkl|md)", request.path)]


def test_that_the_commit_is_kept_with_what_was_fetched(the_hub: HubStandIn) -> None:
    the_hub.repositories[BASE].revisions["v1.0"] = "d" * 40
    kept = origin(get(revision="v1.0"))
    assert kept is not None
    assert (kept.repo_id, kept.revision, kept.commit, kept.backbone) == (BASE, "v1.0", "d" * 40, f"{BACKBONE}@{'b' * 40}")
    assert origin(folders.policies_folder()) is None


@pytest.mark.timeout(300)
def test_that_a_fetched_policy_loads_offline_with_another_owners_backbone(the_hub: HubStandIn, demo_policy: Path) -> None:
    from zk0desk.training.policy import TrainablePolicy

    files = {str(path.relative_to(demo_policy)): path.read_bytes() for path in demo_policy.rglob("*") if path.is_file()}
    backbone = {path.removeprefix("vlm/"): files.pop(path) for path in list(files) if path.startswith("vlm/")}
    text = {path: content.replace(str(demo_policy / "vlm").encode(), BACKBONE.encode()) for path, content in files.items()}
    files |= {path: content for path, content in text.items() if path.endswith(".json")}
    the_hub.repositories[BASE].files, the_hub.repositories[BACKBONE].files = files, backbone
    folder = get()
    before = len(the_hub.requests)
    assert TrainablePolicy.load(folder).layout == read_policy(demo_policy).layout
    assert len(the_hub.requests) == before


def test_that_a_recording_is_where_lerobot_looks_and_the_list_finds_it(the_hub: HubStandIn) -> None:
    folder = get("recording", CUBES)
    assert folder == Path(os.environ["HF_LEROBOT_HOME"]) / "lab" / "cubes"
    assert find_recordings([]) == [folder]
    for path, content in recording_files().items():
        assert not (folder / path).exists() if path.endswith(".py") else (folder / path).read_bytes() == content


def test_that_a_fetched_recording_is_whole(the_hub: HubStandIn, demo_recording: Path) -> None:
    files = {str(path.relative_to(demo_recording)): path.read_bytes() for path in demo_recording.rglob("*") if path.is_file()}
    the_hub.repositories[CUBES].files = files
    assert deep_check(get("recording", CUBES), PolicyNeeds()).status == quick_check(demo_recording).status == "ok"


def test_that_an_unfinished_recording_is_in_no_list(the_hub: HubStandIn) -> None:
    the_hub.fail("videos/", 99, 404, {"X-Error-Code": "EntryNotFound"})
    with pytest.raises(HubNotFound):
        get("recording", CUBES)
    assert find_recordings([]) == []


def test_that_what_is_there_is_not_fetched_again(the_hub: HubStandIn) -> None:
    first = get()
    before = len(the_hub.requests)
    assert get() == first
    assert [request.path for request in the_hub.requests[before:]] == [f"/api/models/{BASE}/revision/main"]


def test_that_another_commit_of_a_policy_gets_a_folder_of_its_own(the_hub: HubStandIn) -> None:
    first = get()
    the_hub.repositories[BASE].commit = "e" * 40
    second = get()
    assert second != first and first.is_dir()
    assert read_policy(first).policy_id == read_policy(second).policy_id


def test_that_a_damaged_policy_is_fetched_anew(the_hub: HubStandIn) -> None:
    folder = get()
    (folder / "model.safetensors").write_bytes(b"cut")
    assert get() == folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_that_a_list_of_several_pages_is_read_to_its_end_without_asking_another_host(the_hub: HubStandIn) -> None:
    the_hub.page_size = 2
    assert (get("recording", CUBES) / "data/chunk-000/file-000.parquet").is_file()
    assert len(the_hub.asked_for("/tree/")) == 5


def test_that_progress_counts_bytes_to_the_end(the_hub: HubStandIn) -> None:
    told: list[tuple[int, int]] = []
    folder = get("recording", CUBES, progress=lambda done, total: told.append((done, total)))
    kept = origin(folder)
    assert kept is not None and told[-1] == (sum(kept.sizes.values()), sum(kept.sizes.values()))
    assert told == sorted(told)


def test_that_nothing_but_questions_is_sent(the_hub: HubStandIn) -> None:
    get()
    get("recording", CUBES)
    assert {request.method for request in the_hub.requests} == {"GET"}
    assert not [request for request in the_hub.requests if "telemetry" in request.path or "whoami" in request.path]
    agents = {request.headers["User-Agent"] for request in the_hub.requests}
    assert len(agents) == 1 and re.fullmatch(r"zk0desk/[0-9.]+", agents.pop())


# --- an interrupted line ------------------------------------------------------------------------------------------


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


# --- stop ---------------------------------------------------------------------------------------------------------


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


# --- what the Hub says --------------------------------------------------------------------------------------------


def test_that_a_missing_name_a_missing_revision_and_the_other_kind_are_told_apart(the_hub: HubStandIn, memory_keyring: Any) -> None:
    keep_token(TOKEN)
    the_hub.tokens.add(TOKEN)
    with pytest.raises(HubNotFound, match="knows no policy lab/nothing"):
        get(name="lab/nothing")
    with pytest.raises(HubNotFound, match="no revision 'v9'"):
        get(revision="v9")
    with pytest.raises(HubNotFound, match=f"zk0desk hub get recording {CUBES}"):
        get(name=CUBES)


def test_that_without_a_token_what_is_private_and_what_is_not_there_look_the_same(the_hub: HubStandIn, memory_keyring: Any) -> None:
    the_hub.repositories[BASE].private = True
    for name in (BASE, "lab/nothing"):
        with pytest.raises(HubTokenMissing, match="zk0desk hub login") as error:
            get(name=name)
        assert error.value.exit_status == ExitStatus.REFUSED
        assert "keyring" not in error.value.why


def test_that_a_keyring_that_cannot_be_asked_is_named_where_a_token_is_missing_and_no_obstacle_elsewhere(the_hub: HubStandIn) -> None:
    assert get()
    the_hub.repositories[CUBES].private = True
    with pytest.raises(HubTokenMissing, match="keyring could not be asked"):
        get("recording", CUBES)


def test_that_a_token_opens_what_is_private_and_is_sent_to_the_hub_alone(the_hub: HubStandIn, memory_keyring: Any) -> None:
    the_hub.tokens.add(TOKEN)
    the_hub.repositories[BASE].private, the_hub.repositories[BASE].members = True, (TOKEN,)
    keep_token(TOKEN)
    assert (get() / "model.safetensors").is_file()
    assert {request.token for request in the_hub.requests if request.host == "hub"} == {TOKEN}
    stored = [request for request in the_hub.requests if request.host == "store"]
    assert stored and not any(TOKEN in str(request) for request in stored)


def test_that_a_gated_policy_names_the_page_to_visit(the_hub: HubStandIn, memory_keyring: Any) -> None:
    the_hub.repositories[BASE].gated = True
    page = f"{the_hub.endpoint}/{BASE}"
    with pytest.raises(HubGated, match=f"Open {page} .*zk0desk hub login"):
        get()
    keep_token(TOKEN)
    the_hub.tokens.add(TOKEN)
    with pytest.raises(HubGated, match="has not agreed") as error:
        get()
    assert page in error.value.remedy and "login" not in error.value.remedy
    the_hub.repositories[BASE].members = (TOKEN,)
    assert (get() / "model.safetensors").is_file()


def test_that_a_token_that_may_not_read_this_is_told_apart_from_a_gate(the_hub: HubStandIn) -> None:
    the_hub.fail("/api/", 9, 403)
    with pytest.raises(HubTokenRefused, match="does not let you read"):
        get()


def test_that_a_refused_token_is_in_no_text_even_if_the_server_repeats_it(
    the_hub: HubStandIn, memory_keyring: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keep_token(TOKEN)
    the_hub.fail("", 9, 401, {"X-Error-Message": f"bad {TOKEN}"}, TOKEN.encode())
    with pytest.raises(HubTokenRefused, match="does not accept the token") as error:
        get()
    said = "".join(traceback.format_exception(error.value)) + json.dumps(error.value.to_json()) + repr(error.value)
    logged = "".join(f"{record.getMessage()} {record.args}" for record in caplog.records if not record.name.startswith("httpcore"))
    assert the_hub.requests[0].token == TOKEN
    assert TOKEN not in said + logged


def test_that_no_token_is_sent_over_a_line_that_others_may_read(memory_keyring: Any) -> None:
    keep_token(TOKEN)
    for endpoint, sent in (("http://mirror.example", None), ("https://mirror.example", TOKEN), ("http://127.0.0.1:1", TOKEN)):
        assert hub._token(hub._checked("policy", BASE, "main", endpoint)) == (sent, False)


def test_that_retry_after_is_honoured(the_hub: HubStandIn) -> None:
    counted = the_hub.fail("/revision/", 1, 429, {"Retry-After": "1"})
    began = time.monotonic()
    assert get()
    assert counted["failed"] == 1 and time.monotonic() - began >= 1


def test_that_a_long_wait_is_told_instead_of_waited_for(the_hub: HubStandIn) -> None:
    the_hub.fail("/revision/", 9, 429, {"Retry-After": "300"})
    with pytest.raises(HubRateLimited, match="5 minutes"):
        get()
    assert len(the_hub.requests) == 1


def test_that_a_limit_without_end_is_given_up_after_a_few_tries(the_hub: HubStandIn) -> None:
    the_hub.fail("/resolve/", 99, 429)
    with pytest.raises(HubRateLimited):
        get()
    assert len(the_hub.asked_for("/resolve/")) == QUICK.tries


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_how_long_the_hub_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert _seconds_asked_for(httpx.Headers(headers)) == seconds


def test_that_a_date_to_wait_for_is_understood() -> None:
    assert 20 < (_seconds_asked_for(httpx.Headers({"Retry-After": formatdate(time.time() + 30, usegmt=True)})) or 0) <= 30


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (302, {"Location": "file:///etc/passwd"}),
        (302, {"Location": "/api/models/lab/base/revision/main"}),
        (200, {"Content-Encoding": "gzip"}),
    ],
)
def test_that_an_answer_that_leads_astray_is_told(the_hub: HubStandIn, status: int, headers: dict[str, str]) -> None:
    the_hub.fail("/revision/", 99, status, headers)
    with pytest.raises(HubAnswerUnknown, match="leads to an address"):
        get()


@pytest.mark.parametrize("part", ["/revision/", "/tree/", "/resolve/"])
@pytest.mark.parametrize("status", [500, 503])
def test_that_trouble_at_the_hub_is_tried_again(the_hub: HubStandIn, part: str, status: int) -> None:
    counted = the_hub.fail(part, 2, status)
    assert get()
    assert counted["failed"] == 2


def test_that_lasting_trouble_is_told(the_hub: HubStandIn) -> None:
    the_hub.fail("/tree/", 99, 502)
    with pytest.raises(HubUnavailable, match="502") as error:
        get()
    assert error.value.exit_status == ExitStatus.UNREACHABLE
    assert len(the_hub.asked_for("/tree/")) == QUICK.tries


def test_that_a_page_of_a_hotel_is_not_taken_for_the_hub(the_hub: HubStandIn) -> None:
    the_hub.fail("/api/", 9, 200, {"Content-Type": "text/html"}, b"<html>Log in</html>")
    with pytest.raises(HubAnswerUnknown, match="log in first"):
        get()


def test_that_another_commit_than_the_one_that_was_asked_for_is_refused(the_hub: HubStandIn) -> None:
    the_hub.repositories[BASE].revisions["f" * 40] = "a" * 40
    with pytest.raises(HubAnswerUnknown, match="another commit"):
        get(revision="f" * 40)


# --- the way to the Hub -------------------------------------------------------------------------------------------


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


# --- this computer ------------------------------------------------------------------------------------------------


def test_that_a_disk_without_space_is_noticed_before_the_download(the_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    free = hub.RESERVE + len(WEIGHTS) // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DiskFull, match="are needed"):
        get()
    assert not [request for request in the_hub.requests if request.host == "store"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free + len(WEIGHTS)))
    assert get()


def test_that_a_disk_that_fills_up_meanwhile_is_told_and_what_came_is_kept(the_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    real, wrote = os.fsync, []

    def full(handle: int) -> None:
        real(handle)
        if os.fstat(handle).st_size == len(WEIGHTS) and not wrote:
            wrote.append(handle)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="is full"):
        get()
    assert incomplete(folders.policies_folder())


def test_that_a_folder_that_cannot_be_written_is_told(the_hub: HubStandIn) -> None:
    folders.policies_folder().parent.mkdir(parents=True)
    folders.policies_folder().write_text("a file in the folder's place")
    with pytest.raises(DiskRefuses, match="cannot be written"):
        get()


def test_that_the_operators_own_recording_of_that_name_is_left_alone(the_hub: HubStandIn) -> None:
    own = Path(os.environ["HF_LEROBOT_HOME"]) / "lab" / "cubes" / "meta" / "info.json"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(FolderInTheWay, match="may be your own"):
        get("recording", CUBES)
    assert own.read_text() == "mine"


def test_that_a_fetched_recording_is_neither_replaced_by_another_commit_nor_when_it_was_changed(the_hub: HubStandIn) -> None:
    folder = get("recording", CUBES)
    assert get("recording", CUBES) == folder
    the_hub.repositories[CUBES].commit = "e" * 40
    with pytest.raises(FolderInTheWay, match="It is commit cccccccccccc, and eeeeeeeeeeee"):
        get("recording", CUBES)
    the_hub.repositories[CUBES].commit = "c" * 40
    (folder / "meta" / "info.json").write_text('{"changed": 1}')
    with pytest.raises(FolderInTheWay, match="changed since"):
        get("recording", CUBES)


def test_that_two_fetches_of_the_same_do_not_mix(the_hub: HubStandIn) -> None:
    the_hub.slow = 0.05
    begun, control = threading.Event(), NodeControl()

    def first() -> None:
        with pytest.raises(Stopped):
            get(control=control, progress=lambda done, total: begun.set())

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert begun.wait(20)
        with pytest.raises(FetchUnderWay):
            get()
    finally:
        control.stop_now()
        thread.join()


# --- what must not be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "base",
        "a/b/c",
        "../etc/passwd",
        "lab/..",
        "lab/base.git",
        "lab/ba se",
        "https://huggingface.co/lab/base",
        "lab/base\n",
        "-a/b",
        "a/b--c",
    ],
)
def test_that_a_name_that_cannot_be_is_told_before_anything_is_sent(the_hub: HubStandIn, name: str) -> None:
    with pytest.raises(HubNameInvalid, match="USER/NAME"):
        get(name=name)
    assert not the_hub.requests


@pytest.mark.parametrize("revision", ["", "../x", "a//b", "-x", "a b", "x/", "x\n", "a?b", "x" * 300])
def test_that_a_revision_that_cannot_be_is_told_before_anything_is_sent(the_hub: HubStandIn, revision: str) -> None:
    with pytest.raises(HubNameInvalid, match="revision"):
        get(revision=revision)
    assert not the_hub.requests


@pytest.mark.parametrize("endpoint", ["ftp://hub", "hub", "https://user:secret@hub", "https://", "https://hub?x=1"])
def test_that_an_address_that_cannot_be_is_told_without_quoting_it(endpoint: str) -> None:
    with pytest.raises(HubNameInvalid, match="HF_ENDPOINT") as error:
        get(endpoint=endpoint)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    ["../evil.json", "meta/../../evil.json", "/etc/evil.json", "C:/evil.json", "..\\evil.json", "a\\..\\..\\evil.json", "meta//x.json",
     "./evil.json", "evil\0.json", "con.json", "meta/a:b.json", "meta/x.json./y.json"],
)  # fmt: skip
def test_that_a_listing_that_leads_out_of_its_folder_is_refused_as_a_whole(the_hub: HubStandIn, path: str) -> None:
    the_hub.repositories[CUBES].files[path] = b"{}"
    with pytest.raises(HubListingRefused, match="Nothing was fetched"):
        get("recording", CUBES)
    assert not the_hub.asked_for("/resolve/")
    assert not list(Path(os.environ["HF_LEROBOT_HOME"]).rglob("evil*"))


def test_that_two_names_for_one_place_are_refused(the_hub: HubStandIn) -> None:
    the_hub.repositories[CUBES].files["meta/INFO.json"] = b"[]"
    with pytest.raises(HubListingRefused, match="each other's place"):
        get("recording", CUBES)


@pytest.mark.parametrize("change", [{"size": -1}, {"size": True}, {"size": 2**60}, {"oid": "../../x"}, {"oid": None}, {"path": None}])
def test_that_a_listing_with_impossible_sizes_or_hashes_is_refused(
    the_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    real = Repository.listing
    monkeypatch.setattr(Repository, "listing", lambda self: [*real(self)[:-1], real(self)[-1] | {"path": "meta/x.json"} | change])
    with pytest.raises(HubListingRefused):
        get("recording", CUBES)
    assert not the_hub.asked_for("/resolve/")


def test_that_what_is_no_policy_or_no_recording_is_told_before_it_is_fetched(the_hub: HubStandIn) -> None:
    files = the_hub.repositories[BASE].files
    the_hub.repositories[BASE].files = policy_files(type="act")
    with pytest.raises(HubNotSuitable, match="type 'act'"):
        get()
    the_hub.repositories[BASE].files = policy_files(vlm_model_name="/home/someone/vlm")
    with pytest.raises(HubNotSuitable, match="another computer") as error:
        get()
    assert "/home" not in str(error.value)
    del files["model.safetensors"]
    the_hub.repositories[BASE].files = files
    with pytest.raises(HubNotSuitable, match=r"no model\.safetensors"):
        get()
    del the_hub.repositories[CUBES].files["meta/info.json"]
    with pytest.raises(HubNotSuitable, match="no LeRobot recording"):
        get("recording", CUBES)
    assert not [request for request in the_hub.requests if request.host == "store"]


def test_that_nothing_in_these_files_can_send_anything_to_the_hub(checkout: Path) -> None:
    sources = [*sorted((checkout / "zk0desk" / "federation").glob("hub*.py")), checkout / "zk0desk" / "commands" / "hub.py"]
    assert len(sources) == 6
    sends = re.compile(
        r"upload|push_to_hub|create_(commit|repo|branch|tag)|preupload|CommitOperation|^(post|put|patch|delete|request)$", re.IGNORECASE
    )
    names, asked, of_the_library = set(), set(), set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names |= set(node.name.split("."))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("huggingface_hub"):
                of_the_library |= {each.name for each in node.names}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "stream":
                asked.add(ast.unparse(node.args[0]))
    assert not [name for name in names if sends.search(name)]
    assert asked == {"'GET'"}
    assert of_the_library == {"validate_repo_id", "HFValidationError"}


def test_that_every_error_of_the_hub_says_what_why_and_what_to_do() -> None:
    codes = [each.code for each in vars(hub_errors).values() if isinstance(each, type) and issubclass(each, HubError)]
    assert len(codes) == len(set(codes))
    asked = hub_errors.Asked("policy", BASE, "main", "https://huggingface.co")
    request = httpx.Request("GET", "https://huggingface.co")
    for status in (400, 401, 403, 404, 408, 410, 418, 429, 500, 503):
        error = hub_errors.of_answer(httpx.Response(status, request=request), asked)
        assert error.what and error.why and error.remedy
    for broken in (httpx.ConnectError("x"), httpx.ReadTimeout("x"), httpx.ProxyError("x"), httpx.RemoteProtocolError("x")):
        error = hub_errors.of_line(broken, asked, in_the_middle=False)
        assert error.what and error.why and error.remedy


# --- the token ----------------------------------------------------------------------------------------------------


def test_that_a_token_is_in_the_keyring_under_its_own_name_and_in_no_file(memory_keyring: ForgetfulKeyring) -> None:
    keep_token(f"  {TOKEN}\n")
    assert read_token() == TOKEN
    ((service, _),) = memory_keyring.kept
    assert service == "zk0desk-hub"
    home = Path(os.environ["ZK0DESK_HOME"])
    assert not [path for path in home.rglob("*") if path.is_file() and TOKEN in path.read_text()]
    assert forget_token() and read_token() is None and not forget_token()


def test_that_homes_of_their_own_have_tokens_of_their_own(memory_keyring: ForgetfulKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_token(TOKEN)
    monkeypatch.setenv("ZK0DESK_HOME", os.environ["ZK0DESK_HOME"] + "-2")
    assert read_token() is None


@pytest.mark.parametrize("text", ["", "  \n", "hf_x y", "short", "hf_\x00abcdefgh", "hf_" + "x" * 5000])
def test_that_what_cannot_be_a_token_is_neither_kept_nor_quoted(memory_keyring: ForgetfulKeyring, text: str) -> None:
    with pytest.raises(TokenInvalid) as error:
        keep_token(text)
    assert not memory_keyring.kept
    assert not text.strip() or text.strip() not in str(error.value)


def test_that_without_a_keyring_a_token_is_kept_nowhere(memory_keyring: ForgetfulKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_keyring.forgets = True
    with pytest.raises(KeyringUnavailable, match="kept nowhere else") as error:
        keep_token(TOKEN)
    assert TOKEN not in str(error.value)
    from keyring.backends.fail import Keyring

    monkeypatch.setattr(keyring.core, "_keyring_backend", Keyring())
    for call in (lambda: keep_token(TOKEN), read_token, forget_token):
        with pytest.raises(KeyringUnavailable):
            call()


# --- the command line ---------------------------------------------------------------------------------------------


def test_that_the_command_tells_folder_commit_and_policy(the_hub: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["hub", "get", "policy", BASE, "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["commit"] == "a" * 40 and told["policy-id"] == read_policy(Path(told["folder"])).policy_id
    assert "100 %" in err
    assert cli.main(["hub", "get", "recording", CUBES]) == 0
    assert "c" * 40 in capsys.readouterr().out


def test_that_the_command_has_the_exit_status_of_its_error(the_hub: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["hub", "get", "policy", "nonsense"]) == ExitStatus.USAGE
    assert cli.main(["hub", "get", "policy", "lab/nothing", "--json"]) == ExitStatus.REFUSED
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "hub-token-missing"
    assert "Traceback" not in err


def test_that_ctrl_c_ends_the_command_at_once(the_hub: HubStandIn) -> None:
    the_hub.slow = 0.3
    process = subprocess.Popen(
        [sys.executable, "-m", "zk0desk", "hub", "get", "policy", BASE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not [request for request in the_hub.requests if request.host == "store"]:
        assert process.poll() is None
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.INTERRUPTED and time.monotonic() - began < 2
    assert "the same command goes on" in err and "Traceback" not in err


def test_that_login_reads_standard_input_and_logout_forgets(
    memory_keyring: ForgetfulKeyring, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TOKEN}\n"))
    assert cli.main(["hub", "login"]) == 0
    assert read_token() == TOKEN
    assert cli.main(["hub", "logout"]) == 0
    assert read_token() is None
    out, err = capsys.readouterr()
    assert TOKEN not in out + err and "out of the keyring" in out


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are others there")
def test_that_on_a_terminal_the_token_is_asked_for_and_not_shown() -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "zk0desk", "hub", "login"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    try:
        while b"Token" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, f"{TOKEN}\n".encode())
        with contextlib.suppress(OSError):  # how a terminal ends
            while piece := os.read(ours, 1000):
                shown += piece
    finally:
        os.close(ours)
        process.wait(20)
    assert process.returncode == ExitStatus.USAGE and b"No keyring is installed" in shown
    assert TOKEN.encode() not in shown


@pytest.mark.parametrize("arguments", [[TOKEN], ["--token", TOKEN], [f"--token={TOKEN}"]])
def test_that_a_token_on_the_command_line_is_refused_and_not_repeated(
    memory_keyring: ForgetfulKeyring, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert cli.main(["hub", "login", *arguments]) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert TOKEN not in out + err and "does not belong on the command line" in err
    assert not memory_keyring.kept


def test_that_all_errors_are_for_a_person() -> None:
    assert all(issubclass(each, OperatorError) for each in (HubError, TokenInvalid, KeyringUnavailable))
