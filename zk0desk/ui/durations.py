"""Lengths of time in words."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Words for a length of time: `40 s`, `6 min`, `3 h 20 min`, `2 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def duration_short(seconds: float) -> str:
    """`120 ms`, `1.7 s`."""
    if not math.isfinite(seconds):
        return "-"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 90 else duration(seconds)
