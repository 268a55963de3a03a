"""Typed events: the only thing that flows upwards, to the window, the command line and the journal.

An event is a frozen dataclass. `to_json` gives the JSON object that headless commands print a line each: its
key `event` is the class's name in kebab-case, `time` the Unix time in seconds, and every field in kebab-case.
Losses are flow-matching losses (dimensionless), norms are L2 norms over the trainable set, durations seconds.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time as _time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).replace("_", "-").lower()


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened, and when (`time`, Unix seconds)."""

    time: float = field(default_factory=_time.time)
    kinds: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls) -> None:
        Event.kinds[_kebab(cls.__name__)] = cls

    @property
    def name(self) -> str:
        """The event's name in kebab-case, e.g. `step-done`."""
        return _kebab(type(self).__name__)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object; values that are not finite become None, so that every line is valid JSON."""
        fields = {_kebab(f.name): _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"event": self.name, **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Event:
        """The event that `to_json` wrote. Unknown keys are left out; an unknown event raises KeyError."""
        kind = Event.kinds[data["event"]]
        known = {_kebab(f.name): f.name for f in dataclasses.fields(kind)}
        return kind(**{known[key]: value for key, value in data.items() if key in known})


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


Sink = Callable[[Event], None]
"""Where events go. Called from whichever thread emits; must be quick and must not raise."""


# --- the node -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NodeStateChanged(Event):
    """The node is in another state. `what`, `why` and `then` answer "why is nothing happening?"."""

    state: str
    what: str
    why: str = ""
    then: str = ""
    since: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something a person should know. `severity` is `note`, `warning` or `error`."""

    severity: str
    code: str
    what: str
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Connected(Event):
    """The SuperLink accepted this node. `fingerprint` is that of the node's public key."""

    address: str
    node_id: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Transfer(Event):
    """Progress of a download or an upload, in bytes. `direction` is `down` or `up`."""

    direction: str
    run: str
    round: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, kw_only=True)
class MessageLogged(Event):
    """A message went over the wire, as in the ledger. `direction` is `sent` or `received`."""

    direction: str
    kind: str
    peer: str
    run: str
    round: int
    bytes: int
    sha256: str
    outcome: str = "ok"


