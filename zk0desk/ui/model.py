"""What all pages share: settings, the journal, the node that runs, and what it tells."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Signal

from zk0desk import events, folders
from zk0desk.federation.node_state import RUNNING, SENTENCES, NodeState
from zk0desk.ui.engine_work import EngineWork
from zk0desk.ui.update_watch import UpdateWatch

if TYPE_CHECKING:
    from zk0desk.control import NodeControl
    from zk0desk.federation.keyring_record import KeyringUnavailable
    from zk0desk.journal import Journal
    from zk0desk.settings import Settings
    from zk0desk.ui.hardware_look import HardwareLook
    from zk0desk.ui.node_thread import NodeThread
    from zk0desk.ui.run_data import RunData


class WindowState:
    """The little that is read before the first paint: theme and geometry, a small JSON file in the state folder."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or folders.state_folder() / "window.json"
        self._forgotten = False
        self.values: dict[str, Any] = {}
        try:
            read = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            read = None  # missing or damaged: the defaults do, and closing the window writes it again
        if isinstance(read, dict):
            self.values = read

    def text(self, name: str, default: str = "") -> str:
        """The text kept under `name`."""
        value = self.values.get(name, default)
        return value if isinstance(value, str) else default

    def keep(self, **values: Any) -> None:
        """Keep `values` and write the file when something changed. A disk that is full does not stop the window."""
        changed = {**self.values, **values}
        if changed == self.values or self._forgotten:
            return
        self.values = changed
        with contextlib.suppress(OSError):
            folders.private_folder(self.path.parent)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(changed), encoding="utf-8")
            partial.replace(self.path)

    def forget(self) -> None:
        """Write no more: a person removed all data."""
        self._forgotten = True


