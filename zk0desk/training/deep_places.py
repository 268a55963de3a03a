"""The deep check of the table of episodes: its order, lengths, rows and parts of videos, against what the data holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zk0desk.training.episode_table import Episode
from zk0desk.training.recording_info import FETCH_AGAIN, shown
from zk0desk.training.recording_types import Finding, Severity


def place_findings(listed: Sequence[Episode], lengths: Mapping[int, int], fps: float) -> list[Finding]:
    """What is wrong with the table. `lengths` are the frames that the data holds of each episode, in the data's order.

    Rows and videos are looked at only where order and lengths are right: they would differ for that reason alone.
    """
    if not listed or not lengths:
        return []
    return order(listed) + wrong_lengths(listed, lengths) or rows(listed, lengths) + overlaps(listed, fps)


def order(listed: Sequence[Episode]) -> list[Finding]:
    """LeRobot takes the row of the table whose place is the episode's number."""
    wrong = sorted({episode.number for place, episode in enumerate(listed) if episode.number != place})
    if not wrong:
        return []
    first = next(episode.number for place, episode in enumerate(listed) if episode.number != place)
    what = "The table of episodes is not in the order of their numbers."
    why = f"Episode {first} is the first in another place; its frames would be looked for in another episode's videos."
    return [Finding("episodes-unordered", Severity.BLOCKS, what, why, FETCH_AGAIN, tuple(wrong))]


def wrong_lengths(listed: Sequence[Episode], lengths: Mapping[int, int]) -> list[Finding]:
    """Episodes that the table gives another number of frames than the data holds."""
    bad = {episode.number: episode.length for episode in listed if lengths.get(episode.number) != episode.length}
    if not bad:
        return []
    first = min(bad)
    what = f"The table of episodes gives another length than the data, {'once' if len(bad) == 1 else f'{len(bad):,} times'}."
    why = f"Episode {first}: {bad[first]:,} frames listed, {lengths.get(first, 0):,} held."
    return [Finding("lengths-differ", Severity.BLOCKS, what, why, FETCH_AGAIN, tuple(sorted(bad)))]


def rows(listed: Sequence[Episode], lengths: Mapping[int, int]) -> list[Finding]:
    """LeRobot cuts the actions that follow a frame at the last row that the table gives its episode."""
    begins, start = {}, 0
    for number, length in lengths.items():
        begins[number] = start
        start += length
    bad = [
        episode
        for episode in listed
        if episode.rows is not None and episode.rows != (begins[episode.number], begins[episode.number] + episode.length)
    ]
    if not bad:
        return []
    first = bad[0]
    assert first.rows is not None
    held = begins[first.number]
    what = f"The table of episodes gives other rows than the data, {'once' if len(bad) == 1 else f'{len(bad):,} times'}."
    why = (
        f"Episode {first.number}: rows {first.rows[0]:,} to {first.rows[1]:,} listed, {held:,} to {held + first.length:,} held. "
        "Actions of one episode would be learned as another's."
    )
    return [Finding("rows-differ", Severity.BLOCKS, what, why, FETCH_AGAIN, tuple(episode.number for episode in bad))]


def overlaps(listed: Sequence[Episode], fps: float) -> list[Finding]:
    """Episodes whose frames lie in the same part of a video: one of them would be learned with another's pictures."""
    parts: dict[tuple[str, Path], list[tuple[float, Episode]]] = {}
    for episode in listed:
        for camera, span in episode.videos.items():
            parts.setdefault((camera, span.path), []).append((span.start, episode))
    touched: dict[int, None] = {}
    where = ""
    for (camera, _), placed in parts.items():
        placed.sort(key=lambda part: part[0])
        for (start, episode), (next_start, other) in zip(placed, placed[1:], strict=False):
            if next_start < start + (episode.length - 0.5) / fps:
                where = where or f"{shown(camera.rsplit('.', 1)[-1], 60)}: episode {other.number} begins within episode {episode.number}"
                touched |= dict.fromkeys((episode.number, other.number))
    if not touched:
        return []
    what = f"{len(touched):,} episodes share parts of a video."
    why = f"{where}. One would be learned with the pictures of the other."
    return [Finding("videos-overlap", Severity.BLOCKS, what, why, FETCH_AGAIN, tuple(sorted(touched)))]
