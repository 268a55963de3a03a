"""The few widgets that all pages are made of. Each says what it is by the property `zk`, which the style sheet reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QFocusEvent, QFont, QFontMetrics, QKeyEvent, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QPushButton, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.icons import icon

__all__ = [
    "Badge", "Banner", "Caption", "Card", "DangerButton", "ElidedLabel", "EmptyState", "FindingRow", "Heading", "IconLabel",
    "KeyValueGrid", "LinkButton", "NumberCard", "PageHeader", "PressButton", "PrimaryButton", "SecondaryButton", "Switch", "TabButton",
    "Text", "icon", "scrolled", "set_kind",
]  # fmt: skip

KIND_ICONS = {
    "ok": "check-circle-outline",
    "warning": "alert-outline",
    "error": "close-octagon-outline",
    "info": "information-outline",
    "muted": "circle-outline",
}
"""The sign that goes with each colour, because no colour stands alone."""


def set_kind(widget: QWidget, kind: str, name: str = "zk") -> None:
    """Set the style sheet's property and restyle the widget."""
    if widget.property(name) != kind:
        widget.setProperty(name, kind)
        widget.style().unpolish(widget)
        widget.style().polish(widget)


class Text(QLabel):
    """Text that wraps. `kind`: "", `muted`, `caption`, `bold`, `section`, `title`, `number`."""

    def __init__(self, text: str = "", kind: str = "", *, wrap: bool = True, selectable: bool = False) -> None:
        super().__init__(text)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(wrap)
        if kind:
            self.setProperty("zk", kind)
        if selectable:
            self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard)


class Heading(Text):
    """A heading: level 1 is a page's title, level 2 a card's."""

    def __init__(self, text: str, level: int = 1) -> None:
        super().__init__(text, "title" if level == 1 else "section", wrap=False)


class Caption(Text):
    """Small muted text."""

    def __init__(self, text: str = "", *, wrap: bool = True) -> None:
        super().__init__(text, "caption", wrap=wrap)


