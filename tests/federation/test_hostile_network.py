"""A federation goes on while another computer attacks its gateway, and its secrets are nowhere but where they belong."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.federation.coordinator_parts import Events, make_server
from tests.federation.gateway_parts import PULL, exchanged, signed, written
from tests.federation.node_parts import certificate, operator_settings
from zk0desk import settings as settings_file
from zk0desk.control import NodeControl
from zk0desk.errors import OperatorError
from zk0desk.federation.credentials import NodeKey, load_or_make_key
from zk0desk.federation.superlink import RunningServer, start_server

pytestmark = pytest.mark.timeout(300)

ATTACKER = "127.0.0.2"
TOKENS = {"HF_TOKEN": "hf_" + "Qz7" * 11, "WANDB_API_KEY": "f0e1d2c3b4" * 4}
MEMORY = 150 * 2**20
"""By how much the gateway's process may grow."""


class Federation:
    """A server that conducts rounds without an end, and a node in a process of its own that takes part in them."""

    def __init__(self, server: RunningServer, events: Events, home: Path) -> None:
        self.server, self.events, self.home = server, events, home
        invited = server.folder.invitation()
        settings = operator_settings(invited, server.folder.policy(server.folder.settings()))
        path = home / "settings.toml"
        settings = settings.model_copy(update={"federation": settings.federation.model_copy(update={"key_file": home / "node-key.pem"})})
        settings_file.save(settings, path)
        self.key = load_or_make_key(settings.federation)
        server.admit(self.key.public_line)
        with (home / "said").open("wb") as said:
            self.node = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("node_parts.py")), str(path), "0", "stay"], stdout=said, stderr=said,
                env={**os.environ, "ZK0DESK_HOME": str(home / "home"), "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip

    def rounds(self) -> int:
        return len(self.events.named("checkpoint-saved"))

    def until_rounds(self, more: int) -> None:
        enough = self.rounds() + more
        self.events.wait_for(lambda event: event.name == "checkpoint-saved" and self.rounds() >= enough, 120.0)

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.server.pid), *psutil.Process(self.server.pid).children(recursive=True), psutil.Process(self.node.pid)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    home = tmp_path_factory.mktemp("operator")
    home.chmod(0o700)
    folder, events = make_server(tmp_path_factory.mktemp("federation"), min_nodes=1, rounds=100_000, keep_checkpoints=1), Events()
    with pytest.MonkeyPatch.context() as patch:
        for name, token in TOKENS.items():
            patch.setenv(name, token)
        with start_server(folder.path, events, run=True) as server:
            made = Federation(server, events, home)
            try:
                made.until_rounds(1)
                yield made
            finally:
                made.node.terminate()
                made.node.wait(10)


class Memory:
    """The largest resident size of a process while this is open, in bytes, against that at its beginning."""

    def __init__(self, pid: int) -> None:
        self._process, self._done = psutil.Process(pid), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def attacked(server: RunningServer, key: NodeKey, *, seconds: float, connections: int) -> tuple[dict[str, dict[str, int]], Memory]:
    """What became of each kind of attack, and the memory of the gateway's process meanwhile."""
    asked = {"port": server.port, "address": ATTACKER, "seconds": seconds, "connections": connections, "key": key.to_pem().decode()}
    with Memory(server.pid) as memory:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("gateway_parts.py"))], input=json.dumps(asked) + "\n", capture_output=True,
            text=True, timeout=seconds + 60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), memory


def goes_on(federation: Federation, seconds: float, connections: int) -> None:
    server, events, hostile = federation.server, federation.events, NodeKey.make()
    server.admit(hostile.public_line)
    began, before = time.monotonic(), federation.rounds()
    seen, memory = attacked(server, hostile, seconds=seconds, connections=connections)
    took, rounds = time.monotonic() - began, federation.rounds() - before
    grown = memory.peak - memory.before
    print(f"{rounds} rounds in {took:.1f} s, memory {memory.before / 2**20:.0f} + {grown / 2**20:.0f} MiB; {json.dumps(seen)}")
    assert rounds >= 2, "rounds go on meanwhile"
    assert not events.named("reply-refused"), "the node's replies come through"
    assert "many-calls" in [event.code for event in events.named("notice")], "the coordinator is told"
    assert grown < MEMORY
    assert seen["many_connections"]["opened"] >= connections, "so many were open at once, as the attacker saw it"
    for kind in ("slow_headers", "slow_body"):
        assert "finished" not in seen.get(kind, {})
    answered = {name.rsplit(" ", 1)[-1] for kind in seen.values() for name in kind if name.rsplit(" ", 1)[-1].isdigit()}
    assert not {"200", "500", "502"} & answered, seen
    for kind in ("garbage", "large_bodies", "broken_protobuf", "bombs", "endless_headers", "requests_of_a_stranger"):
        assert seen[kind], "it was tried"


