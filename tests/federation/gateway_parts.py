"""What the gateway's tests are made of: signed requests, calls from another address, and what a hostile computer does.

Run as a program (`python gateway_parts.py`) it is that computer: standard input is a JSON line with `port`, `address`, `certificate`,
`seconds`, `connections` and, for what only an admitted node can do, `key` (PEM); it prints one JSON line with what became of each attack.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import http.client
import json
import os
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from typing import Any

PULL, PUSH, OBJECT = "/v1/fleet/pull-messages", "/v1/fleet/push-messages", "/v1/fleet/push-object"
PROTOBUF = "application/protobuf"
NEIGHBOURS = 60
"""Addresses from which the many connections come."""


def signed(key: Any, **more: str) -> dict[str, str]:
    """Headers of a request of the node with `key` (a NodeKey)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC).isoformat()
    signature = key.private_key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(key.public_key_bytes).decode(), "flwr-signature": base64.b64encode(signature).decode(),
        "flwr-timestamp": now, "content-type": PROTOBUF, **{name.replace("_", "-"): value for name, value in more.items()},
    }  # fmt: skip


def connected(port: int, *, address: str = "127.0.0.2", host: str = "127.0.0.1", certificate: str = "", tls: bool = True) -> socket.socket:
    """A connection from `address`; TLS without a look at the certificate unless one is given."""
    plain = socket.create_connection((host, port), 10, source_address=(address, 0))
    if not tls:
        return plain
    context = ssl.create_default_context(cadata=certificate) if certificate else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not certificate:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise


