"""The recordings that are known to the window: found, checked one after the other, and watched from then on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QCoreApplication, QObject, QTimer, Signal

from zk0desk.errors import OperatorError
from zk0desk.ui.background import in_background

if TYPE_CHECKING:
    from zk0desk.settings import Settings
    from zk0desk.training.library import Entry
    from zk0desk.training.policy_fit import RecordingFit
    from zk0desk.training.recording_watch import Look, Watch
    from zk0desk.training.recordings import CheckResult, PolicyNeeds

PATIENCE_MS = 5000
"""How long a folder or a recording that does not answer holds up the others."""
MOST_SILENT = 8
"""Recordings that are waited for beside each other when none of them answers."""
WAIT_S = 0.3
"""How long a watch that is closed is waited for: one that hangs in a lost network ends by itself."""
REST_MS = 30
"""Changes that follow each other so closely are told together."""


class Library(QObject):
    """What is known of each recording. `changed` fires when there is more or something else to show, `failed` carries an error.

    `results` are the checks by path, those of `deep` a deep check's. `contents` are the words of what each holds
    (`training.curation`), `fits` how each lies beside the policy. `away` are watched folders that are not there, `silent` recordings
    whose check takes long, as on a disk that does not answer: the others are checked meanwhile.
    """

    changed = Signal()
    failed = Signal(object)
    _seen = Signal(int, Path, object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.results: dict[Path, CheckResult] = {}
        self.deep: set[Path] = set()
        self.away: list[Path] = []
        self.needs: PolicyNeeds | None = None
        self._before: dict[str, dict[str, Any]] = {}
        self.looking = False
        self.contents: dict[Path, str] = {}
        self.fits: dict[Path, RecordingFit] = {}
        self._changed_at: dict[Path, float] = {}
        self._marks: dict[Path, str] = {}
        self._looks: dict[Path, Look] = {}
        self._expected: set[Path] = set()
        self._kept: list[Path] = []
        self._added: list[Path] = []
        self.silent: list[Path] = []
        self._waiting: list[Path] = []
        self._checking: dict[Path, int] = {}
        self._checks = 0
        self._turn = 0
        self._watch: Watch | None = None
        self._seen.connect(self._on_seen)
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.timeout.connect(self.changed)
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self.close)

    def entry(self, path: Path) -> Entry:
        """What the list sorts and filters by."""
        from zk0desk.training.library import Entry

        return Entry(self.results[path], self._changed_at.get(path, 0.0))

    def keep(self, path: Path, result: CheckResult, *, deep: bool) -> None:
        """Take a check's answer."""
        self.results[path] = result
        (self.deep.add if deep else self.deep.discard)(path)

    def keep_listed(self, paths: Iterable[Path]) -> None:
        """List these also when they are gone: they are chosen."""
        self._kept = list(paths)

    def look(self, settings: Settings) -> None:
        """Look into all folders of `settings`, check what is there, and go on watching it."""
        self.close()
        self._turn += 1
        self.looking = True
        self._marks.clear()
        self._looks.clear()
        self._waiting.clear()
        self._kept = [each.path for each in settings.recordings.chosen]
        self._added = added = [folder.expanduser() for folder in settings.recordings.folders]
        policy, turn = settings.policy.folder, self._turn

        def prepare() -> tuple[list[Path], PolicyNeeds, dict[str, dict[str, Any]]]:
            from zk0desk.training.policy_statistics import policy_statistics
            from zk0desk.training.recordings import PolicyNeeds, policy_needs, standard_folders

            try:
                needs = policy_needs(policy) if policy else PolicyNeeds()
            except OperatorError:
                needs = PolicyNeeds()
            return [*added, *standard_folders()], needs, policy_statistics(policy.expanduser()) if policy else {}

        in_background(self, prepare, lambda answer: self._begin(turn, *answer), self.failed.emit)
        QTimer.singleShot(PATIENCE_MS, self, lambda: self._give_up(turn))

    def close(self) -> None:
        """Watch no longer."""
        if self._watch is not None:
            self._watch.close(WAIT_S)
            self._watch = None

    # --- what the watch tells

    def _begin(self, turn: int, folders: list[Path], needs: PolicyNeeds, before: dict[str, dict[str, Any]]) -> None:
        if turn != self._turn:
            return
        from zk0desk.training.recording_watch import Watch

        self.needs, self._before = needs, before
        # What is chosen is watched wherever it is.
        folders += [path for path in self._kept if not any(path.is_relative_to(folder) for folder in folders)]
        self._expected = {folder.expanduser() for folder in folders}
        self._check(*self._kept)

        def seen(folder: Path, look: Look) -> None:
            try:
                self._seen.emit(turn, folder, look)
            except RuntimeError:
                pass  # the window was closed meanwhile

        self._watch = Watch(folders, seen)
        self.destroyed.connect(lambda _self, watch=self._watch: watch.close(WAIT_S))

    def _on_seen(self, turn: int, folder: Path, look: Look) -> None:
        if turn != self._turn:
            return
        self._looks[folder] = look
        self.away = [each for each in self._added if each in self._looks and not self._looks[each].there]
        marks = {path: mark for each in self._looks.values() for path, mark in each.marks.items()}
        self._check(*(path for path, mark in marks.items() if self._marks.get(path) != mark))
        if self._expected <= self._looks.keys():
            for path in [path for path in self.results if path not in marks]:
                if path not in self._kept:
                    self._forget(path)
                elif self._marks.get(path):
                    self._check(path)  # it is gone: the check says so
        self._tell()

    def _forget(self, path: Path) -> None:
        for known in (self.results, self.contents, self.fits, self._marks, self._changed_at):
            known.pop(path, None)  # type: ignore[attr-defined]
        self.deep.discard(path)

    def _give_up(self, turn: int) -> None:
        if turn == self._turn and self.looking:
            self._expected &= self._looks.keys()
            self._tell()

    # --- checking

    def _check(self, *paths: Path) -> None:
        self._waiting += [path for path in paths if path not in self._waiting and path not in self.silent]
        self._next()

    def _next(self) -> None:
        if len(self._checking) > len(self.silent) or len(self.silent) >= MOST_SILENT or not self._waiting:
            return
        path = self._waiting.pop(0)
        self._checks += 1
        number = self._checking[path] = self._checks
        QTimer.singleShot(PATIENCE_MS, self, lambda: self._hangs(path, number))
        needs, before, turn, known = self.needs, self._before, self._turn, self._marks.get(path)

        def check() -> tuple[str, float, str, RecordingFit | None, CheckResult, bool] | None:
            from zk0desk.training.curation import content_of
            from zk0desk.training.deep_check import best_answer
            from zk0desk.training.policy_fit import recording_fit
            from zk0desk.training.recording_watch import changed_at, mark_of
            from zk0desk.training.recordings import PolicyNeeds

            mark = mark_of(path)  # before the check: what changes meanwhile is seen again
            if mark == known:
                return None
            result, deep = best_answer(path, needs or PolicyNeeds())
            fit = recording_fit(result.recording, needs or PolicyNeeds(), before) if result.recording else None
            return mark, changed_at(path), content_of(path), fit, result, deep

        def done(answer: tuple[str, float, str, RecordingFit | None, CheckResult, bool] | None) -> None:
            if answer is not None and turn == self._turn:
                mark, changed, content, fit, result, deep = answer
                self.fits.pop(path, None)
                if fit is not None:
                    self.fits[path] = fit
                self.contents[path] = content
                self._marks[path], self._changed_at[path] = mark, changed
                self.keep(path, result, deep=deep)
            self._ended(path)

        def failed(error: OperatorError) -> None:
            self.failed.emit(error)
            self._ended(path)

        in_background(self, check, done, failed)

    def _hangs(self, path: Path, number: int) -> None:
        if self._checking.get(path) == number:
            self.silent.append(path)
            self._tell()
            self._next()

    def _ended(self, path: Path) -> None:
        del self._checking[path]
        if path in self.silent:
            self.silent.remove(path)
        self._tell()
        self._next()

    def _tell(self) -> None:
        resting = len(self._checking) == len(self.silent) and (not self._waiting or len(self.silent) >= MOST_SILENT)
        if resting and self._expected and self._expected <= self._looks.keys():
            self.looking = False
        if not self._rest.isActive():
            self._rest.start(REST_MS)
