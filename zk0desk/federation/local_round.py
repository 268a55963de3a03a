"""One round as a node answers it: what was asked is checked, the update is put into the form that travels.

Shared by the node and by the ClientApp of a stock `flower-supernode`. numpy only; flwr's records are read by their attributes.
"""

from __future__ import annotations

import hashlib
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zk0desk.events import FederationMetrics, PrivacySpent, ScheduleDecided
from zk0desk.federation import updates
from zk0desk.federation.messages import (
    ARRAYS,
    CONFIG,
    DIFFERENCE,
    METRICS,
    MIN_FRAMES,
    NONE,
    Config,
    FinalWeights,
    MessageRefused,
    TrainRequest,
    WholeNeeded,
    check_metrics,
    reply_config,
)
from zk0desk.federation.run_store import RunStore
from zk0desk.federation.schedule import MARKED
from zk0desk.federation.updates import DIFFERENCES, DTYPES, decode, decode_piece, pieces, weights_sha256

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from zk0desk.federation.error_feedback import ErrorFeedback
    from zk0desk.federation.invitation import Invitation
    from zk0desk.federation.node_privacy import NodePrivacy
    from zk0desk.training.checkpoint import RoundCheckpoint
    from zk0desk.training.policy_files import PolicyFiles
    from zk0desk.training.rounds import RoundPlan, RoundResult

OVERHEAD = 2**20
"""Bytes of a message beyond its weights: names, settings, framing."""


class Trains(Protocol):
    """What trains a round: `training.trainer.LocalTrainer`."""

    @property
    def frames(self) -> int:
        """Frames of this node's data."""

    def train(self, plan: RoundPlan, global_weights: np.ndarray, kept: RoundCheckpoint | None = None) -> RoundResult:
        """Train one round from `global_weights` (float32, flat), or go on from where `kept` holds it."""


@dataclass(frozen=True)
class Answer:
    """A train reply before it becomes flwr's records. `sha256` is that of the encoded arrays."""

    arrays: list[np.ndarray]
    config: Config
    metrics: dict[str, float]

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over the arrays' bytes, in order."""
        return arrays_sha256(self.arrays)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays)

    def tensors(self) -> list[list[Any]]:
        """Name, shape and dtype of each array, for the ledger."""
        return [[piece_name(number), list(array.shape), str(array.dtype)] for number, array in enumerate(self.arrays)]


def piece_name(number: int) -> str:
    """The key of a piece in the `arrays` record; sorted, they are in order."""
    return f"{number:06d}"


def arrays_sha256(arrays: list[np.ndarray]) -> str:
    """Hex SHA-256 over the arrays' bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def message_limit(size: int) -> int:
    """Most bytes of a message for a trainable set of `size` values: the whole set as fp32, and what is around it."""
    return 4 * size + size // 64 + OVERHEAD


def read_request(content: RecordDict, files: PolicyFiles) -> TrainRequest:
    """What a train message asks; `MessageRefused` unless it is for this policy and within the contract's limits."""
    for name in content:
        if name not in (ARRAYS, CONFIG):
            raise MessageRefused(f"{name!s:.60}", "is not a record of a train message.")
    request = TrainRequest.from_config(_config(content))
    for key, theirs, ours in (
        ("layout-sha256", request.layout_sha256, files.layout.sha256),
        ("backbone-sha256", request.backbone_sha256, files.backbone_sha256),
        ("policy-id", request.policy_id, files.policy_id),
    ):
        if theirs != ours:
            raise MessageRefused(key, f"the round is for {theirs[:16]}, this computer's policy is {ours[:16]}.")
    return request


def read_weights(content: RecordDict, carried: TrainRequest | FinalWeights, size: int, store: RunStore | None = None) -> np.ndarray:
    """The weights that a message carries, float32, flat; their hash is what the message says.

    Differences are added to the last weights in `store`, multiply then add in float32, as on the server; those that the node has already
    are passed over. `MessageRefused` when the arrays do not fit; `WholeNeeded` when the differences do not lead from what the node holds to
    the coordinator's weights.
    """
    if carried.arrays_kind == DIFFERENCE:
        return _add_differences(content, carried, size, store)
    weights = decode(read_arrays(content, size), "fp32", size)
    if weights_sha256(weights) != carried.weights_sha256:
        raise MessageRefused("weights-sha256", "is not that of the weights which came.")
    return weights


