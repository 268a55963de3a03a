"""zk0desk in the background: a sign in the desktop's tray, or where there is none a window that is minimised."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QMenu, QSystemTrayIcon

from zk0desk.ui.icons import window_icon
from zk0desk.ui.model import AppModel
from zk0desk.ui.window import MainWindow

LOOK_MS = 1000
LOOKS = 20
"""How often a tray is looked for: at login the desktop's own may come later than we do."""
TOLD = "tray-told"
"""The name in the window's state under which is kept that a person was told where the window went."""


class Background(QObject):
    """Keeps `window` out of sight until it is asked for. `begin` looks for a tray; with one, closing the window puts it back there."""

    def __init__(self, window: MainWindow, model: AppModel, available: Callable[[], bool] | None = None) -> None:
        super().__init__(window)
        self._window, self._model = window, model
        self._available = available or QSystemTrayIcon.isSystemTrayAvailable
        self._left = LOOKS
        self.icon: QSystemTrayIcon | None = None
        self.menu: QMenu | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self._look)
        model.nodeStateChanged.connect(lambda _event: self._say())

    def begin(self) -> None:
        """Look for a tray, now and for a while."""
        self._look()
        if self.icon is None:
            self._timer.start()

    def _look(self) -> None:
        self._left -= 1
        if self._available():
            self._timer.stop()
            self._show()
        elif self._left <= 0:
            self._timer.stop()
            if not self._window.isVisible():
                self._window.showMinimized()

    def _show(self) -> None:
        self.menu = QMenu()
        self.menu.addAction("Open zk0desk", self._window.raise_up)
        self.menu.addAction("Quit", self._window.quit)
        self.icon = QSystemTrayIcon(window_icon(), self)
        self.icon.setContextMenu(self.menu)
        self.icon.activated.connect(self._clicked)
        self._window.stays_in_tray = True
        self._window.closed.connect(self.end)
        self._window.putAway.connect(self._tell_once)
        self._say()
        self.icon.show()

    def _clicked(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason != QSystemTrayIcon.ActivationReason.Context:
            self._window.raise_up()

    def _say(self) -> None:
        if self.icon is not None:
            self.icon.setToolTip(f"zk0desk: {self._model.state_event.what}")

    def _tell_once(self) -> None:
        """Where the window went, the first time that closing puts it away."""
        if self.icon is not None and not self._model.window_state.values.get(TOLD):
            self._model.window_state.keep(**{TOLD: True})
            self.icon.showMessage("zk0desk goes on here", "A click on this sign opens it; its menu ends it.", self.icon.icon())

    def end(self) -> None:
        """Take the sign away."""
        self._timer.stop()
        if self.icon is not None:
            self.icon.hide()
        if self.menu is not None:
            self.menu.deleteLater()
            self.menu = None
