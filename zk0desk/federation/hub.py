"""A base policy or a recording from the Hugging Face Hub, by its name. Nothing is ever sent there but the question for it.

What was fetched is kept with the commit that it is (`origin`). What had arrived when a fetch ended is gone on from.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zk0desk.control import NodeControl, Stopped
from zk0desk.federation.credentials import KeyringUnavailable
from zk0desk.federation.hub_errors import (
    PUBLIC_ENDPOINT,
    Asked,
    HubNameInvalid,
    HubNotSuitable,
    HubOffline,
    Kind,
    of_disk,
    too_little_space,
)
from zk0desk.federation.hub_files import BACKBONE_FOLDER, backbone_files, wanted_files
from zk0desk.federation.hub_line import HubLine, HubLoop, Patience, is_loopback
from zk0desk.federation.hub_places import Origin, Part, alone_in, is_there, made, origin, put_in_place, size_of, staging_of, target_of
from zk0desk.federation.hub_token import read_token
from zk0desk.quiet import chosen

__all__ = ["Kind", "Offer", "Origin", "Patience", "discard", "fetch", "look", "origin"]

AT_ONCE = 4
"""Files that are fetched side by side: a recording may be of hundreds of small ones."""
RESERVE = 512 * 2**20
"""Bytes that a fetch leaves free on the disk."""
_TOLD_EVERY_S = 0.1
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")

Progress = Callable[[int, int], None]
"""Told of bytes that are on the disk and of all that there will be. Called in the thread that fetches."""


def fetch(
    kind: Kind,
    repo_id: str,
    revision: str = "main",
    *,
    control: NodeControl,
    progress: Progress | None = None,
    endpoint: str | None = None,
    patience: Patience = Patience(),
) -> Path:
    """Fetch a base policy or a recording from the Hub, and return its folder. At once, when that commit is there already.

    A policy comes with its backbone's description and loads offline. A recording goes where LeRobot looks for it, and
    replaces nothing. `endpoint` is the Hub's address (default: HF_ENDPOINT, or the public Hub). Requests go out although
    this process is offline for all else, unless the person's own environment says HF_HUB_OFFLINE.

    Raises `Stopped` soon after `control` asks for it, and a `HubError` that says what to do.
    """
    return _run(_asked(kind, repo_id, revision, endpoint, control), patience, progress, lambda work: work.run(), control)


@dataclass(frozen=True)
class Offer:
    """What a fetch would bring: which commit, to which folder, and its bytes; of them what has arrived already. `free`: of the disk.

    `there`: that commit is in its place, and nothing is to be fetched.
    """

    commit: str
    folder: Path
    bytes: int
    arrived: int
    free: int
    there: bool = False


def look(
    kind: Kind,
    repo_id: str,
    revision: str = "main",
    *,
    control: NodeControl,
    endpoint: str | None = None,
    patience: Patience = Patience(),
) -> Offer:
    """What `fetch` would bring, and whether there is room for it: a list of files, and a policy's description. Raises as `fetch` does."""
    return _run(_asked(kind, repo_id, revision, endpoint, control), patience, None, lambda work: work.look(), control)


def discard(kind: Kind, repo_id: str) -> None:
    """Remove what has arrived of a fetch that ended before it was whole. `FetchUnderWay` while it is fetched."""
    asked = checked(kind, repo_id, "main", PUBLIC_ENDPOINT)
    staging = staging_of(asked)
    if staging.is_dir():
        with alone_in(staging):
            shutil.rmtree(staging, ignore_errors=True)


def _asked(kind: Kind, repo_id: str, revision: str, endpoint: str | None, control: NodeControl) -> Asked:
    asked = checked(kind, repo_id, revision, endpoint)
    require_online()
    control.check()
    return asked


def _run[T](
    asked: Asked, patience: Patience, progress: Progress | None, work: Callable[[_Fetch], Coroutine[Any, Any, T]], control: NodeControl
) -> T:
    token, silent = _token(asked)
    asked = replace(asked, with_token=token is not None, keyring_silent=silent)
    with asyncio.Runner(loop_factory=HubLoop) as runner:
        return runner.run(_until_stopped(work(_Fetch(asked, token, patience, progress or (lambda done, total: None))), control))


