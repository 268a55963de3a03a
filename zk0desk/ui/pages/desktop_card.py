"""What the computer's desktop has of zk0desk: the start with the computer, and the entry among the applications."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtWidgets import QHBoxLayout

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import Caption, Card, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.desktop.autostart import Autostart

ABOUT_START = (
    "When you log in, zk0desk opens out of sight: in the desktop's tray, or as a minimised window where there is none. It joins the "
    "federation again only where Join at start says so."
)
ABOUT_MENU = "In the menu, zk0desk also opens invitations: links that begin with zk0desk: and .zk0invite files."


class DesktopCard(Card):
    """Both are kept by the system, and shown as it has them: a person may also change them there."""

    def __init__(self) -> None:
        super().__init__("On this computer")
        self.start = TickBox("Start with the computer, in the background")
        self.start.toggled.connect(self._switch)
        self.body.addWidget(self.start)
        self.body.addWidget(Caption(ABOUT_START))
        self.other, self.start_this = Text("", "muted"), SecondaryButton("Start this one", "", lambda: self._switch(True))
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_3)
        row.addWidget(self.other, 1)
        row.addWidget(self.start_this)
        self.body.addLayout(row)
        self.menu_state = Text("")
        self.add = SecondaryButton("Add to my applications", "plus", lambda: self._menu(True))
        self.take_out = SecondaryButton("Take out of my applications", "minus", lambda: self._menu(False))
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_3)
        row.addWidget(self.menu_state, 1)
        row.addWidget(self.take_out)
        row.addWidget(self.add)
        self.body.addLayout(row)
        self.about_menu = Caption(ABOUT_MENU)
        self.body.addWidget(self.about_menu)
        self.problem = Text("", "error")
        self.problem.hide()
        self.body.addWidget(self.problem)
        self._entry: Autostart | None = None

    def refresh(self) -> None:
        """Show what the system has now."""
        from zk0desk.desktop import menu
        from zk0desk.desktop.autostart import BACKGROUND, autostart
        from zk0desk.desktop.launcher import launcher

        ours = launcher()
        self._entry = self._entry or autostart()
        started = self._entry.command()
        self.start.blockSignals(True)
        self.start.setChecked(bool(started))
        self.start.blockSignals(False)
        another = bool(started) and started != [*ours.command, BACKGROUND]
        self.other.setText(f"The computer starts another zk0desk: {started[0]}" if another else "")
        for widget in (self.other, self.start_this):
            widget.setVisible(another)
        for widget in (self.menu_state, self.about_menu):
            widget.setVisible(ours.adds_to_menu)
        there = menu.started() if ours.adds_to_menu else []
        same = there == list(ours.command)
        self.add.setVisible(ours.adds_to_menu and not same)
        self.take_out.setVisible(bool(there))
        self.add.set_text("Let the menu open this one" if there else "Add to my applications")
        if there and not same:
            self.menu_state.setText(f"The menu opens another zk0desk: {there[0]}")
        else:
            self.menu_state.setText("zk0desk is among your applications." if there else "zk0desk is not among your applications.")

    def _switch(self, on: bool) -> None:
        from zk0desk.desktop.autostart import autostart, switch_off, switch_on
        from zk0desk.desktop.launcher import launcher

        self.problem.hide()
        self._entry = self._entry or autostart()
        try:
            if on:
                switch_on(self._entry, launcher().command)
            else:
                switch_off(self._entry)
        except OperatorError as error:
            self._failed(error)
        self.refresh()

    def _menu(self, there: bool) -> None:
        from zk0desk.desktop import menu
        from zk0desk.desktop.launcher import launcher

        def change() -> None:
            if there:
                menu.install(launcher().command)
            else:
                menu.uninstall()

        self.problem.hide()
        self.add.setEnabled(False)
        self.take_out.setEnabled(False)
        in_background(self, change, lambda _nothing: self._changed(), lambda error: (self._failed(error), self._changed()))

    def _changed(self) -> None:
        self.add.setEnabled(True)
        self.take_out.setEnabled(True)
        self.refresh()

    def _failed(self, error: OperatorError) -> None:
        self.problem.setText(f"{error.what} {error.why} {error.remedy}".strip())
        self.problem.show()
