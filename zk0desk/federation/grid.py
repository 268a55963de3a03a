"""The coordinator's connections to its SuperLink on loopback: Control API, and the ServerApp's grid.

Own polling and no retry of flwr's: its retry invoker signals this process on a 401 and waits without an end. A lost
connection is `SuperLinkLost` here, and the caller decides.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import tokenize
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from logging import ERROR
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import numpy as np
from google.protobuf.message import DecodeError

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.gateway import SECRET_HEADER
from zk0desk.federation.messages import ARRAYS, CONFIG, METRICS, MessageRefused
from zk0desk.quiet import quiet_libraries

quiet_libraries()

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict  # noqa: E402 - quiet first
from flwr.common.constant import ErrorCode, SubStatus  # noqa: E402
from flwr.common.serde import config_record_from_proto, fab_to_proto, metric_record_from_proto, run_from_proto  # noqa: E402
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest, UnregisterNodeRequest  # noqa: E402
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest  # noqa: E402
from flwr.proto.message_pb2 import Message as ProtoMessage  # noqa: E402
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigRecord  # noqa: E402
from flwr.proto.recorddict_pb2 import MetricRecord as ProtoMetricRecord  # noqa: E402
from flwr.proto.runtime_pb2 import (  # noqa: E402
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER, TaskType  # noqa: E402
from flwr.supercore.control import ControlHttpClient  # noqa: E402
from flwr.supercore.fab import Fab  # noqa: E402
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor  # noqa: E402
from flwr.supercore.runtime import RuntimeHttpClient  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402
from flwr.superlink.grid import HttpGrid  # noqa: E402

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext


HEARTBEAT_S = 15.0
ARRIVAL_LIMIT_S = 7200.0
"""How long a reply's arrays may take to follow the reply; the round's deadline is what usually ends it."""
ARRIVALS = 256
"""Replies that can arrive at once. Wide, because that mostly is waiting for a node's line: slow ones must not hold up the others."""
PULLS = 2
"""Objects that are pulled and looked at at once, of all replies together: what they take of memory does not grow with the nodes."""
SMALL = 2**20
"""Most bytes of an object that is no part of an array: names, settings, metrics."""
LARGE = 16 * 2**20 + 2**16
"""Most bytes of a piece of the arrays: 4,194,304 values as fp32, and their header."""
CHUNKS = 16
"""Most chunks of a piece. flwr cuts arrays into chunks of 5 MiB: a piece has one in int8, two in fp16, four in fp32."""

GONE = frozenset({ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE})
"""Error replies that the SuperLink makes itself: the instruction is gone, and the round has to be sent again."""


class SuperLinkLost(OperatorError):
    """The SuperLink does not answer, or has forgotten this run."""

    code = "superlink-lost"
    exit_status = ExitStatus.UNREACHABLE


class LocalSecret:
    """Adds the header that the SuperLink's port asks for."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """flwr's interceptor interface."""
        context.request.headers[SECRET_HEADER] = self._secret
        return call_next(context)


@contextmanager
def _losing() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, ConnectionError) as error:
        raise SuperLinkLost(
            "The SuperLink does not answer.", f"{error or type(error).__name__}.", "It is started again by itself."
        ) from error


@dataclass(frozen=True)
class OnlineNode:
    """A registered node: `online` as the SuperLink saw its last heartbeat."""

    node_id: int
    public_key: bytes
    online: bool


