"""What can go wrong with the Hub, in a person's words. What the server wrote is never quoted: it may repeat what it was sent."""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zk0desk.errors import ExitStatus, OperatorError, causes

if TYPE_CHECKING:
    import httpx

Kind = Literal["policy", "recording"]

PUBLIC_ENDPOINT = "https://huggingface.co"
TOKENS_PAGE = f"{PUBLIC_ENDPOINT}/settings/tokens"
LOG_IN = f"Make a token that may read at {TOKENS_PAGE}, then: zk0desk hub login"
GO_ON = "Try again: what has arrived is kept, and the rest is fetched."


class HubError(OperatorError):
    """Something could not be fetched from the Hub."""

    code = "hub-failed"


class HubNameInvalid(HubError):
    """An id, a revision or an address that cannot be. Nothing was sent."""

    code = "hub-name-invalid"
    exit_status = ExitStatus.USAGE


class HubOffline(HubError):
    """The person's environment forbids requests to the Hub."""

    code = "hub-offline"
    exit_status = ExitStatus.USAGE


class HubNotFound(HubError):
    """The Hub knows no such repository, revision or file."""

    code = "hub-not-found"


class HubTokenMissing(HubError):
    """Without a token the Hub does not show it."""

    code = "hub-token-missing"
    exit_status = ExitStatus.REFUSED


class HubTokenRefused(HubError):
    """The Hub does not accept the token, or it may not read this."""

    code = "hub-token-refused"
    exit_status = ExitStatus.REFUSED


class HubGated(HubError):
    """Its owner wants an agreement first."""

    code = "hub-gated"
    exit_status = ExitStatus.REFUSED


class HubRateLimited(HubError):
    """The Hub asks to wait longer than we wait by ourselves."""

    code = "hub-rate-limited"
    exit_status = ExitStatus.REFUSED


class HubUnavailable(HubError):
    """The Hub answers that it has trouble itself."""

    code = "hub-unavailable"
    exit_status = ExitStatus.UNREACHABLE


class HubUnreachable(HubError):
    """The Hub, or the way to it, does not answer."""

    code = "hub-unreachable"
    exit_status = ExitStatus.UNREACHABLE


class HubTimeout(HubUnreachable):
    """The Hub took too long to answer."""

    code = "hub-timeout"


class HubLineCut(HubUnreachable):
    """The line broke again and again in the middle of a file."""

    code = "hub-line-cut"


class HubAnswerUnknown(HubError):
    """The answer is none that the Hub gives: another server, or a page for logging in to a network."""

    code = "hub-answer-unknown"
    exit_status = ExitStatus.UNREACHABLE


class HubFileWrong(HubError):
    """A file is not what the listing says: size or hash differ. It was removed."""

    code = "hub-file-wrong"


class HubListingRefused(HubError):
    """The repository's listing holds what must not be written to a disk."""

    code = "hub-listing-refused"
    exit_status = ExitStatus.UNUSABLE


class HubNotSuitable(HubError):
    """The repository holds no policy, or no recording, that zk0desk can use."""

    code = "hub-not-suitable"
    exit_status = ExitStatus.UNUSABLE


class FolderInTheWay(HubError):
    """Where the recording belongs is something else, which is left alone."""

    code = "hub-folder-in-the-way"


class FetchUnderWay(HubError):
    """Another window or command fetches the same."""

    code = "hub-fetch-under-way"


class DiskFull(HubError):
    """There is not enough space for it."""

    code = "disk-full"


class DiskRefuses(HubError):
    """The folder cannot be written to."""

    code = "disk-refuses"


@dataclass(frozen=True)
class Asked:
    """What was asked for, of whom, and whether a token went along: what the sentences need."""

    kind: Kind
    repo_id: str
    revision: str
    endpoint: str
    with_token: bool = False
    keyring_silent: bool = False
    """The keyring could not be asked for a token."""

    @property
    def page(self) -> str:
        """Where a person sees it in a browser."""
        return f"{self.endpoint}/{'datasets/' if self.kind == 'recording' else ''}{self.repo_id}"

    @property
    def host(self) -> str:
        """Whom we ask, as a person writes it."""
        return self.endpoint.partition("://")[2]