@dataclass(frozen=True, kw_only=True)
class RoundStarted(Event):
    """A local round begins, or goes on after step `done` where an unclean end cut it off.

    `steps` is what is planned; `deadline` the Unix time by which the update is due, or 0.
    """

    run: str
    round: int
    rounds: int
    lr: float
    mu: float
    steps: int
    epochs: float
    batch_size: int
    frames: int
    deadline: float = 0.0
    done: int = 0


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimiser step. `proximal` is mu/2 * ||w - w_t||^2, `grad_norm` that of the data gradient before clipping."""

    run: str
    round: int
    step: int
    steps: int
    epoch: int
    loss: float
    proximal: float
    grad_norm: float
    lr: float
    mu: float
    frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RoundKept(Event):
    """The round is being kept on disk as it is after `step`: a killed node goes on from there.

    `bytes` are written now, `bytes_a_day` in a day of training at this pace.
    """

    run: str
    round: int
    step: int
    bytes: int = 0
    bytes_a_day: int = 0


@dataclass(frozen=True, kw_only=True)
class PrefixChosen(Event):
    """How the frozen part of the policy is computed in this run, and why, in words.

    `level` is `off` (LeRobot's own step), `N` (nothing is kept), `V` or `P`; `bytes` the cache when it is filled, `share` the frames that
    it then holds (0 to 1), `gain` how many times faster than LeRobot a visit is expected to be. `larger` says what more room would give.
    """

    run: str
    level: str
    reason: str
    bytes: int = 0
    share: float = 0.0
    gain: float = 1.0
    larger: str = ""


@dataclass(frozen=True, kw_only=True)
class RoundTimes(Event):
    """Where a local round's time went: `seconds` for each of `prepare` (the frozen part), `wait` (for data), `forward`, `backward`,
    `optimiser` and `other`; and the prefix cache: entries found (`hits`) of those `asked` for, `filled` of `frames`."""

    run: str
    round: int
    seconds: dict[str, float]
    hits: int = 0
    asked: int = 0
    filled: int = 0
    frames: int = 0


@dataclass(frozen=True, kw_only=True)
class Prepared(Event):
    """The prefix cache is being filled before training: `done` of `frames`; `seconds` since it began."""

    done: int
    frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MuChanged(Event):
    """The node's own rule raised or lowered mu after `step`, an epoch's end; `what` and `why` in words.

    `cause` is `loss` (the losses of the last epochs scatter: `loss_std`), `gradient` (`grad_norm`), `both`, or `calm`.
    """

    run: str
    round: int
    step: int
    epoch: int
    mu: float
    before: float
    cause: str
    what: str
    why: str
    loss_std: float
    loss_std_limit: float
    grad_norm: float
    grad_norm_limit: float


@dataclass(frozen=True, kw_only=True)
class RoundTrained(Event):
    """The local round is over; `metrics` are those that go to the coordinator (the allow-list of the wire contract).

    `partial` says why less than the plan was done ("deadline", "finished early"), or is empty.
    """

    run: str
    round: int
    metrics: dict[str, float]
    partial: str = ""


@dataclass(frozen=True, kw_only=True)
class UpdateSent(Event):
    """The update reached the SuperLink."""

    run: str
    round: int
    bytes: int
    sha256: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FederationMetrics(Event):
    """What the coordinator told about a finished round: mean local loss over nodes, and held-out loss."""

    run: str
    round: int
    nodes: int
    train_loss: float | None = None
    eval_loss: float | None = None


# --- the coordinator ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ServerStateChanged(Event):
    """What the coordinator's side is doing: `starting`, `waiting-for-nodes`, `training`, `aggregating`, `evaluating`, ..."""

    state: str
    what: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class PrivacySpent(Event):
    """What releases under differential privacy have spent with this round's, `of` "node" or "federation"; `budget` is never exceeded."""

    run: str
    round: int
    of: str
    epsilon: float
    delta: float
    budget: float


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A run of `rounds` rounds begins, or goes on at `round`."""

    run: str
    round: int
    rounds: int
    policy: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ScheduleDecided(Event):
    """Round `round` is asked with another learning rate or mu than the one before. `signal` is what the held-out losses showed, as in
    `schedule.MARKED`, or `start`, `cosine`, `fixed`; `why` says it in words. A node tells it too, of the round that it was sent."""

    run: str
    round: int
    lr: float
    mu: float
    signal: str
    why: str


@dataclass(frozen=True, kw_only=True)
class RoundOpened(Event):
    """The global weights went out to `nodes` (fingerprints of their keys); all of them together will fetch `bytes`."""

    run: str
    round: int
    nodes: list[str]
    lr: float
    mu: float
    weights_sha256: str
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ReplyAccepted(Event):
    """A node's update is valid and goes into the round's aggregation. `norm` is its L2 norm as it came, before clipping."""

    run: str
    round: int
    node: str
    bytes: int
    sha256: str
    metrics: dict[str, float]
    norm: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ReplyRefused(Event):
    """A node's reply is not part of the round, and why."""

    run: str
    round: int
    node: str
    code: str
    why: str


@dataclass(frozen=True, kw_only=True)
class NodeQuarantined(Event):
    """A node is not asked any more, because its last `strikes` replies were refused; `zk0desk server admit` lifts that."""

    run: str
    round: int
    node: str
    strikes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class RoundAggregated(Event):
    """w_{t+1} = w_t + sum p_k delta_k was formed, or what a robust `method` gave. `shares` maps node to p_k (they sum to 1); nodes whose
    updates the method left out are not in it. `missing` did not answer. `bound` is the longest norm that an update may have, and `clipped`
    maps a node whose update was longer to what it was multiplied with.
    """

    run: str
    round: int
    shares: dict[str, float]
    missing: list[str]
    train_loss: float | None
    update_norm: float
    weights_sha256: str
    method: str = "mean"
    bound: float = 0.0
    clipped: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Held-out loss of the global policy after `round` (0: the base), the mean over all valid entries, and per recording.

    `standard_error` is that of `loss`, `standard_errors` those of each recording's. `retention` has the losses of recordings whose tasks
    the base policy knew: what they rose since round 0 was forgotten.
    """

    run: str
    round: int
    loss: float
    frames: int
    recordings: dict[str, float]
    standard_error: float = 0.0
    standard_errors: dict[str, float] = field(default_factory=dict)
    retention: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SettingsChanged(Event):
    """A running federation goes on with other settings from `round` on: `changes` maps a key to what it was and what it is."""

    run: str
    round: int
    changes: dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """The global policy of this round is a complete folder on disk."""

    run: str
    round: int
    folder: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The run ended: `reason` is `complete`, `stopped` or `failed`."""

    run: str
    rounds: int
    reason: str
    policy: str


# --- the demo -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DemoFinished(Event):
    """The demo is over. `policy` is a folder that `SmolVLAPolicy.from_pretrained` loads."""

    rounds: int
    eval_loss_first: float | None
    eval_loss_last: float | None
    policy: str
