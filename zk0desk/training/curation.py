"""Episodes in or out, each with a reason, without touching a file: kept in the settings together with what the recording held then.

What is left out of a recording counts for its content, wherever its folder is. Of a recording whose content is another
one than when its episodes were left out, nothing is trained on until a person has looked again: neither may the old
numbers be taken for others, nor may what was left out be trained on.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zk0desk.settings import ChosenRecording, Curation, Recordings
from zk0desk.training.episode_table import read_episode_table
from zk0desk.training.recording_files import parquet_files
from zk0desk.training.recording_info import read_info
from zk0desk.training.recording_types import Finding, RecordingError

FILTERS = {
    "too-short": ("episodes-short", "too short"),
    "jumps": ("values-jump", "the arm jumps"),
    "no-motion": ("episodes-still", "no motion"),
    "duplicates": ("episodes-duplicate", "the same motion again"),
}
"""Filter: the deep check's finding that it takes its episodes from, and the reason that is kept."""
BY_HAND = "left out by hand"
SHORT_OF = "shorter than {seconds:g} s"
WHOLE = 64 * 2**20
"""Files up to so many bytes are read whole for the content's word, of larger ones both ends."""
_known: dict[str, tuple[object, str]] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Proposal:
    """Episodes that a filter would leave out, and the reason that would be kept of each."""

    filter: str
    reason: str
    episodes: tuple[int, ...]


def proposals(findings: Iterable[Finding], left_out: Iterable[int] = ()) -> tuple[Proposal, ...]:
    """What the deep check's `findings` propose to leave out beyond `left_out`, a proposal a filter that has any."""
    out, by_code = set(left_out), {finding.code: finding.episodes for finding in findings}
    found = []
    for name, (code, reason) in FILTERS.items():
        episodes = tuple(number for number in by_code.get(code, ()) if number not in out)
        if episodes:
            found.append(Proposal(name, reason, episodes))
    return tuple(found)


def shorter_than(recording: Path, seconds: float) -> tuple[int, ...]:
    """The episodes of fewer `seconds`, from the table of episodes. `RecordingError` where it cannot be used."""
    info = read_info(recording)
    return tuple(episode.number for episode in read_episode_table(recording, info) if episode.length / info.fps < seconds)


# --- the content that it counts for


def content_of(recording: Path) -> str:
    """A word for what the recording holds: its rows and its table of episodes. Another folder or another time of change keeps it.

    Empty where a file cannot be read. What was found is remembered while the files' sizes and times stay the same.
    """
    folder = Path(recording).expanduser()
    try:
        files = [*parquet_files(folder / "data"), *parquet_files(folder / "meta" / "episodes")]
        files += [path for path in (folder / "meta" / "episodes.jsonl",) if path.is_file()]
        signature = tuple((path, (stat := path.stat()).st_size, stat.st_mtime_ns, stat.st_ino) for path in files)
        with _lock:
            known = _known.get(str(folder))
        if known is not None and known[0] == signature:
            return known[1]
        word = _digest(folder, files) if files else ""
    except (OSError, ValueError):
        return ""
    with _lock:
        _known[str(folder)] = signature, word
    return word


def _digest(folder: Path, files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
            else:
                digest.update(file.read(WHOLE // 2))
                file.seek(-WHOLE // 2, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()


def is_stale(chosen: ChosenRecording, content: str) -> bool:
    """Whether episodes were left out of another content than `content`."""
    return bool(chosen.leave_out and chosen.content and chosen.content != content)


def require_current(chosen: ChosenRecording) -> None:
    """`RecordingError` where the recording holds something else than when its episodes were left out."""
    if chosen.leave_out and chosen.content and is_stale(chosen, content_of(chosen.path)):
        raise stale_error(chosen)


def stale_error(chosen: ChosenRecording) -> RecordingError:
    """What is said of a recording that changed since its episodes were left out."""
    numbers = ", ".join(map(str, chosen.leave_out[:8])) + (" …" if len(chosen.leave_out) > 8 else "")
    return RecordingError(
        f"{chosen.path.name} has changed since episodes were left out of it.",
        f"The numbers {numbers} may be other episodes now.",
        "Look at its episodes on the Recordings page and decide, or: zk0desk recordings curate FOLDER --keep (or --take-back).",
        code="curation-stale",
    )


# --- in the settings


def reasons_of(recordings: Recordings, path: Path, content: str) -> dict[int, str]:
    """The episodes that are left out of the recording at `path`, each with its reason, whether it is chosen or not."""
    chosen = _chosen(recordings, path)
    kept = chosen or _kept(recordings, content)
    return {number: kept.reasons.get(str(number), "") for number in kept.leave_out} if kept else {}


def curate(recordings: Recordings, path: Path, content: str, left_out: Mapping[int, str]) -> Recordings:
    """The settings with exactly `left_out` (episode: reason) left out of the recording at `path`, which holds `content`."""
    numbers = tuple(sorted(left_out))
    values = {
        "leave_out": numbers,
        "reasons": {str(number): left_out[number] for number in numbers if left_out[number]},
        "content": content if numbers else "",
    }
    if _chosen(recordings, path) is not None:
        chosen = tuple(each.model_copy(update=values) if _same(each.path, path) else each for each in recordings.chosen)
        return recordings.model_copy(update={"chosen": chosen, "curated": _without(recordings, content)})
    shelf = _without(recordings, content)
    if numbers and content:
        shelf += (Curation(name=path.name, **values),)  # type: ignore[arg-type]
    return recordings.model_copy(update={"curated": shelf})


def choose(recordings: Recordings, path: Path, content: str) -> Recordings:
    """The settings with the recording at `path` chosen. What was left out of its content before is left out again.

    A chosen recording of the same content whose folder is gone was moved: this one takes its place, cameras included.
    """
    moved = next((each for each in recordings.chosen if content and each.content == content and not each.path.expanduser().exists()), None)
    kept = _kept(recordings, content)
    if moved is not None:
        chosen = tuple(each.model_copy(update={"path": path}) if each is moved else each for each in recordings.chosen)
    elif kept is not None:
        new = ChosenRecording(path=path, leave_out=kept.leave_out, reasons=kept.reasons, content=content)
        chosen = (*recordings.chosen, new)
    else:
        chosen = (*recordings.chosen, ChosenRecording(path=path))
    return recordings.model_copy(update={"chosen": chosen, "curated": _without(recordings, content)})


def give_up(recordings: Recordings, path: Path) -> Recordings:
    """The settings with the recording at `path` not chosen; what is left out of it is kept for another time."""
    gone, shelf = _chosen(recordings, path), recordings.curated
    if gone is not None and gone.leave_out and gone.content:
        kept = Curation(name=path.name, leave_out=gone.leave_out, reasons=gone.reasons, content=gone.content)
        shelf = (*_without(recordings, gone.content), kept)
    chosen = tuple(each for each in recordings.chosen if not _same(each.path, path))
    return recordings.model_copy(update={"chosen": chosen, "curated": shelf})


def _same(one: Path, other: Path) -> bool:
    return one.expanduser().absolute() == other.expanduser().absolute()


def _chosen(recordings: Recordings, path: Path) -> ChosenRecording | None:
    return next((each for each in recordings.chosen if _same(each.path, path)), None)


def _kept(recordings: Recordings, content: str) -> Curation | None:
    return next((each for each in recordings.curated if content and each.content == content), None)


def _without(recordings: Recordings, content: str) -> tuple[Curation, ...]:
    return tuple(each for each in recordings.curated if not content or each.content != content)
