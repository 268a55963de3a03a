"""The node's connection to a SuperLink's Fleet API: join, heartbeat, pull, push, leave.

Built on flwr's protocol client, without its connection helper, which signals and ends the process. Requests run one by
one with timeouts; objects travel piece by piece; between two of them, and while one waits, `NodeControl` is heard.
Everything received is measured and hashed before it is unpacked. Call `quiet_libraries` before importing this module.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.supercore.constant import VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
    is_valid_sha256_hash,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import UnexpectedObjectContentError, inflate_object_from_contents, validate_object_content
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from zk0desk.control import NodeControl
from zk0desk.errors import ExitStatus, OperatorError, causes
from zk0desk.federation import certificate, probe
from zk0desk.federation.interruptible import interruptible
from zk0desk.federation.messages import MessageRefused

if TYPE_CHECKING:
    from flwr.proto.message_pb2 import PullObjectResponse
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext

    from zk0desk.federation.credentials import NodeKey
    from zk0desk.federation.invitation import Invitation

CODE_HEADER = "zk0-admission-code"
"""Header with the invitation's admission code."""
REFUSAL_HEADER = "zk0-refusal"
"""Header of the gateway that says why a key is refused."""
HEARTBEAT_S = 30.0
HEARTBEAT_DECLARED_S = 300.0
"""What a heartbeat declares: sleep and a reboot keep the messages of this node."""
TIMEOUT = httpx.Timeout(20.0, connect=5.0)
LEAVE_TIMEOUT_S = 1.0
ARRIVES_S = 20.0
"""How long the next object of a message is waited for that the coordinator is still sending."""
OBJECTS_LIMIT = 100_000
ANSWER_LIMIT = 64 * 2**20
"""Bytes of one answer: an object holds a piece of at most 16 MiB."""
REFUSED = 2
"""flwr's error code CLIENT_APP_RAISED_EXCEPTION: an error reply of the node's own."""

_FAILURES = (httpx.HTTPError, OperatorError, OSError, ValueError, RuntimeError)

_INVITATION_OVER = {
    "invitation-ended": "The invitation's time is over.",
    "invitation-used-up": "As many other nodes have used the invitation as it is for.",
}

Progress = Callable[[int], None]
_log = logging.getLogger("zk0desk.fleet")


class InstructionGone(OperatorError):
    """The SuperLink no longer has the message that a reply answers, or its run has ended."""

    code = "instruction-gone"
    exit_status = ExitStatus.REFUSED


@dataclass
class Incoming:
    """A message that was offered: metadata, and the objects that hold its content (those pulled so far in `contents`)."""

    message: Message
    tree: ObjectTree
    objects: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`train`, `query`, `evaluate`: the type without flwr's action suffix."""
        return str(self.message.metadata.message_type).partition(".")[0]

    @property
    def message_id(self) -> str:
        """flwr's id of the message: a SHA-256 over its objects."""
        return str(self.message.metadata.message_id)


class _Headers:
    """Adds the versions and the admission code; an answer that calls the versions incompatible becomes `VersionMismatch`."""

    def __init__(self, code: str) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
        if code:
            self._headers[CODE_HEADER] = code

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """flwr's interceptor interface."""
        context.request.headers.update(self._headers)
        response = call_next(context)
        if told := response.headers.get(VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY):
            raise probe.version_mismatch(told[:300])
        return response


