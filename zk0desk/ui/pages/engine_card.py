"""The training engine: whether it is here, which one this computer needs and why, what it takes, getting it, and keeping it in order."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from PySide6.QtCore import QTimer, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.engine_look import EngineLook, look_at_engine
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.choice_box import ChoiceBox
from zk0desk.ui.pages.engine_progress import EngineProgress
from zk0desk.ui.pages.engine_words import BADGES, DOING, DONE, option_words, plan_words
from zk0desk.ui.widgets import Badge, Banner, Caption, Card, LinkButton, PrimaryButton, SecondaryButton, Text

if TYPE_CHECKING:
    from zk0desk.engine.store import Installed

RESTART = "It is used after a restart: {why}."
COPIED_MS = 2000


class EngineCard(Card):
    """`refresh` looks at the engine; `seen` fires when `look` is known anew.

    `changed` fires when another engine can be used: the computer is then to be looked at anew.
    """

    changed = Signal()
    seen = Signal()

    def __init__(self, model: AppModel) -> None:
        super().__init__("Training engine")
        self._model, self._work = model, model.engine
        self.look: EngineLook | None = None
        self._chosen = ""
        self._turn = 0
        self._reported = True
        self.badge = Badge("muted", "Looking…")
        self.header.addWidget(self.badge)
        self.header.addStretch(1)
        self.backend = ChoiceBox()
        self.backend.setAccessibleName("Engine for")
        self.backend.chosen.connect(self._choose)
        self.header.addWidget(self.backend)
        self.sentence, self.why, self.plan = Text("Looking at the training engine…", "bold"), Text("", "muted"), Text("")
        self.progress = EngineProgress(self._work)
        for widget in (self.sentence, self.why, self.plan, self.progress):
            self.body.addWidget(widget)
        self._add_buttons()
        self.banner = Banner("error")
        self.for_processor = SecondaryButton("Choose the one for the processor", "", lambda: self.backend.choose("cpu"))
        self.restart = SecondaryButton("Restart zk0desk", "restart", model.restartAsked.emit)
        self.copy = SecondaryButton("Copy details", "content-copy", self._copy)
        self.try_again = SecondaryButton("Try again", "refresh", self._try_again)
        for button in (self.for_processor, self.restart, self.copy, self.try_again):
            self.banner.actions.addWidget(button)
        self.banner.hide()
        self.body.addWidget(self.banner)
        self._work.changed.connect(self._moved)
        model.engineTaken.connect(self._taken)
        model.nodeStarted.connect(self._show)
        model.nodeEnded.connect(self._show)
        self._work.ended.connect(self._ended)
        model.updates.seen.connect(self._show)
        model.updates.failed.connect(lambda error: self._tell("warning", error.what, f"{error.why} {error.remedy}".strip()))
        self._show()
        if self._work.error is not None:  # of a fetch that went on before this page was shown
            self._ended()

    def _add_buttons(self) -> None:
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_2)
        self.get = PrimaryButton("Get the engine", "download", self._get)
        self.use_folder = SecondaryButton("Use a folder…", "folder-open-outline", self._use_folder)
        row.addWidget(self.get)
        row.addWidget(self.use_folder)
        row.addStretch(1)
        self.body.addLayout(row)
        quiet = QHBoxLayout()
        quiet.setSpacing(theme.SPACE_1)
        self.verify = LinkButton("Verify", "check-all", lambda: self._start("verify", "--thorough"))
        self.repair = LinkButton("Repair", "wrench-outline", lambda: self._start("repair", "--thorough"))
        self.test = LinkButton("Test", "flask-outline", lambda: self._start("test"))
        self.save = LinkButton("Save to a folder…", "content-save-outline", self._save)
        self.back = LinkButton("Go back", "undo-variant", lambda: self._start("back"))
        self.prune = LinkButton("Remove old ones", "delete-outline", lambda: self._start("prune"))
        self.news = LinkButton("Look for updates", "refresh", self._model.updates.look)
        self._quiet = {
            self.verify: "Verify the engine: every file is read and compared",
            self.repair: "Repair the engine: what is damaged is fetched again",
            self.test: "Test the engine on this computer",
            self.save: "Save the engine to a folder, for a computer without a network",
            self.back: "Go back to the engine before this one",
            self.prune: "Remove engines that are not used any more",
            self.news: "Look for updates now; nothing about this computer is sent",
        }
        for button, about in self._quiet.items():
            button.setAccessibleName(about)
            button.setToolTip(about)
            if button is not self.test:
                quiet.addWidget(button)
        self.header.addWidget(self.test)
        quiet.addStretch(1)
        self.body.addLayout(quiet)
        self.besides = Caption("")
        self.body.addWidget(self.besides)

    # --- looking

    def refresh(self) -> None:
        """Look in the background, and show it."""
        self._turn += 1
        turn, chosen = self._turn, self._chosen
        in_background(self, lambda: look_at_engine(chosen), lambda look: self._seen(turn, look), self._look_failed)

    def _seen(self, turn: int, look: EngineLook) -> None:
        if turn == self._turn:
            self.look = look
            self._show()
            self._model.engine_seen(look.missing)
            self.seen.emit()

    def _look_failed(self, error: OperatorError) -> None:
        self._tell("error", error.what, f"{error.why} {error.remedy}".strip())

    def _choose(self, backend: str) -> None:
        self._chosen = backend
        self.banner.hide()
        self.refresh()

    # --- showing

    def _show(self) -> None:
        look, work = self.look, self._work
        self.progress.refresh()
        shown: dict[QWidget, bool] = dict.fromkeys((self.get, self.use_folder, *self._quiet), False)
        for text in (self.why, self.plan, self.besides):
            text.hide()
        self.backend.setVisible(look is not None and look.choice is not None and len(look.choice.options) > 1)
        self.backend.setEnabled(not work.busy)
        if look is not None:
            busy = work.busy and not work.in_use
            self.badge.set(*(("info", DOING[work.action][0]) if busy else BADGES["missing" if look.state.missing else look.state.kind]))
            self.sentence.setText(look.state.sentence)
            self._show_choice(look)
            if not work.busy:
                shown |= self._offered(look)
        for button, there in shown.items():
            button.setVisible(there)

    def _show_choice(self, look: EngineLook) -> None:
        """Which engine and why, what it takes, and what there is besides."""
        choice, plan = look.choice, look.plan
        why = look.versions or look.state.remedy
        if choice is not None:
            self.backend.set_choices([(option_words(each, choice.backend), each.backend) for each in choice.options], look.backend)
            option = next((each for each in choice.options if each.backend == look.backend), None)
            another = option.why if option is not None and look.backend != choice.backend else ""
            why = f"{another} {choice.why} {choice.remedy}"
        takes = str(look.trouble) if look.trouble is not None else plan_words(plan) if plan is not None else ""
        takes = "" if self._work.busy else takes
        for text, words in ((self.why, " ".join(why.split())), (self.plan, takes), (self.besides, self._besides(look))):
            text.setText(words)
            text.setVisible(bool(words))

    def _offered(self, look: EngineLook) -> dict[QWidget, bool]:
        """Which buttons there are, while nothing is being done."""
        packaged, engine, plan = look.choice is not None, look.state.engine, look.plan
        mended = self._mended()
        self.get.setEnabled(mended or plan is not None and plan.fits)
        if mended or engine is not None and plan is not None and engine.backend == plan.backend:
            self.get.set_text("Update the engine")
        else:
            self.get.set_text(
                "Go on getting it" if plan is not None and plan.there else "Get the engine" if engine is None else "Get this one"
            )
        whole = engine is not None
        if self._model.running and packaged:
            return {self.verify: whole, self.save: whole}
        return {
            self.get: packaged and (plan is not None or mended),
            self.use_folder: packaged and not whole,
            self.verify: whole,
            self.repair: whole or look.state.kind == "damaged",
            self.test: whole or not packaged and not look.state.missing,
            self.save: whole,
            self.back: whole and bool(look.state.older),
            self.prune: packaged and bool(look.state.older),
            self.news: look.feed,
        }

    def _mended(self) -> bool:
        """Whether the feed told of a mended engine for this version that is not in use."""
        update, engine = self._model.updates.found, self.look.state.engine if self.look is not None else None
        return update is not None and update.engine is not None and engine is not None and update.engine.id != engine.id

    def _besides(self, look: EngineLook) -> str:
        said = []
        if self._model.running and look.choice is not None:
            said.append("The node uses this engine: nothing of it is changed before it has left.")
        if look.state.older:
            said.append(f"Older engines are kept: {', '.join(_named(each) for each in look.state.older)}.")
        update = self._model.updates.found
        if update is not None and update.newer:
            where = f" It is at {update.artefact.url}" if update.artefact is not None else ""
            said.append(f"zk0desk {update.version} is there. {update.notes}{where}".strip())
        elif update is not None and not self._mended():
            said.append("zk0desk and its engine are up to date.")
        return " ".join(said)

    def _moved(self) -> None:
        if self.progress.isHidden() == self._work.busy:
            self._show()  # it began, or is over
        else:
            self.progress.refresh()

    # --- doing

    def _start(self, action: str, *arguments: str) -> None:
        self.banner.hide()
        self._reported = False
        self._work.start(action, *arguments)  # type: ignore[arg-type]

    def _get(self) -> None:
        if self._mended():
            self._start("update", "--get")
        elif self.look is not None and self.look.plan is not None:
            self._start("get", "--backend", self.look.plan.backend)

    def _use_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose the folder that holds the engine's parts")
        if folder:
            self._start("import", folder)

    def _save(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose the folder in which the engine is saved")
        if folder:
            self._start("export", folder)

    def _try_again(self) -> None:
        self.banner.hide()
        self._reported = False
        self._work.again()

    def _taken(self) -> None:
        self._chosen = ""
        self._report()
        self.refresh()
        self.changed.emit()

    def _ended(self) -> None:
        work = self._work
        if work.error is not None:
            self._tell("error", work.error.what, f"{work.error.why} {work.error.remedy}".strip())
        elif not work.cancelled and not self._reported:
            self._report()
        self.refresh()

    def _report(self) -> None:
        """What was done, and what the self-test found."""
        self._reported = True
        work = self._work
        test, verified = work.found.get("self-test"), work.found.get("verified")
        failed = isinstance(test, dict) and not test.get("ok")
        damaged = isinstance(verified, dict) and not verified.get("ok", True)
        if isinstance(test, dict):
            what, why = str(test.get("sentence", "")), str(test.get("remedy", ""))
        else:
            what, why = DONE[work.action](work.found)
        if work.found.get("used") is False:
            why = f"{why} It is not used: the engine before stays.".strip()
        if not self._model.engine_at_once:
            reason = (
                "Windows has to load its libraries before the window's"
                if sys.platform == "win32"
                else "this window has loaded an older one"
            )
            why = f"{why} {RESTART.format(why=reason)}".strip()
        self._tell("warning" if failed or damaged else "ok", what, why)
        used = self.look.backend if self.look is not None else ""
        self.for_processor.setVisible(failed and used != "cpu" and self.backend.findData("cpu") >= 0)
        self.restart.setVisible(not self._model.engine_at_once)

    def _tell(self, kind: str, what: str, why: str = "") -> None:
        for button in (self.for_processor, self.restart):
            button.hide()
        for button in (self.copy, self.try_again):
            button.setVisible(self._work.error is not None and kind == "error")
        self.banner.set(kind, what, why)
        self.banner.show()

    def _copy(self) -> None:
        """What someone who helps needs: the error, the step and the engine's state. No recording and no key is in it."""
        from zk0desk import __version__

        work = self._work
        details = {
            "error": work.error.to_json() if work.error is not None else None,
            "work": [work.action, *work.arguments],
            "step": vars(work.step),
            "engine": self.look.state.to_json() if self.look is not None else None,
            "zk0desk": __version__,
            "system": sys.platform,
        }
        QGuiApplication.clipboard().setText(json.dumps(details, indent=2, ensure_ascii=False))
        self.copy.set_text("Copied")
        QTimer.singleShot(COPIED_MS, self.copy, lambda: self.copy.set_text("Copy details"))


def _named(engine: Installed) -> str:
    return f"{engine.backend} of {time.strftime('%Y-%m-%d', time.localtime(engine.made))}"