class Control:
    """The SuperLink's Control API: which node keys may take part."""

    def __init__(self, address: str, secret: str) -> None:
        self._client = ControlHttpClient.from_server_address(
            address, True, None, interceptors=[RuntimeVersionHttpInterceptor(component_name="zk0desk-server"), LocalSecret(secret)]
        )

    def nodes(self) -> list[OnlineNode]:
        """All registered nodes."""
        with _losing():
            found = self._client.ListNodes(ListNodesRequest())
        return [OnlineNode(n.node_id, n.public_key, n.status == "online") for n in found.nodes_info if n.status != "unregistered"]

    def register(self, public_key: bytes) -> None:
        """Let a node with this key (PEM) take part. Known keys stay as they are."""
        if all(node.public_key != public_key for node in self.nodes()):
            with _losing():
                self._client.RegisterNode(RegisterNodeRequest(public_key=public_key))

    def unregister(self, public_key: bytes) -> None:
        """Refuse a node with this key from now on."""
        for node in self.nodes():
            if node.public_key == public_key:
                with _losing():
                    self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))

    def start_run(self) -> int:
        """A new Flower run; its id."""
        with _losing():
            run_id = int(self._client.StartRun(StartRunRequest(fab=fab_to_proto(app_bundle()))).run_id)
        if not run_id:
            raise SuperLinkLost("The SuperLink started no run.", "It refused the application bundle.", "See state/superlink.log.")
        return run_id

    def stop_run(self, run_id: int) -> None:
        """End a run that nobody conducts any more."""
        with _losing():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def app_bundle() -> Fab:
    """The Flower app bundle of a run: it names what is installed on both sides and holds no code."""
    from flwr.cli.build import build_fab_from_files

    from zk0desk import __version__

    text = f"""[project]
name = "zk0desk"
version = "{__version__}"
description = "Federated training of SmolVLA; the code is what is installed on each computer"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "zk0desk"

[tool.flwr.app.components]
serverapp = "zk0desk.federation.server_app:run_rounds"
clientapp = "zk0desk.federation.client_app:app"
"""
    content, _ = build_fab_from_files({"pyproject.toml": text.encode()})
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


class _Connection(HttpGrid):
    def __init__(self, address: str, secret: str, token: str) -> None:
        super().__init__(address, True, None, token=token)
        self._secret = secret

    def _connect(self) -> None:
        self._client = RuntimeHttpClient.from_server_address(
            self._addr,
            True,
            None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
                RuntimeTokenHttpInterceptor(token=self._token),
                LocalSecret(self._secret),
            ],
        )


class Receiver(Protocol):
    """Takes one reply, piece by piece. Each method may raise `OperatorError`, which ends the reply; `drop` is then called."""

    def begin(self, config: dict[str, Any], metrics: dict[str, Any], pieces: list[str]) -> None:
        """What the reply says, and the names of the pieces that follow, in their order."""

    def piece(self, array: np.ndarray) -> None:
        """The next piece. Its memory is not its own: it is good until this returns."""

    def end(self) -> Any:
        """All pieces came; the result is `Reply.received`."""

    def drop(self) -> None:
        """The reply is not used; what was kept of it goes."""


@dataclass(frozen=True)
class Reply:
    """A node's reply. `gone`: the SuperLink's own answer that the instruction no longer exists. `error`: the node refused, or it did not
    arrive whole. `refused`: what its receiver, or its form, was refused for. `late`: it came after it was abandoned; nothing of it is here.
    """

    to: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    received: Any = None
    error: str = ""
    gone: bool = False
    refused: OperatorError | None = None
    late: bool = False


