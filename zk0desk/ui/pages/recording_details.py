"""What is known of one recording: its facts, its cameras, the episodes that are left out, and what the check found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QHBoxLayout, QSizePolicy, QVBoxLayout, QWidget

from zk0desk.ui import theme
from zk0desk.ui.deep_checks import DeepCheck
from zk0desk.ui.pages.camera_table import CameraTable
from zk0desk.ui.pages.curation_card import Curating, CurationCard
from zk0desk.ui.pages.deep_check_row import DeepCheckRow
from zk0desk.ui.pages.fit_card import FitCard
from zk0desk.ui.pages.recording_words import dimensions, duration, megabytes, thousands, verdict
from zk0desk.ui.widgets import Badge, Card, ElidedLabel, FindingRow, KeyValueGrid, LinkButton, SecondaryButton

if TYPE_CHECKING:
    from zk0desk.settings import ChosenRecording
    from zk0desk.training.policy_fit import RecordingFit
    from zk0desk.training.recordings import CheckResult, Finding, PolicyNeeds

Change = Callable[..., None]
"""Called with what is to be kept of a chosen recording: `cameras`."""


@dataclass(frozen=True)
class RecordingActions:
    """What can be done with a recording: its deep check (`look` begins it; `was_deep`: it gave the findings), a repaired copy, and
    looking at its episodes (`watch`)."""

    check: DeepCheck
    look: Callable[[], object]
    was_deep: bool
    repair: Callable[[], object]
    watch: Callable[[], object]


class RecordingDetails(QWidget):
    """The right side of the page. `show_result` fills it anew."""

    def __init__(self) -> None:
        super().__init__()
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, theme.SPACE_2, 0)
        self._column.setSpacing(theme.SPACE_3)

    def show_result(
        self, result: CheckResult, needs: PolicyNeeds, chosen: ChosenRecording | None, change: Change, actions: RecordingActions,
        curating: Curating | None,
    ) -> None:  # fmt: skip
        """Show `result`; what a person changes of a `chosen` recording goes to `change`, what is to be done with it to `actions`.

        `curating` is None where the recording is not chosen.
        """
        while self._column.count():
            item = self._column.takeAt(0)
            if item is not None and (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        recording = result.recording
        self._column.addWidget(_head(result))
        if result.status != "ok":
            self._column.addWidget(_findings(result, actions))  # what stands in the way comes first
        if recording:
            self._column.addWidget(
                KeyValueGrid(
                    [
                        ("Robot", recording.robot or "not named"),
                        ("Format", recording.version),
                        ("Episodes / frames", f"{recording.episodes} / {thousands(recording.frames)}"),
                        ("Rate", f"{recording.fps:g} fps, {duration(recording.duration)}"),
                        ("State", dimensions(recording.state_dim, recording.state_names)),
                        ("Action", dimensions(recording.action_dim, recording.action_names)),
                        ("Task", "; ".join(recording.tasks[:3]) + (" …" if len(recording.tasks) > 3 else "") or "none"),
                        ("On disk", f"{megabytes(recording.bytes_on_disk)}, never leaves"),
                    ],
                    columns=2,
                    fold_below=560,
                )  # fmt: skip
            )
        self._column.addWidget(_links(result, actions))
        if recording:
            if recording.cameras:
                self._column.addWidget(CameraTable(result, needs, chosen, lambda slots: change(cameras=slots)))
            if curating is not None:
                self._column.addWidget(CurationCard(result, curating))
        if result.status == "ok":
            self._column.addWidget(_findings(result, actions))
        self._column.addStretch(1)

    def add_fit(self, fit: RecordingFit, others: Sequence[RecordingFit], findings: Sequence[Finding]) -> None:
        """Show the recording's numbers beside the policy's and the `others`', under all else."""
        self._column.insertWidget(self._column.count() - 1, FitCard(fit, others, findings))


def _links(result: CheckResult, actions: RecordingActions) -> QWidget:
    widget = QWidget()
    row = QHBoxLayout(widget)
    row.setContentsMargins(0, 0, 0, 0)
    if result.recording is not None and result.recording.episodes:
        row.addWidget(LinkButton("Loo&k at the episodes", "play-box-outline", actions.watch))
    folder = QUrl.fromLocalFile(str(result.path))
    row.addWidget(LinkButton("Sho&w in folder", "folder-open-outline", lambda: QDesktopServices.openUrl(folder)))
    row.addStretch(1)
    return widget


def _findings(result: CheckResult, actions: RecordingActions) -> Card:
    card = Card("What the check found")
    for finding in result.findings:
        card.body.addWidget(FindingRow(_with_episodes(finding)))
    if not result.findings:
        card.body.addWidget(FindingRow(_Fine("It can be read and fits the policy", "Looked at just now; no file was changed.")))
    if result.status == "repairable":
        words = "Conver&t a copy…" if verdict(result)[1] == "Can be converted" else "R&epair a copy…"
        card.body.addWidget(SecondaryButton(words, "content-copy", actions.repair), 0, Qt.AlignmentFlag.AlignLeft)
    if result.status == "ok":
        card.body.addWidget(LinkButton("Make a co&py…", "content-copy", actions.repair), 0, Qt.AlignmentFlag.AlignLeft)
    if result.recording is not None:
        card.body.addWidget(DeepCheckRow(actions.check, actions.look, was_deep=actions.was_deep))
    return card


def _with_episodes(finding: Finding) -> Finding:
    """The finding with the numbers of its episodes in its reason, where it does not name them."""
    if len(finding.episodes) < 2:
        return finding
    listed = ", ".join(map(str, finding.episodes[:12])) + (" …" if len(finding.episodes) > 12 else "")
    return replace(finding, why=f"{finding.why} Episodes {listed}.".strip())


def _head(result: CheckResult) -> QWidget:
    widget = QWidget()
    row = QHBoxLayout(widget)
    row.setContentsMargins(0, 0, 0, 0)
    name = ElidedLabel(result.recording.name if result.recording else result.path.name, "section")
    name.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
    row.addWidget(name)
    row.addSpacing(theme.SPACE_1)
    row.addWidget(Badge(*verdict(result)))
    row.addStretch(1)
    return widget


class _Fine:
    severity = "ok"
    remedy = ""

    def __init__(self, what: str, why: str) -> None:
        self.what, self.why = what, why
