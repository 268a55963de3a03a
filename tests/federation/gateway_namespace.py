"""A server in a network namespace of its own, tried from another one: `python gateway_namespace.py ASKED [PID]`.

With PID it is the server's side: it starts the gateway, or the whole server, of ASKED's folder and, in PID's namespace, itself as the
caller, whose findings it prints. Without, it is the caller.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = "198.51.100.1"
THERE = "198.51.100.2"


def call(asked: dict[str, Any]) -> dict[str, Any]:
    """What answers there, by path; and on the SuperLink's port, if there is one."""
    from gateway_parts import exchanged, written

    statuses: dict[str, set[int]] = {}
    for method, path in asked["routes"]:
        statuses.setdefault(path, set()).add(exchanged(asked["gateway"], written(path, {}, method=method), address=THERE, host=HERE))
    opened = written("/health", {"zk0-local": asked["secret"]})
    closed = exchanged(asked["superlink"], opened, address=THERE, host=HERE, tls=False) if asked["superlink"] else None
    return {"gateway": {path: sorted(seen) for path, seen in statuses.items()}, "superlink": closed}


@contextmanager
def gateway_alone(folder: str) -> Iterator[dict[str, Any]]:
    """The gateway of a server's folder, which has nothing to pass requests on to."""
    from zk0desk.federation.front import Front
    from zk0desk.federation.gateway import Gateway
    from zk0desk.federation.server_folder import ServerFolder

    server = ServerFolder(folder)
    app = Gateway(server.nodes(), upstream=lambda: "http://127.0.0.1:9", secret="secret", code=server.code(), values=330)
    certificate, key = server.certificate_path, server.key_path
    front = Front(app, host="0.0.0.0", port=0, certificate=certificate, key=key, closing=app.close)
    front.start()
    try:
        yield {"gateway": front.port, "superlink": 0, "secret": ""}
    finally:
        front.stop()


@contextmanager
def whole_server(folder: str) -> Iterator[dict[str, Any]]:
    """The server of a folder."""
    from zk0desk.federation.superlink import start_server

    with start_server(folder, lambda _event: None) as server:
        running = server.folder.running()
        yield {"gateway": running.port, "superlink": running.superlink_port, "secret": running.secret}


def main(asked: Path, pid: str = "") -> None:
    found = json.loads(asked.read_text())
    if not pid:
        print(json.dumps(call(found)))
        return
    with (whole_server if found["whole"] else gateway_alone)(found["folder"]) as ports:
        asked.write_text(json.dumps({**found, **ports}))
        caller = ["nsenter", "-t", pid, "-n", sys.executable, __file__, str(asked)]
        print(subprocess.run(caller, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
