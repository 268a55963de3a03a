"""State and action of a recording beside the policy's and the other chosen recordings': names, units, ranges, and what keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from zk0desk.ui.widgets import Caption, Card, FindingRow, Heading

if TYPE_CHECKING:
    from zk0desk.training.policy_fit import Dimension, RecordingFit, VectorFit
    from zk0desk.training.recordings import Finding

COLUMNS = ("Place", "Name", "Unit", "Min to max", "Mean ± std")
ROWS_SEEN, ROW = 14, 25


class FitCard(Card):
    """`fit` is the recording that is shown, `others` are the other chosen ones, `findings` what keeps all of them apart."""

    def __init__(self, fit: RecordingFit, others: Sequence[RecordingFit], findings: Sequence[Finding]) -> None:
        super().__init__("State and action beside the policy's")
        for vector, beside in ((fit.state, [each.state for each in others]), (fit.action, [each.action for each in others])):
            names = [fit.recording.name, *(each.recording.name for each in others)]
            self.body.addWidget(Heading(vector.what.capitalize(), 2))
            self.body.addWidget(Caption(vector.sentence))
            if vector.dimensions:
                self.body.addWidget(VectorTable(names, [vector, *beside]))
        known = "" if fit.state.before or fit.action.before else " This policy's folder does not tell what it was trained with before."
        words = f"SmolVLA names none of its places. A unit with a question mark is what the range looks like.{known}"
        self.body.addWidget(Caption(words))
        for finding in findings:
            self.body.addWidget(FindingRow(finding))


class VectorTable(QTableWidget):
    """A row for each place; under it one for what the policy was trained with before, and for each other recording."""

    def __init__(self, names: Sequence[str], vectors: Sequence[VectorFit]) -> None:
        several = len(vectors) > 1
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(list(COLUMNS))
        self.setAccessibleName(f"{vectors[0].what.capitalize()}, place by place")
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(ROW)
        self.setShowGrid(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setTabKeyNavigation(False)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for place in range(max(len(vector.dimensions) for vector in vectors)):
            before = None
            for name, vector in zip(names, vectors, strict=True):
                if place < len(vector.dimensions):
                    dimension = vector.dimensions[place]
                    same = before is not None and before.name == dimension.name
                    where = f"in {name}" if several and name != names[0] else ""
                    self._add(_cells(dimension, where, same=same))
                    before = dimension
                if vector is vectors[0] and place < len(vector.before):
                    self._add(_cells(vector.before[place], "in the policy's own data", same=True))
        rows = min(self.rowCount(), ROWS_SEEN)
        self.setFixedHeight(header.sizeHint().height() + rows * ROW + self.horizontalScrollBar().sizeHint().height() + 4)

    def _add(self, cells: list[str]) -> None:
        row = self.rowCount()
        self.insertRow(row)
        for column, words in enumerate(cells):
            item = QTableWidgetItem(words)
            item.setToolTip(words)
            self.setItem(row, column, item)


def _cells(dimension: Dimension, where: str, *, same: bool) -> list[str]:
    low, high, mean, std = (
        f"{number:.3g}" if number is not None else "–" for number in (dimension.low, dimension.high, dimension.mean, dimension.std)
    )
    name = where if same else " ".join(filter(None, (dimension.name or "not named", where)))
    return [str(dimension.place + 1), name, dimension.unit or "–", f"{low} to {high}", f"{mean} ± {std}"]