def written(path: str, headers: dict[str, str], body: bytes = b"", method: str = "POST", host: str = "localhost") -> bytes:
    """A request as it travels."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if not {"content-length", "transfer-encoding"} & headers.keys():
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def answered(connection: socket.socket, seconds: float = 20.0, method: str = "POST") -> int:
    """The status of the answer to a `method` that comes, which is read whole; 0 when the connection ends without one."""
    connection.settimeout(seconds)
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        response.read()
        return response.status
    except (ConnectionError, ssl.SSLError, http.client.HTTPException):
        return 0
    finally:
        response.close()


def exchanged(port: int, request: bytes, *, address: str = "127.0.0.2", host: str = "127.0.0.1", tls: bool = True) -> int:
    """The status of one request from `address`; 0 when it is dropped, -1 when nothing listens."""
    try:
        with connected(port, address=address, host=host, tls=tls) as connection:
            connection.sendall(request)
            return answered(connection, method=request.partition(b" ")[0].decode("latin-1"))
    except ConnectionRefusedError:
        return -1
    except (ConnectionError, ssl.SSLError):
        return 0


# --- the hostile computer -----------------------------------------------------------------------------------------


class Hostile:
    """Attacks a gateway from `address` until `stop`. Each method is one kind, and counts what became of it."""

    def __init__(self, port: int, address: str, key: Any, *, connections: int, until: float) -> None:
        self.port, self.address, self.key, self.connections, self.until = port, address, key, connections, until
        self.seen: dict[str, Counter[str]] = {}

    def run(self) -> dict[str, dict[str, int]]:
        kinds = [self.many_connections, self.slow_headers, self.slow_handshake, self.garbage, self.requests_of_a_stranger]
        if self.key is not None:
            kinds += [self.slow_body, self.large_bodies, self.broken_protobuf, self.bombs, self.endless_headers]
        threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {name: dict(counts) for name, counts in self.seen.items()}

    def _repeat(self, kind: Any) -> None:
        counts = self.seen.setdefault(kind.__name__, Counter())
        while time.monotonic() < self.until:
            try:
                kind(counts)
            except (OSError, ssl.SSLError) as error:
                counts[type(error).__name__] += 1
            time.sleep(0.02)

    def _left(self, most: float) -> float:
        return max(0.05, min(most, self.until - time.monotonic()))

    def many_connections(self, counts: Counter[str]) -> None:
        held: list[socket.socket] = []
        try:
            while len(held) < self.connections and time.monotonic() < self.until:
                try:
                    held.append(connected(self.port, address=f"127.0.3.{len(held) % NEIGHBOURS + 1}", tls=False))
                except OSError as error:
                    counts[type(error).__name__] += 1
                    time.sleep(0.05)
                counts["opened"] = max(counts["opened"], len(held))
            while time.monotonic() < self.until:
                time.sleep(0.1)
        finally:
            for each in held:
                each.close()

    def slow_handshake(self, counts: Counter[str]) -> None:
        with connected(self.port, address=self.address, tls=False) as connection:
            connection.sendall(b"\x16\x03\x01")
            connection.settimeout(self._left(15))
            counts["ended" if not connection.recv(1) else "answered"] += 1

    def slow_headers(self, counts: Counter[str]) -> None:
        with connected(self.port, address=self.address) as connection:
            connection.settimeout(0.5)
            for byte in written(PULL, {"x": "y" * 4000}):
                connection.sendall(bytes([byte]))
                time.sleep(0.2)
                if time.monotonic() > self.until:
                    return
        counts["finished"] += 1

    def slow_body(self, counts: Counter[str]) -> None:
        with connected(self.port, address=self.address) as connection:
            connection.sendall(written(PUSH, signed(self.key, content_length="60000")))
            for _ in range(60_000):
                connection.sendall(b"x")
                time.sleep(0.2)
                if time.monotonic() > self.until:
                    return
        counts["finished"] += 1

    def garbage(self, counts: Counter[str]) -> None:
        with connected(self.port, address=self.address, tls=False) as connection:
            connection.sendall(random.randbytes(4096))
            counts[f"plain {answered(connection, self._left(5))}"] += 1
        with connected(self.port, address=self.address) as connection:
            connection.sendall(random.randbytes(4096) + b"\r\n\r\n")
            counts[f"tls {answered(connection, self._left(5))}"] += 1

    def requests_of_a_stranger(self, counts: Counter[str]) -> None:
        with connected(self.port, address=self.address) as connection:
            for path in (PULL, "/", "/v1/control/list-nodes"):
                connection.sendall(written(path, {}))
                status = answered(connection, self._left(5))
                counts[str(status)] += 1
                if status != 404:
                    return

    def endless_headers(self, counts: Counter[str]) -> None:
        with connected(self.port, address=self.address) as connection:
            connection.sendall(f"POST {PULL} HTTP/1.1\r\n".encode())
            for number in range(10_000):
                connection.sendall(f"x-{number}: {'y' * 1000}\r\n".encode())
            counts[str(answered(connection, self._left(5)))] += 1

    def large_bodies(self, counts: Counter[str]) -> None:
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        for path in (PULL, PUSH, OBJECT):
            with connected(self.port, address=self.address) as connection:
                connection.sendall(written(path, signed(self.key, content_length=str(10**12))))
                counts[f"{path[10:]} declared {answered(connection, self._left(5))}"] += 1
            with connected(self.port, address=self.address) as connection:
                connection.settimeout(self._left(5))
                try:
                    connection.sendall(written(path, signed(self.key, transfer_encoding="chunked")))
                    for _ in range(64):
                        connection.sendall(chunk)
                except OSError:
                    counts[f"{path[10:]} cut off"] += 1
                counts[f"{path[10:]} chunked {answered(connection, self._left(5))}"] += 1

    def broken_protobuf(self, counts: Counter[str]) -> None:
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.proto.message_pb2 import ObjectTree
        from flwr.proto.node_pb2 import Node

        tree = ObjectTree(object_id="ab" * 32)
        for _ in range(40):
            tree = ObjectTree(object_id="ab" * 32, children=[tree])
        whole = PushMessagesRequest(node=Node(node_id=1), message_object_trees=[tree] * 3).SerializeToString()
        bodies = [
            whole[: random.randrange(len(whole))],
            bytes(random.sample(whole, len(whole))),
            random.randbytes(2000),
            b"\x12\x00" * 30_000,
        ]
        for body in bodies:
            for path in (PUSH, PULL, OBJECT):
                counts[f"{path[10:]} {exchanged(self.port, written(path, signed(self.key), body), address=self.address)}"] += 1

    def bombs(self, counts: Counter[str]) -> None:
        body = gzip.compress(bytes(2**24))
        for header in ("content-encoding", "transfer-encoding"):
            status = exchanged(self.port, written(PUSH, {**signed(self.key), header: "gzip"}, body), address=self.address)
            counts[f"{header} {status}"] += 1


def main() -> None:
    from zk0desk.federation.credentials import NodeKey

    asked = json.loads(sys.stdin.readline())
    key = NodeKey.from_pem(asked["key"].encode()) if asked.get("key") else None
    until = time.monotonic() + asked["seconds"]
    print(json.dumps(Hostile(asked["port"], asked["address"], key, connections=asked["connections"], until=until).run()))


if __name__ == "__main__":
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    main()
