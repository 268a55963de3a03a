"""What a desktop hands over: an invitation's link, or its file as a path or a file: URL. It comes from strangers, and is only looked at."""

from __future__ import annotations

import os

SCHEME = "zk0desk:"
SUFFIX = ".zk0invite"
"""Ending of an invitation's file."""
LONGEST = 20_000
"""Characters of a link that are passed on. An invitation is shorter, and what is longer is refused where it is read, for its length."""


def is_invitation(argument: str) -> bool:
    """Whether a desktop handed us an invitation: a link, or a file's path or URL."""
    return is_link(argument) or argument.lower().endswith(SUFFIX)


def is_link(text: str) -> bool:
    """Whether `text` is a link of ours. Schemes are the same in capitals (RFC 3986, 3.1)."""
    return text[: len(SCHEME)].lower() == SCHEME


def opened(argument: str) -> str:
    """What is handed over for `argument`: a link, cut where it is longer than any invitation; the absolute path of a file; or "".

    A path counts from this process's working directory: a second start may have another one than the first.
    """
    text = argument.strip() if is_link(argument.strip()) else argument
    if is_link(text):
        return SCHEME + text[len(SCHEME) : LONGEST]
    path = path_of_url(text) if text[:5].lower() == "file:" else text
    return os.path.abspath(path) if path and "\0" not in path else ""


def path_of_url(url: str) -> str:
    """The local path of a file: URL; "" where it names another computer or none."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname  # loads much, for what is seldom handed over

    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.netloc not in ("", "localhost"):
        return ""
    return url2pathname(parts.path)


def invitation_among(arguments: list[str]) -> str:
    """The first of a window's `arguments` that is to be opened, as it is handed over; "" where there is none."""
    given = next((each for each in arguments if each and not each.startswith("-")), "")
    return opened(given) if given else ""
