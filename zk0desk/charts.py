"""Curves as a PNG, without a screen and without Qt: panels one below the other, with lines, error bands, marks and a legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#7f3c8d", "#5b5b5b")
"""For lines, in turn; told apart by people who see few colours (after Okabe and Ito)."""
INK, GRID, PAPER = "#222222", "#dddddd", "#ffffff"
_SCALE = 2
"""Pictures are drawn larger and made smaller, which smooths their lines."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _TEXT = 84, 210, 36, 52, 13


@dataclass(frozen=True)
class Line:
    """A curve over `x`; values that are not finite leave a gap. `errors` are drawn as a band of one above and one below."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = ()
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` with a word beside it."""

    x: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One chart. `log`: the upward axis is logarithmic, and values that are not above 0 are left out."""

    title: str
    lines: Sequence[Line]
    x_label: str = ""
    log: bool = False
    marks: Sequence[Mark] = ()


def draw(path: Path, title: str, panels: Sequence[Panel], *, width: int = 960, height: int = 300) -> Path:
    """Write the panels, each `height` pixels high, with `title` above them, to `path` as a PNG. ValueError without a panel."""
    from PIL import Image, ImageDraw

    if not panels:
        raise ValueError("there is nothing to draw")
    head = 40
    picture = Image.new("RGB", (width * _SCALE, (head + height * len(panels)) * _SCALE), PAPER)
    canvas = ImageDraw.Draw(picture, "RGBA")
    _text(canvas, (width / 2, head / 2), title, anchor="mm", size=16)
    for number, panel in enumerate(panels):
        _Axes(canvas, panel, (0, head + height * number, width, height)).draw()
    picture = picture.resize((width, head + height * len(panels)), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG", optimize=True)
    return path


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((times * power for times in (1, 2, 5) if times * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


class _Axes:
    """Draws one panel within `box`: left, top, width, height in pixels."""

    def __init__(self, canvas: ImageDraw, panel: Panel, box: tuple[float, float, float, float]) -> None:
        self._canvas, self._panel = canvas, panel
        left, top, width, height = box
        self._left, self._top = left + _LEFT, top + _TOP
        self._right, self._bottom = left + width - _RIGHT, top + height - _BOTTOM
        points = [(x, y, e) for line in panel.lines for x, y, e in _points(line) if self._shown(y)]
        self._x = _range([x for x, _, _ in points])
        highs = [y + e for _, y, e in points]
        lows = [y - e if self._shown(y - e) else y for _, y, e in points]
        self._y = _range([self._scaled(y) for y in (*highs, *lows)], margin=0.05)

    def draw(self) -> None:
        self._grid()
        for mark in self._panel.marks:
            if self._x[0] <= mark.x <= self._x[1]:
                place = self._across(mark.x)
                self._stroke([(place, self._top), (place, self._bottom)], "#99999999", 1, dashed=True)
                left = place < self._right - 80  # beside the last one is the legend
                text = (place + 3 if left else place - 3, self._top + 2)
                _text(self._canvas, text, mark.text, anchor="lt" if left else "rt", size=10, colour="#666666")
        for number, line in enumerate(self._panel.lines):
            self._line(line, COLOURS[number % len(COLOURS)])
        self._legend()

    def _shown(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self._panel.log)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._panel.log else value

    def _across(self, x: float) -> float:
        return self._left + (x - self._x[0]) / (self._x[1] - self._x[0]) * (self._right - self._left)

    def _up(self, y: float) -> float:
        share = (self._scaled(y) - self._y[0]) / (self._y[1] - self._y[0])
        return self._bottom - min(max(share, 0.0), 1.0) * (self._bottom - self._top)

    def _grid(self) -> None:
        _text(self._canvas, (self._left, self._top - 14), self._panel.title, anchor="lm", size=_TEXT)
        for value in ticks(*self._x, count=10):
            place = self._across(value)
            self._stroke([(place, self._top), (place, self._bottom)], GRID, 1)
            _text(self._canvas, (place, self._bottom + 6), f"{value:g}", anchor="mt", size=11)
        low, high = self._y
        if self._panel.log and high - low >= 1:
            labels = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
        elif self._panel.log:
            labels = [value for value in ticks(10**low, 10**high, count=5) if value > 0]
        else:
            labels = ticks(low, high, count=5)
        for value in labels:
            place = self._up(value)
            self._stroke([(self._left, place), (self._right, place)], GRID, 1)
            _text(self._canvas, (self._left - 6, place), f"{value:.4g}", anchor="rm", size=11)
        corners = [(self._left, self._top), (self._left, self._bottom), (self._right, self._bottom)]
        self._stroke(corners, INK, 1)
        _text(self._canvas, ((self._left + self._right) / 2, self._bottom + 30), self._panel.x_label, anchor="mm", size=11)

    def _line(self, line: Line, colour: str) -> None:
        for piece in _pieces(line, self._shown):
            places = [(self._across(x), self._up(y)) for x, y, _ in piece]
            if line.errors and len(piece) > 1:
                above = [(self._across(x), self._up(y + e)) for x, y, e in piece]
                below = [(self._across(x), self._up(y - e if self._shown(y - e) else y)) for x, y, e in piece]
                self._canvas.polygon([(x * _SCALE, y * _SCALE) for x, y in above + below[::-1]], fill=f"{colour}30")
            elif line.errors:
                x, y, e = piece[0]
                self._stroke([(self._across(x), self._up(y - e)), (self._across(x), self._up(y + e))], colour, 2)
            self._stroke(places, colour, 2, dashed=line.dashed)
            if line.dots or len(piece) == 1:
                for x, y in places:
                    self._canvas.ellipse([(x - 3) * _SCALE, (y - 3) * _SCALE, (x + 3) * _SCALE, (y + 3) * _SCALE], fill=colour)

    def _legend(self) -> None:
        for number, line in enumerate(self._panel.lines):
            place, colour = self._top + 8 + 17 * number, COLOURS[number % len(COLOURS)]
            self._stroke([(self._right + 12, place), (self._right + 32, place)], colour, 2, dashed=line.dashed)
            name = line.name if len(line.name) <= 24 else f"{line.name[:23]}…"
            _text(self._canvas, (self._right + 38, place), name, anchor="lm", size=11)

    def _stroke(self, places: Sequence[tuple[float, float]], colour: str, width: int, *, dashed: bool = False) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in places]
        if not dashed:
            self._canvas.line(scaled, fill=colour, width=width * _SCALE, joint="curve")
            return
        for start, end in _dashes(scaled, 5.0 * _SCALE):
            self._canvas.line([start, end], fill=colour, width=width * _SCALE)


def _dashes(places: Sequence[tuple[float, float]], length: float) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Pieces of a broken line: `length` drawn, `length` left out, along all of it."""
    walked = 0.0
    for (x0, y0), (x1, y1) in pairwise(places):
        whole = math.hypot(x1 - x0, y1 - y0)
        begin = 0.0
        while begin < whole:
            end = min(whole, begin + length - walked % length)
            if end - begin < 1e-6:
                end = min(whole, begin + length)
            if int((walked + 1e-6) / length) % 2 == 0:
                one, other = begin / whole, end / whole
                yield (x0 + one * (x1 - x0), y0 + one * (y1 - y0)), (x0 + other * (x1 - x0), y0 + other * (y1 - y0))
            walked += end - begin
            begin = end


def _points(line: Line) -> list[tuple[float, float, float]]:
    errors = line.errors or [0.0] * len(line.x)
    return [(x, y, e if math.isfinite(e) else 0.0) for x, y, e in zip(line.x, line.y, errors, strict=True)]


def _pieces(line: Line, shown: Callable[[float], bool]) -> Iterator[list[tuple[float, float, float]]]:
    """The points between two gaps."""
    piece: list[tuple[float, float, float]] = []
    for x, y, error in _points(line):
        if shown(y):
            piece.append((x, y, error))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _range(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * margin if high > low else (abs(low) or 1.0) / 2
    return low - room, high + room


def _text(canvas: ImageDraw, place: tuple[float, float], text: str, *, anchor: str, size: int, colour: str = INK) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size * _SCALE)
    canvas.text((place[0] * _SCALE, place[1] * _SCALE), text, fill=colour, font=font, anchor=anchor)
