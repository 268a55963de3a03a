"""Renames that a Windows antivirus gets in the way of for a moment: it holds fresh files open."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_PATIENCE_S = 30.0 if sys.platform == "win32" else 0.0


def replace(old: Path, new: Path) -> None:
    """Give `old` the name `new`, in the place of a file that has it. On Windows it is tried again for half a minute."""
    ends = time.monotonic() + _PATIENCE_S
    while True:
        try:
            os.replace(old, new)
            return
        except PermissionError:
            if time.monotonic() >= ends:
                raise
            time.sleep(0.2)
