"""What the gateway grants: how often, how much, how long, and to how many at once.

A caller is a stranger until a request of its connection was signed with an admitted key. Strangers share a number of connections, overall
and by address; when it is used up, the oldest of the address that holds most has to go, so nobody can keep others out by holding
connections or by being slow. Nodes have connections of their own, by key, which strangers cannot take.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from zk0desk.federation.updates import PIECE

KIB, MIB = 2**10, 2**20
_FLEET = (
    "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages", "push-messages",
    "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
CHUNK = 8 * MIB
"""Upper bound of one pushed object; flwr cuts arrays into chunks of 5 MiB."""


@dataclass(frozen=True)
class Limits:
    """The gateway's limits: seconds, bytes, numbers, and numbers a second."""

    handshake_s: float = 10.0
    """A TLS handshake has to be done within this."""
    headers_s: float = 10.0
    """A request's headers have to be there this long after its first byte."""
    stranger_idle_s: float = 10.0
    """A stranger's connection without a request is closed after this, a node's after `idle_s`."""
    idle_s: float = 75.0
    body_s: float = 15.0
    """Time that a body may take beyond what its bytes take at `slowest` bytes a second. Both ways."""
    slowest: int = 8 * KIB
    headers: int = 16 * KIB
    strangers: int = 384
    strangers_per_address: int = 96
    nodes: int = 1024
    per_key: int = 16
    """Connections of one node; its oldest goes when there is one more."""
    connects: tuple[float, float] = (50.0, 300.0)
    """New connections of one address, a second and at once."""
    refusals: tuple[float, float] = (20.0, 200.0)
    """Requests of one address that are refused with an answer, a second and at once; further ones are dropped."""
    requests: tuple[float, float] = (100.0, 1000.0)
    """Requests of one key, a second and at once; further ones wait."""
    wait_s: float = 2.0
    """How long a request of a key waits at most; then it is answered 429."""
    in_flight: int = 512 * MIB
    """Bytes of bodies that are under way at once; the next one waits up to `body_s`."""


def body_limits(values: int) -> dict[str, int]:
    """Largest body by path, in bytes, for a policy with `values` trainable values."""
    small, pieces = 16 * KIB, -(-values // PIECE)
    limits = dict.fromkeys(_FLEET, small)
    # An update's list of objects: about ten of 80 bytes a piece.
    limits["push-messages"] = 64 * KIB + pieces * 2 * KIB
    limits["push-object"] = min(CHUNK, 4 * values) + 64 * KIB
    return {f"/v1/fleet/{name}": limit for name, limit in limits.items()}


def upload_limit(values: int) -> int:
    """Bytes that a node may push for one instruction: its update in fp32, three times over, for what is sent anew after a lost line."""
    return 3 * (4 * values + MIB)


def neighbourhood(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 network of an IPv6 one, which one computer has as a whole."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)


class Pace:
    """Token buckets by name: `rate` a second, `burst` at once. The names used last are remembered, at most `names`."""

    def __init__(self, rate: float, burst: float, *, names: int = 4096, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._names, self._clock = rate, burst, names, clock
        self._left: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def wait(self, name: object, *, patience: float = 0.0) -> float:
        """Take one: seconds until it may be used. More than `patience`: it is not taken."""
        now = self._clock()
        left, at = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        wait = max(0.0, (1.0 - left) / self._rate)
        self._left[name] = (left - 1.0 if wait <= patience else left, now)
        self._left.move_to_end(name)
        if len(self._left) > self._names:
            self._left.popitem(last=False)
        return wait


class Uploads:
    """How many bytes each key may still push. A new instruction gives the whole amount again; without one, an hour does."""

    REFILL_S = 3600.0

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._used: dict[bytes, tuple[int, float]] = {}

    def instructed(self, key: bytes) -> None:
        """The key was given an instruction."""
        self._used.pop(key, None)

    def take(self, key: bytes, size: int) -> bool:
        """Whether the key may push `size` more bytes."""
        used, since = self._used.get(key, (0, self._clock()))
        if self._clock() - since > self.REFILL_S:
            used, since = 0, self._clock()
        if used + size > self._limit:
            return False
        self._used[key] = (used + size, since)
        return True


class Visit:
    """One connection: `address` as in `neighbourhood`, `key` once it is a node's. `leave` cuts it off."""

    def __init__(self, address: str, leave: Callable[[], object]) -> None:
        self.address, self.leave = address, leave
        self.key = b""


class Doors:
    """Who is inside. Used by the gateway's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._connects = Pace(*limits.connects)
        self._strangers: OrderedDict[Visit, None] = OrderedDict()
        self._by_address: Counter[str] = Counter()
        self._nodes: dict[bytes, OrderedDict[Visit, None]] = {}
        self.refused = 0
        """Connections that were closed at once."""
        self.sent_away = 0
        """Strangers' connections that had to go for newer ones."""
        self.last = ""
        """The address of the last one of either."""

    def __len__(self) -> int:
        return len(self._strangers) + sum(map(len, self._nodes.values()))

    def may_enter(self, address: str) -> bool:
        """Whether one more connection of `address` may begin."""
        if self._connects.wait(address) > 0:
            self.refused += 1
            self.last = address
            return False
        return True

    def enter(self, visit: Visit) -> None:
        """A connection began. Where there are too many, an older one is cut off."""
        self._strangers[visit] = None
        self._by_address[visit.address] += 1
        if self._by_address[visit.address] > self.limits.strangers_per_address:
            self._send_away(visit.address)
        elif len(self._strangers) > self.limits.strangers:
            self._send_away(self._by_address.most_common(1)[0][0])

    def _send_away(self, address: str) -> None:
        oldest = next(visit for visit in self._strangers if visit.address == address)
        self._gone(oldest)
        self.sent_away += 1
        self.last = address
        oldest.leave()

    def known(self, visit: Visit, key: bytes) -> bool:
        """The connection is that of the node with `key`; False where the nodes' connections are used up by other keys."""
        if visit.key == key:
            return True
        if visit.key or visit not in self._strangers:
            return False
        own = self._nodes.setdefault(key, OrderedDict())
        if sum(map(len, self._nodes.values())) >= self.limits.nodes and not own:
            return False
        self._gone(visit)
        visit.key = key
        self._nodes.setdefault(key, own)[visit] = None
        if len(own) > self.limits.per_key:
            oldest = next(iter(own))
            self._gone(oldest)
            oldest.leave()
        return True

    def leave(self, visit: Visit) -> None:
        """A connection ended."""
        self._gone(visit)

    def _gone(self, visit: Visit) -> None:
        if visit in self._strangers:
            del self._strangers[visit]
            self._by_address[visit.address] -= 1
            if not self._by_address[visit.address]:
                del self._by_address[visit.address]
        elif visit in (own := self._nodes.get(visit.key, OrderedDict())):
            del own[visit]
            if not own:
                del self._nodes[visit.key]
