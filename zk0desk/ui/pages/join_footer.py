"""The foot of the federation page: the box, what Join waits for, and Join. It stays in sight while the lists scroll."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.pages.steps import Step
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import Caption, DangerButton, IconLabel, PrimaryButton, SecondaryButton


class JoinFooter(QWidget):
    """`on_page` is given the page on which something is still to be done."""

    def __init__(self, on_join: Callable[[], None], on_leave: Callable[[], None], on_page: Callable[[str], None]) -> None:
        super().__init__()
        self._elsewhere = ""
        self.setProperty("zk", "strip")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(22, theme.SPACE_3, 20, theme.SPACE_3)
        rows.setSpacing(theme.SPACE_2)
        self.agree = TickBox("I have the right to train on these recordings, and the federation may use what was &learned")
        rows.addWidget(self.agree)
        last = QHBoxLayout()
        last.setSpacing(theme.SPACE_3)
        rows.addLayout(last)
        self.sign = IconLabel("alert-outline", "warning", 20)
        self.waits_for = Caption("")
        self.mend = SecondaryButton("", "arrow-left", lambda: on_page(self._elsewhere))
        self.join = PrimaryButton("&Join the federation", "lan-connect", on_join)
        self.leave = DangerButton("Lea&ve the federation", "lan-disconnect", on_leave)
        last.addWidget(self.sign)
        last.addWidget(self.waits_for, 1)
        for button in (self.mend, self.join, self.leave):
            last.addWidget(button)

    def show_state(self, before: Sequence[Step], page_id: str, *, running: bool, joined: bool) -> None:
        """Say what Join waits for: those of the steps `before` it that are not done, and the box. `page_id` is the page's own."""
        missing = [step for step in before if not step.done]
        limits = [f"It trains here with limits. {step.warning}" for step in before if step.warning]
        sentences = [step.blocked for step in missing]
        if not self.agree.isChecked():
            sentences.append("Read the two lists and tick the box.")
        self.agree.setVisible(not joined)
        self.join.setVisible(not joined)
        self.leave.setVisible(joined)
        self.join.setEnabled(not sentences and not running)
        leaving = "Leaving stops at once and sends nothing more. Recordings, settings and finished rounds stay." if joined else ""
        self.waits_for.setText(leaving if running else " ".join(sentences or limits))
        fails = any(step.fails for step in missing)
        self.sign.set(*(("close-circle", "error") if fails else ("alert-outline", "warning")))
        self.sign.setVisible(not running and (fails or bool(limits and not sentences)))
        elsewhere = next((step for step in missing if step.page_id != page_id), None)
        self.mend.setVisible(not running and elsewhere is not None)
        if elsewhere is not None:
            self._elsewhere = elsewhere.page_id
            self.mend.set_text(elsewhere.remedy or f"&Back to {elsewhere.name}")
