"""What is known of each round: its losses, and where its time goes."""

from __future__ import annotations

from PySide6.QtWidgets import QHBoxLayout, QSizePolicy, QStackedLayout, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.plots import ROUND_SERIES, LegendSign, RoundPlot
from zk0desk.ui.round_parts import PARTS
from zk0desk.ui.run_data import RunData
from zk0desk.ui.time_bars import PartsLegend, TimeBars
from zk0desk.ui.widgets import Caption, Card, TabButton


def legend(sign: QWidget, words: str) -> QHBoxLayout:
    """A sign and its words."""
    row = QHBoxLayout()
    row.setSpacing(6)
    row.addWidget(sign)
    row.addWidget(Caption(words, wrap=False))
    return row


class RoundsCard(Card):
    """Two views of a run's rounds, one behind the other. `show_data` gives the run, `draw` draws what is new."""

    def __init__(self) -> None:
        super().__init__()
        self.data: RunData | None = None
        self.body.setSpacing(theme.SPACE_1)
        top = QHBoxLayout()
        top.setSpacing(2)
        self.tabs = [TabButton("Loss per round", lambda: self.show_view(0)), TabButton("Where the time goes", lambda: self.show_view(1))]
        for tab in self.tabs:
            top.addWidget(tab)
        top.addStretch(1)
        self.body.addLayout(top)
        holder = QWidget()
        self._views = QStackedLayout(holder)
        self.plot = RoundPlot()
        self._views.addWidget(self._losses())
        self.bars = TimeBars()
        self._views.addWidget(self._times())
        self.body.addWidget(holder, 1)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self.show_view(0)

    def _losses(self) -> QWidget:
        view = QWidget()
        column = QVBoxLayout(view)
        column.setContentsMargins(0, 0, 0, 0)
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_4)
        for _name, words, token, dash, symbol in ROUND_SERIES:
            row.addLayout(legend(LegendSign(token, 1.0, 2, dash, symbol), words))
        row.addStretch(1)
        column.addLayout(row)
        column.addWidget(self.plot, 1)
        return view

    def _times(self) -> QWidget:
        view = QWidget()
        column = QVBoxLayout(view)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_2)
        self.level = Caption("")
        column.addWidget(self.level)
        self.parts_legend = PartsLegend()
        column.addWidget(self.parts_legend)
        column.addWidget(self.bars, 1)
        self.reading = Caption("")
        column.addWidget(self.reading)
        self.bars.read.connect(self.reading.setText)
        return view

    def show_view(self, number: int) -> None:
        """Show the losses (0), or where the time goes (1)."""
        self.tabs[number].setChecked(True)
        self._views.setCurrentIndex(number)
        self.draw()

    def show_data(self, data: RunData | None) -> None:
        """Show another run."""
        self.data = data
        self.plot.show_data(data)
        self.bars.show_parts(data.parts if data is not None else None)
        self._shown = (0, -1)
        self.draw()

    _shown = (0, -1)

    def draw(self) -> None:
        """Draw what is new, in the view that is shown."""
        if self._views.currentIndex() == 0:
            self.plot.draw()
            return
        self.bars.draw()
        parts = self.data.parts if self.data is not None else None
        shown = (id(parts), parts.version if parts is not None else 0)
        if shown == self._shown:
            return
        self._shown = shown
        known = parts.rounds.values() if parts is not None else ()
        self.parts_legend.show_parts(tuple(part for part in PARTS if any(each.seconds.get(part, 0.0) > 0 for each in known)))
        newest = parts.newest if parts is not None else None
        self.reading.setText(newest.words() if newest is not None else "")
        chosen = parts.chosen if parts is not None else None
        self.level.setText(f"{chosen.reason} {chosen.larger}".strip() if chosen is not None else "")
        self.level.setVisible(chosen is not None)