async def _until_stopped[T](work: Coroutine[Any, Any, T], control: NodeControl) -> T:
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait({task}, timeout=0.05)
        if control.stopping and not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise Stopped
    return task.result()


def checked(kind: Kind, repo_id: str, revision: str = "main", endpoint: str | None = None) -> Asked:
    """What is asked for, if it can be: nothing is sent before."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        possible = repo_id.count("/") == 1
    except HFValidationError:
        possible = False
    if not possible:
        raise HubNameInvalid(
            f"{repo_id[:100]!r} cannot be a {kind}'s name on the Hub.",
            "A name is USER/NAME, of letters, digits, '-', '_' and '.'.",
            "Example: zk0desk hub get policy lerobot/smolvla_base",
        )
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith(("/", ".lock")):
        raise HubNameInvalid(
            f"{revision[:100]!r} cannot be a revision.", "It is a branch, a tag or a commit.", "Leave it out to get the newest."
        )
    address = (endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC_ENDPOINT).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise HubNameInvalid(
            "HF_ENDPOINT is no address of a Hub.", "It should begin with https:// and name a host.", "Correct or unset it."
        )
    return Asked(kind, repo_id, revision, address)


def require_online() -> None:
    """Raise `HubOffline` where the person's own environment says that the Hub is to be asked for nothing."""
    # As huggingface_hub reads them. What zk0desk set itself, to keep the libraries from asking, is not the person's word.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        value = chosen(name)
        if value and value.upper() in ("1", "ON", "YES", "TRUE"):
            raise HubOffline(
                "Nothing is fetched: this computer is set to ask the Hub for nothing.",
                f"{name}={value} is set in the environment.",
                f"Unset {name}, or fetch it on another computer and choose the copied folder here.",
            )
        if value:
            return


def _token(asked: Asked) -> tuple[str | None, bool]:
    """The token to send, and whether the keyring could not be asked. Over a line that others may read none is sent."""
    if not asked.endpoint.startswith("https://") and not is_loopback(asked.endpoint):
        return None, False
    try:
        return read_token(), False
    except KeyringUnavailable:
        return None, True


