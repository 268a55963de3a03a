"""The wire contract: what the coordinator may ask, what a node may answer, and the limits of every value.

Both sides import it, and neither trusts the other: everything received goes through `TrainRequest.from_config`,
`check_metrics` or `check_reply` before it is used. numpy-free and flwr-free.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.training.rounds import RoundPlan

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of the records in a message."""
TRAIN, QUERY, EVALUATE = "train", "query", "evaluate"
"""Message types. `evaluate` is refused unless the operator allows it."""
ENCODINGS = ("fp32", "fp16", "int8")
"""How an update or a difference travels. Whole weights always travel as fp32."""
SENT, NONE = "sent", "none"
"""Values of `metrics`: under differential privacy none are sent."""
WHOLE, DIFFERENCE = "whole", "difference"
"""Values of `arrays-kind`."""

Value = str | int | float
Config = dict[str, Value]

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}\Z")
_LARGE = 1e12


class MessageRefused(OperatorError):
    """Something received is not what the wire contract allows. `key` names it."""

    code = "message-refused"
    exit_status = ExitStatus.REFUSED

    def __init__(self, key: str, why: str) -> None:
        super().__init__(
            "A message was refused.", f"`{key}`: {why}", "Nothing of it was used. Tell the other side; both should run the same zk0desk."
        )
        self.key = key

    @property
    def reason(self) -> str:
        """One line for an error reply: code, key and why."""
        return f"{self.code}: {self.why}"


class WholeNeeded(MessageRefused):
    """Differences came that lead to no weights which this node can check. It is answered by sending the weights whole."""

    code = "whole-needed"

    def __init__(self, key: str, why: str) -> None:
        super().__init__(key, why)
        self.what, self.remedy = "The whole weights are asked for.", "They come by themselves."


def asks_for_whole(error: str) -> bool:
    """Whether an error reply is that of a node which needs the whole weights."""
    return error.startswith(f"{WholeNeeded.code}:")


