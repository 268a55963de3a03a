"""What is kept of prepared frames, and what the last round took from it: from the cache's folder and the journal, without Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk import events, folders

if TYPE_CHECKING:
    from zk0desk.settings import Cache, Settings
    from zk0desk.training.prefix_cache import Cleared, PrefixCache, ShelfFacts, Usage


@dataclass(frozen=True)
class KeptRecording:
    """What is kept of one recording: `filled` of its `frames` at the level that was used last, and the bytes of all levels."""

    name: str
    path: Path | None
    level: str
    frames: int
    filled: int
    bytes: int
    last_used: float
    in_use: bool


@dataclass(frozen=True)
class PreparedFacts:
    """`chosen` and `times` are what the last run or look, and the last round said, where there were any.

    `estimate` is what a run would probably choose now. `damaged`: shelves that nobody can read.
    """

    usage: Usage
    recordings: tuple[KeptRecording, ...]
    damaged: int
    estimate: events.PrefixChosen | None = None
    chosen: events.PrefixChosen | None = None
    times: events.RoundTimes | None = None


def prepared_facts(settings: Settings, journal: Path | None = None) -> PreparedFacts:
    """Look into the cache's folder, the journal, and the files of what is chosen. Takes a moment: call it in the background."""
    from zk0desk.training.prefix_estimate import estimated_choice

    with _open(settings.cache) as kept:
        usage, shelves = kept.usage(), kept.shelves()
    chosen, times = _last_said(journal or folders.journal_file())
    guess = estimated_choice(settings)
    estimate = None
    if guess is not None:
        estimate = events.PrefixChosen(
            run="", level=guess.level, reason=guess.reason, bytes=guess.bytes, share=guess.share, gain=guess.gain, larger=guess.larger
        )
    return PreparedFacts(usage, _by_recording(shelves), sum(each.damaged for each in shelves), estimate, chosen, times)


def bytes_kept(cache: Cache, path: Path) -> int:
    """Bytes that are kept of the recording at `path`. Call it in the background."""
    resolved = path.expanduser().resolve()
    with _open(cache) as kept:
        found = _by_recording(kept.shelves())
    return sum(each.bytes for each in found if each.path is not None and each.path.expanduser().resolve() == resolved)


def size_words(count: float) -> str:
    """`16.1 MB`, `4.3 GB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def remove_prepared(cache: Cache, path: Path | None) -> Cleared:
    """Remove what is kept of the recording at `path`, or of all of them. Call it in the background."""
    with _open(cache) as kept:
        return kept.clear(path)


def _open(cache: Cache) -> PrefixCache:
    from zk0desk.training.prefix_cache import PrefixCache

    return PrefixCache(cache.folder.expanduser() if cache.folder else None, int(cache.budget_gb * 1e9))


def _by_recording(shelves: list[ShelfFacts]) -> tuple[KeptRecording, ...]:
    groups: dict[str, list[ShelfFacts]] = {}
    for each in shelves:  # the one that was used last first
        if not each.damaged:
            groups.setdefault(str(each.about.get("path") or each.about.get("recording") or each.name), []).append(each)
    found = []
    for group in groups.values():
        first = group[0]
        # A content that changed, and each instruction at level P, have a shelf of their own.
        same = [each for each in group if all(each.about.get(key) == first.about.get(key) for key in ("level", "content-sha256", "policy"))]
        path = first.about.get("path")
        found.append(
            KeptRecording(
                name=str(first.about.get("recording") or first.name[:12]),
                path=Path(path) if isinstance(path, str) else None,
                level=str(first.about.get("level", "?")),
                frames=max(each.entries for each in same),
                filled=min(sum(each.filled for each in same), max(each.entries for each in same)),
                bytes=sum(each.bytes for each in group),
                last_used=max(each.last_used for each in group),
                in_use=any(each.in_use for each in group),
            )
        )
    return tuple(found)


def _last_said(path: Path) -> tuple[events.PrefixChosen | None, events.RoundTimes | None]:
    from zk0desk.journal import Journal

    if not path.exists():
        return None, None
    with Journal(path) as journal:
        chosen, times = journal.told("prefix-chosen", newest=1), journal.told("round-times", newest=1)
    return (
        next((each for each in chosen if isinstance(each, events.PrefixChosen)), None),
        next((each for each in times if isinstance(each, events.RoundTimes)), None),
    )
