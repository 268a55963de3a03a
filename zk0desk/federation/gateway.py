"""What other computers reach of the SuperLink: the Fleet API, over TLS, and nothing else.

A plain allow-list: a POST to one of twelve paths is passed on, anything else is a 404 that says nothing. A request carries the node's
public key and a signature (flwr's headers). Nothing of a body is read before both are right and the key is admitted. A key that is not
admitted is answered 403 with a header `zk0-refusal`:

    waiting-for-approval   the code is right; the key is shown to the coordinator
    wrong-code             the key is not known and no, or a wrong, `zk0-admission-code` came with it
    invitation-ended       the code is that of an invitation whose time is over
    invitation-used-up     the code is that of an invitation that as many other nodes have used as it is for
    revoked                the coordinator refuses this key

Connections, TLS and deadlines are `front`'s, numbers `gateway_limits`'. Bodies are streamed both ways.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from zk0desk.errors import OperatorError
from zk0desk.federation.front import Answer, BodyTooLarge, CallerGone, Request
from zk0desk.federation.gateway_limits import Limits, Pace, Uploads, body_limits, neighbourhood, upload_limit
from zk0desk.federation.node_registry import NodeRegistry, Status, read_public_key

if TYPE_CHECKING:
    import httpx
    from cryptography.hazmat.primitives.asymmetric import ec

log = logging.getLogger("zk0desk.gateway")

SECRET_HEADER = "zk0-local"
"""Header that opens a SuperLink's port to its owner's processes."""
CODE_HEADER = "zk0-admission-code"
REFUSAL_HEADER = "zk0-refusal"
KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER = "flwr-public-key", "flwr-signature", "flwr-timestamp"
UPSTREAM = 256
"""Connections to the SuperLink."""
KEYS_READ = 1024
"""Public keys that are kept as objects."""
EMPTY_PULL = 64
"""An answer to pull-messages that is longer, in bytes, holds an instruction."""

_PULL, _PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-object"
_KEPT = frozenset({"content-type", "accept", "content-length"})


class Gateway:
    """Decides on requests and passes them on. `upstream` gives the SuperLink's base URL, which changes when it is started again.

    `values` is the number of the policy's trainable values, which decides how large a body may be. `admit` is called with a new key (PEM)
    when admission is open and the code is right; `knocked` with the key of a node that begins to wait; `troubled` with an error of the
    registry, after which everything is refused until it can be read again. ValueError when `code` or `secret` is empty.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        *,
        upstream: Callable[[], str],
        secret: str,
        code: str,
        values: int,
        limits: Limits | None = None,
        admit: Callable[[bytes], None] | None = None,
        knocked: Callable[[bytes, str], None] | None = None,
        troubled: Callable[[OperatorError], None] | None = None,
    ) -> None:
        import httpx

        if not code or not secret:
            raise ValueError("an empty code or secret would let everybody in")
        self._registry, self._upstream, self._secret, self._code = registry, upstream, secret, code.encode()
        self._admit, self._knocked, self._troubled = admit, knocked, troubled
        self.limits = limits or Limits()
        self._bodies = body_limits(values)
        self._uploads = Uploads(upload_limit(values))
        self._refusals, self._requests = Pace(*self.limits.refusals), Pace(*self.limits.requests)
        self._room = _Room(self.limits.in_flight)
        self._keys: OrderedDict[bytes, ec.EllipticCurvePublicKey] = OrderedDict()
        self._in_trouble = False
        pool = httpx.Limits(max_connections=UPSTREAM, max_keepalive_connections=32)
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(60.0, connect=5.0), limits=pool, trust_env=False)

    async def close(self) -> None:
        """Close the connections to the SuperLink."""
        await self._client.aclose()

    async def __call__(self, request: Request) -> Answer:
        """The answer to a request."""
        answer = await self._decide(request)
        if answer.status >= 400 and request.stranger and self._refusals.wait(neighbourhood(request.address)) > 0:
            answer.drop = True
        return answer

    async def _decide(self, request: Request) -> Answer:
        limit = self._bodies.get(request.path)
        if request.method != "POST" or limit is None:
            return Answer(404)
        if request.doubled:
            return Answer(400)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            return Answer(415)
        length = request.headers.get("content-length", "")
        if length and (not length.isdigit() or int(length) > limit):
            return Answer(413)
        try:
            key = self._holder(request.headers)
            status, refusal = await self._known(key, request)
        except ValueError:
            return Answer(401)
        except OperatorError as error:
            return self._unreadable(error)
        self._in_trouble = False
        if status != "admitted":
            return Answer(403, [(REFUSAL_HEADER.encode(), refusal.encode())])
        return await self._serve(request, key, int(length) if length else limit, limit)

    async def _serve(self, request: Request, key: bytes, size: int, limit: int) -> Answer:
        """Pass on the request of an admitted key, with a body of `size` bytes or, if that is not known, up to `limit`."""
        if not request.known(key):
            return Answer(503)
        wait = self._requests.wait(key, patience=self.limits.wait_s)
        if wait > self.limits.wait_s or (request.path == _PUSH and not self._uploads.take(key, size)):
            return Answer(429)
        await asyncio.sleep(wait)
        try:
            async with asyncio.timeout(self.limits.body_s):
                await self._room.take(size)
        except TimeoutError:
            return Answer(503)
        try:
            return await self._forward(request, limit, key)
        finally:
            self._room.give(size)

    def _unreadable(self, error: OperatorError) -> Answer:
        if not self._in_trouble and self._troubled is not None:
            self._troubled(error)
        self._in_trouble = True
        return Answer(503)

    # --- keys

    def _holder(self, headers: dict[str, str]) -> bytes:
        """The key (PEM) with which the request is signed. ValueError when there is none, or the sender does not hold it."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = base64.b64decode(headers[KEY_HEADER], validate=True)
            signature = base64.b64decode(headers[SIGNATURE_HEADER], validate=True)
            self._public(key).verify(signature, headers[TIMESTAMP_HEADER].encode("ascii"), ec.ECDSA(hashes.SHA256()))
        except (KeyError, InvalidSignature, UnicodeError, binascii.Error) as error:
            raise ValueError("not signed with its key") from error
        return key

    def _public(self, key: bytes) -> ec.EllipticCurvePublicKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        if (found := self._keys.get(key)) is None:
            if read_public_key(key.decode("ascii")) != key:
                raise ValueError("the key is not in its plain form")
            found = serialization.load_pem_public_key(key)  # type: ignore[assignment]
            if not isinstance(found, ec.EllipticCurvePublicKey):
                raise ValueError("not a node's key")
            self._keys[key] = found
            if len(self._keys) > KEYS_READ:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(key)
        return found

    async def _known(self, key: bytes, request: Request) -> tuple[Status | None, str]:
        """What is known of a key, and why it is refused."""
        status = self._registry.status(key)
        if status == "admitted":
            return status, ""
        if status == "revoked":
            return status, "revoked"
        return await asyncio.to_thread(self._unknown, key, status, request.headers.get(CODE_HEADER, ""), request.address)

    def _unknown(self, key: bytes, status: Status | None, code: str, address: str) -> tuple[Status | None, str]:
        if not hmac.compare_digest(code.encode(), self._code) and (refusal := self._registry.use_code(code, key)):
            return status, refusal
        if self._admit is not None:
            self._admit(key)
            return "admitted", ""
        record = self._registry.knock(key, address)
        if status is None and self._knocked is not None:
            self._knocked(key, record.fingerprint)
        return record.status, "waiting-for-approval"

    # --- passing on

    async def _forward(self, request: Request, limit: int, key: bytes) -> Answer:
        import httpx

        passed = {header: value for header, value in request.headers.items() if header in _KEPT or header.startswith("flwr-")}
        passed[SECRET_HEADER] = self._secret
        upward = self._client.build_request(
            "POST", self._upstream() + request.path, headers=passed, content=self._body(request, limit, key)
        )
        try:
            response = await self._client.send(upward, stream=True)
        except BodyTooLarge:
            return Answer(413)
        except httpx.HTTPError as error:
            log.info("%s: %s", request.path, error)
            return Answer(503)
        kept = [
            (header.lower(), value)
            for header, value in response.headers.raw
            if header.lower() in (b"content-type", b"content-length") or header.lower().startswith(b"flwr-")
        ]
        if request.path == _PULL and int(response.headers.get("content-length", "0")) > EMPTY_PULL:
            self._uploads.instructed(key)
        return Answer(response.status_code, kept, _passed_on(response))

    async def _body(self, request: Request, limit: int, key: bytes) -> AsyncIterator[bytes]:
        """The body, cut off when the key is revoked meanwhile."""
        async for part in request.body(limit):
            if self._registry.status(key) != "admitted":
                raise CallerGone("its key was revoked")
            yield part


async def _passed_on(response: httpx.Response) -> AsyncIterator[bytes]:
    import httpx

    try:
        async for part in response.aiter_raw():
            yield part
    except httpx.HTTPError as error:
        raise CallerGone("the SuperLink broke off") from error
    finally:
        await response.aclose()


class _Room:
    """Bytes that may be under way at once. First come, first served."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Wait until there is room for `size` bytes."""
        if not self._waiting and size <= self._left:
            self._left -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """What `take` took."""
        self._left += size
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._left):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._left -= wanted
                turn.set_result(None)
