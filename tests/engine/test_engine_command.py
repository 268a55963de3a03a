"""`zk0desk engine` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.engine.wheel_parts import list_of, write_wheel
from zk0desk import cli
from zk0desk.engine import selftest, state, store
from zk0desk.engine.selftest import SelfTest

WORKS = SelfTest(True, True, "cpu", "The engine works.", versions={"torch": "2"}, build="cpu")


@pytest.fixture(autouse=True)
def no_gpu_and_no_torch(monkeypatch):
    """The choice does not depend on the computer that tests, and the self-test is answered."""
    monkeypatch.setattr("zk0desk.gpus.find_gpus", lambda *_: ())
    monkeypatch.setattr(selftest, "run", lambda *_: WORKS)


def call(capsys, *arguments: str) -> tuple[int, list[dict], str]:
    """The exit status, the JSON objects that were printed, and what went to stderr."""
    status = cli.main(["engine", *arguments, "--json"])
    out, err = capsys.readouterr()
    try:
        return status, [json.loads(out)], err
    except ValueError:
        return status, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize("action", ["get", "repair", "verify", "prune", "back", "update", "export stick", "import stick"])
def test_in_an_environment_nothing_is_fetched(capsys, action):
    status, (told,), _ = call(capsys, *action.split())
    assert status == 2 and told["error"]["code"] == "engine-environment"
    assert "environment itself is the engine" in told["error"]["what"]


def test_the_status_of_an_environment(capsys):
    status, (told,), _ = call(capsys, "status")
    assert status == 0 and told["state"]["kind"] == "environment" and told["choice"] is None and told["plan"] is None


def test_an_environment_without_parts_of_the_engine_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(state, "find_spec", lambda name: None if name == "flwr" else object())
    assert cli.main(["engine", "status"]) == 7
    assert "not installed: flwr. Install it: pip install" in capsys.readouterr().out


def test_the_life_of_an_engine(capsys, packaged, wanted, wheels, server, shelf, tmp_path):
    packaged(wanted)
    status, (told,), _ = call(capsys, "status")
    assert (status, told["state"]["kind"], told["choice"]["backend"]) == (7, "none", "cpu")
    assert told["plan"]["fetch"] == wanted.size and told["plan"]["fits"]

    status, lines, _ = call(capsys, "get")
    assert status == 0 and lines[0]["plan"]["fetch"] == wanted.size
    (done,) = [line for line in lines if "engine" in line]
    assert done["used"] and done["self-test"]["ok"] and done["state"]["kind"] == "ready" and done["received"] == wanted.size
    assert {line["progress"]["phase"] for line in lines if "progress" in line} >= {"unpacking", "testing", "compiling"}

    status, (told,), _ = call(capsys, "status")
    assert (status, told["state"]["kind"], told["state"]["newer"]) == (0, "ready", False)
    engine = store.current()
    assert engine is not None
    (engine.site / "small.py").unlink()
    status, lines, _ = call(capsys, "verify")
    assert status == 3 and lines[-1]["verified"]["damaged"] == [{"path": "small.py", "wheel": wheels[2].name, "what": "missing"}]
    status, lines, _ = call(capsys, "repair")
    assert status == 0 and lines[-1]["verified"]["repaired"] == 1
    assert call(capsys, "verify", "--thorough")[0] == 0

    packaged(list_of([*wheels[:2], write_wheel(shelf, "small", {"small.py": b"answer = 43\n"}, "2.0")], server.url))
    assert call(capsys, "status")[1][0]["state"]["newer"] is True
    assert call(capsys, "get")[0] == 0
    status, (told,), _ = call(capsys, "back")
    assert status == 0 and told["engine"]["id"] == engine.id and len(state.look().older) == 1
    status, (told,), _ = call(capsys, "prune")
    assert status == 0 and len(told["pruned"]["removed"]) == 1

    packaged(wanted)
    status, lines, _ = call(capsys, "export", str(tmp_path / "stick"))
    assert status == 0
    server.stop()
    (engine.path / "valid").unlink()
    assert call(capsys, "status")[1][0]["state"]["kind"] == "damaged"
    status, lines, _ = call(capsys, "import", str(tmp_path / "stick"))
    assert status == 0 and store.current() is not None and call(capsys, "verify")[0] == 0


def test_an_update_keeps_the_back_end_that_a_person_chose(capsys, packaged, wheels, server, shelf):
    cpu, cuda = list_of(wheels[:1], server.url), replace(list_of(wheels[:2], server.url), backend="cu126")
    packaged(cpu)
    packaged(cuda)
    assert call(capsys, "get", "--backend", "cu126")[0] == 0
    packaged(replace(list_of(wheels, server.url), backend="cu126"))
    assert call(capsys, "status")[1][0]["plan"]["backend"] == "cu126"
    assert call(capsys, "get")[0] == 0
    engine = store.current()
    assert engine is not None and (engine.backend, engine.wheels) == ("cu126", 3)


def test_words_for_a_person(capsys, packaged, wanted):
    packaged(wanted)
    assert cli.main(["engine", "status"]) == 7
    out = capsys.readouterr().out
    assert "The training engine is not on this computer yet." in out and "For this computer: cpu." in out and "0 MB to fetch" in out
    assert cli.main(["engine", "verify"]) == 7
    assert "zk0desk engine get" in capsys.readouterr().err
    assert cli.main(["engine", "get", "--backend", "cu130"]) == 4
    assert "It brings: cpu." in capsys.readouterr().err
    assert cli.main(["engine", "get"]) == 0
    assert "The engine works." in capsys.readouterr().out
    assert cli.main(["engine", "status"]) == 0
    assert "The training engine is ready: cpu" in capsys.readouterr().out
    assert cli.main(["engine", "update"]) == 1
    assert "looks for no updates" in capsys.readouterr().err


def test_an_engine_that_cannot_be_loaded_ends_with_the_status_of_limits(capsys, packaged, wanted, monkeypatch):
    packaged(wanted)
    monkeypatch.setattr(selftest, "run", lambda *_: SelfTest(False, False, "", "The engine cannot be loaded: no.", "Repair it."))
    status, lines, _ = call(capsys, "get")
    assert status == 3 and not [line for line in lines if "engine" in line][0]["used"]


def test_a_missing_library_names_the_way_that_fits_the_installation(capsys, packaged, monkeypatch):
    def command(*_: object) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert cli.guarded(command) == 7
    assert "zk0desk engine get" in capsys.readouterr().err


def test_updates_are_asked_for_on_the_command_line_and_not_while_a_node_runs(capsys, packaged, wanted, server, monkeypatch):
    from zk0desk import folders
    from zk0desk.engine import updates
    from zk0desk.journal import Journal

    packaged(wanted)
    monkeypatch.setattr(updates, "feed", lambda: updates.Feed(f"{server.url}/feed.json", bytes(32)))
    folders.private_folder(folders.journal_file().parent)
    with Journal(folders.journal_file()):
        status, (told,), _ = call(capsys, "update")
    assert (status, told["error"]["code"]) == (1, "engine-busy") and not server.requests
    status, (told,), _ = call(capsys, "update")
    assert (status, told["error"]["code"]) == (5, "engine-refused") and server.requests == []


STEERED = """
import sys
from pathlib import Path
from zk0desk import cli, gpus
from zk0desk.engine import artefact, selftest
folder = Path(sys.argv[1])
artefact.resource = lambda name: folder / name
gpus.find_gpus = lambda *_: ()
sys.exit(cli.main(["engine", "get", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("how", ["stop", "end", "ctrl-c"])
def test_a_steered_fetch_stops_when_it_is_told_to(packaged, wanted, server, tmp_path, how):
    packaged(wanted)
    server.close_gate(100_000)
    command = [sys.executable, "-c", STEERED, str(tmp_path / "resources"), "--json", "--steered"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdin and server.reached.wait(20)
        if how == "ctrl-c":
            process.send_signal(signal.SIGINT)
        elif how == "stop":
            process.stdin.write("stop\n")
            process.stdin.flush()
        else:
            process.stdin.close()
        assert process.wait(10) == 130
        process.stdin.close()
    seen = state.look()
    assert seen.kind == "none" and 0 < seen.partial <= 100_000
