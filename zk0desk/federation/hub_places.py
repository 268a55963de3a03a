"""Where what is fetched from the Hub arrives and where it belongs: on one disk, so that it takes its place all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0desk import folders
from zk0desk.federation.hub_errors import Asked, FetchUnderWay, FolderInTheWay, Kind, of_disk
from zk0desk.federation.hub_files import HubFile

ORIGIN_FILE = ".zk0desk-hub.json"
FETCHING = ".fetching"


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


@dataclass(frozen=True)
class Part:
    """A file to fetch: of which repository and commit, and its path in the folder."""

    asked: Asked
    commit: str
    file: HubFile
    place: str


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def target_of(asked: Asked, commit: str) -> Path:
    """The folder where it belongs. Each commit of a policy has its own: one that is trained on is never replaced."""
    user, name = asked.repo_id.split("/")
    if asked.kind == "policy":
        return folders.policies_folder() / user / f"{name}@{commit[:12]}"
    from zk0desk.training.recordings import standard_folders

    return standard_folders()[0] / user / name


def staging_of(asked: Asked) -> Path:
    """Where files arrive, under their hashes: on the disk where they belong, and nothing in it looks like a recording."""
    return target_of(asked, "").parent.parent / FETCHING / f"{asked.kind}--{asked.repo_id.replace('/', '--')}"


def made(folder: Path) -> Path:
    try:
        return folders.private_folder(folder)
    except OSError as error:
        raise of_disk(error, folder) from None


def is_there(asked: Asked, commit: str, target: Path) -> bool:
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


def alone_in(staging: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(made(staging.parent) / f"{staging.name}.lock", timeout=0)
    try:
        return lock.acquire()
    except Timeout:
        raise FetchUnderWay(
            "It is being fetched already.", "Another window or command of zk0desk fetches the same.", "Wait until that one is done."
        ) from None


def put_in_place(parts: Sequence[Part], staging: Path, target: Path, kept: Origin) -> None:
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
