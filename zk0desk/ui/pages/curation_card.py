"""Which episodes of a chosen recording are trained on: filters that leave some out with one click, by number, and why each is out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QWidget

from zk0desk.training.recording_types import CheckResult
from zk0desk.ui import theme
from zk0desk.ui.widgets import Caption, Card, FindingRow, LinkButton, SecondaryButton, Text

SHOWN = 12
"""Numbers of episodes that are listed of each reason."""


@dataclass(frozen=True)
class Curating:
    """What is left out of a chosen recording, each with its reason, and where changes go. `stale`: it was of another content.

    `was_deep`: the findings are a deep check's, so that its filters are known.
    """

    left_out: Mapping[int, str]
    change: Callable[[dict[int, str]], object]
    stale: bool
    was_deep: bool


class CurationCard(Card):
    """The episodes of `result`, whose recording can be read."""

    def __init__(self, result: CheckResult, curating: Curating) -> None:
        super().__init__("Episodes")
        from zk0desk.training.curation import proposals

        assert result.recording is not None
        self._curating, self._episodes = curating, result.recording.episodes
        out = curating.left_out
        self.trained = Caption(f"{self._episodes - len(out)} of {self._episodes} are trained on", wrap=False)
        self.header.addWidget(self.trained)
        self.problem = Text("", "error", wrap=False)
        self.problem.hide()
        if curating.stale:
            self._ask()
            return
        offered = proposals(result.findings, out)
        for proposal in offered:
            row = QHBoxLayout()
            many = f"episode {proposal.episodes[0]}" if len(proposal.episodes) == 1 else f"{len(proposal.episodes)} episodes"
            row.addWidget(
                SecondaryButton(f"Leave out {many}", "filter-remove-outline", partial(self._leave, proposal.episodes, proposal.reason))
            )
            row.addWidget(Caption(f"{proposal.reason}: {_listed(proposal.episodes)}"), 1)
            self.body.addLayout(row)
        if not offered:
            known = "No filter proposes an episode: none is too short, jumps, stands still or repeats another."
            ask = "Check every frame to find what is too short, jumps, stands still or repeats another."
            self.body.addWidget(Caption(known if curating.was_deep else ask))
        for reason, episodes in _by_reason(out).items():
            row = QHBoxLayout()
            row.addWidget(Text(f"Left out, {reason or 'no reason given'}: {_listed(episodes)}"), 1)
            back = LinkButton("Take back", "undo", partial(self._take_back, episodes))
            back.setAccessibleName(f"Take back what was left out: {reason or 'no reason given'}")
            row.addWidget(back)
            self.body.addLayout(row)
        self.body.addWidget(self._by_number())

    def _ask(self) -> None:
        """The recording changed: a person has to say what the numbers mean now."""
        out = self._curating.left_out
        what = "The recording has changed since its episodes were left out."
        why = f"Left out were {_listed(tuple(out))}; these may be other episodes now. Until you say so, nothing of it is trained on."
        self.body.addWidget(FindingRow(_Changed(what, why)))
        row = QHBoxLayout()
        row.addWidget(SecondaryButton("Keep these numbers", "check", lambda: self._curating.change(self._there(out))))
        row.addWidget(SecondaryButton("Take all back", "undo", lambda: self._curating.change({})))
        row.addStretch(1)
        self.body.addLayout(row)

    def _there(self, numbers: Mapping[int, str]) -> dict[int, str]:
        return {number: why for number, why in numbers.items() if number < self._episodes}

    def _by_number(self) -> QWidget:
        widget = QWidget()
        row = QHBoxLayout(widget)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(theme.SPACE_2)
        label = Text("Lea&ve out episodes", "muted", wrap=False)
        self.field = QLineEdit(", ".join(str(number) for number in self._curating.left_out))
        self.field.setPlaceholderText("none; such as 7, 31")
        self.field.setAccessibleName("Episodes that are not trained on")
        self.field.editingFinished.connect(self._typed)
        label.setBuddy(self.field)
        for each, stretch in ((label, 0), (self.field, 1), (self.problem, 0)):
            row.addWidget(each, stretch, Qt.AlignmentFlag.AlignVCenter)
        return widget

    def _typed(self) -> None:
        from zk0desk.training.curation import BY_HAND

        try:
            numbers = {int(part) for part in self.field.text().replace(",", " ").split()}
        except ValueError:
            numbers = {-1}
        out, last = self._curating.left_out, self._episodes - 1
        if any(not 0 <= number <= last for number in numbers):
            self._refuse(f"Numbers from 0 to {last}.")
        else:
            self._change({number: out.get(number, BY_HAND) for number in numbers})

    def _leave(self, episodes: tuple[int, ...], reason: str) -> None:
        self._change({**self._curating.left_out, **dict.fromkeys(episodes, reason)})

    def _take_back(self, episodes: tuple[int, ...]) -> None:
        self._change({number: why for number, why in self._curating.left_out.items() if number not in episodes})

    def _change(self, left_out: dict[int, str]) -> None:
        if len(left_out) >= self._episodes:
            self._refuse("One has to stay.")
            return
        self._refuse("")
        if left_out != dict(self._curating.left_out):
            self._curating.change(left_out)

    def _refuse(self, words: str) -> None:
        self.problem.setText(words)
        self.problem.setVisible(bool(words))


def _by_reason(left_out: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for number, reason in sorted(left_out.items()):
        found[reason] = (*found.get(reason, ()), number)
    return found


def _listed(episodes: tuple[int, ...]) -> str:
    return ", ".join(map(str, episodes[:SHOWN])) + (" …" if len(episodes) > SHOWN else "")


class _Changed:
    severity = "warning"
    remedy = "Look at the episodes, then choose."

    def __init__(self, what: str, why: str) -> None:
        self.what, self.why = what, why
