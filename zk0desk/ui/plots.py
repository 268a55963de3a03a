"""The plots: a curve over steps that stays quick at a million points, and losses per round."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QLineF, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QFont, QFontMetricsF, QKeyEvent, QPainter, QPaintEvent, QShowEvent
from PySide6.QtWidgets import QWidget

from zk0desk.ui import theme
from zk0desk.ui.run_data import DECIDES, RunData

POINTS = 1200
"""Blocks that a curve is drawn from; about the plot's width in pixels."""

FILLED, SPARE = 0.7, 0.08
"""A height that shows the values is kept while they fill so much of it; a new one leaves so much room, so that the axis, which is
slow to paint, is painted seldom."""

SERIES: dict[str, tuple[str, str]] = {
    "loss": ("Loss per step", "flow-matching loss"),
    "proximal": ("Proximal term", "mu/2 · distance²"),
    "grad_norm": ("Gradient norm", "L2 norm before clipping"),
    "lr": ("Learning rate", "rate"),
    "mu": ("Proximal mu", "mu"),
}
"""Column to (title, axis with unit)."""


def number(value: float) -> str:
    """A value as a person reads it: three significant digits."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"


def right_end(size: int) -> float:
    """Where the axis of steps ends while it follows a run of `size` steps: it grows by an eighth whenever the curve has come to its end.

    An axis that grows with every step is painted with every step, and each of its many small strokes may have to wait for training.
    """
    return max(10.0, 1.125 ** math.ceil(math.log(max(1.0, size * 1.01), 1.125)))


def tick_step(span: float, length: float, apart: float) -> float:
    """The least of 1, 2, 5 times a power of ten that sets ticks `apart` pixels or more apart: an axis of `length` pixels over `span`."""
    smallest = span * apart / max(length, apart)
    power = 10.0 ** math.floor(math.log10(smallest))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= smallest * (1 - 1e-9)), 10 * power)


class _Axis(pg.AxisItem):
    """A muted axis without a frame. While training holds Python's lock each call into Qt may wait, so painting it takes few: every tick has
    its number, and all lines of the grid are one call."""

    def __init__(self, orientation: str) -> None:
        super().__init__(orientation, maxTickLength=0)
        self._apart = 22.0 if orientation == "left" else 80.0
        self.enableAutoSIPrefix(False)
        self.setStyle(tickTextOffset=6, autoExpandTextSpace=True, hideOverlappingLabels=True)

    def tickSpacing(self, minVal: float, maxVal: float, size: float) -> list[tuple[float, float]]:
        """One level of ticks, each far enough from the next for its number."""
        if self._tickSpacing is not None:
            return list(self._tickSpacing)
        return [(tick_step(maxVal - minVal, size, self._apart), 0.0)] if maxVal > minVal else []

    def drawPicture(self, p: QPainter, axisSpec: Any, tickSpecs: Any, textSpecs: Any) -> None:
        """Paint the numbers, and the grid's lines in one call; ticks without a grid have no length."""
        super().drawPicture(p, axisSpec, [], textSpecs)
        if tickSpecs and self.grid is not False:
            p.setPen(tickSpecs[0][0])
            p.drawLines([QLineF(start, end) for _pen, start, end in tickSpecs])

    def recolour(self) -> None:
        """Take the theme's colours."""
        self.setPen(pg.mkPen(theme.color("border")))
        self.setTextPen(pg.mkPen(theme.color("muted")))
        font = QFont()
        font.setPixelSize(12)
        self.setTickFont(font)
        self.label.setFont(font)


class Plot(pg.PlotWidget):
    """A plot in the theme's colours that draws only while it is visible (`draw`)."""

    def __init__(self, bottom: str, left: str, name: str) -> None:
        axes = {"bottom": _Axis("bottom"), "left": _Axis("left")}
        super().__init__(axisItems=axes)
        self.setAccessibleName(name)
        self._axes = axes
        self.cost = 0.0
        """Seconds that painting took last time."""
        self.setFrameShape(self.Shape.NoFrame)
        item = self.getPlotItem()
        item.hideButtons()
        item.setMenuEnabled(False)
        if bottom:
            item.setLabel("bottom", bottom)
        item.setLabel("left", left)
        item.showGrid(x=False, y=True, alpha=0.12)
        self.setMinimumHeight(86)
        theme.signals.changed.connect(self.recolour)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Paint, and measure it."""
        began = time.perf_counter()
        super().paintEvent(event)
        self.cost = time.perf_counter() - began

    def sizeHint(self) -> QSize:
        """Small: the page's layout decides."""
        return QSize(400, 120)

    def recolour(self) -> None:
        """Take the theme's colours; subclasses add their curves'."""
        self.setBackground(theme.color("surface"))
        for axis in self._axes.values():
            axis.recolour()


