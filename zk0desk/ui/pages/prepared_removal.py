"""A recording that is taken out of the list takes its prepared frames along, after a moment in which a person can keep them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QCoreApplication, QTimer

from zk0desk.errors import OperatorError
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.prepared_facts import bytes_kept, remove_prepared, size_words
from zk0desk.ui.widgets import Banner, SecondaryButton

if TYPE_CHECKING:
    from zk0desk.settings import Settings
    from zk0desk.training.prefix_cache import Cleared

GRACE_MS = 8000
"""How long a person can change their mind: what was prepared took time to compute."""


class PreparedRemoval(Banner):
    """Watches the chosen recordings from `begin` on; says what goes, and what went."""

    def __init__(self, model: AppModel) -> None:
        super().__init__("info")
        self._model = model
        self._chosen: set[Path] | None = None
        self._going: dict[Path, int] = {}
        """What goes when the timer ends: the recording's folder, and bytes."""
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(GRACE_MS)
        self._timer.timeout.connect(self.remove)
        self.keep = SecondaryButton("Keep them", on_click=self._keep)
        self.actions.addWidget(self.keep)
        self.close_it = SecondaryButton("OK", on_click=self.hide)
        self.actions.addWidget(self.close_it)
        self.hide()
        model.settingsChanged.connect(self._changed)
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self._quit)

    def begin(self) -> None:
        """Take what is chosen now as what is there."""
        settings = self._settings()
        if self._chosen is None and settings is not None:
            self._chosen = _paths(settings)

    def _settings(self) -> Settings | None:
        try:
            return self._model.settings
        except OperatorError:
            return None

    def _changed(self) -> None:
        settings = self._settings()
        if settings is None or self._chosen is None:
            return
        before, self._chosen = self._chosen, _paths(settings)
        if back := self._chosen & set(self._going):
            for path in back:
                del self._going[path]
            self._say_going()
        if settings.cache.keep_after_removal:
            return
        for path in before - self._chosen:
            in_background(self, partial(bytes_kept, settings.cache, path), partial(self._found, path))

    def _found(self, path: Path, size: int) -> None:
        if size and self._chosen is not None and path not in self._chosen:
            self._going[path] = size
            self._say_going()
            self._timer.start()

    def _say_going(self) -> None:
        if not self._going:
            self._timer.stop()
            self.hide()
            return
        names = ", ".join(path.name for path in self._going)
        what = f"The prepared frames of {names} are removed in a moment: {size_words(sum(self._going.values()))}."
        self.set("info", what, "The recording itself stays as it is. Settings can keep them always.")
        self.keep.show()
        self.close_it.hide()
        self.show()

    def _keep(self) -> None:
        self._going.clear()
        self._say_going()

    def remove(self) -> None:
        """Remove what is going now, in the background."""
        settings = self._settings()
        self._timer.stop()
        going, self._going = self._going, {}
        if settings is None or not going:
            return
        in_background(
            self,
            lambda: [remove_prepared(settings.cache, path) for path in going],
            partial(self._removed, [path.name for path in going]),
            lambda error: self._told("error", error.what, f"{error.why} {error.remedy}".strip()),
        )

    def _removed(self, names: list[str], cleared: list[Cleared]) -> None:
        if any(each.in_use for each in cleared):
            why = "They can be removed on the page This computer when its round is over."
            self._told("warning", f"The prepared frames of {', '.join(names)} are in use by a running node, and stay.", why)
        else:
            size = size_words(sum(each.bytes for each in cleared))
            self._told("ok", f"The prepared frames of {', '.join(names)} were removed: {size}.", "")

    def _told(self, kind: str, what: str, why: str) -> None:
        if self._going:
            return  # another recording is about to go, and can still be kept
        self.set(kind, what, why)
        self.keep.hide()
        self.close_it.show()
        self.show()

    def _quit(self) -> None:
        """The window closes within the moment: nobody chose to keep them."""
        settings = self._settings()
        going, self._going = self._going, {}
        if settings is not None:
            for path in going:
                remove_prepared(settings.cache, path)


def _paths(settings: Settings) -> set[Path]:
    return {each.path for each in settings.recordings.chosen}
