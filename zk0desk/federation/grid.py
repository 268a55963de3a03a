"""The coordinator's connections to its SuperLink on loopback: Control API, and the ServerApp's grid.

Own polling and no retry of flwr's: its retry invoker signals this process on a 401 and waits without an end. A lost
connection is `SuperLinkLost` here, and the caller decides.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from logging import ERROR
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.gateway import SECRET_HEADER
from zk0desk.quiet import quiet_libraries

quiet_libraries()

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402 - quiet first
from flwr.common.constant import ErrorCode, SubStatus  # noqa: E402
from flwr.common.serde import fab_to_proto, run_from_proto  # noqa: E402
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest, UnregisterNodeRequest  # noqa: E402
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest  # noqa: E402
from flwr.proto.runtime_pb2 import (  # noqa: E402
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType  # noqa: E402
from flwr.supercore.control import ControlHttpClient  # noqa: E402
from flwr.supercore.fab import Fab  # noqa: E402
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree  # noqa: E402
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf  # noqa: E402
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects  # noqa: E402
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor  # noqa: E402
from flwr.supercore.runtime import RuntimeHttpClient  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402
from flwr.superlink.grid import HttpGrid  # noqa: E402

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext


HEARTBEAT_S = 15.0
ARRIVAL_LIMIT_S = 7200.0
"""How long a reply's arrays may take to follow the reply; the round's deadline is what usually ends it."""

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


@dataclass(frozen=True)
class Reply:
    """A node's reply. `gone`: the SuperLink's own answer that the instruction no longer exists. `error`: the node refused."""

    to: str
    arrays: list[np.ndarray]
    config: dict[str, Any]
    metrics: dict[str, Any]
    bytes: int
    error: str = ""
    gone: bool = False


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
        # Wide, because a fetch mostly waits for a node's line: slow ones must not hold up the others.
        self._fetching = ThreadPoolExecutor(max_workers=32, thread_name_prefix="reply")
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

    def replies(self, ids: Iterable[str]) -> list[Reply]:
        """What has come whole for these messages; a reply that is still being uploaded is fetched meanwhile and returned later.

        Ask only for nodes that are online: for others the SuperLink drops the instruction.
        """
        wanted = [each for each in ids if each not in self._arriving]
        if wanted:
            with _losing():
                found = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=wanted))
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                self._arriving[message.metadata.reply_to_message_id] = self._fetching.submit(self._fetch, message.metadata, tree)
        whole = [to for to, arriving in self._arriving.items() if arriving.done()]
        return [self._arriving.pop(to).result() for to in whole]

    def abandon(self, ids: Iterable[str]) -> None:
        """Fetch no further what still arrives for these messages: their round is over."""
        for to in ids:
            self._abandoned.add(to)
            self._arriving.pop(to, None)

    def _fetch(self, metadata: Any, tree: Any) -> Reply:
        to, message_id = metadata.reply_to_message_id, metadata.message_id
        client, node = self._grid._runtime_client, self._grid.node
        pull_object = make_pull_object_fn_protobuf(client.PullObject, node, self.run_id)

        def pull(object_id: str) -> bytes:
            if self._closed.is_set() or to in self._abandoned:
                raise ObjectPullError(object_id, "nobody waits for it any more")
            return pull_object(object_id)

        try:
            contents = pull_objects(
                [each.object_id for each in iterate_object_tree(tree)],
                pull,
                initial_backoff=0.05,
                backoff_cap=1.0,
                max_tries_per_object=None,
                max_time=ARRIVAL_LIMIT_S,
            )
            client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(node=node, run_id=self.run_id, message_object_id=message_id))
            return _reply(to, inflate_object_from_contents(message_id, contents))
        except (ObjectPullError, httpx.HTTPError) as error:
            return Reply(to, [], {}, {}, 0, error=f"the reply did not arrive whole: {error}", gone=True)
        except (ValueError, TypeError, KeyError) as error:
            return Reply(to, [], {}, {}, 0, error=f"the reply cannot be read: {error}")

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


def _reply(to: str, message: Any) -> Reply:
    if message.has_error():
        error = message.error
        gone = error.code in GONE
        return Reply(to, [], {}, {}, 0, error=error.reason or f"error {error.code}", gone=gone)
    content, arrays = message.content, []
    try:
        record = content.array_records.get("arrays")
        if record is not None:
            arrays = [record[key].numpy() for key in sorted(record)]
    except (ValueError, TypeError, KeyError, EOFError, OSError, MemoryError) as error:
        return Reply(to, [], {}, {}, 0, error=f"its arrays cannot be read: {error}")
    config: ConfigRecord | dict[str, Any] = content.config_records.get("config", {})
    metrics: MetricRecord | dict[str, Any] = content.metric_records.get("metrics", {})
    return Reply(to, arrays, dict(config), dict(metrics), sum(array.nbytes for array in arrays))