def _number(key: str, value: Any, low: float, high: float, *, whole: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise MessageRefused(key, f"must be {'an integer' if whole else 'a number'}, not {type(value).__name__}.")
    # Integers beyond float's range would overflow in isfinite; the comparison with int handles them.
    if isinstance(value, float) and not math.isfinite(value):
        raise MessageRefused(key, f"{value} is not finite.")
    if not low <= value <= high:
        raise MessageRefused(key, f"{_shown(value)} is not between {low:g} and {high:g}.")
    return value


def _text(key: str, value: Any, form: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not form.match(value):
        raise MessageRefused(key, f"{_shown(value)} is not {what}.")
    return value


def _choice(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise MessageRefused(key, f"{_shown(value)} is not one of {', '.join(allowed)}.")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    return f"{value!r:.60}" if isinstance(value, (str, int, float)) else type(value).__name__


_INTEGERS: dict[str, tuple[float, float]] = {
    "server-round": (1, 100_000),
    "num-rounds": (1, 100_000),
    "seed": (0, 2**31 - 1),
    "local-steps": (0, 1_000_000),
    "batch-size": (1, 4096),
    "accepted-round": (0, 100_000),
}
_FLOATS: dict[str, tuple[float, float]] = {
    "lr": (0, 1e-1),
    "proximal-mu": (0, 100),
    "mu-max": (0, 100),
    "mu-alpha": (0, 100),
    "mu-loss-std": (0, 1e6),
    "mu-grad-norm": (0, 1e6),
    "local-epochs": (0, 10_000),
    "deadline-s": (0, 39_600),
}
_LAST_INTEGERS: dict[str, tuple[float, float]] = {"last-round": (0, 100_000), "last-nodes": (0, 100_000)}
_LAST_FLOATS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("last-train-loss", "last-eval-loss", "base-eval-loss"), (0, 1e9)),
    "privacy-epsilon": (0, 1e6),
    "privacy-delta": (0, 1),
    "privacy-budget": (0, 1e6),
}
LAST_KEYS = frozenset(_LAST_INTEGERS) | frozenset(_LAST_FLOATS)
"""Keys of `TrainRequest.last`: what the coordinator tells about the round before, and the held-out loss of the base policy, to
compare with. A loss that is unknown is left out."""
LAST_VERDICT = "last-verdict"
"""Optional key of a train message and of a query: what became of this node's reply of the round before. `ACCEPTED`, or
`CODE: why` of at most `VERDICT_LIMIT` printable characters."""
ACCEPTED = "accepted"
VERDICT_LIMIT = 300
LAST_SIGNAL = "last-signal"
"""Optional key of a train message: what the held-out losses showed when this round's learning rate and mu were decided."""
SIGNALS = ("spike", "calm", "rising", "plateau", "cycle-end", "worse", "better")
"""Values of `last-signal`; what they mean is in `schedule.MARKED`."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `train` asks, the keys of its `config` record as attributes.

    `weights_sha256` is that of the weights to train from, as float32; `base_sha256` that of the weights which a
    differences are added to (equal to `weights_sha256` for whole weights). `deadline_s` counts from receipt to the end
    of the upload, 0: none. `encoding` is that of the reply, and of differences. `local_steps` > 0 replaces epochs. `accepted_round` is the
    last round in which this node's update was accepted, 0 when none was. `metrics` is `NONE` where the update is to come without any.
    """

    run_uid: str
    server_round: int
    num_rounds: int
    seed: int
    lr: float
    proximal_mu: float
    batch_size: int
    policy_id: str
    backbone_sha256: str
    layout_sha256: str
    weights_sha256: str
    base_sha256: str
    local_epochs: float = 1.0
    local_steps: int = 0
    deadline_s: float = 0.0
    encoding: str = "fp16"
    arrays_kind: str = WHOLE
    accepted_round: int = 0
    mu_max: float = 0.02
    mu_alpha: float = 1.0
    mu_loss_std: float = 1.2
    mu_grad_norm: float = 1.0
    metrics: str = SENT
    last_verdict: str = ""
    last_signal: str = ""
    last: dict[str, float] = field(default_factory=dict)

    def to_config(self) -> Config:
        """The `config` record. Losses of `last` that are not finite or beyond their limit are left out, and so is what is empty."""
        config = own_config(last_verdict=self.last_verdict)
        if self.last_signal:
            config[LAST_SIGNAL] = self.last_signal
        for item in dataclasses.fields(self):
            if item.name not in _OPTIONAL:
                key = item.name.replace("_", "-")
                value = getattr(self, item.name)
                config[key] = float(value) if key in _FLOATS else value
        return {**config, **_told(self.last)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainRequest:
        """The request in `config`; `MessageRefused` names the first key that is unknown, absent, of a wrong type or out of range."""
        names = {item.name.replace("_", "-"): item for item in dataclasses.fields(cls) if item.name not in _OPTIONAL}
        for key in config:
            if key not in names and key not in LAST_KEYS and key not in (LAST_VERDICT, LAST_SIGNAL):
                raise MessageRefused(f"{key!s:.60}", "is not a key of a train message.")
        values: dict[str, Any] = {}
        for key, item in names.items():
            if key not in config:
                raise MessageRefused(key, "is missing.")
            values[item.name] = _checked(key, config[key])
        signal = _choice(LAST_SIGNAL, config[LAST_SIGNAL], SIGNALS) if LAST_SIGNAL in config else ""
        request = cls(**values, last_verdict=_read_verdict(config), last_signal=signal, last=_read_last(config))
        request._agree()
        return request

    @property
    def formed_by(self) -> int:
        """The round that formed the weights to train from; 0 for the base policy's."""
        return self.server_round - 1

    def _agree(self) -> None:
        if not self.local_steps and self.local_epochs <= 0:
            raise MessageRefused("local-epochs", "must be more than 0 when local-steps is 0.")
        if self.server_round > self.num_rounds:
            raise MessageRefused("server-round", f"{self.server_round} is beyond num-rounds, {self.num_rounds}.")
        if self.accepted_round >= self.server_round:
            raise MessageRefused("accepted-round", f"{self.accepted_round} is not before server-round, {self.server_round}.")
        _agree_on_base(self)

    def plan(self, deadline: float = 0.0) -> RoundPlan:
        """The local round; `deadline` is the Unix time by which training has to end, or 0."""
        return RoundPlan(
            run=self.run_uid,
            round=self.server_round,
            rounds=self.num_rounds,
            seed=self.seed,
            lr=self.lr,
            mu=self.proximal_mu,
            batch_size=self.batch_size,
            local_epochs=self.local_epochs,
            local_steps=self.local_steps,
            deadline=deadline,
            mu_max=max(self.mu_max, self.proximal_mu),
            mu_alpha=self.mu_alpha,
            mu_loss_std=self.mu_loss_std,
            mu_grad_norm=self.mu_grad_norm,
        )


_OPTIONAL = ("last", "last_verdict", "last_signal")


def _told(last: Mapping[str, float]) -> Config:
    """`last` without losses that are not finite or beyond their limit: a round whose loss is out of bounds is still asked for."""
    limits = {**_LAST_INTEGERS, **_LAST_FLOATS}
    fit = {key: value for key, value in last.items() if math.isfinite(value) and limits[key][0] <= value <= limits[key][1]}
    return {key: int(value) if key in _LAST_INTEGERS else float(value) for key, value in fit.items()}


def _agree_on_base(carried: TrainRequest | FinalWeights) -> None:
    if carried.arrays_kind == WHOLE and carried.base_sha256 != carried.weights_sha256:
        raise MessageRefused("base-sha256", "must be weights-sha256 when the whole weights are sent.")


def _read_last(config: Mapping[str, Any]) -> dict[str, float]:
    last: dict[str, float] = {}
    for limits, whole in ((_LAST_INTEGERS, True), (_LAST_FLOATS, False)):
        last |= {key: _number(key, config[key], *limits[key], whole=whole) for key in limits if key in config}
    return last


def _read_verdict(config: Mapping[str, Any]) -> str:
    verdict = config.get(LAST_VERDICT, "")
    if not isinstance(verdict, str) or not verdict.isprintable() or len(verdict) > VERDICT_LIMIT:
        raise MessageRefused(LAST_VERDICT, f"{_shown(verdict)} is not a line of at most {VERDICT_LIMIT} printable characters.")
    return verdict


def own_config(*, last_verdict: str) -> Config:
    """The key that says `last_verdict`, which is made one line and cut to its limit; nothing for an empty one."""
    line = "".join(character if character.isprintable() else " " for character in last_verdict)[:VERDICT_LIMIT]
    return {LAST_VERDICT: line} if line else {}


def _checked(key: str, value: Any) -> Value:
    if key in _INTEGERS:
        return int(_number(key, value, *_INTEGERS[key], whole=True))
    if key in _FLOATS:
        return float(_number(key, value, *_FLOATS[key]))
    if key == "encoding":
        return _choice(key, value, ENCODINGS)
    if key == "metrics":
        return _choice(key, value, (SENT, NONE))
    if key == "arrays-kind":
        return _choice(key, value, (WHOLE, DIFFERENCE))
    if key.endswith("-sha256"):
        return _text(key, value, _HEX, "a SHA-256 in hex")
    return _text(key, value, _NAME, "a name of at most 128 letters, digits, dots and dashes")


# --- replies --------------------------------------------------------------------------------------------------

TRAIN_METRICS: dict[str, tuple[float, float]] = {
    "num-examples": (1, 1e9),
    "frames-seen": (1, _LARGE),
    "epochs-done": (0, 1e6),
    "steps-done": (1, 1e9),
    "loss-first": (0, 1e9),
    "loss-last": (0, 1e9),
    "loss-mean": (0, 1e9),
    "loss-std": (0, 1e9),
    "proximal-last": (0, _LARGE),
    "grad-norm": (0, _LARGE),
    "update-norm": (0, _LARGE),
    "mu-used": (0, 100),
    "lr-used": (0, 1e-1),
    "seconds": (0, 1e6),
}
"""The only metrics that a node sends after a round, with lowest and highest value allowed."""

MIN_FRAMES = 32
"""A metric that is sent averages at least this many frames."""


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a train reply as floats; `MessageRefused` unless each key is known, finite and in range.

    `num-examples` and `steps-done` are required, unless there are none at all: a node may tell nothing of its data.
    """
    if not metrics:
        return {}
    for key in metrics:
        if key not in TRAIN_METRICS:
            raise MessageRefused(f"{key!s:.60}", "is not a metric of a train reply.")
    for key in ("num-examples", "steps-done"):
        if key not in metrics:
            raise MessageRefused(key, "is missing.")
    return {key: float(_number(key, value, *TRAIN_METRICS[key])) for key, value in metrics.items()}


REPLY_KEYS = ("base-sha256", "layout-sha256", "encoding", "run-uid", "server-round")
"""Keys of the `config` record of a train reply."""


def reply_config(request: TrainRequest) -> Config:
    """The `config` record of the reply to `request`: which weights the update is relative to, and its form."""
    return {
        "base-sha256": request.weights_sha256,
        "layout-sha256": request.layout_sha256,
        "encoding": request.encoding,
        "run-uid": request.run_uid,
        "server-round": request.server_round,
    }


def check_reply(config: Mapping[str, Any], request: TrainRequest) -> None:
    """Raise `MessageRefused` unless `config` is exactly that of a reply to `request`."""
    wanted = reply_config(request)
    for key in config:
        if key not in wanted:
            raise MessageRefused(f"{key!s:.60}", "is not a key of a train reply.")
    for key, value in wanted.items():
        if key not in config:
            raise MessageRefused(key, "is missing.")
        if type(config[key]) is not type(value) or config[key] != value:
            raise MessageRefused(key, f"is {_shown(config[key])} where {value!r} was asked.")


_FINAL_KEYS = (
    "server-round", "num-rounds", "backbone-sha256", "layout-sha256", "weights-sha256", "base-sha256", "arrays-kind", "encoding",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FinalWeights:
    """What a query says of the weights that it carries: those formed by round `server_round`, after which no round follows for now.

    `base_sha256`, `arrays_kind` and `encoding` as in `TrainRequest`. `last` has keys of `LAST_KEYS`, its `last-round` being `server_round`.
    """

    run_uid: str
    server_round: int
    num_rounds: int
    backbone_sha256: str
    layout_sha256: str
    weights_sha256: str
    base_sha256: str
    arrays_kind: str = WHOLE
    encoding: str = "fp16"
    last_verdict: str = ""
    last: dict[str, float]

    @property
    def formed_by(self) -> int:
        """The round that formed the weights."""
        return self.server_round

    def to_config(self) -> Config:
        """The `config` record. Losses of `last` that are not finite or beyond their limit are left out."""
        config: Config = {"run-uid": self.run_uid, **own_config(last_verdict=self.last_verdict)}
        config |= {key: getattr(self, key.replace("-", "_")) for key in _FINAL_KEYS}
        return {**config, **_told(self.last)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FinalWeights | None:
        """What `config` says of weights, None when it is a query without any. `MessageRefused` as `check_query`."""
        last = check_query(config)
        if not any(key in config for key in _FINAL_KEYS):
            return None
        values: dict[str, Any] = {key.replace("-", "_"): config[key] for key in ("run-uid", *_FINAL_KEYS)}
        final = cls(**values, last_verdict=_read_verdict(config), last=last)
        _agree_on_base(final)
        return final


def check_query(config: Mapping[str, Any]) -> dict[str, float]:
    """What a query tells of the last round (keys of `LAST_KEYS`).

    `MessageRefused` for keys other than those, `run-uid`, `last-verdict`, and, all together, those of `FinalWeights`.
    """
    for key in config:
        if key not in ("run-uid", LAST_VERDICT) and key not in LAST_KEYS and key not in _FINAL_KEYS:
            raise MessageRefused(f"{key!s:.60}", "is not a key of a query.")
    last = _read_last(config)
    _read_verdict(config)
    if config:
        _text("run-uid", config.get("run-uid"), _NAME, "a name of at most 128 letters, digits, dots and dashes")
    if any(key in config for key in _FINAL_KEYS):
        for key in _FINAL_KEYS:
            if key not in config:
                raise MessageRefused(key, "is missing.")
            _checked(key, config[key])
        if config["server-round"] > config["num-rounds"]:
            raise MessageRefused("server-round", f"{config['server-round']} is beyond num-rounds, {config['num-rounds']}.")
        if last.get("last-round", config["server-round"]) != config["server-round"]:
            raise MessageRefused("last-round", "is not the round that formed the weights.")
    return last