class Grid:
    """The ServerApp's side of one Flower run: sends to nodes, asks for their replies."""

    def __init__(self, address: str, secret: str) -> None:
        with Control(address, secret) as control, _losing():
            self.run_id = control.start_run()
            self._grid = _Connection(address, secret, self._acquire(address, secret, control))
            task = self._grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, self.run_id, task.context.node_id
        self._grid.set_run(run_from_proto(task.run))
        self._closed = threading.Event()
        self._fetching = ThreadPoolExecutor(max_workers=ARRIVALS, thread_name_prefix="reply")
        self._pulling = threading.Semaphore(PULLS)
        self._abandoned: set[str] = set()
        self._arriving: dict[str, Future[Reply]] = {}
        self._heart = threading.Thread(target=self._beat, name="serverapp-heartbeat", daemon=True)
        self._heart.start()

    def _acquire(self, address: str, secret: str, control: Control) -> str:
        interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr-superexec"), LocalSecret(secret)]
        with RuntimeHttpClient.from_server_address(address, True, None, interceptors=interceptors) as client:
            # Runs that an earlier ServerApp left behind are handed out first.
            while True:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if not found.token:
                    raise SuperLinkLost("The SuperLink gave out no task.", "Another process took it.", "Start the run again.")
                if found.task.run_id == self.run_id:
                    return str(found.token)
                control.stop_run(found.task.run_id)

    def _beat(self) -> None:
        import logging

        while not self._closed.wait(HEARTBEAT_S):
            try:
                self._grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError as error:
                # The round's own requests meet the same and say so.
                logging.getLogger("zk0desk.grid").log(ERROR, "heartbeat: %s", error)

    def nodes(self) -> list[OnlineNode]:
        """All registered nodes, in the order of their public keys."""
        with _losing():
            found = [OnlineNode(n.node_id, n.public_key, n.status == "online") for n in self._grid.get_nodes()]
        return sorted(found, key=lambda node: node.public_key)

    def send(
        self,
        node_ids: Sequence[int],
        kind: str,
        *,
        arrays: Iterable[np.ndarray],
        config: Mapping[str, Any],
        own: Mapping[int, Mapping[str, Any]] | None = None,
        ttl: float,
    ) -> dict[int, str]:
        """Send the same message to several nodes; the message's id for each. `arrays` travel in pieces, in this order. `ttl` in seconds.

        `own` holds what `config` says to single nodes alone, by their ids. A piece is serialised and handed to the SuperLink once,
        whatever the number of nodes.
        """
        pieces = OrderedDict((f"{i:06d}", Array(piece)) for i, piece in enumerate(arrays))
        record = RecordDict({"arrays": ArrayRecord(pieces)} if pieces else {})
        sent: dict[int, str] = {}
        for node_id in node_ids:
            record["config"] = ConfigRecord({**config, **(own or {}).get(node_id, {})})
            with _losing():
                ids = list(self._grid.push_messages([Message(record, node_id, kind, ttl=ttl)]))
            if ids and ids[0]:
                sent[node_id] = ids[0]
        return sent

    def replies(self, ids: Iterable[str], receiver: Callable[[str], Receiver] | None = None) -> list[Reply]:
        """What has come whole for these messages; a reply that is still being uploaded is received meanwhile and returned later.

        `receiver` makes what takes the reply to a message; without, its arrays are left. For a message that was abandoned the reply is
        thrown away and said to be `late`. Ask only for nodes that are online: for others the SuperLink drops the instruction.
        """
        wanted = [each for each in ids if each not in self._arriving]
        if wanted:
            with _losing():
                found = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=wanted))
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                to = message.metadata.reply_to_message_id
                if to not in self._arriving:
                    takes = receiver(to) if receiver and to not in self._abandoned else None
                    self._arriving[to] = self._fetching.submit(self._fetch, to, tree.object_id, takes)
        whole = [to for to, arriving in self._arriving.items() if arriving.done()]
        return [self._arriving.pop(to).result() for to in whole]

    def abandon(self, ids: Iterable[str]) -> list[str]:
        """Receive no further what still arrives for these messages: their round is over. Those of which something had come."""
        started = []
        for to in ids:
            self._abandoned.add(to)
            if self._arriving.pop(to, None):
                started.append(to)
        return started

    def _fetch(self, to: str, root: str, receiver: Receiver | None) -> Reply:
        late = to in self._abandoned
        try:
            reply = Reply(to, {}, {}, late=True) if late else self._receive(to, root, receiver)
        except _NotWhole as error:
            reply = Reply(to, {}, {}, error=f"the reply did not arrive whole: {error}", gone=True)
        except httpx.HTTPError as error:
            reply = Reply(to, {}, {}, error=f"the reply did not arrive whole: {error or type(error).__name__}", gone=True)
        except OperatorError as error:
            reply = Reply(to, {}, {}, refused=error)
        if receiver and (reply.error or reply.refused):
            receiver.drop()
        request = ConfirmMessageReceivedRequest(node=self._grid.node, run_id=self.run_id, message_object_id=root)
        with suppress(httpx.HTTPError):  # the SuperLink then keeps the objects until the message expires
            self._grid._runtime_client.ConfirmMessageReceived(request)
        return reply

    def _receive(self, to: str, root: str, receiver: Receiver | None) -> Reply:
        ends = time.monotonic() + ARRIVAL_LIMIT_S
        with self._object(to, root, "Message", SMALL, ends) as (children, body):
            message = _read(ProtoMessage.FromString, bytes(body))
        if message.HasField("error"):
            error = message.error
            return Reply(to, {}, {}, error=error.reason or f"error {error.code}", gone=error.code in GONE)
        with self._object(to, _only(children, "reply"), "RecordDict", SMALL, ends) as (children, body):
            records = _names(body, children, (ARRAYS, CONFIG, METRICS))
        config, metrics = ({}, {})
        if CONFIG in records:
            with self._object(to, records[CONFIG], "ConfigRecord", SMALL, ends) as (_, body):
                config = dict(_read(config_record_from_proto, _read(ProtoConfigRecord.FromString, bytes(body))))
        if METRICS in records:
            with self._object(to, records[METRICS], "MetricRecord", SMALL, ends) as (_, body):
                metrics = dict(_read(metric_record_from_proto, _read(ProtoMetricRecord.FromString, bytes(body))))
        if receiver is None:
            return Reply(to, config, metrics)
        pieces: dict[str, str] = {}
        if ARRAYS in records:
            with self._object(to, records[ARRAYS], "ArrayRecord", SMALL, ends) as (children, body):
                pieces = _names(body, children)
        receiver.begin(config, metrics, sorted(pieces))
        for name in sorted(pieces):
            with self._object(to, pieces[name], "Array", SMALL, ends) as (children, body):
                chunks = _chunks(children, body, f"{ARRAYS}[{name:.20}]")
            with self._objects(to, chunks, LARGE, ends) as contents:
                receiver.piece(_array(name, _joined(chunks, contents)))
        return Reply(to, config, metrics, received=receiver.end())

    @contextmanager
    def _object(self, to: str, object_id: str, kind: str, limit: int, ends: float) -> Iterator[tuple[list[str], memoryview]]:
        """Children and body of an object, as soon as it is there. `MessageRefused` when it is of another kind, or larger than `limit`."""
        with self._objects(to, [object_id], limit, ends) as contents:
            yield _opened(contents[object_id], kind)

    @contextmanager
    def _objects(self, to: str, ids: list[str], limit: int, ends: float) -> Iterator[dict[str, bytes]]:
        """Objects by id, as soon as all are there. `MessageRefused` when they have more than `limit` bytes together."""
        delay = 0.05
        while True:
            if self._closed.is_set() or to in self._abandoned:
                raise _NotWhole("nobody waits for it any more")
            with self._pulling:
                if (contents := self._available(ids, limit)) is not None:
                    yield contents
                    return
            if time.monotonic() >= ends:
                raise _NotWhole(f"a part of it did not come in {ARRIVAL_LIMIT_S:.0f} s")
            self._closed.wait(delay)
            delay = min(1.0, delay * 1.5)

    def _available(self, ids: list[str], limit: int) -> dict[str, bytes] | None:
        """Objects by id; None when one is not there yet. The last is asked for first, since it usually is sent last."""
        contents: dict[str, bytes] = {}
        left = limit
        for object_id in reversed(dict.fromkeys(ids)):
            request = PullObjectRequest(node=self._grid.node, run_id=self.run_id, object_id=object_id)
            found = self._grid._runtime_client.PullObject(request)
            if not found.object_found:
                raise _NotWhole("a part of it is gone")
            if not found.object_available:
                return None
            left -= len(found.object_content)
            if left < 0:
                raise MessageRefused("reply", f"a part of it has more than the {limit:,} bytes that are taken.")
            contents[object_id] = found.object_content
        return contents

    def close(self, *, failed: bool = False) -> None:
        """Tell the SuperLink that the run is over and disconnect."""
        self._closed.set()
        status = SubStatus.FAILED if failed else SubStatus.COMPLETED
        try:
            self._grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        except httpx.HTTPError as error:
            import logging

            logging.getLogger("zk0desk.grid").info("the end of the run was not told: %s", error)
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._grid.close()
        self._heart.join(timeout=2)