class AppModel(QObject):
    """The window's model. `settings_path` and `journal_path` default to the operator's files.

    `nodeEvent` fires for every event of the node, in order, in the window's thread; `nodeEvents` for each batch, and is
    what plots listen to. `nodeStateChanged` carries a `NodeStateChanged`. `showPage` asks the window for a page by its
    `page_id`. `invitationOpened` carries a line or the path of a file that came from outside. `quitAsked` asks the window to
    end, `restartAsked` to end and begin anew; `engineAsked` asks its page to show where the engine is got.
    """

    settingsChanged = Signal()
    nodeEvent = Signal(object)
    nodeEvents = Signal(list)
    nodeStateChanged = Signal(object)
    nodeStarted = Signal()
    nodeEnded = Signal()
    showPage = Signal(str)
    invitationOpened = Signal(str)
    hardwareSeen = Signal()
    keyringChecked = Signal()
    quitAsked = Signal()
    restartAsked = Signal()
    engineAsked = Signal()
    engineSeen = Signal()
    engineTaken = Signal()

    def __init__(self, settings_path: Path | None = None, journal_path: Path | None = None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.settings_path = settings_path
        self.journal_path = journal_path
        self.window_state = WindowState()
        self.control: NodeControl | None = None
        self.pending_invitation = ""
        self.last_notice: events.Notice | None = None
        self.hardware: HardwareLook | None = None
        """What was seen of this computer last; `hardwareSeen` fires when it was looked at."""
        self.keyring_trouble: KeyringUnavailable | None = None
        """What the trial of the keyring found in the way, if anything; `keyringChecked` fires when it was tried."""
        self.engine = EngineWork(self.window_state, self)
        self.updates = UpdateWatch(self)
        self.engine_missing = False
        """Whether there is no engine that can train, as far as was seen; `engineSeen` fires when it was looked at."""
        self.engine_at_once = True
        """Whether this process uses the engine that was got last; `engineTaken` fires when that is decided. Else after a restart."""
        self.engine.usable.connect(self._take_engine)
        self._keyring_tried = False
        self._settings: Settings | None = None
        self._journal: Journal | None = None
        self._thread: NodeThread | None = None
        self._federation = ""
        self._loaded: set[str] = set()
        self._states: deque[events.NodeStateChanged] = deque(maxlen=256)
        """What the node did since its last update."""
        self.live_run: RunData | None = None
        """The run that the node takes part in, or took part in last, since this window was opened."""
        what, why, then = SENTENCES[NodeState.IDLE]
        self.state_event = events.NodeStateChanged(state=NodeState.IDLE, what=what, why=why, then=then)

    # --- settings and journal

    @property
    def settings(self) -> Settings:
        """The settings, read when first asked for. SettingsError when the file cannot be used."""
        if self._settings is None:
            from zk0desk import settings

            self._settings = settings.load(self.settings_path)
        return self._settings

    def update_settings(self, settings: Settings) -> None:
        """Write `settings` to the file and tell everyone."""
        from zk0desk import settings as module

        before = self._settings
        module.save(settings, self.settings_path)
        self._settings = settings
        self.window_state.keep(theme=settings.appearance.theme)
        self.settingsChanged.emit()
        if self._keyring_tried and before is not None and before.federation.key_storage != settings.federation.key_storage:
            self.check_keyring()

    def reload_settings(self) -> None:
        """Read the file again, after a person mended it by hand."""
        self._settings = None
        _ = self.settings
        self.settingsChanged.emit()

    @property
    def journal(self) -> Journal:
        """The journal, opened when first asked for. JournalError when it cannot be used."""
        if self._journal is None:
            from zk0desk.journal import Journal

            self._journal = Journal(self.journal_path)
        return self._journal

    def close(self) -> None:
        """Close what is open, and end the work on the engine. The node has to have ended."""
        self.engine.end()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # --- the keyring

    def check_keyring(self) -> None:
        """Try in the background whether the keyring keeps secrets, where the node's key is kept there."""
        from zk0desk.errors import OperatorError
        from zk0desk.ui.background import in_background

        self._keyring_tried = True
        try:
            needed = self.settings.federation.key_storage == "keyring"
        except OperatorError:
            return  # the pages say what is wrong with the settings
        if not needed:
            self._keyring_seen(None)
            return
        from zk0desk.federation.keyring_check import check_keyring

        in_background(self, check_keyring, self._keyring_seen)

    def _keyring_seen(self, trouble: KeyringUnavailable | None) -> None:
        self.keyring_trouble = trouble
        self.keyringChecked.emit()

    # --- the node

    @property
    def state(self) -> NodeState:
        """What the node does."""
        return NodeState(self.state_event.state)

    @property
    def running(self) -> bool:
        """Whether the node's thread lives."""
        return self._thread is not None

    @property
    def thread_of_node(self) -> NodeThread | None:
        """The node's thread while it lives."""
        return self._thread

    def join_again(self) -> None:
        """Join where the settings want it at each start in the background; only under what was agreed to, and to the same federation."""
        from zk0desk.errors import OperatorError

        try:
            federation = self.settings.federation
        except OperatorError:
            return  # the pages say what is wrong with the settings
        if federation.join_at_start and federation.invitation and federation.consent:
            self.join()

    def join(self) -> None:
        """Start the node with the settings of now. Does nothing while one runs. The events tell how it goes.

        Consent is the node's own condition: without it the node fails with a sentence before anything is sent.
        """
        if self._thread is not None:
            return
        from zk0desk.control import NodeControl
        from zk0desk.errors import OperatorError
        from zk0desk.ui.node_thread import NodeThread

        try:
            settings, journal = self.settings, self.journal
        except OperatorError as error:
            self.take([
                events.Notice(severity="error", code=error.code, what=error.what, why=error.why, remedy=error.remedy),
                events.NodeStateChanged(state=NodeState.FAILED, what=error.what, why=error.why, then=error.remedy),
            ])  # fmt: skip
            return
        self.last_notice = None
        self._federation = _federation_of(settings)
        self.control = NodeControl()
        self._thread = NodeThread(settings, journal, self.control, parent=self)
        self._thread.batch.connect(self.take)
        self._thread.ended.connect(self._on_ended)
        self._thread.start()
        self.nodeStarted.emit()

    def take(self, batch: list[events.Event]) -> None:
        """Give a batch of events to everyone who listens."""
        self._keep(batch)
        for event in batch:
            if isinstance(event, events.NodeStateChanged):
                self.state_event = event
                self.nodeStateChanged.emit(event)
            elif isinstance(event, events.Notice):
                self.last_notice = event
            self.nodeEvent.emit(event)
        if batch:
            self.nodeEvents.emit(batch)

    def _keep(self, batch: list[events.Event]) -> None:
        begin = 0
        for index, event in enumerate(batch):
            if isinstance(event, events.NodeStateChanged):
                self._states.append(event)
            elif isinstance(event, events.UpdateSent):
                self._states.clear()
            run = getattr(event, "run", "") if isinstance(event, events.RoundStarted | events.FederationMetrics) else ""
            if run and (self.live_run is None or self.live_run.run != run):
                if self.live_run is not None:
                    self.live_run.take(batch[begin:index])
                begin = index
                from zk0desk.ui.run_data import RunData

                self.live_run = RunData(run)
                self.live_run.title = self._federation
                self.live_run.parts.take_all(self._states)  # a run's first message is received before its name is known
            if isinstance(event, events.RoundStarted) and self.live_run is not None and run not in self._loaded:
                self._loaded.add(run)
                self._load_earlier(self.live_run, event.round, event.done)
        if self.live_run is not None:
            self.live_run.take(batch[begin:])

    def _load_earlier(self, data: RunData, current: int, done: int) -> None:
        """What an earlier start of this run left in the journal comes before what is trained now: rounds, and steps of this one."""
        if (current < 2 and not done) or self._journal is None:
            return
        from zk0desk.ui.background import in_background
        from zk0desk.ui.run_data import RunData

        journal = self._journal
        in_background(self, lambda: RunData.from_journal(journal, data.run, before_round=current, and_steps=done), data.prepend)

    def _on_ended(self) -> None:
        thread, self._thread = self._thread, None
        self.control = None
        if thread is not None:
            thread.deleteLater()
        if self.state in RUNNING:
            what, why, then = SENTENCES[NodeState.STOPPED]
            self.take([events.NodeStateChanged(state=NodeState.STOPPED, what=what, why=why, then=then)])
        self.nodeEnded.emit()

    def pause(self) -> None:
        """Hold between two steps."""
        if self.control is not None:
            self.control.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self.control is not None:
            self.control.resume()

    def finish_round(self) -> None:
        """Finish this round, send its update, then stop."""
        if self.control is not None:
            self.control.finish_round()

    def stop_now(self) -> None:
        """Stop at once; nothing more is sent."""
        if self.control is not None:
            self.control.stop_now()

    def look_for_engine(self) -> None:
        """Look in the background whether there is an engine."""
        from zk0desk.ui.background import in_background

        def missing() -> bool:
            from zk0desk.engine import state

            seen = state.look()
            return seen.kind in ("none", "damaged") or bool(seen.missing)

        in_background(self, missing, self.engine_seen)

    def _take_engine(self) -> None:
        """An engine was got: this process takes it into use where it can. What was seen of this computer without it does not count."""
        from zk0desk.ui.background import in_background
        from zk0desk.ui.engine_look import take_into_use

        def taken(at_once: bool) -> None:
            self.engine_at_once = at_once
            self.hardware = None
            self.engine_seen(False)
            self.hardwareSeen.emit()
            self.engineTaken.emit()

        in_background(self, take_into_use, taken)

    def engine_seen(self, missing: bool) -> None:
        """Take in whether the engine is missing, and tell everyone."""
        self.engine_missing = missing
        self.engineSeen.emit()

    def show_engine(self) -> None:
        """Show where the training engine is got."""
        self.showPage.emit("computer")
        self.engineAsked.emit()

    # --- from outside

    def open_invitation(self, text: str) -> None:
        """Take an invitation that came by a link, a file or a second start, and show the page that explains it."""
        self.pending_invitation = text
        self.showPage.emit("federation")
        self.invitationOpened.emit(text)


def _federation_of(settings: Settings) -> str:
    """The name of the federation that the settings' invitation leads to, or nothing."""
    from zk0desk.errors import OperatorError
    from zk0desk.federation.invitation import Invitation

    try:
        return Invitation.parse(settings.federation.invitation).federation
    except OperatorError:
        return ""
