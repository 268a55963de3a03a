"""How evaluations of policies are told: progress on standard error, JSON, and tables."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zk0desk.training.evaluation import Evaluation


class Progress:
    """Tells how far an evaluation is on standard error: on a terminal in one line, or as lines for another program."""

    def __init__(self, lines: bool, parts: int) -> None:
        self._lines, self._parts = lines, parts
        self.part = 0
        self._said = 0.0
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said < 0.2 and done < total:
            return
        self._said = now
        done, total = done + self.part * total, total * self._parts
        if self._lines:
            print("progress", done, total, file=sys.stderr, flush=True)
        elif sys.stderr.isatty():
            self._shown = True
            print(f"\r{done:,} of {total:,} frames", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal's line as it was."""
        if self._shown:
            print(f"\r{'':<40}\r", end="", file=sys.stderr, flush=True)


def plain(found: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON."""
    parts = {
        kind: {
            name: {
                "loss": part.loss,
                "standard-error": part.standard_error,
                "frames-error": part.frames_error,
                "frames": part.frames,
                "of": part.of,
            }  # fmt: skip
            for name, part in of.items()
        }
        for kind, of in found.parts.items()
    }
    error = {"standard-error": found.standard_error, "frames-error": found.frames_error}
    return {"loss": found.loss, **error, "frames": found.frames, "of": found.of, "parts": parts}


def evaluation_table(title: str, found: dict[str, Evaluation]) -> None:
    """Print evaluations of the same recordings side by side."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    table.add_column("frames", justify="right")
    first = next(iter(found.values()))

    def count(frames: int, of: int) -> str:
        return f"{frames:,}" if frames == of else f"{frames:,} of {of:,}"

    table.add_row(
        "all", *(cell(each.loss, each.standard_error or each.frames_error) for each in found.values()), count(first.frames, first.of)
    )
    for kind, of in first.parts.items():
        table.add_section()
        for name, part in of.items():
            means = [each.parts[kind][name] for each in found.values()]
            table.add_row(
                f"{kind}: {name}",
                *(cell(mean.loss, mean.standard_error or mean.frames_error) for mean in means),
                count(part.frames, part.of),
            )
    Console().print(table)
    if first.standard_error:
        print("± is the standard error of the sample: how far it may be from the loss on all frames.")
    elif first.frames_error:
        print("± is the standard error: how far it may be from the loss on other frames like these.")


def cell(loss: float, error: float) -> str:
    """A loss with its standard error, where there is one."""
    return f"{loss:.4f} ± {error:.4f}" if error and math.isfinite(error) else f"{loss:.4f}"