# --- the form of a reply: flwr's objects, read one by one


class _NotWhole(Exception):
    """The reply cannot be had: its upload broke off, or its time is over."""


def _read[Result](read: Callable[..., Result], *given: Any) -> Result:
    try:
        return read(*given)
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MessageRefused("reply", f"a part of it cannot be read: {error!s:.100}.") from error


def _opened(content: bytes, kind: str) -> tuple[list[str], memoryview]:
    """Children and body of a flwr object, without a copy."""
    ends = content.find(HEAD_BODY_DIVIDER, 0, SMALL)
    head = content[: max(0, ends)].decode("ascii", errors="replace").split(HEAD_VALUE_DIVIDER)
    if len(head) != 3 or head[0] != kind:
        raise MessageRefused("reply", f"holds {head[0]!r:.30} where its {kind} belongs.")
    body = memoryview(content)[ends + len(HEAD_BODY_DIVIDER) :]
    return head[1].split(",") if head[1] else [], body


def _only(children: list[str], key: str) -> str:
    if len(children) != 1:
        raise MessageRefused(key, f"has {len(children)} parts where one belongs.")
    return children[0]


def _chunks(children: list[str], body: memoryview, key: str) -> list[str]:
    """Ids of the chunks that an array was cut into, in their order. Chunks that are alike are one object."""
    numbers = _read(lambda: json.loads(bytes(body))["arraychunk_ids"])
    if not isinstance(numbers, list) or not 0 < len(numbers) <= CHUNKS:
        raise MessageRefused(key, "does not name its chunks, or too many.")
    if not all(isinstance(each, int) and 0 <= each < len(children) for each in numbers):
        raise MessageRefused(key, "names chunks that it does not have.")
    return [children[each] for each in numbers]


