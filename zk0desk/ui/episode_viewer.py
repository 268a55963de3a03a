"""Looking at the episodes of a recording: all cameras in step, state and action, what was found, and what is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QElapsedTimer, QModelIndex, QPersistentModelIndex, QRect, QRectF, Qt, QTimer
from PySide6.QtGui import QImage, QKeySequence, QPainter, QPaintEvent, QPen, QShortcut
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QDialog,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QSlider,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.icons import icon
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.player import Player, Shot
from zk0desk.ui.plots import LegendSign, Plot
from zk0desk.ui.widgets import Banner, Caption, Card, ElidedLabel, FindingRow, Heading, LinkButton, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.training.episode_frames import EpisodeList, EpisodeRows
    from zk0desk.training.recordings import Finding

SPEEDS = (-4.0, -2.0, -1.0, 0.25, 0.5, 1.0, 2.0, 4.0)
DASHES = (Qt.PenStyle.SolidLine, Qt.PenStyle.DashLine, Qt.PenStyle.DotLine, Qt.PenStyle.DashDotLine)
WORDS = {"blocks": "Blocks", "repairable": "Repairable", "note": "Note"}


class CameraView(QWidget):
    """The picture of one camera, as large as fits; words where there is none."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.image: QImage | None = None
        self.words = "Decoding…"
        self.setMinimumSize(120, 90)
        self.setAccessibleName(f"Camera {name}")

    def show_picture(self, picture: QImage | str, frame: int) -> None:
        """Show a picture, or why there is none."""
        self.image, self.words = (picture, "") if isinstance(picture, QImage) else (None, picture)
        self.setAccessibleDescription(self.words or f"Frame {frame}")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw it."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), theme.color("side"))
        if self.image is None:
            painter.setPen(theme.color("muted"))
            flags = Qt.AlignmentFlag.AlignCenter.value | Qt.TextFlag.TextWordWrap.value
            painter.drawText(self.rect().adjusted(12, 12, -12, -12), flags, self.words)
            return
        size = self.image.size().scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio)
        place = QRect((self.width() - size.width()) // 2, (self.height() - size.height()) // 2, size.width(), size.height())
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.drawImage(place, self.image)


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


class _Ticks(QStyledItemDelegate):
    """Draws the ticks of the list as `TickBox` does: Fusion's own frame cannot be seen in the dark."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> None:
        """Draw the row's ground, and the tick over it."""
        item = QStyleOptionViewItem(option)
        self.initStyleOption(item, index)
        style = item.widget.style()  # type: ignore[attr-defined]
        box = style.subElementRect(QStyle.SubElement.SE_ItemViewItemCheckIndicator, item, item.widget)  # type: ignore[attr-defined]
        item.features &= ~QStyleOptionViewItem.ViewItemFeature.HasCheckIndicator  # type: ignore[attr-defined]
        style.drawControl(QStyle.ControlElement.CE_ItemViewItem, item, painter, item.widget)  # type: ignore[attr-defined]
        on = Qt.CheckState(index.data(Qt.ItemDataRole.CheckStateRole)) == Qt.CheckState.Checked
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setOpacity(1.0 if index.flags() & Qt.ItemFlag.ItemIsUserCheckable else 0.45)
        painter.setPen(QPen(theme.color("accent" if on else "control"), 1.2))
        painter.setBrush(theme.color("accent" if on else "surface"))
        painter.drawRoundedRect(QRectF(box).adjusted(0.5, 0.5, -0.5, -0.5), 3, 3)
        if on:
            icon("check-bold", "on-accent").paint(painter, box.adjusted(1, 1, -1, -1), Qt.AlignmentFlag.AlignCenter)
        painter.restore()


class EpisodeViewer(QDialog):
    """Shows the recording at `path`. `leave_out`: the episodes that are not trained on, None where the recording is not chosen."""

    def __init__(
        self, path: Path, findings: Iterable[Finding], leave_out: tuple[int, ...] | None, change: Callable[..., None],
        parent: QWidget | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parent)
        self.setWindowTitle(f"Episodes of {path.name}")
        self.resize(1000, 640)
        self._findings, self._change = tuple(findings), change
        self._left_out = None if leave_out is None else set(leave_out)
        self.listing: EpisodeList | None = None
        self.place, self.frame, self._shown = 0, 0, 0
        self.speed = 1.0
        self._from, self._clock = 0, QElapsedTimer()
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._views: dict[str, CameraView] = {}
        row = QHBoxLayout(self)
        row.setContentsMargins(theme.SPACE_4, theme.SPACE_3, theme.SPACE_4, theme.SPACE_3)
        row.setSpacing(theme.SPACE_4)
        row.addLayout(self._left())
        row.addLayout(self._right(), 1)
        self._keys()
        self.player = Player(path)
        self.player.listed.connect(self._listed)
        self.player.shot.connect(self._show)
        self.player.rows.connect(self._show_rows)
        self.player.failed.connect(self._say)
        self.destroyed.connect(self.player.stop)
        self.player.start()
        self.table.setFocus()

    # --- what it is made of

    def _left(self) -> QVBoxLayout:
        column = QVBoxLayout()
        column.setSpacing(theme.SPACE_2)
        column.addWidget(Heading("Episodes", 2))
        self.table = QTableWidget(0, 4)
        self.table.setHorizontalHeaderLabels(["No.", "Seconds", "Train on it", "Found"])
        self.table.setAccessibleName("Episodes")
        self.table.setFixedWidth(318)
        self.table.verticalHeader().hide()
        self.table.setShowGrid(False)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.table.horizontalHeader()
        for place in range(3):
            header.setSectionResizeMode(place, QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(True)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.table.currentCellChanged.connect(lambda row, *_: self.go_to(row) if row >= 0 and row != self.place else None)
        self._ticks = _Ticks(self.table)
        self.table.setItemDelegateForColumn(2, self._ticks)
        self.table.itemChanged.connect(self._ticked)
        column.addWidget(self.table, 1)
        self.train = TickBox("&Train on it")
        self.train.setAccessibleName("Train on this episode")
        self.train.setEnabled(self._left_out is not None)
        self.train.clicked.connect(self._train_on)
        column.addWidget(self.train)
        self.hint = Caption("" if self._left_out is not None else "Choose the recording to leave episodes out.")
        self.hint.setVisible(self._left_out is None)
        column.addWidget(self.hint)
        return column

    def _right(self) -> QVBoxLayout:
        column = QVBoxLayout()
        column.setSpacing(theme.SPACE_2)
        self.task = ElidedLabel("Reading the table of episodes…", "bold")
        column.addWidget(self.task)
        self.banner = Banner("error")
        self.banner.hide()
        column.addWidget(self.banner)
        self.found = QVBoxLayout()
        self.found.setSpacing(0)
        column.addLayout(self.found)
        self._cameras = QHBoxLayout()
        self._cameras.setSpacing(theme.SPACE_2)
        column.addLayout(self._cameras, 3)
        column.addLayout(self._bar())
        self.state, self.action = VectorCard("State"), VectorCard("Action")
        plots = QHBoxLayout()
        plots.setSpacing(theme.SPACE_2)
        plots.addWidget(self.state, 1)
        plots.addWidget(self.action, 1)
        column.addLayout(plots, 2)
        keys = "Space play · ← → frame, Shift: second · Home End · J K L slower or back, pause, faster · ↑ ↓ episode"
        column.addWidget(Caption(keys))
        return column

    def _bar(self) -> QHBoxLayout:
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_1)
        self.play_button = SecondaryButton("Play", "play", self.toggle)
        self.play_button.setMinimumWidth(92)
        self.scrubber = QSlider(Qt.Orientation.Horizontal)
        self.scrubber.setAccessibleName("Frame of the episode")
        self.scrubber.valueChanged.connect(self._scrubbed)
        self.time = Text("", "muted", wrap=False)
        self.time.setMinimumWidth(210)
        self.time.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        row.addWidget(self.play_button)
        for name, sign, by in (("Back a frame", "step-backward", -1), ("Forward a frame", "step-forward", 1)):
            button = LinkButton("", sign, partial(self.step, by))
            button.setAccessibleName(name)
            button.setToolTip(name)
            row.addWidget(button)
        row.addWidget(self.scrubber, 1)
        row.addWidget(self.time)
        return row

    def _keys(self) -> None:
        key = Qt.Key
        second = lambda sign: self.step(sign * max(1, round(self._fps)))  # noqa: E731
        calls: dict[str | Qt.Key, Callable[[], None]] = {
            key.Key_Space: self._space, key.Key_Left: lambda: self.step(-1), key.Key_Right: lambda: self.step(1),
            "Shift+Left": lambda: second(-1), "Shift+Right": lambda: second(1),
            key.Key_Home: lambda: self.step(-self.frame), key.Key_End: lambda: self.step(self._length),
            key.Key_J: lambda: self.change_speed(-1), key.Key_K: self.pause, key.Key_L: lambda: self.change_speed(1),
            key.Key_Up: lambda: self.go_to(self.place - 1), key.Key_Down: lambda: self.go_to(self.place + 1),
        }  # fmt: skip
        for which, call in calls.items():
            QShortcut(QKeySequence(which), self).activated.connect(call)

    # --- what arrives from the player

    @property
    def _fps(self) -> float:
        return self.listing.info.fps if self.listing else 1.0

    @property
    def _length(self) -> int:
        return max(1, self.listing.episodes[self.place].length) if self.listing else 1

    def _listed(self, listing: EpisodeList) -> None:
        self.listing = listing
        for feature in listing.info.cameras:
            name = feature.key.rsplit(".", 1)[-1]
            view = self._views[feature.key] = CameraView(name)
            column = QVBoxLayout()
            column.setSpacing(2)
            column.addWidget(Caption(name, wrap=False))
            column.addWidget(view, 1)
            self._cameras.addLayout(column, 1)
        self.table.setRowCount(len(listing.episodes))
        for row, episode in enumerate(listing.episodes):
            seconds = f"{episode.length / listing.info.fps:.1f}"
            touching = self.touching(episode.number)
            found = "; ".join(f"{WORDS.get(str(each.severity), 'Note')}: {each.what}" for each in touching)
            self.table.blockSignals(True)
            for place, words in enumerate((str(episode.number), seconds, "", found)):
                item = QTableWidgetItem(words)
                item.setToolTip(words)
                self.table.setItem(row, place, item)
            self.table.blockSignals(False)
            self._say_trained(row)
        self.go_to(0)

    def _show(self, shot: Shot) -> None:
        if shot.sequence <= self._shown or shot.place != self.place:
            return  # overtaken
        self._shown = shot.sequence
        for camera, picture in shot.pictures.items():
            self._views[camera].show_picture(picture, shot.frame)

    def _show_rows(self, place: int, rows: EpisodeRows | OperatorError) -> None:
        if place != self.place:
            return
        if isinstance(rows, OperatorError):
            self._say(rows)
            return
        self.state.show_values(rows.state, rows.state_names, self._fps)
        self.action.show_values(rows.action, rows.action_names, self._fps)

    def _say(self, error: OperatorError) -> None:
        self.pause()
        self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
        self.banner.show()

    # --- moving

    def go_to(self, place: int) -> None:
        """Show the episode at `place` of the list, from its first frame."""
        if self.listing is None or not 0 <= place < len(self.listing.episodes):
            return
        self.pause()
        self.place = place
        episode = self.listing.episodes[place]
        self.table.setCurrentCell(place, 0)
        self.task.setText("; ".join(self.listing.tasks.get(episode.number, ())) or "No instruction was recorded.")
        while (item := self.found.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        for finding in self.touching(episode.number)[:2]:
            self.found.addWidget(FindingRow(finding))
        self.train.setChecked(episode.number not in (self._left_out or ()))
        self.scrubber.blockSignals(True)
        self.scrubber.setRange(0, self._length - 1)
        self.scrubber.blockSignals(False)
        self._move(0)

    def step(self, frames: int) -> None:
        """Pause, and go on or back by `frames`."""
        self.pause()
        self._move(self.frame + frames)

    def _scrubbed(self, frame: int) -> None:
        self.pause()
        self._move(frame)

    def _move(self, frame: int) -> None:
        if self.listing is None:
            return
        self.frame = min(max(0, frame), self._length - 1)
        self.player.ask(self.place, self.frame)
        self.scrubber.blockSignals(True)
        self.scrubber.setValue(self.frame)
        self.scrubber.blockSignals(False)
        at = self.frame / self._fps
        for card in (self.state, self.action):
            card.plot.cursor.setPos(at)
        speed = f" · {self.speed:g}x" if self.speed != 1 else ""
        self.time.setText(f"{at:.2f} of {self._length / self._fps:.2f} s · frame {self.frame} of {self._length}{speed}")

    def touching(self, number: int) -> list[Finding]:
        """The findings that name the episode `number`."""
        return [finding for finding in self._findings if number in finding.episodes]

    # --- playing

    @property
    def playing(self) -> bool:
        """Whether it plays."""
        return self._timer.isActive()

    def _space(self) -> None:
        focused = self.focusWidget()
        if isinstance(focused, QAbstractButton) and focused is not self.play_button:
            focused.click()
        else:
            self.toggle()

    def toggle(self) -> None:
        """Play or pause."""
        if self.playing:
            self.pause()
        else:
            self._play(1.0)

    def change_speed(self, by: int) -> None:
        """Slower, then back (`by` -1), or faster (1); from a pause, it plays back or forth."""
        if not self.playing:
            self._play(float(by))
        else:
            self._play(SPEEDS[min(max(0, SPEEDS.index(self.speed) + by), len(SPEEDS) - 1)])

    def _play(self, speed: float) -> None:
        if self.listing is None:
            return
        self.speed = speed
        if speed > 0 and self.frame == self._length - 1:
            self.frame = 0
        self._from = self.frame
        self._clock.start()
        self._timer.start(max(8, min(40, round(500 / self._fps))))
        self.play_button.set_text("Pause")
        self.play_button.set_icon("pause")

    def pause(self) -> None:
        """Stay at the frame that is shown."""
        if self.playing:
            self._timer.stop()
            self.speed = 1.0
        self.play_button.set_text("Play")
        self.play_button.set_icon("play")

    def _tick(self) -> None:
        # The clock says which frame is due; those that were not decoded in time are dropped.
        due = self._from + int(self._clock.elapsed() / 1000 * self._fps * self.speed)
        if due != self.frame:
            self._move(due)
        if due >= self._length - 1 if self.speed > 0 else due <= 0:
            self.pause()

    # --- training on it

    def _ticked(self, item: QTableWidgetItem) -> None:
        if item.column() == 2:
            self._leave(item.row(), out=item.checkState() != Qt.CheckState.Checked)

    def _train_on(self, on: bool) -> None:
        self._leave(self.place, out=not on)

    def _leave(self, row: int, *, out: bool) -> None:
        if self.listing is None or self._left_out is None:
            return
        number = self.listing.episodes[row].number
        left_out = self._left_out | {number} if out else self._left_out - {number}
        refused = len(left_out) >= len(self.listing.episodes)
        self.hint.setText("One has to stay." if refused else "")
        self.hint.setVisible(refused)
        if not refused and left_out != self._left_out:
            self._left_out = left_out
            self._change(leave_out=tuple(sorted(left_out)))
        self._say_trained(row)

    def _say_trained(self, row: int) -> None:
        """Show in both places whether the episode is trained on."""
        assert self.listing is not None
        number = self.listing.episodes[row].number
        out = self._left_out is not None and number in self._left_out
        item = self.table.item(row, 2) or QTableWidgetItem()
        self.table.blockSignals(True)
        item.setCheckState(Qt.CheckState.Unchecked if out else Qt.CheckState.Checked)
        item.setData(Qt.ItemDataRole.AccessibleTextRole, f"Episode {number}: {'left out' if out else 'trained on'}")
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        item.setFlags(flags | Qt.ItemFlag.ItemIsUserCheckable if self._left_out is not None else flags)
        self.table.blockSignals(False)
        self.table.viewport().update()
        if row == self.place:
            self.train.setChecked(not out)

    def done(self, result: int) -> None:
        """Close; the thread has ended when this returns."""
        self._timer.stop()
        self.player.stop()
        super().done(result)
