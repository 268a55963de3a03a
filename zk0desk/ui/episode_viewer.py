"""Looking at the episodes of a recording: all cameras in step, state and action, what was found, and what is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QElapsedTimer, Qt, QTimer
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QAbstractButton, QDialog, QHBoxLayout, QLineEdit, QSlider, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.episode_cameras import CameraView
from zk0desk.ui.episode_curves import VectorCard
from zk0desk.ui.episode_list import EpisodeTable
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.player import Player, Shot
from zk0desk.ui.widgets import Banner, Caption, ElidedLabel, FindingRow, Heading, LinkButton, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.training.episode_frames import EpisodeList, EpisodeRows
    from zk0desk.training.recordings import Finding

SPEEDS = (-4.0, -2.0, -1.0, 0.25, 0.5, 1.0, 2.0, 4.0)


class EpisodeViewer(QDialog):
    """Shows the recording at `path`.

    `left_out`: the episodes that are not trained on, each with its reason; None where the recording is not chosen.
    `change` is given them anew after a person changed one.
    """

    def __init__(
        self, path: Path, findings: Iterable[Finding], left_out: Mapping[int, str] | None,
        change: Callable[[dict[int, str]], object],
        parent: QWidget | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parent)
        self.setWindowTitle(f"Episodes of {path.name}")
        self.resize(1000, 640)
        self._findings, self._change = tuple(findings), change
        self._left_out = None if left_out is None else dict(left_out)
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
        self.table = EpisodeTable()
        self.table.asked.connect(lambda row: self.go_to(row) if row != self.place else None)
        self.table.ticked.connect(lambda row, on: self._leave(row, out=not on))
        column.addWidget(self.table, 1)
        self.train = TickBox("&Train on it")
        self.train.setAccessibleName("Train on this episode")
        self.train.setEnabled(self._left_out is not None)
        self.train.clicked.connect(self._train_on)
        column.addWidget(self.train)
        self.reason = QLineEdit()
        self.reason.setPlaceholderText("Why it is left out")
        self.reason.setAccessibleName("Why this episode is left out")
        self.reason.editingFinished.connect(self._reasoned)
        self.reason.hide()
        column.addWidget(self.reason)
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
        self.table.fill(listing, self.touching)
        for row in range(len(listing.episodes)):
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
        self._say_trained(place)
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

    def _train_on(self, on: bool) -> None:
        self._leave(self.place, out=not on)

    def _leave(self, row: int, *, out: bool) -> None:
        if self.listing is None or self._left_out is None:
            return
        number = self.listing.episodes[row].number
        left_out = {each: why for each, why in self._left_out.items() if each != number}
        if out:
            left_out[number] = self._left_out.get(number) or self._why(number)
        refused = len(left_out) >= len(self.listing.episodes)
        self.hint.setText("One has to stay." if refused else "")
        self.hint.setVisible(refused)
        if not refused and left_out != self._left_out:
            self._left_out = left_out
            self._change(dict(sorted(left_out.items())))
        self._say_trained(row)

    def _why(self, number: int) -> str:
        """The reason for leaving an episode out: what was found of it, else that a person did."""
        from zk0desk.training.curation import BY_HAND, proposals

        return next((each.reason for each in proposals(self.touching(number))), BY_HAND)

    def _reasoned(self) -> None:
        """Keep the reason that was typed."""
        if self.listing is None or self._left_out is None:
            return
        number, words = self.listing.episodes[self.place].number, self.reason.text().strip()
        if number in self._left_out and words != self._left_out[number]:
            self._left_out = self._left_out | {number: words}
            self._change(dict(sorted(self._left_out.items())))
            self._say_trained(self.place)

    def _say_trained(self, row: int) -> None:
        """Show in both places whether the episode is trained on, and why not."""
        assert self.listing is not None
        number = self.listing.episodes[row].number
        self.table.show_row(row, number, self._left_out)
        if row == self.place:
            out = self._left_out is not None and number in self._left_out
            self.train.setChecked(not out)
            self.reason.setVisible(out)
            self.reason.setText((self._left_out or {}).get(number, ""))

    def done(self, result: int) -> None:
        """Close; the thread has ended when this returns."""
        self._timer.stop()
        self.player.stop()
        super().done(result)
