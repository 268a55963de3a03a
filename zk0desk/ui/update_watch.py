"""Looks for a newer zk0desk or a mended engine: when a person asks, and once a day where they said so in Settings. It fetches nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer, Signal

from zk0desk.errors import OperatorError
from zk0desk.ui.background import in_background

if TYPE_CHECKING:
    from zk0desk.engine.updates import Update
    from zk0desk.ui.model import AppModel

FIRST_MS, LOOK_MS = 60_000, 3_600_000
"""A while after the start, and then every hour, it is seen whether a day has passed."""
DAY_S = 86_400
LOOKED = "updates-looked"
"""The name in the window's state under which the moment of the last look is kept, in Unix seconds."""


class UpdateWatch(QObject):
    """`seen` fires when `found` is known anew, `failed` carries why a look that a person asked for told nothing."""

    seen = Signal()
    failed = Signal(object)

    def __init__(self, model: AppModel) -> None:
        super().__init__(model)
        self._model = model
        self.found: Update | None = None
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.due)

    def begin(self) -> None:
        """From now on look once a day, as long as the settings say so and no node runs."""
        self._timer.start(FIRST_MS)

    def due(self) -> None:
        """Look, if it is time."""
        self._timer.setInterval(LOOK_MS)
        try:
            wanted = self._model.settings.updates.look_daily
        except OperatorError:
            return
        looked = self._model.window_state.values.get(LOOKED, 0)
        passed = time.time() - looked if isinstance(looked, int | float) else DAY_S
        if wanted and not self._model.running and not 0 <= passed < DAY_S:
            self._look(tell=False)

    def look(self) -> None:
        """Look now: a person asked."""
        self._look(tell=True)

    def _look(self, *, tell: bool) -> None:
        busy = self._model.running

        def ask() -> Update | None:
            from zk0desk.control import NodeControl
            from zk0desk.engine import store, updates

            source = updates.feed()
            if source is None:
                return None
            engine = store.current()
            return updates.look(source, engine.backend if engine is not None else None, busy=busy, control=NodeControl())

        in_background(self, ask, self._seen, lambda error: self.failed.emit(error) if tell else None)

    def _seen(self, update: Update | None) -> None:
        if update is not None:
            self._model.window_state.keep(**{LOOKED: time.time()})
        self.found = update
        self.seen.emit()