class _Fetch:
    """One fetch, from the question for the commit to the folder in its place."""

    def __init__(self, asked: Asked, token: str | None, patience: Patience, progress: Progress) -> None:
        self._asked = asked
        self._token = token
        self._patience = patience
        self._progress = progress
        self._done = 0
        self._total = 0
        self._told = 0.0

    async def run(self) -> Path:
        async with HubLine(self._asked, self._token, self._patience) as line:
            commit = await line.commit_of(self._asked)
            target = target_of(self._asked, commit)
            if is_there(self._asked, commit, target):
                return target
            own = await self._own(line, commit)
            staging = staging_of(self._asked)
            with alone_in(staging):
                if is_there(self._asked, commit, target):  # another fetch put it there meanwhile
                    return target
                parts, backbone = await self._with_backbone(line, own, staging)
                self._require_space(parts, staging)
                await self._all(line, parts, staging)
                kept = Origin(self._asked.kind, self._asked.repo_id, self._asked.revision, commit, {}, backbone)
                try:
                    put_in_place(parts, staging, target, kept)
                except OSError as error:
                    raise of_disk(error, target.parent) from None
        return target

    async def look(self) -> Offer:
        """What `run` would bring."""
        async with HubLine(self._asked, self._token, self._patience) as line:
            commit = await line.commit_of(self._asked)
            target = target_of(self._asked, commit)
            known = origin(target) if is_there(self._asked, commit, target) else None
            if known is not None:
                return Offer(commit, target, sum(known.sizes.values()), 0, shutil.disk_usage(target).free, there=True)
            own = await self._own(line, commit)
            staging = staging_of(self._asked)
            with alone_in(staging):
                parts, _ = await self._with_backbone(line, own, staging)
                here = self._require_space(parts, staging)
                return Offer(commit, target, self._total, here, shutil.disk_usage(staging).free)

    async def _own(self, line: HubLine, commit: str) -> list[Part]:
        files = wanted_files(self._asked.kind, await line.listing(self._asked, commit), self._asked.repo_id)
        return [Part(self._asked, commit, file, file.path) for file in files]

    async def _with_backbone(self, line: HubLine, own: list[Part], staging: Path) -> tuple[list[Part], str]:
        """All parts, and id and commit of what describes a policy's backbone; "" where it brings that itself, or is a recording."""
        made(staging)
        more = await self._backbone(line, own, staging) if self._asked.kind == "policy" else []
        return own + more, f"{more[0].asked.repo_id}@{more[0].commit}" if more else ""

    async def _backbone(self, line: HubLine, parts: Sequence[Part], staging: Path) -> list[Part]:
        """What describes the policy's backbone, unless the policy brings it: LeRobot would ask the Hub for it when it loads."""
        own = next(part for part in parts if part.place == "config.json")
        await self._one(line, own, staging)
        try:
            config = json.loads((staging / own.file.digest).read_bytes())
            kind, name = config["type"], config.get("vlm_model_name", "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            kind, name = None, ""
        if kind != "smolvla":
            raise HubNotSuitable(
                f"{self._asked.repo_id} is no SmolVLA policy.",
                f"Its config.json says type {str(kind)[:40]!r}.",
                "Choose a SmolVLA base policy, such as lerobot/smolvla_base.",
            )
        if any(part.place == f"{BACKBONE_FOLDER}/config.json" for part in parts):
            return []
        try:
            asked = checked("policy", str(name), "main", self._asked.endpoint)
        except HubNameInvalid:
            raise HubNotSuitable(
                f"{self._asked.repo_id} cannot be loaded on another computer than its owner's.",
                "Its config.json names a backbone that is a folder there, not a name on the Hub.",
                "Tell its owner, or choose another base policy.",
            ) from None
        asked = replace(self._asked, repo_id=asked.repo_id, revision=asked.revision)
        commit = await line.commit_of(asked)
        files = backbone_files(await line.listing(asked, commit), asked.repo_id)
        return [Part(asked, commit, file, f"{BACKBONE_FOLDER}/{file.path}") for file in files]

    def _require_space(self, parts: Sequence[Part], staging: Path) -> int:
        """Bytes that have arrived already, where there is room for the rest."""
        self._total = sum(part.file.size for part in parts)
        here = sum(size_of(staging / name) for digest in {part.file.digest for part in parts} for name in (digest, f"{digest}.incomplete"))
        needed, free = max(self._total - here, 0) + RESERVE, shutil.disk_usage(staging).free
        if free < needed:
            raise too_little_space(needed, free, staging.parent.parent)
        return here

    async def _all(self, line: HubLine, parts: Sequence[Part], staging: Path) -> None:
        wanted = {part.file.digest: part for part in parts}
        # What an earlier fetch of another commit left and this one does not need.
        for path in staging.iterdir():
            if path.name.removesuffix(".incomplete") not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._done = sum(part.file.size for part in parts if wanted[part.file.digest] is not part)
        waiting = list(reversed(wanted.values()))

        async def work() -> None:
            while waiting:
                await self._one(line, waiting.pop(), staging)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        self._tell(at_last=True)

    async def _one(self, line: HubLine, part: Part, staging: Path) -> None:
        whole, partial = staging / part.file.digest, staging / f"{part.file.digest}.incomplete"
        if whole.is_file():
            self._heard(part.file.size)
            return
        await line.file(part.asked, part.commit, part.file, partial, self._heard)
        partial.replace(whole)

    def _heard(self, count: int) -> None:
        self._done += count
        self._tell()

    def _tell(self, *, at_last: bool = False) -> None:
        now = time.monotonic()
        if self._total and (at_last or now - self._told >= _TOLD_EVERY_S):
            self._told = now
            self._progress(self._done, self._total)
