"""The list of episodes: how long each is, whether it is trained on, and why not or what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRectF, Qt, Signal
from PySide6.QtGui import QPainter, QPen
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
)

from zk0desk.ui import theme
from zk0desk.ui.icons import icon

if TYPE_CHECKING:
    from zk0desk.training.episode_frames import EpisodeList
    from zk0desk.training.recordings import Finding

WORDS = {"blocks": "Blocks", "repairable": "Repairable", "note": "Note"}
NUMBER, SECONDS, TICK, FOUND = range(4)


class EpisodeTable(QTableWidget):
    """`asked` carries the row that a person went to, `ticked` a row and whether it is to be trained on."""

    asked = Signal(int)
    ticked = Signal(int, bool)

    def __init__(self) -> None:
        super().__init__(0, 4)
        self.setHorizontalHeaderLabels(["No.", "Seconds", "Train", "Remarks"])
        self.setAccessibleName("Episodes")
        self.setFixedWidth(318)
        self.verticalHeader().hide()
        self.setShowGrid(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.horizontalHeader()
        for place in range(3):
            header.setSectionResizeMode(place, QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(True)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.currentCellChanged.connect(lambda row, *_: self.asked.emit(row) if row >= 0 else None)
        self._ticks = _Ticks(self)
        self.setItemDelegateForColumn(TICK, self._ticks)
        self.itemChanged.connect(self._on_changed)
        self._found: list[str] = []

    def fill(self, listing: EpisodeList, touching: Callable[[int], list[Finding]]) -> None:
        """A row for each episode; `touching` gives the findings that name an episode."""
        self.setRowCount(len(listing.episodes))
        for row, episode in enumerate(listing.episodes):
            found = "; ".join(f"{WORDS.get(str(each.severity), 'Note')}: {each.what}" for each in touching(episode.number))
            self._found.append(found)
            self.blockSignals(True)
            for place, words in enumerate((str(episode.number), f"{episode.length / listing.info.fps:.1f}", "", found)):
                item = QTableWidgetItem(words)
                item.setToolTip(words)
                self.setItem(row, place, item)
            self.blockSignals(False)

    def show_row(self, row: int, number: int, left_out: Mapping[int, str] | None) -> None:
        """Show whether the episode `number` in `row` is trained on, and why not. None: that cannot be chosen."""
        out = left_out is not None and number in left_out
        item = self.item(row, TICK) or QTableWidgetItem()
        self.blockSignals(True)
        item.setCheckState(Qt.CheckState.Unchecked if out else Qt.CheckState.Checked)
        item.setData(Qt.ItemDataRole.AccessibleTextRole, f"Episode {number}: {'left out' if out else 'trained on'}")
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        item.setFlags(flags | Qt.ItemFlag.ItemIsUserCheckable if left_out is not None else flags)
        reason = (left_out[number] or "no reason given") if left_out is not None and out else ""
        said = "; ".join(filter(None, (reason, self._found[row])))
        if (words := self.item(row, FOUND)) is not None:
            words.setText(said)
            words.setToolTip(said)
        self.blockSignals(False)
        self.viewport().update()

    def _on_changed(self, item: QTableWidgetItem) -> None:
        if item.column() == TICK:
            self.ticked.emit(item.row(), item.checkState() == Qt.CheckState.Checked)


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
