"""What the Hub says when it does not give what was asked for."""

from __future__ import annotations

import json
import logging
import time
import traceback
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from tests.federation.hub_parts import (
    BASE,
    CUBES,
    QUICK,
    TOKEN,
    get,
)
from tests.federation.hub_stand_in import HubStandIn
from zk0desk.errors import ExitStatus
from zk0desk.federation import hub
from zk0desk.federation.hub_errors import (
    HubAnswerUnknown,
    HubGated,
    HubNotFound,
    HubRateLimited,
    HubTokenMissing,
    HubTokenRefused,
    HubUnavailable,
)
from zk0desk.federation.hub_line import _seconds_asked_for
from zk0desk.federation.hub_token import keep_token

pytestmark = pytest.mark.usefixtures("nothing_chosen")


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
        assert hub._token(hub.checked("policy", BASE, "main", endpoint)) == (sent, False)


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
