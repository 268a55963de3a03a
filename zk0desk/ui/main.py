"""Starts the window. Before its first paint only the theme and the geometry are read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import PySide6
from PySide6.QtCore import QEvent, Qt, QTimer, Signal
from PySide6.QtGui import QFileOpenEvent, QGuiApplication
from PySide6.QtWidgets import QApplication

from zk0desk.desktop.opening import invitation_among, opened
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.crash import Crash, CrashGuard
from zk0desk.ui.icons import window_icon
from zk0desk.ui.model import AppModel
from zk0desk.ui.single_instance import QUIETLY, SingleInstance
from zk0desk.ui.tray import Background
from zk0desk.ui.window import MainWindow

SWITCH_INTERVAL_S = 0.002
"""How long another thread may keep Python before the window gets its turn; the default of 5 ms shows as lag."""


class Application(QApplication):
    """The application, which tells what the system asks of it outside of any window.

    `handedOver` carries what was opened with it: on macOS a link or file comes as an event, and not as an argument.
    """

    handedOver = Signal(str)
    window: MainWindow | None = None
    """The window that may be in the tray, and is then asked to end."""

    def event(self, event: QEvent) -> bool:
        if isinstance(event, QFileOpenEvent):
            self.handedOver.emit(opened(event.url().toString() or event.file()))
            return True
        if event.type() == QEvent.Type.Quit and self.window is not None and self.window.stays_in_tray and not self.window.ended:
            self.window.quit()  # closing it would only put it back into the tray
            event.ignore()
            return True
        return super().event(event)


def application(argv: Sequence[str]) -> QApplication:
    """The one QApplication, named and ready for fractional scaling."""
    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    QGuiApplication.setHighDpiScaleFactorRoundingPolicy(Qt.HighDpiScaleFactorRoundingPolicy.PassThrough)
    # Qt is told by its binding where its plugins are, in a file's form in which a comma or a quotation mark ends a path.
    package = Path(PySide6.__file__).parent
    QGuiApplication.addLibraryPath(str(package / ("plugins" if sys.platform == "win32" else "Qt/plugins")))
    app = Application(list(argv) or ["zk0desk"])
    app.setApplicationName("zk0desk")
    app.setApplicationDisplayName("zk0desk")
    app.setDesktopFileName("org.zk0.Desk")
    app.setWindowIcon(window_icon())
    return app


def run(
    argv: Sequence[str] = (),
    *,
    settings_path: Path | None = None,
    journal_path: Path | None = None,
    on_ready: Callable[[MainWindow], object] | None = None,
    autojoin: bool = False,
) -> int:
    """Open the window and stay until it closes; the exit status.

    `argv` may name an invitation: a line that begins with zk0desk:join or a .zk0invite file, as a path or a URL; with `--background`
    alone the window is not shown before it is asked for. A window over the operator's own settings is the only one (`settings_path`
    None); with other settings (the demo) it stands beside. `on_ready` is called when the window is there, after the first paint;
    `autojoin` then starts the node.
    """
    app = application(["zk0desk", *argv])
    handed = invitation_among(list(argv))
    quietly = QUIETLY in argv and not handed
    single: SingleInstance | None = None
    guard: CrashGuard | None = None
    if settings_path is None:
        single = SingleInstance()
        if not single.claim(QUIETLY if quietly else handed):
            return 0
        guard = CrashGuard()
    model = AppModel(settings_path, journal_path)
    theme.apply(app, _theme(model))
    window = MainWindow(model)
    begun = False
    crash: Crash | None = None

    def begin() -> None:
        nonlocal begun, crash
        if begun:
            return
        begun = True
        _follow_settings(app, model)
        in_background(window, lambda: _clean_up(model), lambda _removed: None)
        if guard is not None:
            crash = guard.last_crash()
            with contextlib.suppress(OSError):
                guard.arm()
            model.nodeStarted.connect(lambda: guard.note(training=True))
            model.nodeEnded.connect(lambda: guard.note(training=False))
            in_background(window, _follow_the_move, lambda _rewritten: None)
            model.check_keyring()
            model.look_for_engine()
            model.engine.go_on()
            model.updates.begin()
        if quietly:
            model.join_again()
            if on_ready is not None:
                on_ready(window)

    def after_paint() -> None:
        begin()
        if crash is not None:
            QTimer.singleShot(0, window, lambda: offer_to_go_on(window, crash))
        if handed:
            model.open_invitation(handed)
        if on_ready is not None and not quietly:
            on_ready(window)
        if autojoin:
            window.show_page("training")
            model.join()

    window.firstPaint.connect(after_paint, Qt.ConnectionType.QueuedConnection)
    if single is not None:
        single.raised.connect(lambda argument: _raise(window, model, argument))
        window.leaving.connect(single.leave)
    if isinstance(app, Application):
        app.window = window
        app.handedOver.connect(lambda argument: _raise(window, model, argument))
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    app.setQuitOnLastWindowClosed(False)
    window.closed.connect(app.quit)
    restart = False

    def end_and_begin_anew() -> None:
        nonlocal restart
        restart = True
        window.quit()
        restart = window.ended or window.closing  # or the person stays, because the node runs

    model.restartAsked.connect(end_and_begin_anew)
    if quietly:
        Background(window, model).begin()
        QTimer.singleShot(0, window, begin)
    else:
        window.show()
    try:
        return int(app.exec())
    finally:
        sys.setswitchinterval(before)
        thread = model.thread_of_node
        if thread is not None:
            model.stop_now()
            thread.wait()
        model.close()
        if single is not None:
            single.close()
        if guard is not None and begun:
            guard.disarm()
        if isinstance(app, Application):
            app.window = None
        if restart:
            _begin_anew()


def _clean_up(model: AppModel) -> None:
    """Remove the half copies that killed repairs left."""
    from zk0desk.training.repairs import clean_left_copies

    clean_left_copies(model.settings.recordings)


def _begin_anew() -> None:
    from PySide6.QtCore import QProcess

    from zk0desk.desktop.launcher import launcher

    program, *arguments = launcher().command
    QProcess.startDetached(program, arguments)


def _follow_the_move() -> list[str]:
    from zk0desk.desktop.moved import follow_the_move

    return follow_the_move()


def _theme(model: AppModel) -> theme.Choice:
    choice = model.window_state.text("theme", "system")
    return choice if choice in ("light", "dark") else "system"  # type: ignore[return-value]


def _follow_settings(app: QApplication, model: AppModel) -> None:
    from zk0desk.errors import OperatorError

    try:
        choice = model.settings.appearance.theme
    except OperatorError:
        return  # the pages say what is wrong with the settings
    model.window_state.values["theme"] = choice
    theme.apply(app, choice)


def _raise(window: MainWindow, model: AppModel, argument: str) -> None:
    if argument == QUIETLY:
        return
    window.raise_up()
    if argument:
        model.open_invitation(argument)


def offer_to_go_on(window: MainWindow, crash: Crash) -> None:
    """Say what died, and offer to join again when the node ran."""
    from PySide6.QtWidgets import QMessageBox

    box = QMessageBox(window)
    box.setIcon(QMessageBox.Icon.Warning)
    box.setWindowTitle("zk0desk")
    box.setText(crash.sentence)
    details = f" The report is in {crash.report}." if crash.report else ""
    box.setInformativeText(f"Recordings, settings and finished rounds are intact.{details}")
    box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    if crash.training:
        go_on = box.addButton("&Go on: join again", QMessageBox.ButtonRole.AcceptRole)
        box.addButton("&Not now", QMessageBox.ButtonRole.RejectRole)
        go_on.clicked.connect(lambda: (window.show_page("training"), window.model.join()))
    else:
        box.addButton("&Close", QMessageBox.ButtonRole.RejectRole)
    box.open()
