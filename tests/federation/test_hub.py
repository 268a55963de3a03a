"""Policies and recordings from the Hub, a real HTTP server on loopback: what is fetched, and what this computer has to say about it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.federation.hub_parts import (
    BACKBONE,
    BASE,
    CUBES,
    QUICK,
    WEIGHTS,
    get,
    incomplete,
    recording_files,
)
from tests.federation.hub_stand_in import HubStandIn
from zk0desk import folders
from zk0desk.control import NodeControl, Stopped
from zk0desk.federation import hub, hub_places
from zk0desk.federation.hub import origin
from zk0desk.federation.hub_errors import (
    DiskFull,
    DiskRefuses,
    FetchUnderWay,
    FolderInTheWay,
    HubError,
    HubNotFound,
)
from zk0desk.federation.server_folder import policy_name
from zk0desk.training.policy_files import read_policy
from zk0desk.training.recordings import PolicyNeeds, deep_check, find_recordings, quick_check

pytestmark = pytest.mark.usefixtures("nothing_chosen")


# --- what is fetched


def test_that_a_policy_comes_with_its_backbones_description_and_nothing_that_runs(the_hub: HubStandIn) -> None:
    folder = get()
    assert folder.is_relative_to(folders.policies_folder())
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.json", "model.safetensors", "policy_preprocessor.json", hub_places.ORIGIN_FILE,
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


# --- this computer


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


def test_that_it_is_told_beforehand_what_a_fetch_would_bring(the_hub: HubStandIn) -> None:
    offer = hub.look("policy", BASE, control=NodeControl(), patience=QUICK)
    assert offer.commit == "a" * 40 and not offer.there and not offer.folder.exists() and offer.free > 0
    assert not the_hub.asked_for("model.safetensors"), "only the description was fetched"
    told: list[tuple[int, int]] = []
    folder = get(progress=lambda done, total: told.append((done, total)))
    assert folder == offer.folder and told[-1] == (offer.bytes, offer.bytes)
    again = hub.look("policy", BASE, control=NodeControl(), patience=QUICK)
    assert again.there and (again.folder, again.commit) == (folder, offer.commit)


def test_that_a_look_counts_what_has_arrived_and_that_can_be_discarded(the_hub: HubStandIn) -> None:
    the_hub.fail("model.safetensors", 99, 404)
    with pytest.raises(HubError):
        get()
    the_hub.interfere = lambda _answer: False
    offer = hub.look("policy", BASE, control=NodeControl(), patience=QUICK)
    assert 0 < offer.arrived < offer.bytes
    hub.discard("policy", BASE)
    assert not [path for path in folders.policies_folder().rglob("*") if path.is_file() and path.suffix != ".lock"]
    hub.discard("policy", BASE)


def test_that_a_look_says_when_there_is_no_room(the_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=hub.RESERVE))
    with pytest.raises(DiskFull, match="Nothing was fetched"):
        hub.look("recording", CUBES, control=NodeControl(), patience=QUICK)


def test_that_an_invitation_names_a_policy_that_was_fetched_by_its_name_on_the_hub(the_hub: HubStandIn, tmp_path: Path) -> None:
    assert policy_name(get()) == f"{BASE}@{'a' * 40}"
    assert policy_name(tmp_path / "my-policy") == "my-policy"
