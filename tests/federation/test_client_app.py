"""The same round as a ClientApp: called directly, and in the real flower-supernode."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.federation.coordinator_parts import Events, make_policy, make_server
from tests.federation.node_parts import CHANGE, Round, StandInEngine, admitted, free_port, invitation, operator_settings
from tests.federation.reply_parts import Arrays
from zk0desk import folders
from zk0desk import settings as settings_file
from zk0desk.federation.credentials import default_key_file, load_or_make_key
from zk0desk.federation.messages import check_metrics, check_reply
from zk0desk.federation.superlink import start_server
from zk0desk.federation.updates import decode, encode
from zk0desk.settings import ServerPolicy


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return make_policy(tmp_path / "policy")


def call(asked: Round, settings: Path, *, kind: str = "train", config: dict[str, Any] | None = None) -> Any:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Metadata, RecordDict
    from flwr.app.message.message import make_message

    from zk0desk.federation.client_app import app

    arrays = ArrayRecord({f"{i:06d}": Array(piece) for i, piece in enumerate(encode(asked.weights, "fp32"))})
    content = RecordDict({"config": ConfigRecord({**asked.request.to_config(), **(config or {})})})
    if kind == "train":
        content["arrays"] = arrays
    metadata = Metadata(
        run_id=1, message_id="m", src_node_id=1, dst_node_id=1, reply_to_message_id="", group_id="", created_at=time.time(), ttl=100.0,
        message_type=kind,
    )  # fmt: skip
    message = make_message(metadata, content)
    return app(message, Context(1, 1, {"settings": str(settings)}, RecordDict(), {}))


@pytest.fixture
def settings(policy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from zk0desk.federation import client_app, node_engine

    monkeypatch.setattr(node_engine, "Engine", StandInEngine)
    client_app._engine.cache_clear()
    settings_file.save(operator_settings(invitation(), policy), folders.settings_file())
    return folders.settings_file()


def test_that_it_answers_a_round_as_the_node_does(policy: Path, settings: Path) -> None:
    asked = Round(policy)
    answer = call(asked, settings).content
    check_reply(dict(answer["config"]), asked.request)
    check_metrics(dict(answer["metrics"]))
    arrays = [answer["arrays"][name].numpy() for name in sorted(answer["arrays"])]
    assert np.allclose(decode(arrays, "fp16", asked.weights.size), CHANGE, rtol=1e-3)


def test_that_it_refuses_what_the_node_refuses(policy: Path, settings: Path) -> None:
    answer = call(Round(policy), settings, config={"lr": 5.0})
    assert answer.has_error() and "`lr`" in (answer.error.reason or "")


def test_that_it_does_nothing_without_consent(policy: Path, settings: Path) -> None:
    chosen = settings_file.load(settings)
    settings_file.save(chosen.model_copy(update={"federation": chosen.federation.model_copy(update={"consent": ""})}), settings)
    answer = call(Round(policy), settings)
    assert answer.has_error() and "consent-missing" in (answer.error.reason or "")


@pytest.mark.long
@pytest.mark.timeout(240)
def test_that_a_stock_flower_supernode_does_a_real_round(tmp_path: Path, demo_policy: Path, demo_recording: Path) -> None:
    from zk0desk.federation.grid import Grid

    folder = make_server(tmp_path, min_nodes=1)
    server_settings = folder.settings().model_copy(update={"policy": ServerPolicy(folder=demo_policy)})
    settings_file.save(server_settings, folder.settings_path)
    with start_server(folder.path, Events()) as server:
        chosen = operator_settings(folder.invitation(), demo_policy, demo_recording)
        settings_file.save(chosen, folders.settings_file())
        key = load_or_make_key(chosen.federation)
        admitted(folder, key)
        running = folder.running()
        grid = Grid(running.superlink, running.secret)
        program = Path(sys.executable).with_name("flower-supernode")
        with (tmp_path / "supernode.log").open("wb") as log:
            supernode = subprocess.Popen(
                [
                    str(program), "--superlink", f"localhost:{server.port}", "--root-certificates", str(folder.certificate_path),
                    "--auth-supernode-private-key", str(default_key_file()), "--port", str(free_port()),
                    "--node-config", f'settings="{folders.settings_file()}"',
                ],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "FLWR_HOME": str(tmp_path / "flwr"), "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
            )  # fmt: skip
        try:
            asked = Round(demo_policy, local_steps=2, deadline_s=150.0)
            node_id, answer, ends = 0, None, time.monotonic() + 180
            message = ""
            while answer is None and time.monotonic() < ends and supernode.poll() is None:
                if not node_id:
                    node_id = next((node.node_id for node in grid.nodes() if node.online), 0)
                    if node_id:
                        config = asked.request.to_config()
                        message = grid.send([node_id], "train", arrays=encode(asked.weights, "fp32"), config=config, ttl=300.0)[node_id]
                else:
                    answer = next(iter(grid.replies([message], lambda _: Arrays())), None)
                time.sleep(0.2)
            assert answer is not None and not answer.error, (tmp_path / "supernode.log").read_text()[-3000:] + str(answer and answer.error)
            check_reply(answer.config, asked.request)
            metrics = check_metrics(answer.metrics)
            update = decode(answer.received, "fp16", asked.weights.size)
            assert metrics["steps-done"] == 2 and 0 < np.abs(update).max() < 0.1
        finally:
            grid.close()
            supernode.terminate()
            try:
                supernode.wait(15)
            except subprocess.TimeoutExpired:
                supernode.kill()
            # What it started is of its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(supernode.pid, signal.SIGKILL)
            supernode.wait(5)
