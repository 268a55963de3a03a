"""What a desktop hands over: links and files, from anybody, in whatever form the desktop gives them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.desktop.opening import LONGEST, invitation_among, is_invitation, opened
from zk0desk.federation.invitation import LINE_LIMIT, Invitation, InvitationError


def test_a_link_is_handed_over_as_it_is_and_its_scheme_may_be_in_capitals() -> None:
    assert opened("zk0desk:join?abc") == "zk0desk:join?abc"
    assert opened(" ZK0DESK:join?aBc\n") == "zk0desk:join?aBc"


def test_a_file_is_handed_over_by_its_path_however_the_desktop_names_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "Einladung für Öl 100%.zk0invite"
    path.touch()
    monkeypatch.chdir(place)
    for given_as in (str(path), path.as_uri(), path.name, f"./{path.name}", f"file://localhost{path.as_uri()[7:]}"):
        assert is_invitation(given_as), given_as
        assert opened(given_as) == str(path), given_as


def test_a_file_on_another_computer_is_not_opened() -> None:
    assert opened("file://evil.example/share/x.zk0invite") == ""
    assert opened("file:///a%00b.zk0invite") == ""


def test_a_link_without_an_end_is_cut_and_refused_for_its_length() -> None:
    handed = opened("zk0desk:join?" + "A" * 5_000_000)
    assert LINE_LIMIT < len(handed) == LONGEST
    with pytest.raises(InvitationError, match="too long"):
        Invitation.parse(handed)


def test_options_are_not_opened() -> None:
    assert invitation_among(["--background"]) == ""
    assert invitation_among(["", "--background", "zk0desk:join?a", "zk0desk:join?b"]) == "zk0desk:join?a"


@given(st.text(max_size=200))
def test_whatever_is_handed_over_is_a_link_a_path_or_nothing(text: str) -> None:
    found = opened(text)
    assert found == "" or found.startswith("zk0desk:") or os.path.isabs(found)


def test_only_a_regular_file_of_an_invitations_size_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zk0invite")
    (tmp_path / "large.zk0invite").write_bytes(b"zk0desk:join?" + b"A" * 3_000_000)
    for name, why in (("pipe", "a folder or a device"), ("large", "It has 3.0 MB")):
        with pytest.raises(InvitationError) as raised:
            Invitation.read(tmp_path / f"{name}.zk0invite")
        assert why in raised.value.why
    with pytest.raises(InvitationError, match="not an invitation"):
        Invitation.read(tmp_path)