def most_connections() -> int:
    """Ten thousand, or what this process may open."""
    return min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)


def test_rounds_go_on_while_the_gateway_is_attacked(federation):
    goes_on(federation, seconds=5, connections=500)


@pytest.mark.long
def test_rounds_go_on_while_ten_thousand_connections_and_slow_large_and_broken_requests_come(federation):
    goes_on(federation, seconds=60, connections=most_connections())


# --- secrets ------------------------------------------------------------------------------------------------------


def secrets_of(federation: Federation) -> dict[str, list[str]]:
    """What nobody may read, by name; a key as the lines of its file."""
    folder = federation.server.folder
    keys = {"tls key": folder.key_path, "node key": federation.home / "node-key.pem"}
    found = {name: path.read_text().splitlines()[1:-1] for name, path in keys.items()}
    return {**found, "admission code": [folder.code()], "local secret": [folder.running().secret]}


def provoke(federation: Federation) -> None:
    """What goes wrong in a federation: wrong codes, forged and broken requests, a lost SuperLink, a registry that cannot be read."""
    from zk0desk.federation.fleet import Fleet

    server, folder = federation.server, federation.server.folder
    code = folder.code()
    for changes in ({"code": "guess"}, {"code": code}, {"certificate": certificate("localhost")[0]}, {"port": 1}):
        fleet = Fleet(folder.invitation().model_copy(update=changes), NodeKey.make(), NodeControl())
        with pytest.raises(OperatorError):
            fleet.join()
        fleet.close()
    for request in (
        written(f"/v1/fleet/pull-messages?code={code}", {"zk0-admission-code": code}),
        written(PULL, {**signed(federation.key), "zk0-admission-code": code}, b"\xff" * 50),
        written(PULL, {"flwr-public-key": code, "zk0-admission-code": code * 20}),
        code.encode() + b"\r\n\r\n",
    ):
        assert exchanged(server.port, request, address=ATTACKER) in (0, 400, 401, 404)
    kept = folder.nodes_path.read_bytes()
    folder.nodes_path.write_bytes(b"damaged")
    federation.events.wait_for(lambda event: getattr(event, "code", "") == "nodes-unreadable")
    federation.events.wait_for(lambda event: event.name == "server-state-changed" and event.what.startswith("The rounds' process ended"))
    folder.nodes_path.write_bytes(kept)
    superlink = next(each for each in federation.processes() if "_superlink" in each.cmdline())
    superlink.kill()
    federation.events.wait_for(lambda event: getattr(event, "state", "") == "restarting")
    federation.until_rounds(1)


def test_secrets_are_in_no_log_event_process_list_or_exception_and_their_files_are_the_owners_alone(federation):
    before = secrets_of(federation)
    provoke(federation)
    secrets = {**{f"{name} before": lines for name, lines in before.items()}, **secrets_of(federation), "tokens": list(TOKENS.values())}
    folder = federation.server.folder
    own = {folder.code_path, folder.key_path, folder.running_path, federation.home / "node-key.pem"}
    places: dict[str, bytes] = {}
    for root in (folder.path, federation.home):
        for path in root.rglob("*"):
            if path.is_file() and path not in own:
                places[str(path)] = path.read_bytes()
    assert any(path.endswith("superlink.log") for path in places) and any("journal" in path for path in places), sorted(places)
    places["events"] = json.dumps([event.to_json() for event in federation.events]).encode()
    for process in federation.processes():
        places[f"command line of {process.pid}"] = " ".join(process.cmdline()).encode()
        places[f"environment of {process.pid}"] = b"\n".join(
            value.encode() for name, value in process.environ().items() if name not in TOKENS
        )
    found = [
        f"{name} in {place}" for place, data in places.items() for name, lines in secrets.items() for line in lines if line.encode() in data
    ]
    assert not found
    for path in (*own, folder.nodes_path):
        assert path.stat().st_mode & 0o777 == 0o600, path
    for path in (folder.path, folder.state, federation.home / "home" / "data"):
        assert path.stat().st_mode & 0o777 == 0o700, path