def _joined(chunks: list[str], contents: dict[str, bytes]) -> memoryview:
    """The bytes of an array; one of a single chunk is not copied."""
    bodies = [_opened(contents[each], "ArrayChunk")[1] for each in chunks]
    if sum(map(len, bodies)) > LARGE:
        raise MessageRefused("reply", f"its chunks make up more than the {LARGE:,} bytes that are taken.")
    return bodies[0] if len(bodies) == 1 else memoryview(b"".join(bodies))


def _names(body: memoryview, children: list[str], allowed: tuple[str, ...] | None = None) -> dict[str, str]:
    """Object ids by name, as a RecordDict or an ArrayRecord has them."""
    found = _read(json.loads, bytes(body))
    if not isinstance(found, dict) or not all(each in children for each in found.values()):
        raise MessageRefused("reply", "names parts that it does not have.")
    for name in found:
        if allowed and name not in allowed:
            raise MessageRefused(f"{name!s:.60}", "is not a record of a reply.")
    return found


def _array(name: str, data: memoryview) -> np.ndarray:
    """The array in npy bytes, without a copy. Its header is parsed as a literal, never executed, and has to agree with its length."""
    buffer = io.BytesIO(data[:SMALL])
    try:
        if np.lib.format.read_magic(buffer) != (1, 0):
            raise ValueError("another format than 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
        if dtype.hasobject or len(shape) != 1:
            raise ValueError(f"{len(shape)} dimensions of {dtype}")
        if prod(shape) * dtype.itemsize != len(data) - buffer.tell():
            raise ValueError("its length is not what its shape says")
        return np.frombuffer(data, dtype, offset=buffer.tell())
    except (ValueError, TypeError, EOFError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise MessageRefused(f"{ARRAYS}[{name:.20}]", f"cannot be read: {error!s:.100}.") from error
