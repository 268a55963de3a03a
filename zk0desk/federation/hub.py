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

from zk0desk import folders
from zk0desk.control import NodeControl, Stopped
from zk0desk.federation.credentials import KeyringUnavailable
from zk0desk.federation.hub_errors import (
    PUBLIC_ENDPOINT,
    Asked,
    FetchUnderWay,
    FolderInTheWay,
    HubNameInvalid,
    HubNotSuitable,
    HubOffline,
    Kind,
    of_disk,
    too_little_space,
)
from zk0desk.federation.hub_files import BACKBONE_FOLDER, HubFile, backbone_files, wanted_files
from zk0desk.federation.hub_line import HubLine, HubLoop, Patience, is_loopback
from zk0desk.federation.hub_token import read_token
from zk0desk.quiet import chosen

__all__ = ["Kind", "Origin", "Patience", "fetch", "origin"]

ORIGIN_FILE = ".zk0desk-hub.json"
FETCHING = ".fetching"
AT_ONCE = 4
"""Files that are fetched side by side: a recording may be of hundreds of small ones."""
RESERVE = 512 * 2**20
"""Bytes that a fetch leaves free on the disk."""
_TOLD_EVERY_S = 0.1
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")

Progress = Callable[[int, int], None]
"""Told of bytes that are on the disk and of all that there will be. Called in the thread that fetches."""


@dataclass(frozen=True)
class Origin:
    """Where a folder came from: the id on the Hub, the revision that was asked for, and the commit that it was."""

    kind: Kind
    repo_id: str
    revision: str
    commit: str
    sizes: dict[str, int]
    """Size in bytes of each file, by its path in the folder."""
    backbone: str = ""
    """Id and commit of what describes a policy's backbone, as `USER/NAME@COMMIT`; empty where the policy brings it itself."""

    def whole_in(self, folder: Path) -> bool:
        """Whether all files are in `folder`, with the sizes that they had."""
        try:
            return all((folder / path).stat().st_size == size for path, size in self.sizes.items())
        except OSError:
            return False


