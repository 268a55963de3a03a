import json
import os
import subprocess
import sys
import time

import click
import pytest
import typer

from zk0desk import __version__, cli
from zk0desk.errors import ExitStatus, OperatorError


class Refusal(OperatorError):
    code = "not-admitted"
    exit_status = ExitStatus.REFUSED


def _zk0desk(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "zk0desk", *arguments], capture_output=True, text=True, timeout=60, **options)


def test_help_lists_every_command_and_imports_none_of_them():
    done = _zk0desk("--help")
    assert done.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout and command.help in done.stdout


def test_help_comes_at_once():
    # The limit of 0.3 s is for a free computer and is measured by benchmarks/help.py; what counts here is processor time.
    taken = []
    for _ in range(3):
        before = os.times()
        _zk0desk("--help")
        after = os.times()
        taken.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert min(taken) < 0.3


def test_the_version_is_told():
    assert _zk0desk("--version").stdout == f"zk0desk {__version__}\n"


def _commands():
    """Every command there is, with the words that call it."""

    def below(words, command):
        yield words, command
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=words[-1])
            for name in command.list_commands(context):
                if not (child := command.get_command(context, name)).hidden:
                    yield from below([*words, name], child)

    for name in cli.COMMANDS:
        yield from below([name], cli._load(name))


def test_the_help_of_every_command_says_what_it_does_with_an_example():
    without = []
    for words, command in _commands():
        call = "zk0desk " + " ".join(words)
        text = command.get_help(click.Context(command, info_name=call))
        examples = [line for line in text.splitlines() if f"{call} " in f"{line} " and "Usage:" not in line]
        if not examples:
            without.append(call)
    assert not without, f"no example in the help of: {', '.join(without)}"


def test_help_is_plain_text():
    command = cli._load("server").commands["init"]
    text = command.get_help(click.Context(command, info_name="zk0desk server init"))
    assert "[required]" in text and "\\[" not in text and "\u2500" not in text


def test_every_option_and_every_short_help_is_explained():
    for words, command in _commands():
        assert command.get_short_help_str().strip(), f"zk0desk {' '.join(words)} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"zk0desk {' '.join(words)} {parameter.opts[0]} is not explained"


def test_an_unknown_command_is_a_usage_error():
    done = _zk0desk("trian")
    assert done.returncode == ExitStatus.USAGE
    assert "No such command 'trian'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def command(monkeypatch):
    """Put `function` in the place of `zk0desk try`."""
    import types

    def place(function):
        module = types.ModuleType("zk0desk_tried")
        module.tried = function
        monkeypatch.setitem(sys.modules, "zk0desk_tried", module)
        monkeypatch.setitem(cli.COMMANDS, "try", cli._Command("zk0desk_tried", "tried", "Try."))

    return place


def test_a_refusal_is_three_sentences_on_stderr_and_its_exit_status(command, capsys):
    def refused():
        raise Refusal("This node is not admitted.", "Its key is unknown.", "Send the fingerprint to the coordinator.")

    command(refused)
    assert cli.main(["try"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["This node is not admitted.", "Its key is unknown.", "Send the fingerprint to the coordinator."]


def test_with_json_the_error_is_an_object_on_stdout(command, capsys):
    def refused(json: bool = typer.Option(False, "--json")):
        raise Refusal("This node is not admitted.", "Its key is unknown.")

    command(refused)
    assert cli.main(["try", "--json"]) == 5
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {
        "code": "not-admitted",
        "what": "This node is not admitted.",
        "why": "Its key is unknown.",
        "remedy": "",
    }
    assert err == ""


def test_an_unexpected_error_is_a_sentence_that_names_the_log(command, capsys):
    def broken():
        return {}["missing"]

    command(broken)
    assert cli.main(["try"]) == ExitStatus.FAILED
    err = capsys.readouterr().err
    assert "Traceback" not in err
    log = next(word.rstrip(".") for word in err.split() if word.endswith("errors.log."))
    with open(log, encoding="utf-8") as file:
        text = file.read()
    assert "Traceback" in text and "KeyError: 'missing'" in text
    assert os.stat(log).st_mode & 0o077 == 0


def test_the_log_of_unexpected_errors_does_not_grow_for_ever(command):
    from zk0desk import folders

    log = folders.private_folder(folders.state_folder()) / "errors.log"
    log.write_bytes(b"x" * (cli._LOG_BYTES + 1))
    command(lambda: 1 / 0)
    cli.main(["try"])
    assert log.stat().st_size < 10_000
    assert sorted(path.name for path in log.parent.iterdir()) == ["errors.log", "errors.log.old"]


def test_an_unexpected_error_is_told_even_when_the_log_cannot_be_written(command, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "file"))
    command(lambda: 1 / 0)
    assert cli.main(["try"]) == ExitStatus.FAILED
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["torch", "lerobot.datasets", "flwr"])
def test_a_missing_engine_is_told_with_the_way_to_get_it(command, capsys, library):
    def needs():
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    command(needs)
    assert cli.main(["try"]) == ExitStatus.ENGINE_MISSING
    err = capsys.readouterr().err
    assert library in err and "zk0desk[engine]" in err


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, click.Abort])
def test_ctrl_c_is_130_without_a_word(command, capsys, interruption):
    def interrupted():
        raise interruption

    command(interrupted)
    assert cli.main(["try"]) == ExitStatus.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_a_command_may_return_or_raise_its_own_exit_status(command):
    command(lambda: int(ExitStatus.REPAIRABLE))
    assert cli.main(["try"]) == 3

    def ends():
        raise typer.Exit(int(ExitStatus.UNUSABLE))

    command(ends)
    assert cli.main(["try"]) == 4


def test_a_command_that_returns_nothing_went_well(command):
    command(lambda: None)
    assert cli.main(["try"]) == 0


def test_a_reader_that_goes_away_gets_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "zk0desk", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitStatus.FAILED, "")


@pytest.mark.parametrize(
    ("given", "opens"),
    [([], []), (["zk0desk:join?abc"], ["zk0desk:join?abc"]), (["Einladung für Öl.zk0invite"], ["Einladung für Öl.zk0invite"])],
)
def test_no_command_or_an_invitation_opens_the_window(monkeypatch, given, opens):
    import types

    opened = []
    window = types.ModuleType("zk0desk.ui.main")
    window.run = lambda arguments: opened.append(arguments) or 0
    monkeypatch.setitem(sys.modules, "zk0desk.ui.main", window)
    assert cli.main(given) == 0
    assert opened == [opens]


def test_the_window_can_be_asked_for_only_by_name_of_an_invitation():
    assert not cli.is_invitation("demo")
    assert cli.is_invitation("zk0desk:join?x") and cli.is_invitation("/a b/c.zk0invite")


def test_help_is_told_before_settings_are_read(tmp_path):
    broken = tmp_path / "config"
    broken.mkdir()
    (broken / "settings.toml").write_text("[[[")
    began = time.monotonic()
    assert _zk0desk("--help", env={**os.environ, "ZK0DESK_HOME": str(tmp_path)}).returncode == 0
    assert time.monotonic() - began < 30
