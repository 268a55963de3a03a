"""State and action over an episode: the curves, their names, and a cursor at the frame that is shown."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.plots import LegendSign, Plot
from zk0desk.ui.widgets import Card, ElidedLabel, Text

DASHES = (Qt.PenStyle.SolidLine, Qt.PenStyle.DashLine, Qt.PenStyle.DotLine, Qt.PenStyle.DashDotLine)


class VectorPlot(Plot):
    """The curves of a vector over an episode, with a cursor at the frame that is shown."""

    def __init__(self, name: str) -> None:
        super().__init__("seconds", name, f"{name} over the episode")
        self._curves: list[pg.PlotDataItem] = []
        self.cursor = pg.InfiniteLine(angle=90, movable=False)
        self.addItem(self.cursor)
        self.setMouseEnabled(x=False, y=False)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.recolour()

    def recolour(self) -> None:
        """Take the theme's colours."""
        super().recolour()
        if hasattr(self, "cursor"):
            self.cursor.setPen(pg.mkPen(theme.color("text"), width=1))
            for number, curve in enumerate(self._curves):
                token, dash = look_of(number)
                curve.setPen(pg.mkPen(theme.color(token), width=1.5, style=dash))

    def show_values(self, values: np.ndarray, fps: float) -> None:
        """Draw (frames, dimensions)."""
        for curve in self._curves:
            self.removeItem(curve)
        seconds = np.arange(len(values)) / fps
        self._curves = [self.plot(seconds, np.asarray(column, float)) for column in values.T]
        self.getViewBox().setXRange(0, max(1 / fps, (len(values) - 1) / fps), padding=0.01)
        self.recolour()


def look_of(number: int) -> tuple[str, Qt.PenStyle]:
    """Token and dash of the dimension `number`: no two of the first sixteen are alike."""
    return f"series-{number % 4 + 1}", DASHES[number // 4 % 4]


class VectorCard(Card):
    """A plot, and the dimensions' names under its title."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.body.setContentsMargins(theme.SPACE_3, theme.SPACE_2, theme.SPACE_2, theme.SPACE_1)
        self.body.setSpacing(2)
        self.plot = VectorPlot(name)
        self.problem = Text("", "muted")
        self.problem.hide()
        self.legend = QWidget()
        self._grid = QGridLayout(self.legend)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setVerticalSpacing(0)
        self._names: tuple[str, ...] = ()
        self.body.addWidget(self.legend)
        self.body.addWidget(self.problem)
        self.body.addWidget(self.plot, 1)

    def show_values(self, values: np.ndarray, names: tuple[str, ...], fps: float) -> None:
        """Draw the curves and write the legend."""
        self.problem.setVisible(not values.size)
        self.problem.setText("" if values.size else "This recording has none.")
        if names != self._names:
            self._names = names
            for number, name in enumerate(names[:16]):
                sign = QHBoxLayout()
                sign.setSpacing(3)
                sign.addWidget(LegendSign(look_of(number)[0], 1.0, 2, look_of(number)[1]))
                sign.addWidget(ElidedLabel(name, "caption"), 1)
                self._grid.addLayout(sign, number // 3, number % 3)
        self.plot.show_values(values, fps)