class Fleet:
    """One node's connection. `join` before anything else; `leave`, then `close`. Used by one thread; heartbeats have their own.

    Methods raise `ConnectionTrouble` with a sentence, and `Stopped` as soon as `control` asks for it.
    """

    def __init__(self, invitation: Invitation, key: NodeKey, control: NodeControl) -> None:
        self._invitation = invitation
        self._key = key
        self._control = control
        self._context = certificate.trusting(invitation.certificate)
        self._client = self._connect(TIMEOUT)
        self._quiet = threading.Event()
        self._heart: threading.Thread | None = None
        self.node_id = 0
        self.heartbeats = self.polls = 0
        """How often each was sent."""
        self.poll_s = 0.0
        """What the last question for a message took."""

    def _connect(self, timeout: httpx.Timeout) -> FleetHttpClient:
        interceptors: list[ProtobufClientInterceptor] = [
            _Headers(self._invitation.code),
            NodeAuthHttpInterceptor(self._key.private_key, self._key.private_key.public_key()),
        ]
        client = FleetHttpClient(f"https://{self._invitation.address}", interceptors=interceptors, verify=self._context)
        client.close()
        # flwr's client follows redirects, which would carry the code and the update elsewhere.
        client._client = httpx.Client(
            verify=self._context, timeout=timeout, follow_redirects=False, trust_env=not _is_loopback(self._invitation.host),
            headers={"accept-encoding": "identity"}, event_hooks={"response": [_refuse_large]},
        )  # fmt: skip
        return client

    def _call[T](self, request: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                try:
                    return request()
                except httpx.ConnectError as error:
                    if not self._renewed(error):
                        raise
                    return request()
            except _FAILURES as error:
                raise self._trouble(error) from error

        return interruptible(self._control, guarded)

    def _renewed(self, error: Exception) -> bool:
        """Whether the certificate did not hold because the federation shows a newer one of the same key, which is trusted from now on."""
        if not any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error)):
            return False
        if not (shown := certificate.renewed(self._invitation)):
            return False
        self._context = certificate.trusting(shown)
        before, self._client = self._client, self._connect(TIMEOUT)
        before.close()
        return True

    # --- joining and leaving

    def join(self, stored_id: int = 0) -> int:
        """Become (or stay) an active node; its id. `stored_id` is that of the last time, 0 if none.

        After an unclean end the SuperLink still holds the node online and refuses to activate it; a heartbeat with the
        stored id brings it back with its messages.
        """
        probe.check_versions(self._invitation.flwr_version)
        if not (stored_id and self._came_back(stored_id)):
            request = ActivateNodeRequest(public_key=self._key.public_key_bytes, heartbeat_interval=HEARTBEAT_S)
            self.node_id = int(self._call(lambda: self._client.ActivateNode(request)).node_id)
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="node-heartbeat", daemon=True)
            self._heart.start()
        return self.node_id

    def _came_back(self, stored_id: int) -> bool:
        try:
            found = self._call(lambda: self._client.SendNodeHeartbeat(_heartbeat(stored_id)))
        except probe.NotAdmitted:
            return False  # it may be that only the id is not known any more
        if found.success:
            self.node_id = stored_id
        return bool(found.success)

    def beat(self) -> None:
        """Send a heartbeat now."""
        self._call(lambda: self._client.SendNodeHeartbeat(_heartbeat(self.node_id)))

    def _beat(self) -> None:
        wait = 0.0
        while not self._quiet.wait(wait):
            wait = HEARTBEAT_S * random.uniform(0.9, 1.0)
            try:
                self._client.SendNodeHeartbeat(_heartbeat(self.node_id))
                self.heartbeats += 1
            except _FAILURES as error:
                # The node's own requests meet the same trouble and act on it.
                _log.info("heartbeat: %s", self._trouble(error).what)
                wait = 5.0

    def leave(self) -> bool:
        """Tell the SuperLink that this node leaves, within a second or not at all; whether it was told."""
        self._quiet.set()
        if not self.node_id:
            return False
        if self._heart is not None:
            self._heart.join(0.3)  # a heartbeat that arrives after the leave would bring the node back
        try:
            with self._connect(httpx.Timeout(LEAVE_TIMEOUT_S)) as client:
                told: list[bool] = []

                def deactivate() -> None:
                    try:
                        client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
                        told.append(True)
                    except _FAILURES as error:
                        _log.info("leaving: %s", self._trouble(error).what)

                thread = threading.Thread(target=deactivate, name="node-leave", daemon=True)
                thread.start()
                thread.join(LEAVE_TIMEOUT_S)
                return bool(told)
        finally:
            self.node_id = 0

    def close(self) -> None:
        """Close the connection and end the heartbeats. Requests that still wait break off."""
        self._quiet.set()
        self._client.close()
        if self._heart is not None:
            self._heart.join(0.5)

    # --- receiving

    def poll(self) -> Incoming | None:
        """The next message offered to this node, without its content; None when there is none."""
        request, began = PullMessagesRequest(node=ProtoNode(node_id=self.node_id)), time.monotonic()
        found = self._call(lambda: self._client.PullMessages(request))
        self.polls += 1
        self.poll_s = time.monotonic() - began
        if not found.messages_list:
            return None
        try:
            message, tree = (message_from_proto(found.messages_list[0]), found.message_object_trees[0])
            return Incoming(message, tree, _object_ids(tree))
        except (IndexError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MessageRefused("message", f"its form is not flwr's: {error!s:.200}.") from error

    def receive(self, incoming: Incoming, *, limit: int, progress: Progress) -> RecordDict:
        """The content of `incoming`, pulled object by object; `progress` is told the bytes so far.

        `MessageRefused` when it is larger than `limit` bytes, or its objects are not what their hashes say. May be
        called again after a `ConnectionTrouble`: objects that are here are not pulled again.
        """
        run_id, node = incoming.message.metadata.run_id, ProtoNode(node_id=self.node_id)
        done = sum(map(len, incoming.contents.values()))
        for object_id in incoming.objects:
            if object_id in incoming.contents:
                continue
            request = PullObjectRequest(node=node, run_id=run_id, object_id=object_id)
            content = self._arrived(request)
            done += len(content)
            if done > limit:
                raise MessageRefused("arrays", f"has more than {limit:,} bytes, the most that this policy needs.")
            if get_object_id(content) != object_id:
                raise MessageRefused("arrays", "an object's SHA-256 is not the one that names it.")
            incoming.contents[object_id] = content
            progress(done)
        confirm = ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=incoming.tree.object_id)
        self._call(lambda: self._client.ConfirmMessageReceived(confirm))
        return _unpack(incoming.tree.object_id, incoming.contents, limit)

    # --- sending

    def send(self, reply: Message, *, seconds: float, progress: Progress) -> int:
        """Push `reply` object by object; the bytes. `seconds` is what the work took. `InstructionGone` when nobody waits for it."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
        envelope = message_to_proto(remove_content_from_message(reply))
        node, run_id = ProtoNode(node_id=self.node_id), reply.metadata.run_id
        request = PushMessagesRequest(node=node, messages_list=[envelope], message_object_trees=[tree], clientapp_runtime_list=[seconds])
        wanted = self._call(lambda: self._client.PushMessages(request))
        missing = set(wanted.objects_to_push)
        if not missing:
            raise _gone()
        done = 0
        # What says how the reply is made up goes first, so that the coordinator can judge the arrays while they come.
        for object_id, each in sorted(objects.items(), key=lambda item: isinstance(item[1], ArrayChunk)):
            content = each.deflate()
            if object_id in missing:
                push = PushObjectRequest(
                    node=node, run_id=run_id, object_id=object_id, object_content=content, session_id=wanted.session_id
                )
                if not self._push_object(push):
                    raise _gone()
            done += len(content)
            progress(done)
        return done

    def _arrived(self, request: PullObjectRequest) -> bytes:
        """An object, as soon as the coordinator has sent it: a message is offered before its arrays are all at the SuperLink."""
        pause, gives_up = 0.02, time.monotonic() + ARRIVES_S
        while True:
            found = self._pull_object(request)
            if not found.object_found:
                raise InstructionGone(
                    "The round was withdrawn.", "The SuperLink no longer holds its weights.", "The next one comes by itself."
                )
            if found.object_available:
                return bytes(found.object_content)
            if time.monotonic() >= gives_up:
                raise probe.ServerTrouble(
                    "The weights are not all there yet.", "The coordinator is still sending them.", "Tried again by itself."
                )
            interruptible(self._control, lambda seconds=pause: time.sleep(seconds))  # type: ignore[misc]
            pause = min(0.5, 1.5 * pause)

    def _pull_object(self, request: PullObjectRequest) -> PullObjectResponse:
        return self._call(lambda: self._client.PullObject(request))

    def _push_object(self, request: PushObjectRequest) -> bool:
        return bool(self._call(lambda: self._client.PushObject(request)).stored)

    # --- troubles

    def _trouble(self, error: Exception) -> OperatorError:
        if isinstance(error, OperatorError):
            return error
        if not isinstance(error, httpx.HTTPStatusError):
            return probe.trouble(error, self._invitation)
        response, address = error.response, self._invitation.address
        told = FlowerError.from_json(response.text)
        code = told.code if told else 0
        offset = probe.clock_offset(response.headers.get("date"))
        if response.status_code in (401, 403) and probe.clock_is_refused(offset):
            return probe.clock_off(offset or 0.0)
        if code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE and told:
            return probe.version_mismatch(f"{told.message} {told.public_details or ''}"[:300])
        if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            return _gone()
        if response.status_code in (401, 403) or code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            contact = f" ({self._invitation.contact})" if self._invitation.contact else ""
            refusal = response.headers.get(REFUSAL_HEADER, "")
            if refusal == "revoked":
                return probe.Revoked(
                    f"{self._invitation.federation} has excluded this node.",
                    f"The coordinator revoked the key {self._key.fingerprint}.",
                    f"Ask the coordinator{contact}.",
                )
            if refusal in _INVITATION_OVER:
                return probe.InvitationOver(
                    "This invitation can no longer be used.",
                    _INVITATION_OVER[refusal],
                    f"Ask the coordinator{contact} for a new one, or to admit the key {self._key.fingerprint} by hand.",
                )
            if refusal == "wrong-code":
                return probe.NotAdmitted(
                    "This node is not admitted.",
                    "The invitation's admission code is not (or no longer) the federation's.",
                    f"Ask the coordinator{contact} for a new invitation, or to admit the key {self._key.fingerprint} by hand.",
                )
            return probe.NotAdmitted(
                "This node is not admitted yet.",
                f"The coordinator has not admitted the key {self._key.fingerprint}.",
                f"Send that fingerprint to the coordinator{contact}; this node tries again by itself.",
            )
        return probe.server_trouble(address, response.status_code)


def _refuse_large(response: httpx.Response) -> None:
    """Before an answer's body is read: one that unpacks, or says that it is longer than any object of a message, is refused."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx.DecodingError("the answer is compressed, which was not asked for", request=response.request)
    length = response.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > ANSWER_LIMIT:
        raise httpx.DecodingError(f"the answer has {length:.20} bytes, which is more than any that is asked for", request=response.request)


