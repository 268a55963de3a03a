"""Recordings: what is on this computer, what is wrong with it, and which of it this node trains on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QShowEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QStackedLayout, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.deep_checks import DeepCheck
from zk0desk.ui.episode_viewer import EpisodeViewer
from zk0desk.ui.library import Library
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.curation_card import Curating
from zk0desk.ui.pages.hub_dialog import open_hub_dialog
from zk0desk.ui.pages.prepared_removal import PreparedRemoval
from zk0desk.ui.pages.recording_details import RecordingActions, RecordingDetails
from zk0desk.ui.pages.recording_list import RecordingList
from zk0desk.ui.pages.recording_words import thousands
from zk0desk.ui.pages.repair_dialog import RepairDialog
from zk0desk.ui.widgets import Banner, EmptyState, PageHeader, PrimaryButton, SecondaryButton, scrolled

if TYPE_CHECKING:
    from zk0desk.settings import ChosenRecording, Settings
    from zk0desk.training.policy_fit import RecordingFit
    from zk0desk.training.recordings import CheckResult, Finding, PolicyNeeds


LOOKING = "Looking in your folders and in LeRobot's own. Add the folder that holds your recordings, or drop it here."
NONE_FOUND = "No LeRobot recording was found. Add the folder that holds yours, or drop it here; it is only read, and it stays here."


class RecordingsPage(QWidget):
    """The recordings that are found, and the ones that are chosen."""

    page_id, title, icon_name = "recordings", "Recordings", "video-vintage"

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self.setAcceptDrops(True)
        self.library = Library(self)
        self.library.changed.connect(self._rebuild)
        self.library.failed.connect(self._say)
        self.results = self.library.results
        self._checks: dict[Path, DeepCheck] = {}
        self.listing = RecordingList(self._choose_folder, self.look)
        self.listing.asked.connect(self.show_recording)
        self.listing.ticked.connect(self._choose)
        self.details = RecordingDetails()
        self.cards = self.listing.cards
        self.shown: Path | None = None
        self.shown_result: CheckResult | None = None
        self._show_next = Path()
        self._looked = False
        outer = QVBoxLayout(self)
        outer.setContentsMargins(22, theme.SPACE_4, 20, theme.SPACE_4)
        outer.setSpacing(theme.SPACE_3)
        self.header = PageHeader("Recordings", "Looking for recordings…")
        self.go_on = PrimaryButton("Cont&inue: this computer", "arrow-right", lambda: model.showPage.emit("computer"))
        self.go_on.setEnabled(False)
        self.from_hub = SecondaryButton("From the &Hub…", "cloud-download-outline", self.fetch_from_hub)
        self.header.actions.addWidget(self.from_hub)
        self.header.actions.addWidget(self.go_on)
        outer.addWidget(self.header)
        self.banner = Banner("error")
        self.banner.hide()
        outer.addWidget(self.banner)
        self.prepared_removal = PreparedRemoval(model)
        outer.addWidget(self.prepared_removal)
        holder = QWidget()
        self._layers = QStackedLayout(holder)
        self.empty = EmptyState(
            "video-vintage",
            LOOKING,
            "Add folder",
            self._choose_folder,
        )
        self._layers.addWidget(self.empty)
        self._layers.addWidget(self._filled())
        outer.addWidget(holder, 1)
        model.settingsChanged.connect(self._settings_changed)
        self._folders: tuple[Path, ...] | None = None

    def _filled(self) -> QWidget:
        widget = QWidget()
        row = QHBoxLayout(widget)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(theme.SPACE_4)
        row.addWidget(self.listing)
        row.addWidget(scrolled(self.details), 1)
        return widget

    # --- finding

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if not self._looked:
            self._looked = True
            # The page is painted first; importing what reads recordings takes a moment.
            QTimer.singleShot(0, self, self.look)

    def _settings(self) -> Settings | None:
        try:
            return self.model.settings
        except OperatorError as error:
            self._say(error)
            return None

    def _say(self, error: OperatorError) -> None:
        self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
        self.banner.show()

    def look(self) -> None:
        """Look for recordings again, in the background; each one appears as soon as it is checked."""
        settings = self._settings()
        if settings is None:
            return
        self.banner.hide()
        self.prepared_removal.begin()
        self._folders = settings.recordings.folders
        self.header.set_answer("Looking for recordings…")
        self.library.look(settings)

    # --- looking deeper, and repairing

    def check_deeply(self, path: Path) -> None:
        """Check every frame of the recording at `path`, in the background; an answer that is kept counts unless it is shown already."""
        self._check_of(path).start(self._needs(), again=path in self.library.deep)
        if self.shown == path:
            self.show_recording(path)

    def _check_of(self, path: Path) -> DeepCheck:
        if path not in self._checks:
            check = self._checks[path] = DeepCheck(path, self)
            check.done.connect(partial(self._checked_deeply, path))
        return self._checks[path]

    def _checked_deeply(self, path: Path, result: CheckResult | None) -> None:
        if result is None or path not in self.results:
            return
        self.library.keep(path, result, deep=True)
        self._rebuild()
        if self.shown == path:
            self.show_recording(path)

    def repair(self, path: Path) -> None:
        """Ask how a copy of the recording at `path` is to be made that can be trained on."""
        chosen = self._chosen().get(path)
        dialog = RepairDialog(self.results[path], self._needs(), chosen.leave_out if chosen else (), self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.made.connect(partial(self._repaired, path))
        dialog.open()

    def watch_episodes(self, path: Path) -> None:
        """Show the episodes of the recording at `path`, picture by picture."""
        chosen = self._chosen().get(path)
        viewer = EpisodeViewer(
            path, self.results[path].findings, self._left_out(path) if chosen else None, partial(self._curate, path), self
        )
        viewer.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        # The field in the details would go on showing the episodes that were left out before.
        viewer.finished.connect(lambda _result: self.show_recording(path) if self.shown == path and path in self.results else None)
        viewer.open()

    def _repaired(self, path: Path, new: Path) -> None:
        """The copy is looked for from now on, and takes the place of what it was made from. Its episodes are numbered anew."""
        settings = self._settings()
        if settings is None:
            return
        chosen = tuple(
            each.model_copy(update={"path": new, "leave_out": (), "reasons": {}, "content": ""}) if each.path == path else each
            for each in settings.recordings.chosen
        )
        there = any(new.is_relative_to(folder) for folder in settings.recordings.folders)
        added = settings.recordings.folders if there else (*settings.recordings.folders, new)
        recordings = settings.recordings.model_copy(update={"chosen": chosen, "folders": added})
        self.shown = None
        self._show_next = new
        self.model.update_settings(settings.model_copy(update={"recordings": recordings}))
        self.look()

    def fetch_from_hub(self) -> None:
        """Ask for a recording or a policy that is on the Hub; a recording that arrived is shown."""

        def arrived(what: str, folder: Path) -> None:
            if what == "recording":
                self._show_next = folder
                self.look()

        open_hub_dialog(self.model, "recording", self).fetched.connect(arrived)

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Add a folder with recordings")
        if folder:
            self.add_folder(Path(folder))

    def add_folder(self, folder: Path) -> None:
        """Look in `folder` from now on."""
        settings = self._settings()
        if settings is None or folder in settings.recordings.folders:
            return
        recordings = settings.recordings.model_copy(update={"folders": (*settings.recordings.folders, folder)})
        self.model.update_settings(settings.model_copy(update={"recordings": recordings}))

    def _settings_changed(self) -> None:
        settings = self._settings()
        if settings is None or not self._looked:
            return
        if settings.recordings.folders != self._folders:
            self.look()
        else:
            self._answer()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(Path(url.toLocalFile()).is_dir() for url in event.mimeData().urls() if url.isLocalFile()):
            event.acceptProposedAction()
        else:
            event.ignore()  # the window takes invitations

    def dropEvent(self, event: QDropEvent) -> None:
        for url in event.mimeData().urls():
            if url.isLocalFile() and Path(url.toLocalFile()).is_dir():
                self.add_folder(Path(url.toLocalFile()))
        event.acceptProposedAction()

    # --- the list

    def _chosen(self) -> dict[Path, ChosenRecording]:
        settings = self._settings()
        return {each.path: each for each in settings.recordings.chosen} if settings else {}

    def _needs(self) -> PolicyNeeds:
        from zk0desk.training.recordings import PolicyNeeds

        return self.library.needs or PolicyNeeds()

    def _rebuild(self) -> None:
        chosen = self._chosen()
        self.empty.sentence.setText(LOOKING if self.library.looking else NONE_FOUND)
        if self.results or not self.library.looking:
            self._layers.setCurrentIndex(1 if self.results else 0)
            self.go_on.setVisible(bool(self.results))  # an empty page has one button
        self.listing.show_entries([self.library.entry(path) for path in self.results], set(chosen), self.library.away, self.library.silent)
        if self.shown not in self.results:
            self.shown = None
        elif self.shown_result is not self.results[self.shown]:
            self._show_again(self.shown)
        if self._show_next in self.results:
            self.show_recording(self._show_next)
            self._show_next = Path()
        elif self.shown is None:
            listed = [path for path in self.listing.order if path in chosen] or ([] if self.library.looking else self.listing.order)
            if listed:
                self.show_recording(listed[0])
        self._answer()

    def _choose(self, path: Path, on: bool) -> None:
        from zk0desk.training.curation import choose, give_up

        settings = self._settings()
        if settings is None:
            return
        given_up = give_up(settings.recordings, path)
        recordings = choose(given_up, path, self.library.contents.get(path, "")) if on else given_up
        self.model.update_settings(settings.model_copy(update={"recordings": recordings}))
        self.library.keep_listed(each.path for each in recordings.chosen)
        if self.shown == path:
            self.show_recording(path)  # the cameras' slots can be set only for what is chosen

    def _answer(self) -> None:
        from zk0desk.training.policy_fit import apart
        from zk0desk.training.recordings import fit_together

        chosen = self._chosen()
        self.listing.tick(set(chosen))
        results = [self.results[path] for path in chosen if path in self.results]
        recordings = [result.recording for result in results if result.recording]
        bad = [result.path.name for result in results if result.status != "ok"]
        changed = [each.path.name for each in chosen.values() if self._stale(each)]
        findings = fit_together(recordings, self._needs()) if recordings else []
        numbers = apart([self.library.fits[path] for path in chosen if path in self.library.fits])
        findings += [finding for finding in numbers if finding.code == "units-differ"]
        blocks = [finding for finding in findings if finding.severity == "blocks"]
        if self.library.looking:
            text = f"Looking for recordings… {len(self.results)} checked." if self.results else "Looking for recordings…"
        elif not self.results:
            text = "None was found yet. Nothing is copied and nothing leaves this computer."
        elif not results:
            text = f"{len(self.results)} found. Choose those that this computer trains on."
        else:
            out = sum(len(each.leave_out) for each in chosen.values() if each.path in self.results)
            episodes, frames = sum(r.episodes for r in recordings) - out, sum(r.frames for r in recordings)
            more = f"{out} left out" if out else f"{thousands(frames)} frames"
            text = f"{len(results)} of {len(self.results)} chosen: {episodes} episode{'' if episodes == 1 else 's'}, {more}. "
            if bad:
                text += f"{', '.join(bad)} cannot be trained on as it is."
            elif changed:
                text += f"{', '.join(changed)} has changed since episodes were left out of it."
            elif blocks:
                text += f"{blocks[0].what} {blocks[0].remedy}"
            elif findings:
                text += f"They fit the policy. {findings[0].what}"
            else:
                text += "They fit the policy and each other." if len(results) > 1 else "It fits the policy."
        self.header.set_answer(text)
        self.go_on.setEnabled(bool(results) and not bad and not changed and not blocks)

    # --- the details

    def show_recording(self, path: Path) -> None:
        """Show what is known of a recording at the right."""
        self.shown, self.shown_result = path, self.results[path]
        self.listing.mark_shown(path)
        look, repair, watch = (partial(call, path) for call in (self.check_deeply, self.repair, self.watch_episodes))
        actions = RecordingActions(self._check_of(path), look, path in self.library.deep, repair, watch)
        chosen = self._chosen().get(path)
        curating = Curating(self._left_out(path), partial(self._curate, path), self._stale(chosen), path in self.library.deep)
        change = partial(self._change, path)
        self.details.show_result(self.results[path], self._needs(), chosen, change, actions, curating if chosen else None)
        if (fit := self.library.fits.get(path)) is not None:
            others = [self.library.fits[each] for each in self._chosen() if each != path and each in self.library.fits] if chosen else []
            self.details.add_fit(fit, others, self._between([fit, *others]))

    def _between(self, fits: list[RecordingFit]) -> list[Finding]:
        """What keeps recordings apart that are one node's data."""
        from zk0desk.training.policy_fit import apart
        from zk0desk.training.recordings import fit_together

        return [*fit_together([fit.recording for fit in fits], self._needs()), *apart(fits)] if len(fits) > 1 else []

    def _left_out(self, path: Path) -> dict[int, str]:
        from zk0desk.training.curation import reasons_of

        settings = self._settings()
        return reasons_of(settings.recordings, path, self.library.contents.get(path, "")) if settings else {}

    def _stale(self, chosen: ChosenRecording | None) -> bool:
        from zk0desk.training.curation import is_stale

        content = self.library.contents.get(chosen.path, "") if chosen else ""
        return chosen is not None and bool(content) and is_stale(chosen, content)

    def _curate(self, path: Path, left_out: dict[int, str]) -> None:
        """Keep which episodes are left out, each with its reason."""
        from zk0desk.training.curation import curate

        settings = self._settings()
        if settings is None:
            return
        recordings = curate(settings.recordings, path, self.library.contents.get(path, ""), left_out)
        if recordings == settings.recordings:
            return
        self.model.update_settings(settings.model_copy(update={"recordings": recordings}))
        if self.shown == path:
            self._show_again(path)

    def _change(self, path: Path, **values: object) -> None:
        """Keep `values` of the chosen recording at `path`."""
        settings = self._settings()
        if settings is None:
            return
        chosen = tuple(each.model_copy(update=values) if each.path == path else each for each in settings.recordings.chosen)
        if chosen != settings.recordings.chosen:
            recordings = settings.recordings.model_copy(update={"chosen": chosen})
            self.model.update_settings(settings.model_copy(update={"recordings": recordings}))
        if "cameras" in values:
            self._show_again(path)

    def _show_again(self, path: Path) -> None:
        """Fill the details anew; the keyboard stays where it was."""
        focused = self.focusWidget()
        kind, name = type(focused), focused.accessibleName() if focused is not None else ""
        self.show_recording(path)
        for each in self.details.findChildren(QWidget):
            if name and each.accessibleName() == name and type(each) is kind and not each.isHidden():
                each.setFocus()
