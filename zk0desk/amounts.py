"""Amounts in words: bytes and lengths of time."""

from __future__ import annotations


def gigabytes(count: float) -> str:
    """Bytes for a person: GB, or MB where that would be 0.0 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds for a person: "45 s", "38 min", "2 h 10 min"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{round(seconds / 3600)} h"