def _add_differences(content: RecordDict, carried: TrainRequest | FinalWeights, size: int, store: RunStore | None) -> np.ndarray:
    arrays = read_arrays(content, size, DIFFERENCES)
    held = store.last() if store else None
    came = len(arrays) // pieces(size)
    needed = carried.formed_by - held[0] if held else -1
    if not 0 <= needed <= came or (needed == came and held and held[1] != carried.base_sha256):
        raise WholeNeeded("base-sha256", "this node does not hold the weights that the differences are added to.")
    weights = store.weights(size) if store else None
    if weights is None:
        raise WholeNeeded("base-sha256", "the weights that this node kept cannot be read.")
    scratch = np.empty(min(size, updates.PIECE), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number in range((came - needed) * pieces(size), len(arrays)):
            start = number % pieces(size) * updates.PIECE
            part = weights[start : start + updates.PIECE]
            decode_piece(arrays[number], carried.encoding, scratch[: part.size], f"{ARRAYS}[{piece_name(number)}]")
            np.add(part, scratch[: part.size], out=part)
    if weights_sha256(weights) != carried.weights_sha256:
        raise WholeNeeded("weights-sha256", "the differences do not lead to the coordinator's weights from those that this node kept.")
    return weights


def read_query(content: RecordDict, files: PolicyFiles) -> tuple[FinalWeights, np.ndarray] | None:
    """The weights that a query carries at a run's end, and what it says of them; None for a query without any.

    `MessageRefused` unless the weights are of this policy, finite and of the hash that is said; `WholeNeeded` as `read_weights`.
    """
    for name in content:
        if name not in (ARRAYS, CONFIG):
            raise MessageRefused(f"{name!s:.60}", "is not a record of a query.")
    final = FinalWeights.from_config(dict(content.config_records.get(CONFIG) or {}))
    if final is None:
        if content.array_records.get(ARRAYS):
            raise MessageRefused(ARRAYS, "came without the keys that say what they are.")
        return None
    for key, theirs, ours in (
        ("layout-sha256", final.layout_sha256, files.layout.sha256),
        ("backbone-sha256", final.backbone_sha256, files.backbone_sha256),
    ):
        if theirs != ours:
            raise MessageRefused(key, f"the weights are for {theirs[:16]}, this computer's policy is {ours[:16]}.")
    return final, read_weights(content, final, files.layout.size, RunStore.existing(final.run_uid))


def read_arrays(content: RecordDict, size: int, most: int = 1) -> list[np.ndarray]:
    """The pieces in the `arrays` record, of one to `most` vectors, checked for number and length before they are unpacked."""
    record = content.array_records.get(ARRAYS)
    names = [piece_name(number) for number in range(len(record or ()))]
    if record is None or sorted(record) != names or len(names) not in range(pieces(size), most * pieces(size) + 1, pieces(size)):
        raise MessageRefused(ARRAYS, f"does not hold the {pieces(size)} pieces of this policy's {size:,} values.")
    return [_array(name, record[name]) for name in names]


def _array(name: str, array: Any) -> np.ndarray:
    """flwr's array without a copy. Its header is parsed as a literal, never executed, and has to agree with its length."""
    if array.stype != "numpy.ndarray":
        raise MessageRefused(f"{ARRAYS}[{name}]", f"is stored as {array.stype!r:.40}.")
    buffer = io.BytesIO(array.data)
    try:
        if np.lib.format.read_magic(buffer) != (1, 0):
            raise ValueError("another format than 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
        if dtype not in DTYPES.values() or len(shape) != 1:
            raise ValueError(f"{len(shape)} dimensions of {dtype}")
        if prod(shape) * dtype.itemsize != len(array.data) - buffer.tell():
            raise ValueError("its length is not what its shape says")
        return np.frombuffer(array.data, dtype, offset=buffer.tell())
    except (ValueError, TypeError, EOFError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise MessageRefused(f"{ARRAYS}[{name}]", f"cannot be read: {error!s:.100}.") from error


def _config(content: RecordDict) -> Mapping[str, Any]:
    record = content.config_records.get(CONFIG)
    if record is None:
        raise MessageRefused(CONFIG, "is missing.")
    return dict(record)


def answer(request: TrainRequest, result: RoundResult, feedback: ErrorFeedback, privacy: NodePrivacy | None = None) -> Answer:
    """The reply to `request`. Losses that average fewer than `MIN_FRAMES` frames stay here; under `privacy` all metrics do.

    The change is encoded last: what protects it (a clip, noise) comes before, and `feedback` then keeps protected minus decoded.
    `BudgetSpent` when the operator's budget does not allow it.
    """
    if privacy is not None and privacy.on:
        protected = privacy.protect(result.delta, request.run_uid, request.server_round)
        return Answer(feedback.encode(protected, request), reply_config(request), {})
    metrics = {} if request.metrics == NONE else check_metrics(result.metrics)
    if metrics and metrics.get("frames-seen", metrics["num-examples"]) < MIN_FRAMES:
        metrics = {key: value for key, value in metrics.items() if not key.startswith("loss-")}
    return Answer(feedback.encode(result.delta, request), reply_config(request), metrics)


def answer_train(
    content: RecordDict,
    files: PolicyFiles,
    trainer: Trains,
    invitation: Invitation,
    *,
    deadline: float = 0.0,
    privacy: NodePrivacy | None = None,
) -> Answer:
    """The whole round: check, train, encode. `deadline` is the Unix time by which training has to end, or 0."""
    if privacy is not None:
        privacy.check()
    request = read_request(content, files)
    weights = read_weights(content, request, files.layout.size, RunStore.existing(request.run_uid))
    store = RunStore(request.run_uid)
    store.keep_weights(request, weights, invitation, files)
    return answer(request, trainer.train(request.plan(deadline), weights), store.feedback(), privacy)


def to_records(reply: Answer) -> RecordDict:
    """`reply` as flwr's records."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    arrays = ArrayRecord({piece_name(number): Array(array) for number, array in enumerate(reply.arrays)})
    return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(dict(reply.config)), METRICS: MetricRecord(dict(reply.metrics))})


def capability(files: PolicyFiles, frames: int) -> dict[str, Any]:
    """What a query is told: versions, the policy, and the number of frames."""
    from importlib.metadata import version

    from zk0desk import __version__

    return {"zk0desk-version": __version__, "flwr-version": version("flwr"), "policy-id": files.policy_id, "frames": frames}


# --- what is told of a message


def run_of(config: dict[str, Any]) -> tuple[str, int]:
    """Run and round for the ledger, of a message that is not validated yet."""
    run, number = config.get("run-uid", ""), config.get("server-round", 0)
    return (run[:128] if isinstance(run, str) else ""), (number if isinstance(number, int) and abs(number) < 2**31 else 0)


def contents_of(content: RecordDict) -> dict[str, Any]:
    """Tensors and settings of a received message, for the ledger."""
    tensors = [
        [f"{name:.40}", list(array.shape)[:8], f"{array.dtype:.20}"]
        for record in content.array_records.values()
        for name, array in record.items()
    ]
    config = {f"{key:.60}": f"{value!s:.300}" for record in content.config_records.values() for key, value in record.items()}
    return {"tensors": tensors[:256], "config": dict(list(config.items())[:128])}


def federation_metrics(run: str, last: Mapping[str, float], *, base: bool) -> list[FederationMetrics]:
    """What the coordinator told, as events: of the last round, and with `base` of the base policy, as round 0."""
    told = []
    if base and "base-eval-loss" in last:
        told.append(FederationMetrics(run=run, round=0, nodes=0, eval_loss=last["base-eval-loss"]))
    if "last-round" in last:
        nodes, train, held_out = (last.get(f"last-{name}") for name in ("nodes", "train-loss", "eval-loss"))
        told.append(FederationMetrics(run=run, round=int(last["last-round"]), nodes=int(nodes or 0), train_loss=train, eval_loss=held_out))
    return told


def federation_privacy(request: TrainRequest) -> PrivacySpent | None:
    """What the coordinator's differential privacy has spent before this round; None where it has none."""
    epsilon, delta, budget = (request.last.get(f"privacy-{name}") for name in ("epsilon", "delta", "budget"))
    if epsilon is None or delta is None or budget is None:
        return None
    run, number = request.run_uid, request.formed_by
    return PrivacySpent(run=run, round=number, of="federation", epsilon=epsilon, delta=delta, budget=budget)


def schedule_decided(request: TrainRequest) -> ScheduleDecided | None:
    """Why a round is asked with its learning rate and mu, in this program's own words; None when the coordinator gave no signal."""
    if not request.last_signal:
        return None
    return ScheduleDecided(
        run=request.run_uid, round=request.server_round, lr=request.lr, mu=request.proximal_mu, signal=request.last_signal,
        why=MARKED[request.last_signal],
    )  # fmt: skip