class _Marks(pg.GraphicsObject):
    """Round borders with their numbers at the bottom, and bands for pauses; only what is in view is painted."""

    def __init__(self, plot: StepPlot) -> None:
        super().__init__()
        self._plot = plot
        self.setZValue(-10)
        self._font = QFont()
        self._font.setPixelSize(12)

    def boundingRect(self) -> QRectF:
        """All of the view."""
        return QRectF(self.viewRect() or QRectF())

    def viewRangeChanged(self) -> None:
        """The view's rectangle is this item's."""
        self.prepareGeometryChange()

    def paint(self, painter: QPainter, *_: Any) -> None:
        """Paint in the device's coordinates."""
        data, box = self._plot.data, self._plot.getViewBox()
        if data is None or not len(data):
            return
        (left, right), (low, high) = box.viewRange()
        world = painter.transform()

        def place(x: float) -> float:
            return float(world.map(QPointF(x, low)).x())

        top, bottom = world.map(QPointF(left, high)).y(), world.map(QPointF(left, low)).y()
        painter.resetTransform()
        painter.setFont(self._font)
        metrics = QFontMetricsF(self._font)
        self._rounds(painter, data, left, right, place, top, bottom, metrics)
        if self._plot.column in DECIDES:
            self._changes(painter, data, left, right, place, top)
        now = time.time()
        for band in data.bands:
            if left <= band.at <= right:
                x = place(band.at)
                painter.fillRect(QRectF(x - 6, top, 12, bottom - top), theme.color("warning", 0.22))
                words = band.words(now)
                width = metrics.horizontalAdvance(words)
                begin = min(max(x - width / 2, place(left) + 2), place(right) - width - 2)
                painter.setPen(theme.color("warning"))
                painter.drawText(QPointF(begin, top + metrics.ascent() + 2), words)

    def _changes(self, painter: QPainter, data: RunData, left: float, right: float, place: Any, top: float) -> None:
        """Triangles where a decision raised or lowered the learning rate or mu; the words under the pointer say why."""
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.color("series-1"))
        last = -1e9
        for mark in data.marks(self._plot.column):
            x = place(mark.at)
            if left <= mark.at <= right and x - last >= 4:
                last, tip, base = x, top + (2 if mark.raised else 11), top + (11 if mark.raised else 2)
                painter.drawPolygon([QPointF(x, tip), QPointF(x - 5, base), QPointF(x + 5, base)])

    def _rounds(
        self, painter: QPainter, data: RunData, left: float, right: float, place: Any, top: float, bottom: float, metrics: QFontMetricsF
    ) -> None:
        firsts = [(r.first, r.number) for r in data.ordered() if r.trains_here]
        taken = last = -1e9
        for index, (first, round_number) in enumerate(firsts):
            ends = firsts[index + 1][0] if index + 1 < len(firsts) else len(data)
            if first > right or ends < left:
                continue
            x = place(first)
            if index and x - last >= 6 and first >= left:
                painter.setPen(pg.mkPen(theme.color("border")))
                painter.drawLine(QPointF(x, top), QPointF(x, bottom))
                last = x
            words = f"round {round_number}"
            width = metrics.horizontalAdvance(words)
            begin = max(x, place(left)) + 4
            if begin > taken + 12 and begin + width < place(right):
                painter.setPen(theme.color("muted"))
                painter.drawText(QPointF(begin, bottom - 5), words)
                taken = begin + width


