"""The list of all runs in the journal; one of them can be opened."""

from __future__ import annotations

import time
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QAbstractItemView, QDialog, QHBoxLayout, QHeaderView, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.run_data import RunData
from zk0desk.ui.widgets import Heading, PrimaryButton, SecondaryButton, Text


class AllRuns(QDialog):
    """`opened` carries the run's `RunData`."""

    opened = Signal(object)

    def __init__(self, model: AppModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._runs: list[dict[str, Any]] = []
        self.setWindowTitle("All runs")
        self.resize(640, 400)
        column = QVBoxLayout(self)
        column.addWidget(Heading("All runs"))
        self.answer = Text("Reading the journal…", "muted")
        column.addWidget(self.answer)
        self.table = QTableWidget(0, 4)
        self.table.setAccessibleName("Runs")
        self.table.setHorizontalHeaderLabels(["Began", "Federation", "Rounds", "Steps"])
        self.table.verticalHeader().hide()
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setShowGrid(False)
        self.table.setTabKeyNavigation(False)
        self.table.horizontalHeader().setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self.table.itemActivated.connect(lambda _item: self.open_chosen())
        self.table.itemSelectionChanged.connect(self._on_selection)
        column.addWidget(self.table, 1)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(SecondaryButton("&Close", "", self.reject))
        self.open_button = PrimaryButton("&Open", "folder-open-outline", self.open_chosen)
        self.open_button.setEnabled(False)
        buttons.addWidget(self.open_button)
        column.addLayout(buttons)
        try:
            journal = model.journal
        except OperatorError as error:
            self._failed(error)
        else:
            in_background(self, journal.runs, self._fill, self._failed)

    def _on_selection(self) -> None:
        self.open_button.setEnabled(bool(self.table.selectedItems()))

    def _failed(self, error: OperatorError) -> None:
        self.answer.setText(str(error))

    def _fill(self, runs: list[dict[str, Any]]) -> None:
        self._runs = runs
        count = len(runs)
        words = f"{count} {'run' if count == 1 else 'runs'} of this node."
        self.answer.setText(words if runs else "No run yet. The first appears when a round begins.")
        self.table.setRowCount(count)
        for row, run in enumerate(runs):
            began = time.strftime("%d %b %Y, %H:%M", time.localtime(run["began"]))
            for column, text in enumerate((began, run["federation"] or run["run"], str(run["rounds"]), str(run["steps"]))):
                item = QTableWidgetItem(text)
                if column > 1:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(row, column, item)
        self.table.resizeColumnsToContents()
        if runs:
            self.table.selectRow(0)
            self.table.setFocus()

    def open_chosen(self) -> None:
        """Read the chosen run from the journal, in the background, and hand it over."""
        row = self.table.currentRow()
        if not 0 <= row < len(self._runs):
            return
        run = self._runs[row]["run"]
        self.answer.setText("Reading the run…")
        self.open_button.setEnabled(False)
        journal = self._model.journal
        in_background(self, lambda: RunData.from_journal(journal, run), self._open, self._failed)

    def _open(self, data: RunData) -> None:
        self.opened.emit(data)
        self.accept()
