"""Training: what the policy learns, live or of a run of the past, and taking the shared policy home."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QMenu, QStackedLayout, QVBoxLayout, QWidget

from zk0desk import events
from zk0desk.federation.node_state import NodeState
from zk0desk.ui import theme
from zk0desk.ui.durations import duration, duration_short
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.rounds_card import RoundsCard, legend
from zk0desk.ui.plots import SERIES, LegendSign, StepPlot, number
from zk0desk.ui.run_data import SMOOTHED, RunData
from zk0desk.ui.widgets import (
    Banner,
    Card,
    ElidedLabel,
    EmptyState,
    LinkButton,
    NumberCard,
    PageHeader,
    PrimaryButton,
    SecondaryButton,
    Switch,
    TabButton,
    scrolled,
)  # fmt: skip

if TYPE_CHECKING:
    from zk0desk.ui.save_policy import SavePolicy

REFRESH_MS = 160
"""The plots are drawn at most six times a second."""
PATIENCE = 25
"""Painting takes at most one part in so many of the window's time: on a busy computer the plots are drawn less often."""


class TrainingPage(QWidget):
    """Shows `model.live_run`, or a run opened from the journal (`open_run`)."""

    page_id, title, icon_name = "training", "Training", "chart-line"

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self.data: RunData | None = None
        self._past = False
        self._failure_shown = False
        self._saving: SavePolicy | None = None
        self._layers = QStackedLayout(self)
        self.empty = EmptyState(
            "chart-line",
            "Nothing has been trained yet. Choose recordings and join a federation; the curves appear here while the policy learns.",
            "Choose recordings",
            lambda: model.showPage.emit("recordings"),
        )
        self.empty_runs = LinkButton("Open a past r&un", "folder-open-outline", self.show_all_runs)
        layout = self.empty.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.insertWidget(layout.count() - 1, self.empty_runs, 0, Qt.AlignmentFlag.AlignHCenter)
        nothing = QWidget()
        column = QVBoxLayout(nothing)
        column.setContentsMargins(22, theme.SPACE_3, 20, theme.SPACE_3)
        column.addWidget(PageHeader("Training"))
        column.addWidget(self.empty, 1)
        self._layers.addWidget(nothing)
        self._layers.addWidget(self._filled())
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MS)
        self._timer.timeout.connect(self.refresh)
        self._ticks = 0
        self._nothing_yet = self.empty.sentence.text()
        model.nodeStateChanged.connect(self._on_state)
        model.nodeStarted.connect(self.show_live)

    # --- what it is made of

    def _filled(self) -> QWidget:
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(22, theme.SPACE_3, 20, theme.SPACE_3)
        column.setSpacing(theme.SPACE_3)
        self.header = PageHeader("Training")
        self.all_runs = SecondaryButton("All r&uns", "folder-open-outline", self.show_all_runs)
        self.save_policy = PrimaryButton("Save the s&hared policy", "content-save-outline", self._save_policy_menu)
        self.evaluate = SecondaryButton("On my r&ecordings", "", self.evaluate_policy)
        self.evaluate.setToolTip("Measure the shared policy and the base policy on your own recordings.")
        self.header.actions.addWidget(self.evaluate)
        self.header.actions.addWidget(self.all_runs)
        self.header.actions.addWidget(self.save_policy)
        column.addWidget(self.header)
        self.banner = Banner("info")
        self.back = SecondaryButton("&Back to now", "", self.show_live)
        self.dismiss = LinkButton("&OK", "", lambda: self.banner.hide())
        self.banner.actions.addWidget(self.back)
        self.banner.actions.addWidget(self.dismiss)
        self.banner.hide()
        column.addWidget(self.banner)
        names = {"loss": "Loss now", "held": "Held-out loss", "round": "Round", "speed": "Speed", "left": "Left"}
        self.cards = {key: NumberCard(name) for key, name in names.items()}
        row = QHBoxLayout()
        row.setSpacing(10)
        for card in self.cards.values():
            row.addWidget(card, 1)
        column.addLayout(row)
        column.addWidget(self._steps_card(), 3)
        self.rounds_card = RoundsCard()
        self.round_plot = self.rounds_card.plot
        column.addWidget(self.rounds_card, 2)
        return scrolled(content)

    def _steps_card(self) -> Card:
        card = self.steps_card = Card()
        card.body.setSpacing(theme.SPACE_1)
        top = QHBoxLayout()
        top.setSpacing(2)
        self.tabs: dict[str, TabButton] = {}
        for column, (title, _axis) in SERIES.items():
            tab = self.tabs[column] = TabButton(title, partial(self.show_series, column))
            top.addWidget(tab)
        self.tabs["loss"].setChecked(True)
        top.addStretch(1)
        self.plot = StepPlot()
        self.plot.setMinimumHeight(122)
        self.follow = Switch("Follo&w", self.plot.set_follow, checked=True)
        self.follow.setToolTip("Show all steps as they come. Zooming or dragging in the plot switches it off.")
        self.log_scale = Switch("&Log", self.plot.set_log)
        self.log_scale.setAccessibleName("Logarithmic values")
        self.save = LinkButton("Sa&ve", "download")
        menu = QMenu(self.save)
        menu.addAction("Picture (&PNG)…", self._ask_png)
        menu.addAction("Table of all steps (&CSV)…", self._ask_csv)
        self.save.setMenu(menu)
        for button in (self.follow, self.log_scale, self.save):
            top.addWidget(button)
        card.body.addLayout(top)
        second = QHBoxLayout()
        second.setSpacing(theme.SPACE_4)
        second.addLayout(legend(LegendSign("series-1", 0.5, 1), "raw"))
        self._smooth_legend = QWidget()
        self._smooth_legend.setLayout(legend(LegendSign("series-1"), f"smoothed, {SMOOTHED} steps"))
        self._smooth_legend.layout().setContentsMargins(0, 0, 0, 0)  # type: ignore[union-attr]
        second.addWidget(self._smooth_legend)
        self.reading = ElidedLabel("", "caption")
        second.addSpacing(theme.SPACE_2)
        second.addWidget(self.reading, 1)
        card.body.addLayout(second)
        card.body.addWidget(self.plot, 1)
        self.plot.followed.connect(self.follow.setChecked)
        self.plot.read.connect(self.reading.setText)
        return card

    # --- which run

    def show_live(self) -> None:
        """Show the run of now."""
        self._past = False
        self.banner.hide()
        self._show(self.model.live_run)

    def open_run(self, data: RunData) -> None:
        """Show a run of the past."""
        self._past = True
        self._show(data)
        live = self.model.live_run is not None or self.model.running
        self.back.setVisible(live)
        self.dismiss.setVisible(False)
        self.banner.set("info", f"A run of the past: {data.title or data.run}", "Nothing here changes it.")
        self.banner.setVisible(True)

    def _show(self, data: RunData | None) -> None:
        self.data = data
        self.plot.show_data(data)
        self.rounds_card.show_data(data)
        self.refresh()

    def show_series(self, column: str) -> None:
        """Show another series over the steps."""
        self.tabs[column].setChecked(True)
        self._smooth_legend.setVisible(column in ("loss", "proximal", "grad_norm"))
        self.plot.show_column(column)

    # --- keeping up

    def showEvent(self, event: QShowEvent) -> None:
        """Draw while visible."""
        super().showEvent(event)
        if not self._past:
            self._show(self.model.live_run)
        self.refresh()
        self._timer.start()

    def hideEvent(self, event: QHideEvent) -> None:
        """Nothing is drawn while hidden."""
        super().hideEvent(event)
        self._timer.stop()

    def refresh(self) -> None:
        """Draw what is new."""
        if not self._past and self.data is not self.model.live_run:
            self._show(self.model.live_run)
            return
        known = self.data is not None or self.model.running
        if self._layers.currentIndex() != int(known):
            self._layers.setCurrentIndex(int(known))
        self.plot.draw()
        self.rounds_card.draw()
        busy = round(1000 * PATIENCE * (self.plot.cost + self.round_plot.cost))
        self._timer.setInterval(min(max(REFRESH_MS, busy), 1000))
        self._ticks += 1
        if self._ticks % 3 == 1:  # figures that change faster cannot be read
            self._numbers()
            self._header()

    def _on_state(self, event: events.NodeStateChanged) -> None:
        failed = event.state == NodeState.FAILED
        why = " ".join(part for part in (event.why, event.then) if part)
        self.empty.sentence.setText(f"{event.what} {why}" if failed else self._nothing_yet)
        self.empty.icon.set("close-octagon-outline" if failed else "chart-line", "error" if failed else "muted")
        if failed and not self._past:
            self._say("error", event.what, why)
        elif self._failure_shown:
            self.banner.hide()
        self._failure_shown = failed
        self._header()

    def _header(self) -> None:
        data = self.data
        if data is None:
            self.header.set_answer(f"{self.model.state_event.what}. {self.model.state_event.why}".strip())
        else:
            parts = [data.title or f"run {data.run}"]
            if data.last_step is not None:
                step = data.last_step
                parts.append(f"FedProx, rate {step.lr:.3g}, proximal mu {step.mu:.3g}")
            if data.kept is not None and data.kept.bytes_a_day:
                parts.append(f"keeping the round writes {size(data.kept.bytes_a_day)} a day")
            for spent in data.privacy.values():
                whose = "this computer's" if spent.of == "node" else "the federation's"
                parts.append(f"{whose} privacy: epsilon {spent.epsilon:.3g} of {spent.budget:g} spent")
            self.header.set_answer("  ·  ".join(parts))
        trained = data is not None and len(data.rounds) > 0
        self.evaluate.setEnabled(trained)
        self.save_policy.setEnabled(self._saving is None and trained)

    def _numbers(self) -> None:
        data = self.data
        if data is None:
            for card in self.cards.values():
                card.set("-", "nothing measured yet")
            return
        now = time.time()
        smooth = data.smoothed["loss"].values
        current = data.current
        first = number(float(smooth[current.first])) if current is not None and current.first < len(smooth) else ""
        compare = f"{first} at the start of the round" if first else "no step yet"
        self.cards["loss"].set(number(float(smooth[-1])) if len(smooth) else "-", compare)
        rounds, held = data.per_round("held_out")
        if len(held):
            when = f"at round {rounds[0]:.0f}" if rounds[0] else "before training"
            base = f"{number(held[0])} {when}, " if rounds[0] < rounds[-1] else ""
            self.cards["held"].set(number(held[-1]), f"{base}best {number(held.min())}")
        else:
            self.cards["held"].set("-", "told by the server after a round")
        self._progress(data, now)

    def _progress(self, data: RunData, now: float) -> None:
        current, step = data.current, data.last_step
        total = f" of {data.total_rounds}" if data.total_rounds else ""
        if current is None:
            self.cards["round"].set("-", "no round has begun")
        elif step is not None:
            epochs = f", epoch {step.epoch + 1} of {math.ceil(current.epochs)}" if current.epochs else ""
            self.cards["round"].set(f"{current.number}{total}", f"step {step.step} of {step.steps}{epochs}")
        else:
            self.cards["round"].set(f"{current.number}{total}", f"{current.steps} steps")
        rate = data.frames_per_second
        trains = not self._past and self.model.state is NodeState.TRAINING
        if math.isfinite(rate):
            shown = number(rate) if rate < 100 else f"{rate:.0f}"
            self.cards["speed"].set(shown, f"{duration_short(data.step_seconds)} a step", "frames/s")
        else:
            self.cards["speed"].set("-", "measured while training")
        left, run_left = data.round_left(now), data.run_left(now)
        whole = f"run: about {duration(run_left)}" if math.isfinite(run_left) else "run: measured after this round"
        if self._past or not self.model.running:
            self.cards["left"].set("-", "not training now")
        elif self.model.state is NodeState.PAUSED:
            self.cards["left"].set("Paused", whole)
        elif trains and math.isfinite(left):
            self.cards["left"].set(duration(left), whole)
        else:
            self.cards["left"].set("-", whole if math.isfinite(run_left) else "between rounds")

    # --- saving

    def save_png(self, path: Path) -> None:
        """Save the plot with its legend, twice as fine as the screen."""
        from PySide6.QtGui import QPixmap

        size = self.steps_card.size()
        picture = QPixmap(size * 2)
        picture.setDevicePixelRatio(2)
        picture.fill(theme.color("background"))
        self.steps_card.render(picture)
        if not picture.save(str(path), "PNG"):
            self._say("error", "The picture could not be saved.", f"{path} cannot be written. Choose another folder.")

    def save_csv(self, path: Path) -> None:
        """Save every step: its number in the run, round, step, Unix time and all series."""
        data = self.data
        if data is None:
            return
        import csv

        try:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["index", "round", "step", "time", "loss", "proximal", "grad-norm", "lr", "mu"])
                columns = [track.values.tolist() for track in data.tracks.values()]
                heads = (data.round_of.values.tolist(), data.step_of.values.tolist(), data.times.values.tolist())
                writer.writerows(zip(range(len(data)), *heads, *columns, strict=True))
        except OSError as error:
            self._say("error", "The table could not be saved.", f"{error.strerror or error}: {path}. Choose another folder.")

    def _ask_png(self) -> None:
        path, _kind = QFileDialog.getSaveFileName(self, "Save the picture", "training.png", "Pictures (*.png)")
        if path:
            self.save_png(Path(path))

    def _ask_csv(self) -> None:
        path, _kind = QFileDialog.getSaveFileName(self, "Save the table", "training.csv", "Tables (*.csv)")
        if path:
            self.save_csv(Path(path))

    def _say(self, kind: str, what: str, why: str) -> None:
        self.banner.set(kind, what, why)
        self.back.setVisible(False)
        self.dismiss.setVisible(True)
        self.banner.setVisible(True)

    def _save_policy_menu(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose the folder in which the policy is saved")
        if folder:
            self.save_shared_policy(Path(folder) / "shared-policy")

    def save_shared_policy(self, target: Path) -> None:
        """Save the federation's weights with this operator's processors and statistics, in a process of its own."""
        from zk0desk.ui.save_policy import SavePolicy

        self._say("info", "The shared policy is being saved.", f"To {target}. Training goes on meanwhile.")
        self._saving = SavePolicy(target, settings=self.model.settings_path, parent=self)
        self._saving.done.connect(self._on_saved)
        self._saving.start()
        self._header()

    def _on_saved(self, ok: bool, what: str, why: str) -> None:
        if self._saving is not None:
            self._saving.deleteLater()
        self._saving = None
        self._say("ok" if ok else "error", what, why)
        self._header()

    def evaluate_policy(self) -> None:
        """Measure the shared policy beside the base policy on this operator's recordings."""
        from zk0desk.ui.pages.evaluate_dialog import EvaluateDialog

        dialog = EvaluateDialog(self, settings=self.model.settings_path)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.open()
        dialog.start()

    # --- all runs

    def show_all_runs(self) -> None:
        """Open the list of runs in the journal."""
        from zk0desk.ui.all_runs import AllRuns

        dialog = AllRuns(self.model, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.opened.connect(self.open_run)
        dialog.open()


def size(count: int) -> str:
    """`1.7 TB`, `120 MB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if count >= unit:
            return f"{number(count / unit)} {name}"
    return f"{number(count / 1e6)} MB"
