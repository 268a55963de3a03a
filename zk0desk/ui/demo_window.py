"""The demo in a window: the federation comes up in a thread, then the window joins as the operator's node."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from PySide6.QtCore import QObject, QThread, QTimer, Signal

from zk0desk.demo.federation import DemoFailed, DemoFederation, DemoPlan, failure
from zk0desk.errors import OperatorError
from zk0desk.events import DemoFinished, Event, NodeStateChanged, Notice, ServerStateChanged
from zk0desk.federation.node_state import NodeState
from zk0desk.ui.pages.training import TrainingPage
from zk0desk.ui.window import MainWindow


class _DemoThread(QThread):
    """Brings the federation up and waits for the end of its run."""

    told = Signal(object)
    joinable = Signal()

    def __init__(self, federation: DemoFederation, parent: QObject) -> None:
        super().__init__(parent)
        self._federation = federation

    def run(self) -> None:
        try:
            self._federation.start()
            self.joinable.emit()
            self._federation.wait()
        except DemoFailed as error:
            if error.why:
                self.told.emit(failure(error))
        except OperatorError as error:
            self.told.emit(failure(error))


class _Events(QObject):
    came = Signal(object)


def run_demo(plan: DemoPlan, on_ready: Callable[[MainWindow], object] | None = None) -> int:
    """Run the demo in a window until that is closed; the exit status. `on_ready` is called after the first paint."""
    from zk0desk.ui.main import application, run

    events = _Events()

    def emit(source: str, event: Event) -> None:
        if source == "demo" or isinstance(event, Notice):
            events.came.emit(event)

    # The guard comes first, and with it the folder: from here on nothing stays behind, whatever happens.
    federation = DemoFederation(plan, emit, own_node=False)
    shared = {name: federation.environment[name] for name in ("ZK0DESK_DECODER", "ZK0DESK_ENGINES")}
    environment = {"ZK0DESK_HOME": str(federation.operator_home), **shared}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    application(["zk0desk"])
    thread: _DemoThread | None = None

    def begin(window: MainWindow) -> None:
        nonlocal thread
        thread = _DemoThread(federation, window)
        events.came.connect(lambda event: _show(window, event))
        thread.told.connect(lambda event: _show(window, event))
        thread.joinable.connect(lambda: _join(window))
        window.setWindowTitle("zk0desk demo")
        window.show_page("training")
        _explain(window)
        thread.start()
        if on_ready is not None:
            on_ready(window)
        # Python handles signals between its own instructions only; the timer gives it a turn.
        turn = QTimer(window)
        turn.timeout.connect(lambda: None)
        turn.start(200)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: _quit(window))

    try:
        return run(
            settings_path=federation.operator_home / "config" / "settings.toml",
            journal_path=federation.operator_home / "data" / "journal.sqlite",
            on_ready=begin,
        )
    finally:
        federation.close()
        if thread is not None:
            thread.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _explain(window: MainWindow) -> None:
    """Say on the empty page what is about to happen: there is nothing to choose."""
    page = window.page("training")
    if isinstance(page, TrainingPage):
        page.empty.sentence.setText(
            "A federation of three nodes starts on this computer: two run beside this window, the third is yours. "
            "The curves appear here in about a minute; nothing leaves this computer."
        )
        page.empty.button.hide()
        page.empty_runs.hide()


def _join(window: MainWindow) -> None:
    window.model.reload_settings()
    window.model.join()


def _quit(window: MainWindow) -> None:
    from PySide6.QtWidgets import QApplication

    window.model.stop_now()
    QApplication.exit(130)


def _show(window: MainWindow, event: Event) -> None:
    """Tell in the status strip what the demo does before the node itself can."""
    model = window.model
    if isinstance(event, ServerStateChanged) and not model.running:
        then = "Then this window joins by itself." if event.state == "making" else ""
        model.take([NodeStateChanged(state=NodeState.IDLE, what=event.what, why=event.why, then=then)])
    elif isinstance(event, Notice):
        model.take([event])
        if not model.running:
            model.take([NodeStateChanged(state=NodeState.FAILED, what=event.what, why=event.why, then=event.remedy)])
    elif isinstance(event, DemoFinished):
        notice = Notice(severity="note", code="demo-finished", what=_result(event), remedy=f"The policy is in {event.policy}.")
        model.take([notice])
        # The run is over: the node leaves, and the strip keeps saying what came of it.
        model.nodeEnded.connect(
            lambda: model.take([NodeStateChanged(state=NodeState.STOPPED, what=notice.what, why=notice.remedy, then="Close the window.")])
        )
        model.finish_round()


def _result(event: DemoFinished) -> str:
    if event.eval_loss_first is None or event.eval_loss_last is None:
        return f"The demo's {event.rounds} rounds are done."
    return f"The demo's {event.rounds} rounds are done: held-out loss {event.eval_loss_first:.3f} before, {event.eval_loss_last:.3f} now."