class ElidedLabel(QWidget):
    """One line that is cut with an ellipsis where it does not fit; the tool tip and the accessible name have it all."""

    def __init__(self, text: str = "", kind: str = "") -> None:
        super().__init__()
        self._label = QLabel(self)
        if kind:
            self._label.setProperty("zk", kind)
        self._label.hide()
        self._text = ""
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setText(text)

    def text(self) -> str:
        """All of the text."""
        return self._text

    def setText(self, text: str) -> None:
        """Show `text`."""
        if text != self._text:
            self._text = text
            self.setAccessibleName(text)
            self.setToolTip(text)
            self.update()

    def _style(self) -> QLabel:
        self._label.ensurePolished()
        return self._label

    def sizeHint(self) -> QSize:
        """A line's height."""
        metrics = QFontMetrics(self._style().font())
        # A glyph may reach a little beyond its advance: what just fits would be cut.
        return QSize(metrics.boundingRect(self._text).width() + metrics.averageCharWidth(), metrics.height() + 2)

    def minimumSizeHint(self) -> QSize:
        """Some characters' width."""
        return QSize(60, self.sizeHint().height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw what fits."""
        label = self._style()
        painter = QPainter(self)
        painter.setFont(label.font())
        painter.setPen(label.palette().color(label.foregroundRole()))
        shown = QFontMetrics(label.font()).elidedText(self._text, Qt.TextElideMode.ElideRight, self.width())
        painter.drawText(self.rect(), int(Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft), shown)


class IconLabel(QWidget):
    """An icon in a token's colour; it follows the theme."""

    def __init__(self, name: str, color: str = "muted", size: int = 18) -> None:
        super().__init__()
        self._size = size
        self.setFixedSize(size, size)
        self.set(name, color)

    def set(self, name: str, color: str) -> None:
        """Show another icon."""
        self.name, self.color = name, color
        self._icon = icon(name, color)
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw it."""
        self._icon.paint(QPainter(self), self.rect())


class Card(QFrame):
    """A surface with a border. `body` takes content; with a title, `header` takes what stands beside the title."""

    def __init__(self, title: str = "") -> None:
        super().__init__()
        self.setProperty("zk", "card")
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(theme.SPACE_4, theme.SPACE_3, theme.SPACE_4, theme.SPACE_3)
        self.body.setSpacing(theme.SPACE_2)
        self.header = QHBoxLayout()
        self.header.setSpacing(theme.SPACE_3)
        self.heading = Heading(title, 2)
        if title:
            self.header.addWidget(self.heading)
            self.body.addLayout(self.header)

    def set_chosen(self, chosen: bool) -> None:
        """Show the card as chosen or not."""
        set_kind(self, "true" if chosen else "false", "chosen")


class PressButton(QPushButton):
    """A button that Return presses too, not Space alone."""

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.click()
        else:
            super().keyPressEvent(event)


class _Button(PressButton):
    kind = ""

    def __init__(self, text: str = "", icon_name: str = "", on_click: Callable[[], Any] | None = None) -> None:
        super().__init__(text)
        if self.kind:
            self.setProperty("zk", self.kind)
        self.setAccessibleName(text.replace("&", ""))
        self.setIconSize(QSize(20, 16))  # wider than the sign, which keeps the text at a distance
        if icon_name:
            self.set_icon(icon_name)
        if on_click is not None:
            self.clicked.connect(lambda _checked=False: on_click())

    def set_icon(self, name: str) -> None:
        """Show the icon `name` before the text."""
        token = {"primary": "on-accent", "danger": "error", "link": "accent"}.get(self.kind, "text")
        self.setIcon(icon(name, token))

    def set_text(self, text: str) -> None:
        """Replace the text and the accessible name."""
        self.setText(text)
        self.setAccessibleName(text.replace("&", ""))


class SecondaryButton(_Button):
    """A button beside others."""


class PrimaryButton(_Button):
    """The one thing to do next on a page."""

    kind = "primary"


class DangerButton(_Button):
    """A button that ends or removes something."""

    kind = "danger"


class LinkButton(_Button):
    """A quiet button in the accent's colour."""

    kind = "link"


class Switch(LinkButton):
    """A quiet button that is on or off; a check mark shows which, not the colour alone."""

    def __init__(self, text: str, on_change: Callable[[bool], Any] | None = None, *, checked: bool = False) -> None:
        super().__init__(text)
        self.setCheckable(True)
        self.toggled.connect(self._sign)
        self.setChecked(checked)
        self._sign(checked)
        if on_change is not None:
            self.toggled.connect(on_change)

    def _sign(self, on: bool) -> None:
        self.setIcon(icon("check-circle" if on else "circle-outline", "accent"))


class TabButton(_Button):
    """One of several exclusive views."""

    kind = "tab"

    def __init__(self, text: str, on_click: Callable[[], Any] | None = None) -> None:
        super().__init__(text, "", on_click)
        self.setCheckable(True)
        self.setAutoExclusive(True)


class Badge(QLabel):
    """A short word in a pill. `kind`: ok, warning, error, info, muted."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__()
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        self.set(kind, text)

    def set(self, kind: str, text: str) -> None:
        """Show another word."""
        self.setText(text)
        set_kind(self, f"badge-{kind}")


class PageHeader(QWidget):
    """A page's title, under it the line that answers the page's question, and buttons at the right (`actions`)."""

    actions: QHBoxLayout  # type: ignore[assignment]

    def __init__(self, title: str, answer: str = "") -> None:
        super().__init__()
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(theme.SPACE_2)
        texts = QVBoxLayout()
        texts.setSpacing(2)
        self.title = Heading(title)
        self.answer = Text(answer, "muted")
        texts.addWidget(self.title)
        texts.addWidget(self.answer)
        row.addLayout(texts, 1)
        self.actions = QHBoxLayout()
        self.actions.setSpacing(theme.SPACE_2)
        row.addLayout(self.actions)

    def set_answer(self, text: str) -> None:
        """Replace the line under the title."""
        self.answer.setText(text)


class EmptyState(QWidget):
    """An icon, one sentence, one button: what an empty page shows."""

    def __init__(self, icon_name: str, sentence: str, button: str = "", on_click: Callable[[], Any] | None = None) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setSpacing(theme.SPACE_3)
        column.setContentsMargins(80, 0, 80, 0)
        column.addStretch(2)
        self.icon = IconLabel(icon_name, "muted", 56)
        self.sentence = Text(sentence, "muted")
        self.sentence.setAlignment(Qt.AlignmentFlag.AlignCenter)
        column.addWidget(self.icon, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(self.sentence)
        self.button = PrimaryButton(button, on_click=on_click)
        self.button.setVisible(bool(button))
        column.addWidget(self.button, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addStretch(3)


class KeyValueGrid(QWidget):
    """Names and values in two columns, or more: `columns` pairs beside each other, one below `fold_below` pixels of width."""

    def __init__(self, rows: Sequence[tuple[str, str]] = (), columns: int = 1, *, fold_below: int = 0) -> None:
        super().__init__()
        self._wanted, self._fold_below = columns, fold_below
        self._columns = 1 if fold_below else columns
        self._rows: Sequence[tuple[str, str]] = ()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(theme.SPACE_6)
        self._grid.setVerticalSpacing(6)
        self.set_rows(rows)

    def set_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Replace what is shown."""
        self._rows = rows
        while self._grid.count():
            item = self._grid.takeAt(0)
            if item is not None and (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        for number, (name, value) in enumerate(rows):
            row, column = divmod(number, self._columns)
            label = Text(name, "muted", wrap=False)
            shown = Text(value, selectable=True)
            shown.setAccessibleName(f"{name}: {value}")
            for text in (label, shown):
                text.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
            self._grid.addWidget(label, row, 2 * column)
            self._grid.addWidget(shown, row, 2 * column + 1)
            self._grid.setColumnStretch(2 * column + 1, 1)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Fold or unfold."""
        super().resizeEvent(event)
        columns = self._wanted if event.size().width() >= self._fold_below else 1
        if columns != self._columns:
            self._columns = columns
            for column in range(2 * self._wanted):
                self._grid.setColumnStretch(column, 0)
            self.set_rows(self._rows)


class FindingRow(QWidget):
    """A finding as a sentence: sign, what, why and remedy, and a button when there is something to do.

    `finding` has `severity` (blocks, repairable, note; or ok), `what`, `why`, `remedy`.
    """

    SIGNS = {
        "blocks": ("error", "close-octagon-outline", "Blocks"),
        "error": ("error", "close-octagon-outline", "Error"),
        "repairable": ("warning", "alert-outline", "Can be repaired"),
        "warning": ("warning", "alert-outline", "Warning"),
        "note": ("info", "information-outline", "Note"),
        "ok": ("ok", "check-circle-outline", "Fine"),
    }

    def __init__(self, finding: Any, button: str = "", on_click: Callable[[], Any] | None = None) -> None:
        super().__init__()
        token, sign, word = self.SIGNS.get(str(finding.severity), self.SIGNS["note"])
        row = QHBoxLayout(self)
        row.setContentsMargins(0, theme.SPACE_1, 0, theme.SPACE_1)
        row.setSpacing(theme.SPACE_3)
        row.addWidget(IconLabel(sign, token, 20))
        texts = QVBoxLayout()
        texts.setSpacing(1)
        self.what = Text(finding.what, "bold")
        self.why = Text(" ".join(part for part in (finding.why, finding.remedy) if part), "muted")
        texts.addWidget(self.what)
        texts.addWidget(self.why)
        row.addLayout(texts, 1)
        self.why.setVisible(bool(self.why.text()))  # after it has a parent: it would be a window of its own for a moment
        self.setAccessibleName(f"{word}: {finding.what} {self.why.text()}")
        self.button = SecondaryButton(button, on_click=on_click)
        self.button.setVisible(bool(button))
        row.addWidget(self.button)


class Banner(QFrame):
    """A sentence across the page. `kind`: ok, warning, error, info. `actions` takes buttons."""

    actions: QHBoxLayout  # type: ignore[assignment]

    def __init__(self, kind: str = "info", what: str = "", why: str = "") -> None:
        super().__init__()
        row = QHBoxLayout(self)
        row.setContentsMargins(theme.SPACE_3, theme.SPACE_2, theme.SPACE_3, theme.SPACE_2)
        row.setSpacing(theme.SPACE_3)
        self._icon = IconLabel(KIND_ICONS[kind], kind, 20)
        row.addWidget(self._icon)
        texts = QVBoxLayout()
        texts.setSpacing(1)
        self.what, self.why = Text("", "bold"), Text("")
        texts.addWidget(self.what)
        texts.addWidget(self.why)
        row.addLayout(texts, 1)
        self.actions = QHBoxLayout()
        row.addLayout(self.actions)
        self.set(kind, what, why)

    def set(self, kind: str, what: str, why: str = "") -> None:
        """Say something else."""
        set_kind(self, f"banner-{kind}")
        self._icon.set(KIND_ICONS[kind], kind)
        self.what.setText(what)
        self.why.setText(why)
        self.why.setVisible(bool(why))
        self.setAccessibleName(f"{what} {why}")


class NumberCard(Card):
    """A number that matters: its name, the value in large, and what to compare it with."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body.setSpacing(1)
        self.body.setContentsMargins(14, 10, 10, 10)
        self._name = name
        self.value = Text("-", "number", wrap=False)
        font = self.value.font()
        font.setFeature(QFont.Tag("tnum"), 1)
        self.value.setFont(font)
        self.value.setMinimumWidth(1)
        self.compare = Caption("")
        self.compare.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.body.addWidget(Caption(name, wrap=False))
        line = QHBoxLayout()
        line.setSpacing(5)
        self.unit = Caption("", wrap=False)
        self.unit.setContentsMargins(0, 0, 0, 3)
        line.addWidget(self.value)
        line.addWidget(self.unit, 1, Qt.AlignmentFlag.AlignBottom)
        self.body.addLayout(line)
        self.body.addWidget(self.compare, 1)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)

    def set(self, value: str, compare: str, unit: str = "") -> None:
        """Show `value` with its `unit`, and `compare` under it."""
        self.value.setText(value)
        self.unit.setText(unit)
        self.compare.setText(compare)
        self.setAccessibleName(f"{self._name}: {value} {unit}. {compare}")


class _ScrollArea(QScrollArea):
    """Shows a ring over what scrolls while the arrow keys scroll it; a border would move its content."""

    def __init__(self) -> None:
        super().__init__()
        self._ring = QFrame(self)
        self._ring.setProperty("zk", "ring")
        self._ring.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self._ring.hide()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._ring.setGeometry(self.rect())

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)
        self._ring.raise_()
        self._ring.show()

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        self._ring.hide()


def scrolled(content: QWidget) -> QScrollArea:
    """`content` in a scroll area without a frame, which grows with the window."""
    area = _ScrollArea()
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    content.setProperty("zk", "page")
    area.setWidget(content)
    area.viewport().setAutoFillBackground(False)
    return area
