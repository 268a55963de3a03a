"""Activity: every message that left or reached this computer, and the log, both searchable."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt, QTimer
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QStackedWidget,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.widgets import Banner, Card, EmptyState, Heading, KeyValueGrid, PageHeader, SecondaryButton, TabButton

REFRESH_MS = 1500
LIMIT = 2000
"""Rows that are shown; the search looks at everything."""

_Index = QModelIndex | QPersistentModelIndex


def _size(count: int) -> str:
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


class Rows(QAbstractTableModel):
    """Rows of text under `columns`; `items` holds what each row stands for."""

    def __init__(self, columns: Sequence[str]) -> None:
        super().__init__()
        self._columns = columns
        self.rows: list[tuple[str, ...]] = []
        self.items: list[Any] = []

    def replace(self, rows: list[tuple[str, ...]], items: list[Any]) -> bool:
        """Show `rows`, unless they are what is shown already; whether anything changed."""
        if rows == self.rows:
            return False
        self.beginResetModel()
        self.rows, self.items = rows, items
        self.endResetModel()
        return True

    def rowCount(self, parent: _Index = QModelIndex()) -> int:
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: _Index = QModelIndex()) -> int:
        return 0 if parent.isValid() else len(self._columns)

    def data(self, index: _Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole) and index.isValid():
            return self.rows[index.row()][index.column()]
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return self._columns[section]
        return None


class ActivityPage(QWidget):
    """The ledger and the log, read from the journal while the page is shown."""

    page_id, title, icon_name = "activity", "Activity", "history"

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self._busy = False
        column = QVBoxLayout(self)
        column.setContentsMargins(22, theme.SPACE_4, 20, theme.SPACE_4)
        column.setSpacing(theme.SPACE_3)
        self.header = PageHeader("Activity", "Reading the journal…")
        self.export = SecondaryButton("Save as CS&V", "download", self._choose_file)
        self.header.actions.addWidget(self.export)
        column.addWidget(self.header)
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        self.ledger_tab = TabButton("&Messages", lambda: self._turn(0))
        self.log_tab = TabButton("&Log", lambda: self._turn(1))
        row.addWidget(self.ledger_tab)
        row.addWidget(self.log_tab)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search")
        self.search.setAccessibleName("Search messages and log")
        self.search.setClearButtonEnabled(True)
        row.addStretch(1)
        row.addWidget(self.search, 2)
        column.addLayout(row)
        self.banner = Banner("error")
        self.banner.hide()
        column.addWidget(self.banner)
        self.ledger_rows = Rows(["When", "Way", "Message", "Run", "Round", "Size", "Outcome"])
        self.log_rows = Rows(["When", "What"])
        self.ledger_view = self._view(self.ledger_rows, "Messages", stretch=6)
        self.log_view = self._view(self.log_rows, "Log", stretch=1)
        self.empty = EmptyState("history", "No message has left or reached this computer. Each one will be listed here.")
        self.tables = QStackedWidget()
        for widget in (self.ledger_view, self.log_view, self.empty):
            self.tables.addWidget(widget)
        column.addWidget(self.tables, 1)
        self.details = Card()
        self.details_title = Heading("", 2)
        self.details_grid = KeyValueGrid()
        self.details.body.addWidget(self.details_title)
        self.details.body.addWidget(self.details_grid)
        self.details.hide()
        column.addWidget(self.details)
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MS)
        self._timer.timeout.connect(self.refresh)
        self.search.textChanged.connect(lambda _text: self.refresh())
        self._tab = 0
        self._turn(0)

    def _view(self, rows: Rows, name: str, *, stretch: int) -> QTableView:
        view = QTableView()
        view.setModel(rows)
        view.setAccessibleName(name)
        view.verticalHeader().hide()
        view.setShowGrid(False)
        view.setWordWrap(False)
        view.setTabKeyNavigation(False)
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        view.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        header = view.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(stretch, QHeaderView.ResizeMode.Stretch)
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        view.selectionModel().selectionChanged.connect(lambda *_: self._show_details())
        return view

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.refresh()
        self._timer.start()

    def hideEvent(self, event: QHideEvent) -> None:
        self._timer.stop()
        super().hideEvent(event)

    # --- reading

    def refresh(self) -> None:
        """Read the journal in the background and show what it holds."""
        if self._busy:
            return
        try:
            journal = self.model.journal
        except OperatorError as error:
            self._failed(error)
            return
        self._busy = True
        text = self.search.text()
        in_background(self, lambda: (text, journal.ledger(text, LIMIT), journal.log(text, LIMIT)), self._fill, self._failed)

    def _failed(self, error: OperatorError) -> None:
        self._busy = False
        self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
        self.banner.show()

    def _fill(self, found: Any) -> None:
        self._busy = False
        self.banner.hide()
        text, ledger, log = found
        self._replace(
            self.ledger_view,
            [
                (_when(e.time), "left" if e.direction == "sent" else "came", e.kind, e.run, str(e.round or ""), _size(e.bytes), e.outcome)
                for e in ledger
            ],
            ledger,
        )
        self._replace(self.log_view, [(_when(line["time"]), line["text"] or line["event"]) for line in log], log)
        sent = sum(entry.bytes for entry in ledger if entry.direction == "sent")
        left = sum(entry.direction == "sent" for entry in ledger)
        if ledger:
            answer = f"{left} message{'' if left == 1 else 's'} left this computer, {_size(sent)} in all; {len(ledger) - left} came."
        else:
            answer = "Nothing fits the search." if text else "Nothing has left this computer."
        self.header.set_answer(answer)
        self.export.setEnabled(bool(self._rows().rows))
        self._choose_table(searching=bool(text))
        if text != self.search.text():
            self.refresh()

    def _replace(self, view: QTableView, rows: list[tuple[str, ...]], items: list[Any]) -> None:
        """Show `rows`; what was chosen stays chosen where it is still there."""
        model = view.model()
        assert isinstance(model, Rows)
        selected = view.selectionModel().selectedRows()
        chosen = model.items[selected[0].row()] if selected else None
        if model.replace(rows, items):
            if chosen in items:
                view.selectRow(items.index(chosen))
            else:
                self._show_details()

    def _rows(self) -> Rows:
        return self.log_rows if self._tab else self.ledger_rows

    def _choose_table(self, *, searching: bool) -> None:
        nothing = not self._rows().rows and not searching
        self.empty.sentence.setText(
            "Nothing has happened yet. What the node does is listed here."
            if self._tab
            else "No message has left or reached this computer. Each one will be listed here."
        )
        self.tables.setCurrentIndex(2 if nothing else self._tab)

    def _turn(self, tab: int) -> None:
        self._tab = tab
        self.ledger_tab.setChecked(tab == 0)
        self.log_tab.setChecked(tab == 1)
        self._choose_table(searching=bool(self.search.text()))
        self.export.setEnabled(bool(self._rows().rows))
        self._show_details()

    def _show_details(self) -> None:
        view = self.log_view if self._tab else self.ledger_view
        chosen = view.selectionModel().selectedRows()
        self.details.setVisible(bool(chosen))
        if not chosen:
            return
        item = self._rows().items[chosen[0].row()]
        if self._tab:
            data = json.loads(item["json"])
            self.details_title.setText(item["event"])
            shown = [(key, str(value)) for key, value in data.items() if key not in ("event", "time") and value not in ("", None)]
        else:
            self.details_title.setText(f"{item.kind}, {'left' if item.direction == 'sent' else 'came'} {_when(item.time)}")
            contents = "; ".join(f"{key}: {_shown(value)}" for key, value in (item.contents or {}).items())
            shown = [
                ("With", item.peer),
                ("Bytes", f"{item.bytes:,}"),
                ("SHA-256", item.sha256 or "none: it has no body"),
                ("Contents", contents[:1500] or "nothing but its kind"),
                ("Flower run", item.flwr_run or "none"),
            ]
        self.details_grid.set_rows(shown)

    # --- taking it away

    def _choose_file(self) -> None:
        name = "log.csv" if self._tab else "messages.csv"
        path, _ = QFileDialog.getSaveFileName(self, "Save as CSV", name, "CSV (*.csv)")
        if path:
            self.save_csv(Path(path))

    def save_csv(self, path: Path) -> None:
        """Write what is shown to `path`."""
        rows = self._rows()
        try:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow([rows.headerData(n, Qt.Orientation.Horizontal) for n in range(rows.columnCount())])
                writer.writerows(rows.rows)
        except OSError as error:
            self.banner.set("error", f"{path} could not be written.", f"{error.strerror}. Choose another folder.")
            self.banner.show()
