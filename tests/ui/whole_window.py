"""The whole window with something on every page, and what can be asked of all its controls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PySide6.QtCore import QPoint, QRect, Qt
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QScrollArea,
    QWidget,
)

from tests.federation.coordinator_parts import make_server
from tests.ui.page_parts import settle
from zk0desk import events
from zk0desk.federation.node_state import SENTENCES, NodeState
from zk0desk.journal import LedgerEntry
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, Settings
from zk0desk.ui import theme
from zk0desk.ui.model import AppModel
from zk0desk.ui.run_data import RunData
from zk0desk.ui.window import MainWindow

RUN = "0123456789abcdef"
CONTROLS = (QAbstractButton, QComboBox, QLineEdit, QAbstractSpinBox, QPlainTextEdit, QAbstractItemView)


def make_model(tmp_path: Path, recordings: tuple[Path, ...] = (), policy: Path | None = None) -> AppModel:
    """A model with an invitation, a policy and the first of `recordings` chosen; or with nothing at all."""
    model = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    invitation = make_server(tmp_path / "coordinator").invitation(9443).to_line() if recordings else ""
    model.update_settings(
        Settings(
            recordings=Recordings(folders=recordings, chosen=tuple(ChosenRecording(path=path) for path in recordings[:1])),
            policy=Policy(folder=policy),
            federation=Federation(invitation=invitation, key_storage="file", key_file=tmp_path / "key.pem"),
        )
    )
    return model


def fill_journal(model: AppModel) -> None:
    """Two rounds of a run, and the messages that went with them."""
    now = time.time() - 600
    for number in (1, 2):
        model.journal.record(
            events.RoundStarted(
                run=RUN, round=number, rounds=30, lr=1e-4, mu=0.01, steps=40, epochs=2.0, batch_size=16, frames=320, time=now
            )
        )
        for step in range(1, 41):
            now += 1
            model.journal.record(
                events.StepDone(
                    run=RUN, round=number, step=step, steps=40, epoch=1, loss=1.0 / step, proximal=0.001, grad_norm=1.0, lr=1e-4, mu=0.01,
                    frames=16, seconds=1.0, time=now,
                )
            )  # fmt: skip
        metrics = {"loss-mean": 0.5, "loss-last": 0.4, "grad-norm": 0.8, "num-examples": 320.0}
        model.journal.record(events.RoundTrained(run=RUN, round=number, metrics=metrics, time=now))
        model.journal.enter(LedgerEntry("sent", "train-reply", "arms.example:9443", 199_761_984, "ab" * 32, RUN, "77", number, metrics))
        model.journal.record(events.FederationMetrics(run=RUN, round=number, nodes=4, train_loss=0.5, eval_loss=0.6, time=now))


def training(model: AppModel) -> None:
    """As if the node trained just now."""
    model.live_run = RunData.from_journal(model.journal, RUN)
    model._thread = object()  # type: ignore[assignment]
    model.nodeStarted.emit()
    what, why, then = SENTENCES[NodeState.TRAINING]
    model.take([events.NodeStateChanged(state=NodeState.TRAINING, what=f"{what} round 2 of 30", why=why, then=then, since=time.time())])


@contextmanager
def whole_window(model: AppModel, qtbot, scheme: theme.Choice = "light") -> Iterator[MainWindow]:
    """The window at its smallest, active, with its first page shown."""
    app = QApplication.instance()
    assert isinstance(app, QApplication)
    theme.apply(app, scheme)
    window = MainWindow(model)
    window.resize(1000, 640)
    with qtbot.waitSignal(window.firstPaint, timeout=20_000):
        window.show()
    _activate(window, qtbot)
    try:
        yield window
    finally:
        model._thread = None
        settle(qtbot)
        window.hide()
        window.deleteLater()
        model.close()
        settle(qtbot)


def go_to(window: MainWindow, page_id: str, qtbot) -> QWidget:
    """Show a page and wait until it has filled itself."""
    qtbot.waitUntil(lambda: window._painted)
    window.show_page(page_id)
    page = window.page(page_id)
    answer = getattr(getattr(page, "header", None), "answer", None)
    if answer is not None:
        qtbot.waitUntil(lambda: "Looking" not in answer.text() and "Reading" not in answer.text(), timeout=30_000)
    for _ in range(8):
        settle(qtbot)
    QApplication.processEvents()
    _activate(window, qtbot)
    return page


def _activate(window: MainWindow, qtbot) -> None:
    """As a person's click does it: the platform without a screen lets go of a window now and then."""

    def asked() -> bool:
        window.activateWindow()
        return window.isActiveWindow()

    qtbot.waitUntil(asked, timeout=20_000)


def controls(widget: QWidget, kinds: tuple[type, ...] = CONTROLS) -> list[QWidget]:
    """What a person can operate in `widget` just now: not the parts that a control is made of."""
    found = [each for each in widget.findChildren(QWidget) if isinstance(each, kinds) and each.isVisible() and each.isEnabled()]
    return [each for each in found if not is_a_part(each)]


