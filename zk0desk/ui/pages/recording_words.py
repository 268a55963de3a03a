"""How a recording is put into words: lengths, sizes, counts, and the badge of its check."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zk0desk.training.recordings import CheckResult


def duration(seconds: float) -> str:
    """`53 s`, `21 min`, `1 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


def day(seconds: float) -> str:
    """The day of a time since 1970, in the computer's time zone; nothing for 0."""
    return time.strftime("%Y-%m-%d", time.localtime(seconds)) if seconds > 0 else ""


def thousands(count: int) -> str:
    """38 342 rather than 38342."""
    return f"{count:,}".replace(",", "\u202f")


def verdict(result: CheckResult) -> tuple[str, str]:
    """Kind and words of a recording's badge."""
    if result.status == "unusable":
        return "error", "Cannot be used"
    if result.status == "repairable":
        convert = any("version" in finding.code or "convert" in finding.remedy.lower() for finding in result.findings)
        return "warning", "Can be converted" if convert else "Can be repaired"
    notes = len(result.findings)
    return ("ok", "Ready") if not notes else ("info", f"{notes} note" + ("s" if notes > 1 else ""))


def dimensions(count: int, names: tuple[str, ...]) -> str:
    """How many values a frame has, and the first of their names."""
    if not count:
        return "none"
    listed = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
    return f"{count}: {listed}" if listed else str(count)