def reply_to(message: Message, content: RecordDict | None = None, *, error: str = "") -> Message:
    """A reply to `message`: `content`, or the reason of a refusal (at most 500 characters travel)."""
    if content is None:
        return Message(Error(REFUSED, error[:500]), reply_to=message)
    return Message(content, reply_to=message)


def message_as_bytes(message: Message) -> bytes:
    """The metadata of `message`, to be kept on disk until it is answered."""
    return bytes(message_to_proto(make_message(message.metadata, RecordDict())).SerializeToString())


def message_from_bytes(data: bytes) -> Message:
    """What `message_as_bytes` gave."""
    return message_from_proto(ProtoMessage.FromString(data))


def _heartbeat(node_id: int) -> SendNodeHeartbeatRequest:
    return SendNodeHeartbeatRequest(node=ProtoNode(node_id=node_id), heartbeat_interval=HEARTBEAT_DECLARED_S)


def _gone() -> InstructionGone:
    return InstructionGone(
        "Nobody waits for this update any more.", "The run has ended, or the round was sent anew.", "The next round comes by itself."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _object_ids(tree: ObjectTree) -> list[str]:
    """The ids of a tree, each once, children first."""
    ids: dict[str, None] = {}

    def walk(node: Any) -> None:
        for child in node.children:
            walk(child)
        if not is_valid_sha256_hash(node.object_id):
            raise MessageRefused("message", "an object's name is not a SHA-256.")
        ids[node.object_id] = None
        if len(ids) > OBJECTS_LIMIT:
            raise MessageRefused("message", f"it has more than {OBJECTS_LIMIT:,} objects.")

    walk(tree)
    return list(ids)


def _unpack(root: str, contents: dict[str, bytes], limit: int) -> RecordDict:
    """The records in `contents`, which is emptied. An array may name a chunk many times; what it unpacks to is measured first."""
    try:
        size = 0
        for content in contents.values():
            validate_object_content(content)
            kind, children, body = get_object_head_values_from_object_content(content)
            if kind == "Array":
                numbers = json.loads(content[len(content) - body :])["arraychunk_ids"]
                size += sum(len(contents[children[number]]) for number in numbers)
        if size > limit:
            raise MessageRefused("arrays", f"unpacks to more than {limit:,} bytes, the most that this policy needs.")
        found = inflate_object_from_contents(root, contents)
    except (UnexpectedObjectContentError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise MessageRefused("message", f"its objects do not make a message: {type(error).__name__}.") from error
    finally:
        contents.clear()
    if isinstance(found, Message):
        if not found.has_content():
            raise MessageRefused("message", "it has no content.")
        return found.content
    raise MessageRefused("message", f"it holds a {type(found).__name__}.")
