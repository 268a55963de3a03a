"""Where the time of each round goes, as a bar a round: parts differ in colour, pattern and order, and their words can be read."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QBrush, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from zk0desk.ui import theme
from zk0desk.ui.durations import duration_short
from zk0desk.ui.round_parts import PARTS, RoundParts, RoundTime

SIGNS = {
    "idle": ("muted", Qt.BrushStyle.Dense6Pattern),
    "download": ("series-1", Qt.BrushStyle.SolidPattern),
    "prepare": ("series-4", Qt.BrushStyle.SolidPattern),
    "wait": ("series-2", Qt.BrushStyle.DiagCrossPattern),
    "forward": ("series-3", Qt.BrushStyle.SolidPattern),
    "backward": ("series-3", Qt.BrushStyle.FDiagPattern),
    "optimiser": ("series-2", Qt.BrushStyle.SolidPattern),
    "other": ("control", Qt.BrushStyle.Dense4Pattern),
    "paused": ("muted", Qt.BrushStyle.HorPattern),
    "upload": ("series-1", Qt.BrushStyle.BDiagPattern),
}
"""Token and pattern of each part."""
ROW, BAR, SIGN = 21, 13, 14


def paint_part(painter: QPainter, box: QRectF, part: str) -> None:
    """A piece of a bar, or its sign in the legend."""
    token, pattern = SIGNS[part]
    if pattern != Qt.BrushStyle.SolidPattern:
        painter.fillRect(box, theme.color(token, 0.22))
    painter.fillRect(box, QBrush(theme.color(token), pattern))
    if box.width() >= 3:
        painter.setPen(QPen(theme.color(token), 1))
        painter.drawRect(box.adjusted(0.5, 0.5, -0.5, -0.5))


class PartsLegend(QWidget):
    """The signs of parts with their words, in as many lines as they need."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: tuple[str, ...] = ()
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)

    def show_parts(self, parts: tuple[str, ...]) -> None:
        """Show the signs of `parts`."""
        if parts != self._parts:
            self._parts = parts
            self.setAccessibleName(f"Parts of a round: {', '.join(PARTS[part] for part in parts)}")
            self.updateGeometry()
            self.update()

    def _places(self, width: int) -> list[tuple[str, QPoint]]:
        places, x, y = [], 0, 0
        for part in self._parts:
            needed = SIGN + 6 + self.fontMetrics().horizontalAdvance(PARTS[part])
            if x and x + needed > width:
                x, y = 0, y + 19
            places.append((part, QPoint(x, y)))
            x += needed + theme.SPACE_4
        return places

    def hasHeightForWidth(self) -> bool:
        return True

    def heightForWidth(self, width: int) -> int:
        places = self._places(width)
        return places[-1][1].y() + 18 if places else 0

    def sizeHint(self) -> QSize:
        return QSize(400, self.heightForWidth(self.width() or 400))

    def minimumSizeHint(self) -> QSize:
        return QSize(120, self.heightForWidth(self.width() or 400))

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        for part, place in self._places(self.width()):
            paint_part(painter, QRectF(place.x(), place.y() + 3, SIGN, 12), part)
            painter.setPen(theme.color("muted"))
            painter.drawText(place.x() + SIGN + 6, place.y() + 13, PARTS[part])


class TimeBars(QWidget):
    """The newest rounds that fit, the last one at the bottom. `read` carries the words of a round under the pointer or the cursor.

    Up and Down move the cursor, Home and End to the ends of what is known.
    """

    read = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._parts: RoundParts | None = None
        self._drawn: tuple[int, int] = (0, -1)
        self._cursor = 0
        self.setMinimumHeight(5 * ROW)
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Where the time of each round goes")
        theme.signals.changed.connect(self.update)

    def show_parts(self, parts: RoundParts | None) -> None:
        """Show the rounds of another run."""
        self._parts, self._cursor = parts, 0
        self.draw()

    def draw(self) -> None:
        """Draw what is new."""
        state = (id(self._parts), self._parts.version if self._parts else 0)
        if state != self._drawn:
            self._drawn = state
            newest = self._parts.newest if self._parts else None
            self.setAccessibleDescription(newest.words() if newest else "")
            self.update()

    @property
    def rounds(self) -> list[RoundTime]:
        """The rounds that are shown, by number."""
        if self._parts is None:
            return []
        known = [self._parts.rounds[number] for number in sorted(self._parts.rounds)]
        count = max(1, self.height() // ROW)
        at = next((n for n, each in enumerate(known) if each.number == self._cursor), len(known) - 1)
        last = max(min(len(known), count), at + 1) if at < len(known) - count else len(known)
        return known[max(0, last - count) : last]

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        shown = self.rounds
        metrics = self.fontMetrics()
        if not shown:
            painter.setPen(theme.color("muted"))
            words = "Known when a round's training has ended."
            painter.drawText(self.rect(), int(Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap), words)
            return
        left = max(metrics.horizontalAdvance(f"round {each.number}") for each in shown) + theme.SPACE_3
        right = max(metrics.horizontalAdvance(duration_short(each.total)) for each in shown) + theme.SPACE_2
        room = max(10, self.width() - left - right)
        longest = max(each.total for each in shown) or 1.0
        for row, each in enumerate(shown):
            top = row * ROW
            base = top + (ROW + metrics.ascent() - metrics.descent()) // 2
            chosen = each.number == self._cursor
            painter.setPen(theme.color("text" if chosen else "muted"))
            painter.drawText(0, base, f"round {each.number}")
            x = float(left)
            for part in PARTS:
                width = room * each.seconds.get(part, 0.0) / longest
                if width >= 0.5:
                    paint_part(painter, QRectF(x, top + (ROW - BAR) / 2, max(1.0, width - 1), BAR), part)
                x += width
            painter.setPen(theme.color("text" if chosen else "muted"))
            painter.drawText(round(x) + theme.SPACE_2, base, duration_short(each.total))
            if chosen and self.hasFocus():
                painter.setPen(QPen(theme.color("accent"), 1))
                painter.drawRect(QRectF(0.5, top + 0.5, self.width() - 1, ROW - 1))

    # --- reading

    def _read(self, number: int) -> None:
        self._cursor = number
        self.update()
        each = self._parts.rounds.get(number) if self._parts else None
        self.setAccessibleDescription(each.words() if each else "")
        self.read.emit(each.words() if each else "")

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Read the round under the pointer."""
        row, shown = int(event.position().y()) // ROW, self.rounds
        number = shown[row].number if 0 <= row < len(shown) else 0
        if number and number != self._cursor:
            self._read(number)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Move the cursor."""
        numbers = sorted(self._parts.rounds) if self._parts else []
        at = numbers.index(self._cursor) if self._cursor in numbers else len(numbers)
        moves = {Qt.Key.Key_Up: at - 1, Qt.Key.Key_Down: at + 1, Qt.Key.Key_Home: 0, Qt.Key.Key_End: len(numbers) - 1}
        key = Qt.Key(event.key()) if event.key() in {int(each) for each in moves} else None
        if key is None or not numbers:
            super().keyPressEvent(event)
            return
        self._read(numbers[min(max(0, moves[key]), len(numbers) - 1)])