def is_a_part(widget: QWidget) -> bool:
    """Whether `widget` is something that Qt made a control of: a field's clear button, a list that drops down, a table's header."""
    above = widget.parentWidget()
    whole = (QComboBox, QLineEdit, QAbstractSpinBox, QAbstractItemView)
    return isinstance(widget, QHeaderView) or isinstance(above, whole) or above is not None and above.inherits("QComboBoxPrivateContainer")


def is_one_of_a_group(widget: QWidget) -> bool:
    """Whether Tab stops at the checked one of a group only, and arrows go on from there."""
    if not isinstance(widget, QAbstractButton):
        return False
    group = widget.group()
    return (group is not None and group.exclusive() or widget.autoExclusive()) and widget.isCheckable() and not widget.isChecked()


def described(widget: QWidget) -> str:
    """Class and words of a widget, for a failing test."""
    words = widget.accessibleName() or getattr(widget, "text", lambda: "")()
    return f"{type(widget).__name__} {words[:60]!r}"


def clipped(window: QWidget) -> list[str]:
    """Labels, buttons and fields whose words do not fit into them, or that stand beyond what can be seen or scrolled to."""
    wrong = []
    for widget in window.findChildren(QWidget):
        if not widget.isVisible() or not isinstance(widget, (QLabel, QPushButton, QCheckBox, QComboBox, QLineEdit)):
            continue
        hint, size = widget.sizeHint(), widget.size()
        if isinstance(widget, QLabel) and widget.text():
            needed = widget.heightForWidth(size.width()) if widget.wordWrap() else hint.height()
            longest = max((widget.fontMetrics().horizontalAdvance(word) for word in widget.text().split()), default=0)
            wide = longest if widget.wordWrap() else hint.width()
            if wide > size.width() or needed > size.height():
                wrong.append(f"{described(widget)} needs {wide}x{needed}, has {size.width()}x{size.height()}")
        elif isinstance(widget, (QPushButton, QCheckBox, QComboBox)) and (hint.width() > size.width() or hint.height() > size.height()):
            wrong.append(f"{described(widget)} needs {hint.width()}x{hint.height()}, has {size.width()}x{size.height()}")
        elif isinstance(widget, QLineEdit) and hint.height() > size.height() and not isinstance(widget.parentWidget(), QAbstractSpinBox):
            wrong.append(f"{described(widget)} is {size.height()} high, needs {hint.height()}")
        wrong += _beyond(widget, window)
    return wrong


def _beyond(widget: QWidget, window: QWidget) -> list[str]:
    """Whether `widget` stands out of the window, or out of a scroll area that does not scroll that way."""
    here = QRect(widget.mapTo(window, QPoint(0, 0)), widget.size())
    wrong = []
    scrolls = False
    above = widget.parentWidget()
    while above is not None and above is not window:
        if isinstance(above, QScrollArea) and above.isAncestorOf(widget) and above.viewport().isAncestorOf(widget):
            view = above.viewport()
            left = widget.mapTo(view, QPoint(0, 0)).x()
            if left < 0 or left + widget.width() > view.width():
                wrong.append(f"{described(widget)} is cut off at the side: {left} to {left + widget.width()} of {view.width()}")
            scrolls = True
        above = above.parentWidget()
    if not scrolls and not window.rect().contains(here):
        wrong.append(f"{described(widget)} stands beyond the window: {here}")
    return wrong


def overlapping(window: QWidget) -> list[str]:
    """Controls and labels that share a place."""
    seen = [
        (each, QRect(each.mapTo(window, QPoint(0, 0)), each.size()))
        for each in window.findChildren(QWidget)
        if isinstance(each, (QLabel, QPushButton, QCheckBox, QComboBox, QLineEdit)) and not each.visibleRegion().isEmpty()
    ]
    wrong = []
    for number, (one, here) in enumerate(seen):
        for other, there in seen[number + 1 :]:
            same = one.isAncestorOf(other) or other.isAncestorOf(one) or one.parentWidget() is not other.parentWidget()
            if not same and here.intersects(there):
                wrong.append(f"{described(one)} and {described(other)}")
    return wrong


def walk(qtbot, start: QWidget, key: Qt.Key = Qt.Key.Key_Tab, limit: int = 200) -> list[QWidget]:
    """The widgets that have the focus one after the other, from `start` until it comes round."""
    start.setFocus(Qt.FocusReason.TabFocusReason)
    found = [start]
    for _ in range(limit):
        now = QApplication.focusWidget()
        assert now is not None
        qtbot.keyClick(now, key)
        now = QApplication.focusWidget()
        assert now is not None
        if now in found:
            return found
        found.append(now)
    raise AssertionError("Tab does not come round")
