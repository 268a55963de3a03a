"""Which files of a repository on the Hub are fetched: those that are needed, harmless, and have a place below one folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from zk0desk.federation.hub_errors import HubListingRefused, HubNotSuitable, Kind

HARMLESS = {".safetensors", ".json", ".jsonl", ".parquet", ".mp4", ".txt"}
"""Formats that hold numbers, text or pictures. Never code (*.py), and never what runs code when it is read (*.pkl, *.bin, *.pt)."""
TOKENIZER = {"tokenizer.model", "spiece.model"}
"""Tokenizer files that the endings above do not cover."""
BACKBONE_FOLDER = "vlm"
MAX_FILES = 200_000
MAX_BYTES = 2 * 2**40
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its path there, its size in bytes, and what proves that it arrived whole.

    `digest` is Git's object id (SHA-1 over a header and the content), or the SHA-256 of the content for a large file.
    """

    path: str
    size: int
    digest: str

    def hasher(self) -> Any:
        """A hash that gives `digest` when it has seen the whole content."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


def wanted_files(kind: Kind, listing: Iterable[Any], repo_id: str) -> list[HubFile]:
    """What is fetched of a repository with the Hub's `listing` (objects with `type`, `path`, `size`, `oid`, `lfs`).

    Raises `HubListingRefused` when any path leads out of the folder, and `HubNotSuitable` when it is no policy or recording.
    """
    take = _of_a_policy if kind == "policy" else _of_a_recording
    files = list(_files(listing, repo_id, take))
    names = {file.path for file in files}
    if kind == "policy" and not {"config.json", "model.safetensors"} <= names:
        raise HubNotSuitable(
            f"{repo_id} holds no policy that LeRobot loads.",
            f"There is no {'config.json' if 'config.json' not in names else 'model.safetensors'} in it.",
            "Ask for the policy's name again; weights in other formats than safetensors are not fetched, because they can run code.",
        )
    if kind == "recording" and "meta/info.json" not in names:
        raise HubNotSuitable(f"{repo_id} holds no LeRobot recording.", "There is no meta/info.json in it.", "Ask for its name again.")
    return files


def backbone_files(listing: Iterable[Any], repo_id: str) -> list[HubFile]:
    """What is fetched of a backbone: its description and tokenizer. Its weights are in the policy's file already."""
    files = list(_files(listing, repo_id, lambda path: "/" not in path and _harmless(path) and not path.endswith(".safetensors")))
    if not any(file.path == "config.json" for file in files):
        raise HubNotSuitable(f"{repo_id} describes no backbone.", "There is no config.json in it.", "Ask for another base policy.")
    return files


def _of_a_policy(path: str) -> bool:
    """The policy's own files, and its backbone's description where it brings one; no checkpoints in other folders."""
    folder, _, name = path.rpartition("/")
    return _harmless(path) and (folder == "" or (folder == BACKBONE_FOLDER and not name.endswith(".safetensors")))


def _of_a_recording(path: str) -> bool:
    return _harmless(path) and not path.endswith(".safetensors") and ("/" not in path or path.startswith(("meta/", "data/", "videos/")))


def _harmless(path: str) -> bool:
    name = path.rpartition("/")[2]
    ending = name[name.rfind(".") :] if "." in name else ""
    return (ending in HARMLESS or name in TOKENIZER) and not any(part.startswith(".") for part in path.split("/"))


def _files(listing: Iterable[Any], repo_id: str, take: Any) -> Iterator[HubFile]:
    seen: set[str] = set()
    total = 0
    for number, entry in enumerate(listing):
        if number >= MAX_FILES:
            raise _refused(repo_id, f"It lists more than {MAX_FILES} files.")
        path = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(path, str) or not _stays_inside(path):
            raise _refused(repo_id, "It names a file outside of its own folder.")
        if entry.get("type") != "file" or not take(path):
            continue
        if not _portable(path) or path.casefold() in seen:
            raise _refused(repo_id, "Two of its files, or a file and the system, would be in each other's place on this computer.")
        seen.add(path.casefold())
        file = _parsed(path, entry)
        total += file.size if file else 0
        if file is None or total > MAX_BYTES:
            raise _refused(repo_id, "The sizes or hashes that it lists cannot be.")
        yield file


def _parsed(path: str, entry: dict[str, Any]) -> HubFile | None:
    lfs = entry.get("lfs")
    size, digest = (lfs.get("size"), lfs.get("oid")) if isinstance(lfs, dict) else (entry.get("size"), entry.get("oid"))
    form = _SHA256 if isinstance(lfs, dict) else _SHA1
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_BYTES:
        return None
    return HubFile(path, size, digest) if isinstance(digest, str) and form.fullmatch(digest) else None


def _stays_inside(path: str) -> bool:
    """Whether `path` stays below the folder that it is joined to, on every system."""
    parts = path.split("/")
    return (
        0 < len(path) < 2000
        and not any(part in ("", ".", "..") for part in parts)
        and "\\" not in path
        and not re.match(r"[A-Za-z]:", path)
        and not any(ord(letter) < 32 or ord(letter) == 127 for letter in path)
    )


def _portable(path: str) -> bool:
    return not any(
        len(part.encode()) > 255 or part.endswith((".", " ")) or _RESERVED.fullmatch(part) or set(part) & set('<>:"|?*')
        for part in path.split("/")
    )


def _refused(repo_id: str, why: str) -> HubListingRefused:
    return HubListingRefused(f"{repo_id} is not fetched.", why, "Tell the one who named it to you. Nothing was fetched.")