def of_answer(response: httpx.Response, asked: Asked) -> HubError:
    """The error for an answer that is no success, as the Hub means its statuses."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return _gated(asked)
    if status == 401:
        return _unauthorised(asked)
    if status == 403:
        return HubTokenRefused(
            f"The Hub does not let you read {asked.repo_id}.",
            "The token may not read it." if asked.with_token else "No token was sent.",
            f"Open {asked.page} in a browser to see who may. {LOG_IN}",
        )
    if status == 404:
        return _not_found(code, asked)
    if status == 429:
        return rate_limited(None, asked)
    if status >= 500 or status == 408:
        return HubUnavailable(f"{asked.host} has trouble at the moment.", f"It answers with status {status}.", GO_ON)
    return unknown_answer(asked, f"It answers with status {status}.")


def _gated(asked: Asked) -> HubError:
    token = "" if asked.with_token else f" {LOG_IN}"
    return HubGated(
        f"{asked.repo_id} is given to those who agreed to its conditions.",
        "The account of your token has not agreed, or waits for its owner's answer."
        if asked.with_token
        else "No token was sent, so the Hub does not know who asks.",
        f"Open {asked.page} in a browser, log in and agree.{token}",
    )


def _unauthorised(asked: Asked) -> HubError:
    if asked.with_token:
        return HubTokenRefused(
            "The Hub does not accept the token that is kept in the keyring.", "It is wrong, was withdrawn, or has expired.", LOG_IN
        )
    why = "Either there is none of that name, or it is private: the Hub does not say which."
    if asked.keyring_silent:
        why += " The keyring could not be asked for a token."
    return HubTokenMissing(
        f"The Hub shows no {asked.kind} {asked.repo_id} without a token.", why, f"Check the name. If it is private: {LOG_IN}"
    )


def _not_found(code: str, asked: Asked) -> HubError:
    if code == "RevisionNotFound":
        return HubNotFound(
            f"{asked.repo_id} has no revision {asked.revision!r}.",
            "It is no branch, tag or commit there.",
            f"See {asked.page}/commits/main for the commits; without --revision it is main.",
        )
    if code == "EntryNotFound":
        return HubNotFound(f"A file of {asked.repo_id} is gone.", "The listing names it and the Hub does not have it.", "Try again later.")
    other = "recording" if asked.kind == "policy" else "policy"
    return HubNotFound(
        f"The Hub knows no {asked.kind} {asked.repo_id}.",
        "The name is wrong, it was removed, or it is private and your token may not see it.",
        f"Check the name at {asked.page}. If it is a {other}: zk0desk hub get {other} {asked.repo_id}",
    )


def rate_limited(seconds: float | None, asked: Asked) -> HubRateLimited:
    """The Hub asks to wait `seconds`, longer than we do by ourselves; None: it did not say how long."""
    wait = "a few minutes" if seconds is None else f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    hint = "" if asked.with_token else f" With a token the limit is higher. {LOG_IN}"
    return HubRateLimited("The Hub asks to wait: too many requests came from here.", f"It gives nothing for {wait}.", f"{GO_ON}{hint}")


def unknown_answer(asked: Asked, why: str) -> HubAnswerUnknown:
    """An answer that the Hub does not give."""
    return HubAnswerUnknown(
        f"{asked.host} answers, but not as the Hub does.",
        why,
        "Open the address in a browser: some networks want you to log in first. If HF_ENDPOINT is set, check it.",
    )


def of_line(error: Exception, asked: Asked, *, in_the_middle: bool) -> HubError:
    """The error for a line that gave nothing; `in_the_middle`: of a file, after a part of it had come."""
    import httpx

    chain = list(causes(error))
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return HubUnreachable(
            f"{asked.host} shows a certificate that this computer does not trust.",
            "Something between here and there may read along, or the clock is wrong.",
            "Check the clock and the network. If your network has a certificate of its own, name it in SSL_CERT_FILE.",
        )
    if any(isinstance(each, socket.gaierror) for each in chain):
        return HubUnreachable(
            f"The name {asked.host} was not found.", "There is no network, or no name server answers.", f"Check the network. {GO_ON}"
        )
    if isinstance(error, httpx.ProxyError):
        return HubUnreachable("The proxy does not let this through.", "It refused the connection to the Hub.", "Check HTTPS_PROXY.")
    if isinstance(error, httpx.TimeoutException):
        return HubTimeout(f"{asked.host} does not answer in time.", "The network is slow, or drops what is sent.", GO_ON)
    if in_the_middle:
        return HubLineCut("The line to the Hub breaks again and again.", "It was cut several times with nothing new.", GO_ON)
    if any(isinstance(each, ConnectionRefusedError) for each in chain):
        return HubUnreachable(f"{asked.host} refuses the connection.", "Nobody listens there, or a firewall is in between.", GO_ON)
    return HubUnreachable(f"{asked.host} cannot be reached.", "The connection broke, or was not made.", f"Check the network. {GO_ON}")


def of_environment() -> HubUnreachable:
    """The error for an environment with which no connection can be made."""
    return HubUnreachable(
        "The Hub cannot be asked from this environment.",
        "A proxy or a file of certificates that it names cannot be used.",
        "Check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE. A SOCKS proxy is not supported.",
    )


def of_disk(error: OSError, folder: object) -> HubError:
    """The error for a disk that does not take a file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"The disk with {folder} is full.", "What has arrived so far is kept.", f"Free some space. {GO_ON}")
    return DiskRefuses(f"{folder} cannot be written to.", f"{error.strerror or type(error).__name__}.", "Check its owner and permissions.")


def too_little_space(needed: int, free: int, folder: object) -> DiskFull:
    """Less is free than is needed, in bytes; noticed before anything was fetched."""
    return DiskFull(
        f"There is not enough space in {folder}.",
        f"{needed / 1e9:.2f} GB are needed, some of them as a reserve, and {free / 1e9:.2f} GB are free.",
        "Free some space, then try again. Nothing was fetched.",
    )
