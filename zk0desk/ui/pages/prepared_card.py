"""Prepared frames: what is kept of them and for which recordings, what it gains, its budget, and preparing them now."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.events import RoundTimes
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.choice_box import ChoiceBox
from zk0desk.ui.pages.prepare_now import PrepareNow
from zk0desk.ui.prepared_facts import KeptRecording, PreparedFacts, prepared_facts, remove_prepared, size_words
from zk0desk.ui.widgets import Caption, Card, ElidedLabel, KeyValueGrid, LinkButton, Text

if TYPE_CHECKING:
    from zk0desk.training.prefix_cache import Cleared

BUDGETS_GB = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
ABOUT = (
    "The policy's frozen part sees the same in a frame every time. Kept on this computer, it is computed once and rounds are faster. "
    "It is made from your pictures: it never leaves this computer."
)


class PreparedCard(Card):
    """`refresh` looks at what is kept. The budget goes into the settings at once."""

    def __init__(self, model: AppModel) -> None:
        super().__init__("Prepared frames")
        self._model = model
        self._turn = 0
        self._said = ""
        self.header.addStretch(1)
        label = Text("Budget", "muted", wrap=False)
        self.budget = ChoiceBox()
        self.budget.setAccessibleName("Budget of prepared frames")
        self.budget.chosen.connect(self._set_budget)
        label.setBuddy(self.budget)
        self.header.addWidget(label)
        self.header.addWidget(self.budget)
        self.body.addWidget(Caption(ABOUT))
        self.now = PrepareNow(model)
        self.body.addWidget(self.now)
        self.grid = KeyValueGrid()
        self.body.addWidget(self.grid)
        self.list = QWidget()
        self._rows = QGridLayout(self.list)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setHorizontalSpacing(theme.SPACE_4)
        self._rows.setVerticalSpacing(theme.SPACE_1)
        self._rows.setColumnStretch(0, 1)
        self.body.addWidget(self.list)
        line = QHBoxLayout()
        self.answer = Text("", "muted")
        self.remove_all = LinkButton("Remove all", "delete-outline", lambda: self.remove(None))
        self.remove_all.setAccessibleName("Remove all prepared frames")
        line.addWidget(self.answer, 1)
        line.addWidget(self.remove_all)
        self.body.addLayout(line)
        self.now.ended.connect(self.refresh)
        model.nodeEnded.connect(self.refresh)
        model.nodeEvent.connect(self._event)

    # --- looking

    def refresh(self, said: str = "") -> None:
        """Look at what is kept, and show `said` under it."""
        self._said = said
        try:
            settings = self._model.settings
        except OperatorError:
            return
        budget = settings.cache.budget_gb
        sizes = sorted({*BUDGETS_GB, budget})
        self.budget.set_choices([(f"{size:g} GB", size) for size in sizes], budget)
        self.now.refresh()
        self._turn += 1
        turn, journal = self._turn, self._model.journal_path
        in_background(self, lambda: prepared_facts(settings, journal), lambda facts: self._show(turn, facts))

    def _show(self, turn: int, facts: PreparedFacts) -> None:
        if turn != self._turn:
            return
        if facts.chosen is not None and self.now.unknown and not self.now.stale(facts.chosen.time):
            self.now.show_choice(facts.chosen)
        elif self.now.unknown:
            self.now.show_estimate(facts.estimate)
        self.grid.set_rows(_rows_of(facts))
        while item := self._rows.takeAt(0):
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        for row, kept in enumerate(facts.recordings):
            self._add(row, kept)
        self.list.setVisible(bool(facts.recordings))
        self.remove_all.setVisible(bool(facts.recordings) or bool(facts.damaged))
        damaged = f"{facts.damaged} part{'s' if facts.damaged > 1 else ''} of it cannot be read any more and can be removed."
        self.answer.setText(self._said or (damaged if facts.damaged else ""))

    def _add(self, row: int, kept: KeptRecording) -> None:
        name = ElidedLabel(kept.name)
        if kept.path is not None:
            name.setToolTip(str(kept.path))
        used = "in use" if kept.in_use else f"used {time.strftime('%Y-%m-%d', time.localtime(kept.last_used))}"
        remove = LinkButton("Remove", "delete-outline", partial(self.remove, kept))
        remove.setAccessibleName(f"Remove the prepared frames of {kept.name}")
        remove.setVisible(kept.path is not None)
        remove.setEnabled(not kept.in_use)
        remove.setToolTip("The running node uses them." if kept.in_use else "The recording stays; its frames can be prepared again.")
        words = (f"level {kept.level}", f"{kept.filled:,} of {kept.frames:,} frames", size_words(kept.bytes), used)
        self._rows.addWidget(name, row, 0)
        for column, text in enumerate(words, 1):
            self._rows.addWidget(Text(text, "muted", wrap=False), row, column)
        self._rows.addWidget(remove, row, len(words) + 1, Qt.AlignmentFlag.AlignRight)

    def _event(self, event: object) -> None:
        if isinstance(event, RoundTimes) and self.isVisible():
            self.refresh()

    # --- changing

    def _set_budget(self, value: float) -> None:
        try:
            settings = self._model.settings
            cache = settings.cache.model_copy(update={"budget_gb": value})
            self._model.update_settings(settings.model_copy(update={"cache": cache}))
        except (OperatorError, OSError) as error:
            self.answer.setText(str(error))

    def remove(self, kept: KeptRecording | None) -> None:
        """Remove what is kept of a recording, or of all."""
        try:
            cache = self._model.settings.cache
        except OperatorError:
            return
        path = kept.path if kept is not None else None
        in_background(
            self,
            lambda: remove_prepared(cache, path),
            lambda cleared: self.refresh(removed_words(cleared)),
            lambda error: self.answer.setText(str(error)),
        )


def removed_words(cleared: Cleared) -> str:
    """What a removal did, in words; "" when there was nothing."""
    said = f"{size_words(cleared.bytes)} of prepared frames were removed." if cleared.removed else ""
    return f"{said} Those that a running node uses stay.".strip() if cleared.in_use else said


def _rows_of(facts: PreparedFacts) -> list[tuple[str, str]]:
    usage = facts.usage
    rows = [
        (
            "Size",
            f"{size_words(usage.bytes)} of a budget of {size_words(usage.budget)}; {size_words(usage.disk_free)} are free on that disk",
        )
    ]
    if usage.shelves:
        rows.append(("Folder", usage.folder))
    times = facts.times
    if times is not None and times.frames:
        rows.append(("Filled", f"{times.filled:,} of {times.frames:,} frames after the last round (round {times.round})"))
    if times is not None and times.asked:
        share = f"{times.hits / times.asked:.0%}"
        rows.append(("Found", f"{share} of the frames that the last round asked for: {times.hits:,} of {times.asked:,}"))
    return rows
