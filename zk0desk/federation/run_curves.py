"""The curves of a run, as the paper's Figure 3 has them, from the run's journal: held-out loss, the nodes' losses, schedule, forgetting."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zk0desk import charts
from zk0desk.charts import Line, Mark, Panel
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation import schedule
from zk0desk.federation.event_log import run_events
from zk0desk.federation.run_record import RunRecord, records
from zk0desk.federation.server_folder import ServerFolder

MOST_NODES = 7
"""Nodes with a curve of their own; of more the mean alone is told apart."""


class NothingToDraw(OperatorError):
    """There is no run, or none of that name, or it has no round yet."""

    code = "nothing-to-draw"
    exit_status = ExitStatus.USAGE


class Curves:
    """A run's values by round; round 0 is the base policy. A round that was begun again counts as it ended."""

    def __init__(self, events: Iterable[dict[str, Any]]) -> None:
        self.loss: dict[int, float] = {}
        self.error: dict[int, float] = {}
        self.recordings: dict[str, dict[int, float]] = {}
        self.retention: dict[str, dict[int, float]] = {}
        self.train: dict[int, float] = {}
        self.nodes: dict[str, dict[int, float]] = {}
        self.lr: dict[int, float] = {}
        self.mu: dict[int, float] = {}
        self.step: dict[int, float] = {}
        self.signals: dict[int, str] = {}
        self.epsilon: dict[int, float] = {}
        """What the coordinator's differential privacy has spent after a round."""
        for event in events:
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        number = event.get("round", 0)
        match event["event"]:
            case "evaluated":
                self.loss[number], self.error[number] = event["loss"], event.get("standard-error") or 0.0
                for known, losses in ((self.recordings, event["recordings"]), (self.retention, event.get("retention") or {})):
                    for name, loss in losses.items():
                        known.setdefault(name, {})[number] = loss
            case "round-opened":
                self.lr[number], self.mu[number] = event["lr"], event["mu"]
                for losses in self.nodes.values():
                    losses.pop(number, None)
            case "reply-accepted" if event["metrics"].get("loss-mean") is not None:
                self.nodes.setdefault(event["node"], {})[number] = event["metrics"]["loss-mean"]
            case "round-aggregated":
                self.step[number] = event["update-norm"]
                if event["train-loss"] is not None:
                    self.train[number] = event["train-loss"]
            case "privacy-spent" if event["of"] == "federation":
                self.epsilon[number] = event["epsilon"]
            case "schedule-decided" if event["signal"] in schedule.MARKED:
                self.signals[number] = event["signal"]

    def panels(self, *, names: bool = True) -> list[Panel]:
        """What there is to draw, the held-out loss first. Without `names` no recording and no node is told apart."""
        marks = [Mark(number, signal) for number, signal in sorted(self.signals.items())]
        found = []
        if self.loss:
            lines = [_line("held-out loss", self.loss, self.error)]
            if names and len(self.recordings) > 1:
                lines += [_line(name, losses) for name, losses in self.recordings.items()]
            if 0 in self.loss:
                lines.append(Line("base policy", [0, max(self.loss)], [self.loss[0]] * 2, dashed=True))
            found.append(Panel("Held-out loss of the global policy", lines, marks=marks))
        if self.train:
            lines = [_line("mean over nodes", self.train)]
            if names and len(self.nodes) <= MOST_NODES:
                lines += [_line(name, losses) for name, losses in sorted(self.nodes.items())]
            found.append(Panel("Training loss on the nodes", lines, marks=marks))
        if self.retention:
            lines = [
                _line(name if names else f"recording {place}", {number: loss - losses[0] for number, loss in losses.items()})
                for place, (name, losses) in enumerate(self.retention.items(), 1)
                if 0 in losses
            ]
            found.append(Panel("Forgetting: loss on tasks that the base policy knew, less that of round 0", lines))
        if self.lr:
            found.append(Panel("Learning rate", [_line("learning rate", self.lr)], log=all(self.lr.values()), marks=marks))
            found.append(Panel("Proximal coefficient", [_line("mu", self.mu)], marks=marks))
        if self.step:
            found.append(Panel("Length of the step that a round made", [_line("L2 norm", self.step)]))
        if self.epsilon:
            found.append(Panel("Privacy spent", [_line("epsilon", self.epsilon)]))
        if found:
            last = found[-1]
            found[-1] = Panel(last.title, last.lines, "round", last.log, last.marks)
        return found


def _line(name: str, values: dict[int, float], errors: dict[int, float] | None = None) -> Line:
    rounds = sorted(values)
    return Line(name, rounds, [values[each] for each in rounds], [errors[each] for each in rounds] if errors else ())


def draw_run(server: ServerFolder, out: Path, run: str = "") -> tuple[RunRecord, Path]:
    """Draw the curves of `run` (default: the last) to `out`, a PNG. `NothingToDraw` where there are none."""
    settings = server.settings()
    record = chosen_run(server, run)
    panels = Curves(run_events(server, record.uid)).panels()
    if not panels:
        raise NothingToDraw(f"Run {record.uid} has nothing to draw yet.", "Its journal tells of no round.", "Wait for its first round.")
    title = f"{settings.federation}: run {record.uid}, round {record.done} of {record.rounds}"
    return record, charts.draw(out, title, panels, height=260)


def chosen_run(server: ServerFolder, run: str = "") -> RunRecord:
    """The run whose id begins with `run` (default: the last). `NothingToDraw` when there is none."""
    known = [record for record in records(server) if record.uid.startswith(run)]
    if not known:
        what = f"No run {run:.40} is kept in {server.path}." if run else f"No run is kept in {server.path}."
        raise NothingToDraw(what, "", f"Begin one: zk0desk server run {server.path}")
    return known[-1]