class StepPlot(Plot):
    """One series over the steps of a run: raw thin and faint, its moving mean on top.

    `followed` fires when a person's zoom ends following; `read` carries the words under the pointer or the keyboard's
    cursor ("" when there are none). Left and Right move the cursor, Home and End to the ends, F follows.
    """

    followed = Signal(bool)
    read = Signal(str)

    def __init__(self) -> None:
        super().__init__("step", SERIES["loss"][1], "Loss per step")
        self.data: RunData | None = None
        self.column = "loss"
        self.log = False
        self.follow = True
        self._drawn: tuple[Any, ...] = ()
        self._fitted: tuple[str, bool] | None = None
        self._cursor = -1
        box = self.getViewBox()
        self._raw = pg.PlotCurveItem(connect="finite")
        self._smooth = pg.PlotCurveItem(connect="finite", antialias=True)
        self._smooth.setSegmentedLineMode("on")
        self._line = pg.InfiniteLine(angle=90, movable=False)
        self._line.hide()
        self._marks = _Marks(self)
        for item in (self._marks, self._raw, self._smooth, self._line):
            self.addItem(item, ignoreBounds=True)
        box.disableAutoRange()
        box.setLimits(xMin=-1)
        box.sigRangeChangedManually.connect(lambda *_: self.set_follow(False))
        box.sigXRangeChanged.connect(lambda *_: self.draw())
        self.scene().sigMouseMoved.connect(self._hover)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.recolour()

    def recolour(self) -> None:
        """Take the theme's colours."""
        super().recolour()
        if not hasattr(self, "_raw"):
            return
        self._raw.setPen(pg.mkPen(theme.color("series-1", 0.35), width=1))
        pen = pg.mkPen(theme.color("series-1"), width=2)
        pen.setCapStyle(Qt.PenCapStyle.FlatCap)  # the curve is drawn in segments; square ends would show as dots
        self._smooth.setPen(pen)
        self._line.setPen(pg.mkPen(theme.color("control"), style=Qt.PenStyle.DashLine))
        self._marks.update()

    def show_data(self, data: RunData | None) -> None:
        """Show another run, following it."""
        self.data = data
        self._cursor = -1
        self._line.hide()
        self.set_follow(True)

    def show_column(self, column: str) -> None:
        """Show another series; the steps in view stay."""
        self.column = column
        self.getPlotItem().setLabel("left", SERIES[column][1])
        self.setAccessibleName(SERIES[column][0])
        self._drawn = ()
        self.draw()

    def set_log(self, on: bool) -> None:
        """Logarithmic values; those not above 0 are gaps then."""
        self.log = on
        self._axes["left"].setLogMode(y=on)
        self._drawn = ()
        self.draw()

    def set_follow(self, on: bool) -> None:
        """Show all steps and go on doing so, or keep the steps that are in view."""
        changed, self.follow = on != self.follow, on
        if on:
            self._drawn = ()
            self.draw()
        if changed:
            self.followed.emit(on)

    def draw(self) -> None:
        """Draw what is new. Does nothing while hidden: `showEvent` makes up for it."""
        data = self.data
        if not self.isVisible():
            return
        box = self.getViewBox()
        size = 0 if data is None else len(data)
        if self.follow and box.viewRange()[0] != [0, right_end(size)]:
            box.setXRange(0, right_end(size), padding=0)
        left, right = box.viewRange()[0]
        state = (id(data), 0 if data is None else data.version, self.column, self.log, left, right)
        if state == self._drawn:
            return
        self._drawn = state
        if data is None or size == 0:
            self._raw.setData([], [])
            self._smooth.setData([], [])
            self._marks.update()
            return
        x, y = data.tracks[self.column].view(left, right, POINTS)
        y = self._scaled(y)
        self._raw.setData(x, y)
        seen = y
        if self.column in data.smoothed:
            sx, sy = data.smoothed[self.column].view(left, right, POINTS // 2)
            self._smooth.setData(sx, self._scaled(sy))
            self._smooth.setVisible(True)
        else:
            self._smooth.setData(x, y)
        self._fit_height(seen)
        self._marks.update()

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        if not self.log:
            return values
        return np.log10(np.where(values > 0, values, np.nan))

    def _fit_height(self, values: np.ndarray) -> None:
        finite = values[np.isfinite(values)]
        if not len(finite):
            return
        low, high = np.quantile(finite, (0.002, 0.998)) if len(finite) > 50 else (finite.min(), finite.max())
        room = (high - low) or abs(high) or 1.0
        low, high = float(low - 0.16 * room), float(high + 0.14 * room)  # below: the rounds' numbers; above: the bands' words
        if not self.log and finite.min() >= 0:
            low = max(low, -0.16 * high) if low < 0 else low
        box = self.getViewBox()
        seen_low, seen_high = box.viewRange()[1]
        fits = seen_low <= low and high <= seen_high and high - low >= FILLED * (seen_high - seen_low)
        if not (fits and self._fitted == (self.column, self.log)):
            self._fitted = (self.column, self.log)
            spare = SPARE * (high - low)
            box.setYRange(low - spare, high + spare, padding=0)

    # --- reading values

    def words(self, step: int) -> str:
        """What is known about step `step` (counted over the run, from 0)."""
        data = self.data
        if data is None or not 0 <= step < len(data):
            return ""
        text = f"round {data.round_of.values[step]}, step {data.step_of.values[step]}: {number(data.tracks[self.column].values[step])}"
        if self.column in data.smoothed:
            text += f", smoothed {number(data.smoothed[self.column].values[step])}"
        if (mark := data.mark(self.column, step)) is not None:
            text += f". {mark.words}"
        return text

    def _hover(self, position: QPointF) -> None:
        box = self.getViewBox()
        inside = self.data is not None and box.sceneBoundingRect().contains(position)
        self._read(round(box.mapSceneToView(position).x()) if inside else -1)

    def _read(self, step: int) -> None:
        words = self.words(step)
        self._cursor = step if words else self._cursor
        self._line.setVisible(bool(words))
        if words:
            self._line.setPos(step)
        self.read.emit(words)

    def leaveEvent(self, event: QEvent) -> None:
        """The pointer left: nothing is read."""
        super().leaveEvent(event)
        self._line.hide()
        self.read.emit("")

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Move the cursor, zoom with + and -, follow with F."""
        size = 0 if self.data is None else len(self.data)
        left, right = self.getViewBox().viewRange()[0]
        shifted = bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier)
        jump = max(1, round((right - left) / 10)) if shifted else 1
        at = self._cursor if 0 <= self._cursor < size else size - 1
        key = event.key()
        moves = {Qt.Key.Key_Left: at - jump, Qt.Key.Key_Right: at + jump, Qt.Key.Key_Home: 0, Qt.Key.Key_End: size - 1}
        if key in moves and size:
            self._read(min(max(0, moves[Qt.Key(key)]), size - 1))
        elif key in (Qt.Key.Key_Plus, Qt.Key.Key_Equal, Qt.Key.Key_Minus):
            factor = 0.5 if key != Qt.Key.Key_Minus else 2.0
            middle, half = (left + right) / 2, (right - left) / 2 * factor
            self.set_follow(False)
            self.getViewBox().setXRange(max(0.0, middle - half), middle + half, padding=0)
        elif key == Qt.Key.Key_F:
            self.set_follow(True)
        else:
            super().keyPressEvent(event)

    def showEvent(self, event: QShowEvent) -> None:
        """Draw what came while hidden."""
        super().showEvent(event)
        self.draw()


ROUND_SERIES = (
    ("train_loss", "this node", "series-1", Qt.PenStyle.SolidLine, "o"),
    ("federation_loss", "federation", "series-3", Qt.PenStyle.SolidLine, "s"),
    ("held_out", "held-out (server)", "series-2", Qt.PenStyle.DashLine, "t"),
)
"""Attribute of a round, words, token, dash, marker."""


class RoundPlot(Plot):
    """Losses per round: this node's, the mean over the federation, and the server's on held-out recordings."""

    def __init__(self) -> None:
        super().__init__("", "loss", "Loss per round")
        self.data: RunData | None = None
        self._drawn: tuple[int, int] = (0, -1)
        self._curves = {name: pg.PlotDataItem(antialias=True) for name, *_ in ROUND_SERIES}
        for curve in self._curves.values():
            self.addItem(curve)
        self.setMouseEnabled(x=False, y=False)
        self.recolour()

    def recolour(self) -> None:
        """Take the theme's colours."""
        super().recolour()
        if not hasattr(self, "_curves"):
            return
        for name, _words, token, dash, symbol in ROUND_SERIES:
            curve = self._curves[name]
            curve.setPen(pg.mkPen(theme.color(token), width=2, style=dash))
            curve.setSymbol(symbol)
            curve.setSymbolSize(7)
            curve.setSymbolPen(pg.mkPen(None))
            curve.setSymbolBrush(pg.mkBrush(theme.color(token)))

    def show_data(self, data: RunData | None) -> None:
        """Show another run."""
        self.data = data
        self._drawn = (0, -1)
        self.draw()

    def draw(self) -> None:
        """Draw what is new, while visible."""
        data = self.data
        if not self.isVisible():
            return
        known = sum(len(data.per_round(name)[0]) for name in self._curves) if data is not None else 0
        state = (id(data), known)
        if state == self._drawn:
            return
        self._drawn = state
        last = 1.0
        for name, curve in self._curves.items():
            x, y = data.per_round(name) if data is not None else (np.empty(0), np.empty(0))
            curve.setData(x, y)
            last = max(last, float(x.max()) if len(x) else 1.0)
        self._axes["bottom"].setTickSpacing(levels=[(max(1, math.ceil(last / 12)), 0)])
        self.getViewBox().setXRange(0, last, padding=0.03)

    def showEvent(self, event: QShowEvent) -> None:
        """Draw what came while hidden."""
        super().showEvent(event)
        self.draw()


class LegendSign(QWidget):
    """A piece of a curve beside its words: its dash and marker, so that colour is not the only sign."""

    def __init__(self, token: str, alpha: float = 1.0, width: int = 3, dash: Qt.PenStyle = Qt.PenStyle.SolidLine, symbol: str = "") -> None:
        super().__init__()
        self._token, self._alpha, self._width, self._dash, self._symbol = token, alpha, width, dash, symbol
        self.setFixedSize(26, 12)

    def paintEvent(self, _event: Any) -> None:
        """Draw it."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(pg.mkPen(theme.color(self._token, self._alpha), width=self._width, style=self._dash))
        painter.drawLine(2, 6, 24, 6)
        if self._symbol:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(theme.color(self._token))
            painter.translate(13, 6)
            painter.scale(7, 7)
            painter.drawPath(pg.graphicsItems.ScatterPlotItem.Symbols[self._symbol])
