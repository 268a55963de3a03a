"""How a federation stands, from the server's folder and its SuperLink alone: the run, the round under way, each node, losses, bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zk0desk.federation import chain
from zk0desk.federation.event_log import NAME, EventReader
from zk0desk.federation.quarantine import Held, Quarantine
from zk0desk.federation.run_record import RunRecord, records
from zk0desk.federation.server_folder import NodeRecord, Running, ServerFolder, ServerNotRunningError, fingerprint_of
from zk0desk.settings import ServerSettings

TOLD = 5
"""Notices that are kept to be shown."""
PACE = 5
"""Rounds by whose median the time that is left is estimated."""


@dataclass
class Answer:
    """What became of a node in a round: `training`, `accepted`, `refused` or `late`, and why; `loss` is its mean training loss."""

    state: str = "training"
    why: str = ""
    loss: float | None = None
    frames: float | None = None


@dataclass
class RunView:
    """What the events of a run say. Losses are by round, 0 being the base policy; times are Unix seconds."""

    run: str = ""
    rounds: int = 0
    round: int = 0
    opened: float = 0.0
    done: int = 0
    reason: str = ""
    finished: float = 0.0
    lr: float | None = None
    mu: float | None = None
    signal: str = ""
    signal_why: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    train: dict[int, float] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)
    retention: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    epsilon: tuple[float, float, float] | None = None
    """What differential privacy has spent, at which delta, and its budget."""
    bytes_up: int = 0
    bytes_down: int = 0

    def take(self, event: dict[str, Any]) -> None:
        """Take one event in. A round that was begun again counts once."""
        if (handler := getattr(self, "_" + event["event"].replace("-", "_"), None)) is not None:
            handler(event)

    def _run_started(self, event: dict[str, Any]) -> None:
        self.run, self.rounds, self.reason = event["run"], event["rounds"], ""
        self.done = event["round"] - 1

    def _round_opened(self, event: dict[str, Any]) -> None:
        self.round, self.opened = event["round"], event["time"]
        self.lr, self.mu = event["lr"], event["mu"]
        self.bytes_down += event.get("bytes", 0)
        self.answers = {node: Answer() for node in event["nodes"]}

    def _reply_accepted(self, event: dict[str, Any]) -> None:
        metrics = event["metrics"]
        self.answers[event["node"]] = Answer("accepted", "", metrics.get("loss-mean"), metrics.get("num-examples"))
        self.bytes_up += event["bytes"]

    def _reply_refused(self, event: dict[str, Any]) -> None:
        if event["round"] == self.round:  # a late reply is told in a later round
            state = "late" if event["code"] == "late" else "refused"
            self.answers[event["node"]] = Answer(state, f"{event['code']}: {event['why']}")

    def _schedule_decided(self, event: dict[str, Any]) -> None:
        self.signal, self.signal_why = event["signal"], event["why"]

    def _privacy_spent(self, event: dict[str, Any]) -> None:
        self.epsilon = event["epsilon"], event["delta"], event["budget"]

    def _round_aggregated(self, event: dict[str, Any]) -> None:
        for node in event["missing"]:
            self.answers[node] = Answer("late", "It did not answer in time.")
        if event["train-loss"] is not None:
            self.train[event["round"]] = event["train-loss"]

    def _evaluated(self, event: dict[str, Any]) -> None:
        number = event["round"]
        self.losses[number], self.errors[number] = event["loss"], event.get("standard-error") or 0.0
        if event.get("retention"):
            self.retention[number] = event["retention"]

    def _checkpoint_saved(self, event: dict[str, Any]) -> None:
        self.done = event["round"]
        if event["round"] == self.round:
            self.seconds[self.round] = event["time"] - self.opened

    def _run_finished(self, event: dict[str, Any]) -> None:
        self.reason, self.finished = event["reason"], event["time"]

    @property
    def best(self) -> int | None:
        """The round with the lowest held-out loss; None before there is one."""
        return min((number for number in self.losses if number), key=lambda number: self.losses[number], default=None)

    @property
    def forgetting(self) -> dict[str, float]:
        """How far the loss of each retention recording rose since round 0; negative: it fell."""
        base, last = self.retention.get(0, {}), self.retention.get(max(self.retention, default=0), {})
        return {name: loss - base[name] for name, loss in last.items() if name in base}

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the last round is done, by the median of the last rounds; None before one is done, or when it is over."""
        if self.reason or not self.seconds or self.rounds <= self.done:
            return None
        pace = statistics.median(list(self.seconds.values())[-PACE:])
        under_way = now - self.opened if self.round > self.done else 0.0
        return max(0.0, pace * (self.rounds - self.done) - min(under_way, pace))


