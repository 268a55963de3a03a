"""The two lists that consent is about, what leaves this computer and what never does, and what remains possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHBoxLayout, QLayout, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.widgets import Card, Heading, IconLabel, LinkButton, Text

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation


class ConsentLists(QWidget):
    """Filled from the same text that the digest of the consent is made of. `on_example` shows what a message looks like."""

    def __init__(self, on_example: Callable[[], None]) -> None:
        super().__init__()
        self._on_example = on_example
        self._filled = ""
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(theme.SPACE_3)
        lists = QHBoxLayout()
        lists.setSpacing(theme.SPACE_3)
        self.leaves_card, self.never_card = Card(), Card()
        for each, icon, color, title in (
            (self.leaves_card, "upload-outline", "accent", "Leaves this computer"),
            (self.never_card, "shield-check-outline", "ok", "Never leaves"),
        ):
            head = QHBoxLayout()
            head.addWidget(IconLabel(icon, color, 20))
            head.addWidget(Heading(title, 2), 1)
            each.body.addLayout(head)
            lists.addWidget(each, 1)
        column.addLayout(lists)
        self.remains = Text("", "muted")
        column.addWidget(self.remains)

    def show_invitation(self, invitation: Invitation) -> None:
        """Say what joining by `invitation` means. Nothing is done when that is shown already."""
        from zk0desk.federation.consent import consent_digest, leaves, never_leaves, remains

        digest = consent_digest(invitation)
        if self._filled == digest:
            return
        self._filled = digest
        for card in (self.leaves_card, self.never_card):
            _empty(card.body, 1)
        _bullets(self.leaves_card, leaves(invitation))
        example = LinkButton("See an e&xample with your figures", "eye-outline", self._on_example)
        self.leaves_card.body.addWidget(example, 0, Qt.AlignmentFlag.AlignLeft)
        self.leaves_card.body.addStretch(1)
        _bullets(self.never_card, [*never_leaves(), "Code from the server is never run here: only the zk0desk that you installed."])
        self.never_card.body.addStretch(1)
        self.remains.setText(remains())


def _bullets(card: Card, sentences: list[str]) -> None:
    for sentence in sentences:
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        row.addWidget(Text("•", "muted", wrap=False), 0, Qt.AlignmentFlag.AlignTop)
        row.addWidget(Text(sentence), 1)
        card.body.addLayout(row)


def _empty(layout: QLayout, kept: int = 0) -> None:
    """Take all but the first `kept` out of `layout`, and what is in it."""
    while layout.count() > kept:
        item = layout.takeAt(kept)
        if item is None:
            return
        inner, widget = item.layout(), item.widget()
        if inner is not None:
            _empty(inner)
        if widget is not None:
            widget.hide()
            widget.deleteLater()
