"""Hard crashes (a segmentation fault, CUDA): what died is kept by faulthandler, and the next start says so."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from zk0desk import folders

_FATAL = re.compile(r"^(Fatal Python error|Windows fatal exception|Fatal error): *(.*)$", re.MULTILINE)
_FRAME = re.compile(r'^ *File "([^"]+)", line \d+ in (\S+)', re.MULTILINE)
_LIBRARIES = {
    "torch": "PyTorch", "lerobot": "LeRobot", "transformers": "Transformers", "av": "the video decoder", "torchcodec": "the video decoder",
    "pyqtgraph": "the plots", "PySide6": "the window", "flwr": "Flower", "grpc": "the connection (gRPC)", "zk0desk": "zk0desk",
}  # fmt: skip


@dataclass(frozen=True)
class Crash:
    """How the last start ended: `what` died and `where`, when it began (Unix seconds), and whether the node ran."""

    what: str
    where: str
    began: float
    training: bool
    report: Path | None

    @property
    def sentence(self) -> str:
        """For a person."""
        place = f" in {self.where}" if self.where else ""
        return f"zk0desk ended unexpectedly last time: {self.what}{place}."


class CrashGuard:
    """Keeps faulthandler's file open while the window lives, and a mark that says that it does."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or folders.state_folder()
        self.report = self._folder / "crash.txt"
        self.mark = self._folder / "running.json"
        self._file: IO[str] | None = None
        self._began = 0.0

    def last_crash(self) -> Crash | None:
        """What the previous start left, or None when it ended well. Call before `arm`."""
        try:
            mark = json.loads(self.mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(mark, dict) or _alive(mark.get("pid")):
            return None
        text = ""
        with contextlib.suppress(OSError):
            text = self.report.read_text(encoding="utf-8", errors="replace")
        what, where = explain(text)
        kept = None
        if text.strip():
            kept = self._folder / "last-crash.txt"
            with contextlib.suppress(OSError):
                kept.write_text(text, encoding="utf-8")
        began = mark.get("began")
        return Crash(what, where, float(began) if isinstance(began, int | float) else 0.0, bool(mark.get("training")), kept)

    def arm(self) -> None:
        """Watch this process."""
        folders.private_folder(self._folder)
        self._file = self.report.open("w", encoding="utf-8")
        faulthandler.enable(self._file, all_threads=True)
        self._began = time.time()
        self.note(training=False)

    def note(self, *, training: bool) -> None:
        """Keep whether the node runs, so that the next start can offer to go on."""
        partial = self.mark.with_suffix(".partial")
        with contextlib.suppress(OSError):
            partial.write_text(json.dumps({"pid": os.getpid(), "began": self._began, "training": training}), encoding="utf-8")
            partial.replace(self.mark)

    def disarm(self) -> None:
        """The window closed as it should."""
        if self._file is not None:
            faulthandler.disable()
            self._file.close()
            self._file = None
        self.mark.unlink(missing_ok=True)
        self.report.unlink(missing_ok=True)


def explain(report: str) -> tuple[str, str]:
    """What died and in which library, from faulthandler's text; words for a person."""
    fatal = _FATAL.search(report)
    if fatal is None:
        return "the process was killed or the computer went down", ""
    kind = fatal.group(2).strip() or "a fatal error"
    words = {"Segmentation fault": "a segmentation fault", "Aborted": "an abort", "Illegal instruction": "an illegal instruction",
             "Bus error": "a bus error", "Floating-point exception": "a floating-point exception"}  # fmt: skip
    what = words.get(kind, kind)
    current = report[report.find("Current thread") :] if "Current thread" in report else report[fatal.end() :]
    for path, _function in _FRAME.findall(current):
        parts = re.split(r"[/\\]", path)
        for library, name in _LIBRARIES.items():
            if library in parts:
                return what, name
    return what, ""


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    import psutil

    return bool(psutil.pid_exists(pid))