@dataclass(frozen=True)
class ServerStatus:
    """How it stands now. `held` are nodes in quarantine, `online` is None where no SuperLink could be asked.

    `state` is the last thing that the server said it does.
    """

    settings: ServerSettings
    running: Running | None
    registered: list[NodeRecord]
    held: dict[bytes, Held]
    online: frozenset[bytes] | None
    record: RunRecord | None
    run: RunView
    state: dict[str, Any]
    notices: list[dict[str, Any]]
    now: float

    def nodes(self) -> list[dict[str, Any]]:
        """Each node that called or was admitted: what is known of its key, and of it in the round under way."""
        found = []
        for each in self.registered:
            online = each.status == "admitted" and self.online is not None and each.public_key in self.online
            answer = self.run.answers.get(fingerprint_of(each.public_key), Answer(""))
            if each.public_key in self.held:
                answer = Answer("quarantined", self.held[each.public_key].why)
            found.append(
                {
                    **each.to_json(),
                    **({"status": "online"} if online else {}),
                    "round": answer.state,
                    "why": answer.why,
                    "loss": answer.loss,
                    "frames": answer.frames,
                }
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """What `zk0desk server status --json` prints."""
        running, network = self.running, self.settings.network
        # What the rounds said last does not hold any more when they are over.
        state = {} if self.state.get("time", 0.0) < self.run.finished else self.state
        return {
            "federation": self.settings.federation,
            "address": f"{network.name}:{running.port if running else network.port}",
            "running": running is not None,
            "pid": running.pid if running else None,
            "since": running.started if running else None,
            "state": state.get("state", ""),
            "what": state.get("what", ""),
            "online-known": self.online is not None,
            "nodes": self.nodes(),
            "run": self._run_json(),
            "notices": self.notices,
        }

    def _run_json(self) -> dict[str, Any] | None:
        record, run = self.record, self.run
        if record is None:
            return None
        losses = {int(number): loss for number, loss in record.eval_losses.items()}
        evaluated = max(losses, default=None)
        return {
            "run": record.uid, "round": record.done, "rounds": record.rounds, "finished": record.finished, "reason": run.reason,
            "open-round": run.round, "round-since": run.opened or None, "lr": run.lr, "mu": run.mu,
            "signal": run.signal, "signal-why": run.signal_why,
            "best-round": record.best, "eval-losses": record.eval_losses, "train-losses": record.train_losses,
            "last-loss": None if evaluated is None else losses[evaluated],
            "best-loss": losses.get(record.best), "base-loss": losses.get(0),
            "standard-error": run.errors.get(evaluated) if evaluated is not None else None,
            "epsilon": run.epsilon and dict(zip(("spent", "delta", "budget"), run.epsilon, strict=True)),
            "forgetting": run.forgetting, "bytes-up": run.bytes_up, "bytes-down": run.bytes_down,
            "seconds-left": run.seconds_left(self.now),
        }  # fmt: skip


class StatusReader:
    """Reads how a server stands, again and again: of the events only those that are new. `ServerFolderError` where it is no server."""

    def __init__(self, server: ServerFolder) -> None:
        self._server = server
        self._state = EventReader(server.state / NAME)
        self._said: dict[str, Any] = {}
        self._notices: list[dict[str, Any]] = []
        self._run: tuple[EventReader, RunView] | None = None

    def read(self, online: frozenset[bytes] | None = None) -> ServerStatus:
        """How it stands now; `online` are the keys of nodes that the SuperLink sees (`online_keys`)."""
        server = self._server
        settings = server.settings()
        for event in self._state.new():
            if event["event"] == "server-state-changed":
                self._said = event
            elif event["event"] == "notice" and event.get("severity") != "note":
                self._notices = [*self._notices, event][-TOLD:]
        try:
            running = server.running()
        except ServerNotRunningError:
            running = None
        known = records(server)
        record = known[-1] if known else None
        view = self._view(record)
        held = Quarantine(server.nodes_path).held()
        said = self._said if running else {}
        return ServerStatus(settings, running, server.nodes().nodes(), held, online, record, view, said, self._notices, time.time())

    def _view(self, record: RunRecord | None) -> RunView:
        if record is None:
            return RunView()
        if self._run is None or self._run[1].run != record.uid:
            self._run = EventReader(self._server.runs / record.uid / chain.NAME), RunView(run=record.uid)
        reader, view = self._run
        view_of(reader.new(), view)
        return view


def view_of(events: Iterable[dict[str, Any]], view: RunView) -> RunView:
    """`view` with `events` taken in."""
    for event in events:
        view.take(event)
    return view


def online_keys(running: Running) -> frozenset[bytes]:
    """Public keys of the nodes that the SuperLink sees online. Raises `SuperLinkLost`."""
    from zk0desk.federation.grid import Control

    with Control(running.superlink, running.secret) as control:
        return frozenset(node.public_key for node in control.nodes() if node.online)
