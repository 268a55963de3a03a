"""What is never fetched or sent: names that cannot be, listings that lead out of their folder, code."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.federation.hub_parts import (
    BASE,
    CUBES,
    get,
    policy_files,
)
from tests.federation.hub_stand_in import HubStandIn, Repository
from zk0desk.federation import hub_errors
from zk0desk.federation.hub_errors import (
    HubError,
    HubListingRefused,
    HubNameInvalid,
    HubNotSuitable,
)

pytestmark = pytest.mark.usefixtures("nothing_chosen")


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
    package = checkout / "zk0desk"
    # A coordinator publishes a policy, by a command of the server's alone: nothing that an operator uses knows of it.
    publishes = package / "federation" / "hub_publish.py"
    knows = [path for path in package.rglob("*.py") if "hub_publish" in path.read_text(encoding="utf-8")]
    assert knows == [package / "commands" / "server.py"]
    sources = [*sorted(set((package / "federation").glob("hub*.py")) - {publishes}), package / "commands" / "hub.py"]
    assert len(sources) == 7
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
