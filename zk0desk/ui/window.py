"""The main window: sidebar, pages, status strip."""

from __future__ import annotations

import importlib
import logging

from PySide6.QtCore import QByteArray, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QKeySequence, QPaintEvent, QShortcut
from PySide6.QtWidgets import QApplication, QHBoxLayout, QMainWindow, QMessageBox, QStackedWidget, QVBoxLayout, QWidget

from zk0desk.federation.node_state import NodeState
from zk0desk.ui import theme
from zk0desk.ui.dropped import invitation_in
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages import PAGES, PageSpec
from zk0desk.ui.sidebar import Sidebar
from zk0desk.ui.strip import StatusStrip
from zk0desk.ui.widgets import EmptyState

MINIMUM = QSize(1000, 640)
log = logging.getLogger(__name__)


class MainWindow(QMainWindow):
    """The window over `model`. Pages are built when they are shown first, never before the first paint.

    `firstPaint` fires once, `putAway` when closing put it into the tray, `leaving` when closing is decided, `closed` when the window is
    gone and the node has ended.
    Closing while the node runs asks once, with what is lost.
    """

    firstPaint = Signal()
    leaving = Signal()
    putAway = Signal()
    closed = Signal()

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self._painted = False
        self._closing = False
        self._quitting = False
        self.ended = False
        self.stays_in_tray = False
        """Closing puts the window away; `quit` ends it. So it is where the desktop's tray shows that zk0desk runs."""
        self.setWindowTitle("zk0desk")
        self.setMinimumSize(MINIMUM)
        self.setAcceptDrops(True)
        body = QWidget()
        rows = QVBoxLayout(body)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(0)
        columns = QHBoxLayout()
        columns.setSpacing(0)
        self.sidebar = Sidebar()
        self.stack = QStackedWidget()
        columns.addWidget(self.sidebar)
        columns.addWidget(self.stack, 1)
        rows.addLayout(columns, 1)
        self.strip = StatusStrip(model)
        rows.addWidget(self.strip)
        self.setCentralWidget(body)
        self._blank = QWidget()
        self.stack.addWidget(self._blank)
        self._pages: dict[str, QWidget] = {}
        self._specs = {spec.page_id: spec for spec in PAGES}
        for number, spec in enumerate(PAGES, start=1):
            shortcut = QShortcut(QKeySequence(f"Ctrl+{number}"), self)
            shortcut.activated.connect(lambda page_id=spec.page_id: self.show_page(page_id))
        QShortcut(QKeySequence.StandardKey.Quit, self).activated.connect(self.quit)
        self.sidebar.chosen.connect(self.show_page)
        model.showPage.connect(self.show_page)
        model.nodeStateChanged.connect(self._on_state)
        model.nodeEnded.connect(self._on_ended)
        model.settingsChanged.connect(self._apply_theme)
        model.quitAsked.connect(self.quit)
        state = model.window_state
        page = state.text("page", "recordings")
        self.current_page = page if page in self._specs else "recordings"
        self.sidebar.mark(self.current_page)
        geometry = QByteArray.fromBase64(state.text("geometry").encode("ascii", "ignore"))
        if geometry.isEmpty() or not self.restoreGeometry(geometry):
            self.resize(1280, 800)

    # --- pages

    def show_page(self, page_id: str) -> None:
        """Show the page `page_id`, built on its first showing. Before the first paint it is only noted."""
        if page_id not in self._specs:
            return
        self.sidebar.mark(page_id)
        self.current_page = page_id
        if not self._painted:
            return
        self.stack.setCurrentWidget(self.page(page_id))
        self.model.window_state.values["page"] = page_id

    def page(self, page_id: str) -> QWidget:
        """The page's widget."""
        if page_id not in self._pages:
            widget = self._build(self._specs[page_id])
            widget.setAccessibleName(self._specs[page_id].title)
            self._pages[page_id] = widget
            self.stack.addWidget(widget)
        return self._pages[page_id]

    def _build(self, spec: PageSpec) -> QWidget:
        name = f"zk0desk.ui.pages.{spec.module}"
        try:
            page: QWidget = getattr(importlib.import_module(name), spec.class_name)(self.model)
        except Exception as error:  # one broken page must not take the window, and the node in it, down
            log.exception("the page %s cannot be shown", spec.page_id)
            from zk0desk.errors import OperatorError

            reason = str(error) if isinstance(error, OperatorError) else f"{type(error).__name__}: {error}"
            sentence = f"{spec.title} cannot be shown. {reason}"
            return EmptyState("close-octagon-outline", sentence, "Try again", lambda: self._retry(spec.page_id))
        return page

    def _retry(self, page_id: str) -> None:
        widget = self._pages.pop(page_id, None)
        if widget is not None:
            self.stack.removeWidget(widget)
            widget.deleteLater()
        self.show_page(page_id)

    # --- first paint and theme

    def paintEvent(self, event: QPaintEvent) -> None:
        """Tell when the window is there for the first time, and build the first page then."""
        super().paintEvent(event)
        if not self._painted:
            self._painted = True
            QTimer.singleShot(0, self, self._after_paint)

    def _after_paint(self) -> None:
        self.firstPaint.emit()
        self.show_page(self.current_page)

    def _apply_theme(self) -> None:
        app = QApplication.instance()
        if isinstance(app, QApplication):
            theme.apply(app, self.model.settings.appearance.theme)

    # --- what is dropped anywhere, and is not for the page under it

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if invitation_in(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        found = invitation_in(event.mimeData())
        if found:
            self.model.open_invitation(found)
            event.acceptProposedAction()

    # --- the node

    def _on_state(self, _event: object) -> None:
        state = self.model.state
        self.setWindowTitle("zk0desk: training" if state is NodeState.TRAINING else "zk0desk")

    def _on_ended(self) -> None:
        if self._closing:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self.closed.emit()

    def raise_up(self) -> None:
        """Bring the window to the front."""
        if self.isMinimized():
            self.showNormal()
        self.show()
        self.raise_()
        self.activateWindow()

    @property
    def closing(self) -> bool:
        """Whether it ends as soon as the node has ended."""
        return self._closing

    def quit(self) -> None:
        """Close for good, wherever the window is."""
        self._quitting = True
        self.close()
        self._quitting = False

    def closeEvent(self, event: QCloseEvent) -> None:
        """Ask once while the node runs; then stop it, wait for its thread and close. Into the tray where that is there."""
        if self.stays_in_tray and not self._quitting:
            event.ignore()
            self.hide()
            self.putAway.emit()
            return
        if self.model.running and not self._closing:
            if not self.ask_to_close():
                event.ignore()
                return
            self._closing = True
            self.setEnabled(False)
            self.model.stop_now()
        self.leaving.emit()
        geometry = bytes(self.saveGeometry().toBase64().data()).decode("ascii")
        self.model.window_state.keep(geometry=geometry, page=self.current_page)
        if self.model.running:
            event.ignore()
            self.hide()  # the thread winds down behind; `_on_ended` tells
            return
        event.accept()
        self._end()

    def ask_to_close(self) -> bool:
        """Ask whether to stop and close; True for yes."""
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("Close zk0desk")
        box.setText("This node is taking part in a federation. Stop and close?")
        box.setInformativeText(
            "Nothing is lost: recordings, settings and finished rounds stay. The round in progress is not sent; "
            "when you join again, this node takes part in the next one."
        )
        close = box.addButton("&Stop and close", QMessageBox.ButtonRole.AcceptRole)
        stay = box.addButton("&Keep training", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(stay)
        box.setEscapeButton(stay)
        box.setWindowModality(Qt.WindowModality.WindowModal)
        box.exec()
        return box.clickedButton() is close
