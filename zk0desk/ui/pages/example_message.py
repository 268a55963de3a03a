"""What a round will send, shown before anyone agrees, with this operator's own figures as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QHBoxLayout, QVBoxLayout, QWidget

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.widgets import Card, Heading, KeyValueGrid, SecondaryButton, Text, scrolled

if TYPE_CHECKING:
    from zk0desk.federation.invitation import Invitation
    from zk0desk.journal import Journal
    from zk0desk.settings import ChosenRecording

UNKNOWN = "not known before a round"
TYPICAL = {
    "loss-first": "0.52", "loss-last": "0.41", "loss-mean": "0.45", "loss-std": "0.03", "proximal-last": "0.0002", "grad-norm": "0.8",
    "update-norm": "1.6",
}  # fmt: skip
"""What a figure looks like that training only gives."""


@dataclass(frozen=True)
class OwnFigures:
    """What this computer knows of its next message. `frames` 0: not counted, `why` then says why; `last` is the latest round's metrics."""

    recordings: int = 0
    frames: int = 0
    why: str = ""
    last: dict[str, float] = field(default_factory=dict)


def own_figures(chosen: tuple[ChosenRecording, ...], journal: Journal | None) -> OwnFigures:
    """Count the frames of the chosen recordings, and look up what the latest round sent. Reads files: call it in the background."""
    from zk0desk.training.chosen_frames import chosen_frames

    frames, why = 0, "" if chosen else "no recording is chosen yet"
    try:
        frames = sum(chosen_frames(each) for each in chosen)
    except OperatorError as error:
        frames, why = 0, error.what.rstrip(".")
    return OwnFigures(len(chosen), frames, why, _latest_metrics(journal) if journal is not None else {})


def _latest_metrics(journal: Journal) -> dict[str, float]:
    for run in journal.runs():
        metrics = [row["metrics"] for row in journal.rounds(run["run"]) if row["metrics"]]
        if metrics:
            return dict(metrics[-1])
    return {}


def update_row(invitation: Invitation) -> tuple[str, str]:
    """The update: how many values, in which form, how many bytes."""
    from zk0desk.federation.updates import encoded_bytes

    count = encoded_bytes(invitation.trainable_parameters, invitation.encoding)
    size = f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
    form = f"{invitation.trainable_parameters:,} values as {invitation.encoding}"
    return "Update", f"{size} ({count:,} bytes): what training changed in the policy's trainable part, {form}"


def figure_rows(invitation: Invitation, own: OwnFigures) -> list[tuple[str, str]]:
    """Name and words of every figure that is sent, in the contract's order."""
    from zk0desk.federation.messages import TRAIN_METRICS

    return [(name, _figure(name, invitation, own)) for name in TRAIN_METRICS]


def _figure(name: str, invitation: Invitation, own: OwnFigures) -> str:
    frames, batch = own.frames, invitation.batch_size
    steps = invitation.local_steps or (ceil(ceil(frames / batch) * invitation.local_epochs) if frames else 0)
    visits = steps * batch if invitation.local_steps else frames * invitation.local_epochs
    planned = {
        "num-examples": f"{frames:,}, the frames that you train on" if frames else "",
        "frames-seen": f"{visits:,.0f} at most" if visits else "",
        "epochs-done": f"{visits / frames:.3g} at most" if frames else "",
        "steps-done": f"{steps:,} at most" if steps else "",
    }
    if name in planned:
        return planned[name] or f"not known yet: {own.why}"
    if name in ("mu-used", "lr-used"):
        return f"the coordinator's {'proximal mu' if name == 'mu-used' else 'learning rate'} of that round" + _latest(name, own)
    if name == "seconds":
        return f"how long it took: at most {invitation.deadline_s:.0f}" + _latest(name, own)
    if name in own.last:
        return f"{own.last[name]:.4g} in your latest round"
    return f"{UNKNOWN}; such as {TYPICAL[name]}" if name in TYPICAL else UNKNOWN


def _latest(name: str, own: OwnFigures) -> str:
    return f"; {own.last[name]:.4g} in your latest round" if name in own.last else ""


class ExampleDialog(QDialog):
    """The message of a round, part by part. `fingerprint` is the node's, or empty while it has no key."""

    def __init__(self, parent: QWidget, invitation: Invitation, fingerprint: str) -> None:
        super().__init__(parent)
        self._invitation, self._fingerprint = invitation, fingerprint
        self.setWindowTitle("What a round sends")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(720, 560)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(theme.SPACE_4, theme.SPACE_4, theme.SPACE_4, theme.SPACE_4)
        outer.setSpacing(theme.SPACE_3)
        outer.addWidget(Heading("What a round sends"))
        self.answer = Text("Counting the frames of your recordings…", "muted")
        outer.addWidget(self.answer)
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(0, 0, theme.SPACE_2, 0)
        column.setSpacing(theme.SPACE_3)
        self.whole, self.figures, self.labels = KeyValueGrid(), KeyValueGrid(), KeyValueGrid()
        for title, grid in (("From this computer", self.whole), ("Figures", self.figures), ("To tell the round", self.labels)):
            card = Card(title)
            card.body.addWidget(grid)
            column.addWidget(card)
        column.addStretch(1)
        outer.addWidget(scrolled(content), 1)
        row = QHBoxLayout()
        row.addStretch(1)
        self.close_button = SecondaryButton("&Close", "", self.accept)
        self.close_button.setDefault(True)
        row.addWidget(self.close_button)
        outer.addLayout(row)
        self.close_button.setFocus()
        self.labels.set_rows([
            ("run-uid, server-round", "which run and which of its rounds: as the coordinator numbered them"),
            ("base-sha256", "which weights the update is relative to: those that the coordinator sent"),
            ("layout-sha256", f"{invitation.layout_sha256[:16]}…, the order of the policy's trainable parameters"),
            ("encoding", invitation.encoding),
        ])  # fmt: skip

    def fill(self, chosen: tuple[ChosenRecording, ...], journal: Journal | None) -> None:
        """Count in the background, then show."""
        in_background(self, lambda: own_figures(chosen, journal), self.show_figures, self._failed)

    def _failed(self, error: OperatorError) -> None:
        self.show_figures(OwnFigures(why=error.what.rstrip(".")))

    def show_figures(self, own: OwnFigures) -> None:
        """Show what is known, and say of the rest that it is not."""
        counted = f"{own.frames:,} of {own.recordings} recording" + ("s" if own.recordings != 1 else "")
        self.whole.set_rows([
            ("Your node", self._fingerprint or "not known yet: its key is made when the node joins"),
            update_row(self._invitation),
            ("Frames", f"{counted}: only this number, never a frame" if own.frames else f"not known yet: {own.why}"),
        ])  # fmt: skip
        self.figures.set_rows(figure_rows(self._invitation, own))
        self.answer.setText("This is all of it. No picture, no name, no path and no statistic of a recording is in it.")
