"""This computer: does the policy train here, and if not, why and what to do. And which policy that is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QTimer
from PySide6.QtGui import QGuiApplication, QShowEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.hardware_look import Asked, HardwareLook, look_at_hardware
from zk0desk.ui.keyring_banner import KeyringBanner
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.devices_card import DevicesCard
from zk0desk.ui.pages.engine_card import EngineCard
from zk0desk.ui.pages.how_it_trains_card import HowItTrainsCard
from zk0desk.ui.pages.hub_dialog import open_hub_dialog
from zk0desk.ui.pages.network_card import NetworkCard
from zk0desk.ui.pages.prepared_card import PreparedCard
from zk0desk.ui.pages.round_time_card import RoundTimeCard
from zk0desk.ui.widgets import (
    Badge,
    Card,
    FindingRow,
    KeyValueGrid,
    LinkButton,
    PageHeader,
    PrimaryButton,
    SecondaryButton,
    Text,
    scrolled,
)  # fmt: skip

if TYPE_CHECKING:
    from zk0desk.training.hardware import Computer, Verdict
    from zk0desk.training.policy_files import PolicyFiles

ANSWERS = {"ok": ("ok", "Ready"), "limits": ("warning", "With limits"), "no": ("error", "Not here")}


class ComputerPage(QWidget):
    """What was seen of this computer, the verdict, and the base policy."""

    page_id, title, icon_name = "computer", "This computer", "desktop-classic"

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self.computer: Computer | None = None
        self.verdict: Verdict | None = None
        self.files: PolicyFiles | None = None
        self._looked = False
        self._asked = Asked(None)
        self._known: HardwareLook | None = None
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(22, theme.SPACE_4, 20, theme.SPACE_4)
        column.setSpacing(theme.SPACE_3)
        self.header = PageHeader("This computer", "Looking at this computer…")
        self.go_on = PrimaryButton("Cont&inue: federation", "arrow-right", lambda: model.showPage.emit("federation"))
        self.header.actions.addWidget(self.go_on)
        column.addWidget(self.header)
        column.addWidget(KeyringBanner(model))
        self.engine = EngineCard(model)
        self.engine.changed.connect(self.look)
        self.engine.seen.connect(self._engine_seen)
        column.addWidget(self.engine)

        policy = Card("Base policy")
        self.policy_badge = Badge("muted", "Not chosen")
        policy.header.addWidget(self.policy_badge)
        policy.header.addStretch(1)
        self.choose = SecondaryButton("Choose a f&older", "folder-open-outline", self._choose)
        policy.header.addWidget(self.choose)
        self.from_hub = SecondaryButton("From the &Hub…", "cloud-download-outline", lambda: open_hub_dialog(self.model, "policy", self))
        policy.header.addWidget(self.from_hub)
        self.policy_text = Text("", "muted")
        self.policy_grid = KeyValueGrid()
        policy.body.addWidget(self.policy_text)
        policy.body.addWidget(self.policy_grid)
        column.addWidget(policy)

        self.findings = Card("Can it train here?")
        self.badge = Badge("muted", "Looking…")
        self.findings.header.addWidget(self.badge)
        self.findings.header.addStretch(1)
        self._rows = QVBoxLayout()
        self.findings.body.addLayout(self._rows)
        column.addWidget(self.findings)

        self.how = HowItTrainsCard(model)
        self.round_time = RoundTimeCard(model)
        self.prepared = PreparedCard(model)
        self.devices = DevicesCard()
        self.network = NetworkCard(model)
        for card in (self.how, self.round_time, self.prepared, self.devices, self.network):
            column.addWidget(card)

        seen = Card("What is here")
        self.again = LinkButton("Chec&k again", "refresh", self.look)
        self.copy = LinkButton("Cop&y as text", "content-copy", self._copy)
        seen.header.addStretch(1)
        seen.header.addWidget(self.copy)
        seen.header.addWidget(self.again)
        self.grid = KeyValueGrid()
        seen.body.addWidget(self.grid)
        column.addWidget(seen)
        column.addStretch(1)
        outer = QHBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        self._area = scrolled(content)
        outer.addWidget(self._area)
        model.engineAsked.connect(lambda: self._area.verticalScrollBar().setValue(0))
        model.settingsChanged.connect(self._settings_changed)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if not self._looked:
            self._looked = True
            QTimer.singleShot(0, self, self.look)
        QTimer.singleShot(0, self.engine, self.engine.refresh)
        QTimer.singleShot(0, self.round_time, self.round_time.refresh)
        QTimer.singleShot(0, self.prepared, self.prepared.refresh)

    # --- looking

    def _engine_seen(self) -> None:
        """Where the engine is still to be got, that is what to do next on this page."""
        look = self.engine.look
        self.go_on.setVisible(look is None or look.choice is None or not look.missing)

    def _question(self) -> Asked:
        try:
            return Asked.of(self.model.settings)
        except OperatorError as error:
            self.header.set_answer(str(error))
            return Asked(None)

    def _settings_changed(self) -> None:
        if self._looked:
            self.round_time.refresh()
            self.prepared.refresh()
        asked = self._question()
        if not self._looked:
            return
        if asked == self._asked:
            self._show_choices()
        elif asked.folder == self._asked.folder and self._known is not None:
            self._asked = asked
            self._show(self._known.judged(asked))  # the computer is the same
        else:
            self.look()

    def look(self) -> None:
        """Look at the computer and the policy in the background."""
        self.header.set_answer("Looking at this computer…")
        self.again.setEnabled(False)
        self._known = None
        self._asked = asked = self._question()
        in_background(self, lambda: look_at_hardware(asked), self._show, self._failed)

    def _failed(self, error: OperatorError) -> None:
        self.again.setEnabled(True)
        self.header.set_answer(str(error))

    def _show(self, look: HardwareLook) -> None:
        if look.asked != self._asked:
            return  # something else was chosen meanwhile, and is being looked at
        self._known = look
        computer, answer, files = look.computer, look.verdict, look.files
        self.computer, self.verdict, self.files = computer, answer, files
        self.again.setEnabled(True)
        self.header.set_answer(_headline(look))
        self.badge.set(*ANSWERS[answer.answer])
        while self._rows.count():
            item = self._rows.takeAt(0)
            if item is not None and (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        if answer.answer == "ok":
            self._rows.addWidget(FindingRow(_Fine(computer, answer)))
        for finding in answer.findings:
            self._rows.addWidget(FindingRow(finding))
        self.grid.set_rows(self.rows())
        self._show_choices()
        self._show_policy(files, look.trouble)
        self.go_on.setEnabled(answer.answer != "no" and files is not None)
        self.model.hardware = look
        self.model.hardwareSeen.emit()

    def _show_choices(self) -> None:
        if self.computer is not None and self.verdict is not None:
            self.how.show_look(self.computer, self.verdict)

    def rows(self) -> list[tuple[str, str]]:
        """What was seen, as names and values."""
        from zk0desk.amounts import gigabytes

        computer, answer = self.computer, self.verdict
        if computer is None or answer is None:
            return []
        rows = [("Processor", f"{computer.cpu}, {computer.cores} cores"), ("Instructions", ", ".join(computer.instructions) or "not told")]
        for gpu in computer.gpus:
            driver = f", driver {gpu.driver}" if gpu.driver else ""
            rows.append(("GPU", f"{gpu.name}, {gigabytes(gpu.memory_free)} of {gigabytes(gpu.memory)} free{driver}"))
        if not computer.gpus:
            rows.append(("GPU", "none that can train"))
        free = f"{gigabytes(computer.memory_free)} of {gigabytes(computer.memory)} free"
        rows += [
            ("Memory", f"{free}; training takes about {gigabytes(_main_memory(answer))}"),
            ("Disk", f"{gigabytes(computer.disk_free)} free"),
            ("System", computer.system),
            ("Keyring", computer.keyring),
            ("Versions", ", ".join(f"{name} {version or 'not installed'}" for name, version in computer.versions.items())),
        ]
        return rows

    # --- the policy

    def _show_policy(self, files: PolicyFiles | None, trouble: OperatorError | None) -> None:
        self.policy_text.setVisible(files is None)
        self.policy_grid.setVisible(files is not None)
        if files is None:
            self.policy_badge.set(*(("error", "Cannot be used") if trouble else ("muted", "Not chosen")))
            hint = "Training begins from a SmolVLA policy. Choose its folder, the one that holds config.json and model.safetensors."
            self.policy_text.setText(str(trouble) if trouble else hint)
            return
        self.policy_badge.set("ok", "Ready")
        self.policy_grid.set_rows([
            ("Folder", str(files.folder)),
            ("Size", f"{files.parameters:,} parameters, {files.trainable_parameters:,} of them train"),
            ("Id", files.policy_id),
            ("Frozen part", f"SHA-256 {files.backbone_sha256}"),
            ("Layout", f"SHA-256 {files.layout.sha256}"),
        ])  # fmt: skip

    def _choose(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose the base policy's folder")
        if folder:
            self.set_policy(Path(folder))

    def set_policy(self, folder: Path) -> None:
        """Take the policy in `folder` as the base."""
        try:
            settings = self.model.settings
            policy = settings.policy.model_copy(update={"folder": folder})
            self.model.update_settings(settings.model_copy(update={"policy": policy}))
        except (OperatorError, OSError) as error:
            self.header.set_answer(str(error))

    def _copy(self) -> None:
        answer = self.verdict.sentence if self.verdict else ""
        QGuiApplication.clipboard().setText("\n".join([answer, *(f"{name}: {value}" for name, value in self.rows())]))


def _headline(look: HardwareLook) -> str:
    """The page's answer: the verdict, what it is about, and where to look for what limits it."""
    said = look.headline
    if look.verdict.answer == "no":
        said += " What stands in the way is below."
    if look.asked.folder is None:
        said = f"{said.replace('The policy', 'SmolVLA at full size', 1)} Choose the base policy's folder."
    return said


class _Fine:
    """Nothing stands in the way: with which figures that was decided."""

    severity, remedy = "ok", ""

    def __init__(self, computer: Computer, answer: Verdict) -> None:
        from zk0desk.amounts import gigabytes

        self.what: Any = "Memory, disk, drivers and versions are as training needs them."
        on_gpu = f", and {gigabytes(answer.memory_needed)} of the GPU's" if answer.device != "cpu" else ""
        self.why = (
            f"Training takes about {gigabytes(_main_memory(answer))} of memory{on_gpu}; {gigabytes(computer.memory_free)} of memory "
            f"and {gigabytes(computer.disk_free)} of disk are free."
        )


def _main_memory(answer: Verdict) -> int:
    """Bytes of this computer's own memory that training takes: the libraries, and without a GPU the policy as well."""
    from zk0desk.training.hardware import LIBRARIES

    return int(LIBRARIES) + (answer.memory_needed if answer.device == "cpu" else 0)