def origin(folder: Path) -> Origin | None:
    """Where the policy or recording in `folder` came from; None when zk0desk did not fetch it."""
    try:
        kept = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        return Origin(kept["kind"], kept["repo-id"], kept["revision"], kept["commit"], dict(kept["sizes"]), kept["backbone"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
    asked = _checked(kind, repo_id, revision, endpoint)
    _require_online()
    control.check()
    token, silent = _token(asked)
    asked = replace(asked, with_token=token is not None, keyring_silent=silent)
    work = _Fetch(asked, token, patience, progress or (lambda done, total: None)).run()
    with asyncio.Runner(loop_factory=HubLoop) as runner:
        return runner.run(_until_stopped(work, control))


async def _until_stopped(work: Coroutine[Any, Any, Path], control: NodeControl) -> Path:
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait({task}, timeout=0.05)
        if control.stopping and not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise Stopped
    return task.result()


def _checked(kind: Kind, repo_id: str, revision: str, endpoint: str | None) -> Asked:
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


def _require_online() -> None:
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


@dataclass(frozen=True)
class _Part:
    """A file to fetch: of which repository and commit, and its path in the folder."""

    asked: Asked
    commit: str
    file: HubFile
    place: str


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
            target = _target(self._asked, commit)
            if _is_there(self._asked, commit, target):
                return target
            files = wanted_files(self._asked.kind, await line.listing(self._asked, commit), self._asked.repo_id)
            parts = [_Part(self._asked, commit, file, file.path) for file in files]
            staging = _staging(self._asked)
            with _alone(staging):
                if _is_there(self._asked, commit, target):  # another fetch put it there meanwhile
                    return target
                _made(staging)
                backbone = ""
                if self._asked.kind == "policy":
                    more = await self._backbone(line, parts, staging)
                    backbone = f"{more[0].asked.repo_id}@{more[0].commit}" if more else ""
                    parts += more
                self._require_space(parts, staging)
                await self._all(line, parts, staging)
                kept = Origin(self._asked.kind, self._asked.repo_id, self._asked.revision, commit, {}, backbone)
                try:
                    _put_in_place(parts, staging, target, kept)
                except OSError as error:
                    raise of_disk(error, target.parent) from None
        return target

    async def _backbone(self, line: HubLine, parts: Sequence[_Part], staging: Path) -> list[_Part]:
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
            asked = _checked("policy", str(name), "main", self._asked.endpoint)
        except HubNameInvalid:
            raise HubNotSuitable(
                f"{self._asked.repo_id} cannot be loaded on another computer than its owner's.",
                "Its config.json names a backbone that is a folder there, not a name on the Hub.",
                "Tell its owner, or choose another base policy.",
            ) from None
        asked = replace(self._asked, repo_id=asked.repo_id, revision=asked.revision)
        commit = await line.commit_of(asked)
        files = backbone_files(await line.listing(asked, commit), asked.repo_id)
        return [_Part(asked, commit, file, f"{BACKBONE_FOLDER}/{file.path}") for file in files]

    def _require_space(self, parts: Sequence[_Part], staging: Path) -> None:
        self._total = sum(part.file.size for part in parts)
        here = sum(_size(staging / name) for digest in {part.file.digest for part in parts} for name in (digest, f"{digest}.incomplete"))
        needed, free = max(self._total - here, 0) + RESERVE, shutil.disk_usage(staging).free
        if free < needed:
            raise too_little_space(needed, free, staging.parent.parent)

    async def _all(self, line: HubLine, parts: Sequence[_Part], staging: Path) -> None:
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

    async def _one(self, line: HubLine, part: _Part, staging: Path) -> None:
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


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _target(asked: Asked, commit: str) -> Path:
    """The folder where it belongs. Each commit of a policy has its own: one that is trained on is never replaced."""
    user, name = asked.repo_id.split("/")
    if asked.kind == "policy":
        return folders.policies_folder() / user / f"{name}@{commit[:12]}"
    from zk0desk.training.recordings import standard_folders

    return standard_folders()[0] / user / name


def _staging(asked: Asked) -> Path:
    """Where files arrive, under their hashes: on the disk where they belong, and nothing in it looks like a recording."""
    return _target(asked, "").parent.parent / FETCHING / f"{asked.kind}--{asked.repo_id.replace('/', '--')}"


def _made(folder: Path) -> Path:
    try:
        return folders.private_folder(folder)
    except OSError as error:
        raise of_disk(error, folder) from None


def _is_there(asked: Asked, commit: str, target: Path) -> bool:
    """Whether that commit is in its place. Raises `FolderInTheWay` where a recording's place holds anything else."""
    known = origin(target)
    if known is not None and known.commit == commit and known.whole_in(target):
        return True
    if asked.kind == "policy" or not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    why = (
        "zk0desk did not fetch it: it may be your own."
        if known is None
        else f"It is commit {known.commit[:12]}, and {commit[:12]} was asked for."
        if known.commit != commit
        else "It was fetched, and was changed since."
    )
    raise FolderInTheWay(f"{target} is left as it is.", why, "Move that folder away, or remove it, and try again.")


def _alone(staging: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(_made(staging.parent) / f"{staging.name}.lock", timeout=0)
    try:
        return lock.acquire()
    except Timeout:
        raise FetchUnderWay(
            "It is being fetched already.", "Another window or command of zk0desk fetches the same.", "Wait until that one is done."
        ) from None


def _put_in_place(parts: Sequence[_Part], staging: Path, target: Path, kept: Origin) -> None:
    """Move the files from under their hashes to their paths, in a folder that takes its place all at once."""
    from zk0desk.training.policy_files import settle_policy

    draft = staging / "folder"
    last = {part.file.digest: part.place for part in parts}
    for part in parts:
        place = draft / part.place
        place.parent.mkdir(parents=True, exist_ok=True)
        if last[part.file.digest] == part.place:
            (staging / part.file.digest).replace(place)
        else:
            shutil.copyfile(staging / part.file.digest, place)
    if kept.kind == "policy":
        settle_policy(draft, at=target)
    about = {
        "kind": kept.kind,
        "repo-id": kept.repo_id,
        "revision": kept.revision,
        "commit": kept.commit,
        "backbone": kept.backbone,
        "sizes": {part.place: (draft / part.place).stat().st_size for part in parts},
    }
    (draft / ORIGIN_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    draft.replace(target)
    shutil.rmtree(staging, ignore_errors=True)
