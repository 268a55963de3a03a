"""Stock Flower, as a case of `server_round.py` asks: `flower-superlink`, `flwr run` with FedProx in a ServerApp, SuperNodes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from server_round_parts import HERE, Case, Cpu, Measured, Memory, free_port, python, quiet_environment, started, wait_for

START_S, ROUND_S = 120.0, 900.0
"""How long stock's parts may take to start, and for a round."""


def measure(case: Case, folder: Path, supernodes: str) -> Measured:
    """Run `case`. `supernodes`: `in-process` calls the ClientApp in the SuperNode's process, `shipped` starts `flower-supernode`."""
    folder.mkdir()
    environment, log, said, port = quiet_environment(folder), folder / "log", folder / "said", free_port()
    address, certificate = f"127.0.0.1:{port}", _certificate(folder) if case.on_disk else None
    command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    if certificate is not None:
        command += ["--database", str(folder / "superlink.sqlite"), "--ssl-ca-certfile", str(certificate), "--ssl-certfile"]
        command += [str(certificate), "--ssl-keyfile", str(folder / "key.pem")]
    app = _app(folder, case, said)
    with ExitStack() as stack:
        superlink = stack.enter_context(started([*command, *([] if certificate else ["--insecure"])], log, environment))
        wait_for(lambda: _answers(port), START_S, "The SuperLink", log)
        nodes = [stack.enter_context(started(_supernode(supernodes, address, certificate), log, environment)) for _ in range(case.nodes)]
        _connection(folder, address, certificate)
        subprocess.run(["flwr", "run", str(app), "bench"], env=environment, check=True, stdout=subprocess.DEVNULL)
        pid = wait_for(lambda: _said(said), START_S, "The ServerApp", log)[0]["pid"]
        memory, cpu = Memory(pid), Cpu()
        cpu.parts = {"superlink": [superlink.pid], "serverapp": [pid], "nodes": [each.pid for each in nodes]}
        for number in range(case.rounds + 2):
            wait_for(lambda number=number: len(_said(said)) > number + 1, START_S + ROUND_S, f"Round {number}", log)
            if number == 1:
                cpu.begin()
        used, peak = cpu.of_a_round(case.rounds), memory.stop()
        times = {each["round"]: each["time"] for each in _said(said)[1:]}
    seconds = [times[number] - times[number - 1] for number in range(2, case.rounds + 2)]
    return Measured(seconds, used, peak, update_bytes=4 * case.values)


def _said(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _certificate(folder: Path) -> Path:
    from zk0desk.federation.server_folder import make_certificate

    certificate, key = make_certificate("localhost")
    (folder / "key.pem").write_text(key)
    (folder / "certificate.pem").write_text(certificate)
    return folder / "certificate.pem"


def _supernode(kind: str, address: str, certificate: Path | None) -> list[str]:
    if kind == "in-process":
        return python("server_round_app.py", address, certificate or "-")
    tls = ["--root-certificates", str(certificate)] if certificate else ["--insecure"]
    return ["flower-supernode", "--superlink", address, "--host", "127.0.0.1", "--port", str(free_port()), *tls]


def _app(folder: Path, case: Case, said: Path) -> Path:
    app = folder / "app"
    app.mkdir()
    shutil.copyfile(HERE / "server_round_app.py", app / "server_round_app.py")
    (app / "pyproject.toml").write_text(f"""[project]
name = "server-round"
version = "1.0.0"
description = "FedProx without training"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "server_round_app:server"
clientapp = "server_round_app:client"

[tool.flwr.app.config]
values = {case.values}
nodes = {case.nodes}
rounds = {case.rounds + 1}
said = "{said}"
""")
    return app


def _connection(folder: Path, address: str, certificate: Path | None) -> None:
    home = folder / "flwr"
    home.mkdir(exist_ok=True)
    tls = f'root-certificates = "{certificate}"' if certificate else "insecure = true"
    (home / "config.toml").write_text(f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{address}"\n{tls}\n')
