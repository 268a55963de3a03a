"""What other computers reach of the SuperLink: the Fleet API, over TLS, and nothing else.

A plain allow-list: a POST to one of twelve paths is passed on, anything else is a 404 that says nothing. Requests
carry the node's public key (flwr's headers). A key that is not admitted is not passed on; the answer is 403 with a
header `zk0-refusal`:

    waiting-for-approval   the code is right; the key is shown to the coordinator
    wrong-code             the key is not known and no, or a wrong, `zk0-admission-code` came with it
    revoked                the coordinator refuses this key

The SuperLink itself checks that the sender holds the key. Bodies are streamed both ways.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from zk0desk.federation.server_folder import NodeRegistry, Status, read_public_key

log = logging.getLogger("zk0desk.gateway")

SECRET_HEADER = "zk0-local"
"""Header that opens a SuperLink's port to its owner's processes."""
CODE_HEADER = "zk0-admission-code"
REFUSAL_HEADER = "zk0-refusal"
KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER = "flwr-public-key", "flwr-signature", "flwr-timestamp"

FLEET_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages",
        "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
    )
)  # fmt: skip
"""All that is passed on."""
OBJECT_LIMIT = 64 * 2**20
"""Largest body of a push-object request, in bytes; flwr cuts arrays into chunks of 20 MiB."""
BODY_LIMIT = 4 * 2**20
"""Largest body of any other request, in bytes."""
CONCURRENT = 256

_KEPT = frozenset({"content-type", "accept", "content-length"})

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _TooLargeError(Exception):
    """A body is larger than allowed."""


class Gateway:
    """The ASGI application. `upstream` gives the SuperLink's base URL, which changes when it is started again.

    `admit` is called with a new key (PEM) when admission is open and the code is right; `knocked` with the key of a
    node that begins to wait.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        *,
        upstream: Callable[[], str],
        secret: str,
        code: str,
        admit: Callable[[bytes], None] | None = None,
        knocked: Callable[[bytes, str], None] | None = None,
    ) -> None:
        import httpx

        self._registry, self._upstream, self._secret, self._code = registry, upstream, secret, code.encode()
        self._admit, self._knocked = admit, knocked
        limits = httpx.Limits(max_connections=CONCURRENT, max_keepalive_connections=32)
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(60.0, connect=5.0), limits=limits, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in FLEET_PATHS:
            await _answer(send, 404)
        else:
            await self._fleet(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                await self._client.aclose()
                return

    async def _fleet(self, scope: Scope, receive: Receive, send: Send) -> None:
        import asyncio

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            key = base64.b64decode(headers[KEY_HEADER], validate=True)
        except (KeyError, binascii.Error):
            await _answer(send, 401)
            return
        status = self._registry.status(key)
        if status != "admitted":
            address = scope["client"][0] if scope.get("client") else ""
            try:
                status, refusal = await asyncio.to_thread(self._unknown, key, status, headers, address)
            except ValueError:
                await _answer(send, 401)
                return
            if status != "admitted":
                await _answer(send, 403, {REFUSAL_HEADER: refusal})
                return
        limit = OBJECT_LIMIT if scope["path"].endswith("/push-object") else BODY_LIMIT
        if not headers.get("content-length", "0").isdigit() or int(headers.get("content-length", "0")) > limit:
            await _answer(send, 413)
            return
        await self._forward(scope["path"], headers, _body(receive, limit), send)

    def _unknown(self, key: bytes, status: Status | None, headers: dict[str, str], address: str) -> tuple[Status | None, str]:
        """What becomes of a key that is not admitted; ValueError when the sender does not hold it."""
        if status == "revoked":
            return status, "revoked"
        if not hmac.compare_digest(headers.get(CODE_HEADER, "").encode(), self._code):
            return status, "wrong-code"
        key = _holder(key, headers)
        if self._admit is not None:
            self._admit(key)
            return "admitted", ""
        record = self._registry.knock(key, address)
        if status is None and self._knocked is not None:
            self._knocked(key, record.fingerprint)
        return record.status, "waiting-for-approval"

    async def _forward(self, path: str, headers: dict[str, str], body: AsyncIterator[bytes], send: Send) -> None:
        import httpx

        passed = {name: value for name, value in headers.items() if name in _KEPT or name.startswith("flwr-")}
        request = self._client.build_request("POST", self._upstream() + path, headers={**passed, SECRET_HEADER: self._secret}, content=body)
        try:
            response = await self._client.send(request, stream=True)
        except _TooLargeError:
            await _answer(send, 413)
            return
        except httpx.HTTPError as error:
            log.info("%s: %s", path, error)
            await _answer(send, 503)
            return
        try:
            kept = [
                (n, v)
                for n, v in response.headers.raw
                if n.lower() in (b"content-type", b"content-length") or n.lower().startswith(b"flwr-")
            ]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for part in response.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


async def _body(receive: Receive, limit: int) -> AsyncIterator[bytes]:
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _TooLargeError
        if part:
            yield part
        if not message.get("more_body"):
            return


async def _answer(send: Send, status: int, headers: dict[str, str] | None = None) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in {"content-length": "0", **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": b""})


def _holder(key: bytes, headers: dict[str, str]) -> bytes:
    """`key`, when the request is signed with it; ValueError else. Only then is it worth a line in the coordinator's list."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if read_public_key(key.decode("ascii")) != key:
        raise ValueError("the key is not in its plain form")
    public = serialization.load_pem_public_key(key)
    try:
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError("not a node's key")
        signature = base64.b64decode(headers[SIGNATURE_HEADER], validate=True)
        public.verify(signature, headers[TIMESTAMP_HEADER].encode("ascii"), ec.ECDSA(hashes.SHA256()))
    except (KeyError, InvalidSignature) as error:
        raise ValueError("not signed with its key") from error
    return key


class GatewayServer:
    """Serves a `Gateway` with TLS in a thread of this process. `port` 0 takes a free one."""

    def __init__(self, app: Gateway, *, host: str, port: int, certificate: Path, key: Path) -> None:
        import uvicorn

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        config = uvicorn.Config(
            app, ssl_certfile=certificate, ssl_keyfile=key, log_config=None, access_log=False, lifespan="on", server_header=False,
            limit_concurrency=CONCURRENT, timeout_keep_alive=75, timeout_graceful_shutdown=0, ws="none",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, name="gateway", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End within a second; requests that are under way are cut off."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(1.0)
        self._listener.close()
