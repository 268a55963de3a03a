"""How the house is cut: what may import what, and what is never loaded where."""

import ast
import json
import os
import subprocess
import sys

import pytest

from zk0desk.quiet import ALWAYS, UNLESS_CHOSEN, quiet_libraries
from zk0desk.resources import resource

HEAVY = {"torch", "lerobot", "transformers", "flwr", "accelerate", "datasets", "torchvision"}
FLOWER_INSIDE = {"fleet.py", "grid.py", "superlink.py"}
PUBLIC_FLOWER = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.common", "flwr.server", "flwr.client"}


def _loaded_by(program, *, without=()):
    """Names of the top-level modules that `program` loads in a process of its own; `without` cannot be imported there."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {set(without)!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Missing())
{program}
import json
print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def _modules(checkout, folder):
    return [
        ".".join(path.relative_to(checkout).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((checkout / folder).rglob("*.py"))
        if path.name != "__main__.py"
    ]


def test_the_import_contracts_hold(checkout):
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=checkout, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_importing_the_whole_window_loads_no_engine(checkout):
    names = _modules(checkout, "zk0desk/ui")
    assert "zk0desk.ui.main" in names
    assert not HEAVY & _loaded_by("import " + ", ".join(names))


def test_importing_the_whole_command_line_loads_neither_engine_nor_qt(checkout):
    names = ["zk0desk.cli", *_modules(checkout, "zk0desk/commands")]
    loaded = _loaded_by("import " + ", ".join(names))
    assert not (HEAVY | {"PySide6"}) & loaded


def test_what_all_share_loads_no_engine_and_no_numpy(checkout):
    names = ["errors", "folders", "events", "settings", "journal", "control", "quiet", "resources"]
    loaded = _loaded_by("import " + ", ".join(f"zk0desk.{name}" for name in names))
    assert not (HEAVY | {"PySide6", "numpy"}) & loaded


def test_the_way_to_the_window_does_not_load_the_argument_parser():
    loaded = _loaded_by("import zk0desk.cli")
    assert not {"click", "typer", "rich", "pydantic"} & loaded


def test_training_and_federation_can_be_imported_without_the_engine_but_for_connection_and_arithmetic(checkout):
    flower = {"client_app", "fleet", "grid"}  # imported when a connection is made
    arithmetic = {"prefix_forward"}  # imported with the policy that it computes
    names = [name for folder in ("training", "federation", "demo") for name in _modules(checkout, f"zk0desk/{folder}")]
    assert {f"zk0desk.federation.{name}" for name in flower} <= set(names)
    _loaded_by("import " + ", ".join(name for name in names if name.rpartition(".")[2] not in flower | arithmetic), without=HEAVY)


def test_the_process_that_aggregates_loads_no_torch():
    program = "import zk0desk.federation.server_app, zk0desk.federation.strategy, zk0desk.federation.grid, zk0desk.training.policy_files"
    _loaded_by(program, without={"torch", "lerobot", "transformers", "accelerate"})


def _flower_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "flwr":
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "flwr")


def test_flowers_internals_are_touched_in_three_files_alone(checkout):
    found = {
        f"{path.relative_to(checkout)}: {name}"
        for path in (checkout / "zk0desk").rglob("*.py")
        if path.name not in FLOWER_INSIDE
        for name in _flower_imports(path)
        if name not in PUBLIC_FLOWER
    }
    assert not found


def test_no_file_promises_what_is_not_there(checkout):
    words = ("TO" + "DO", "FIX" + "ME", "raise Not" + "ImplementedError", "X" + "XX")
    found = [
        f"{path.relative_to(checkout)}: {word}"
        for folder in ("zk0desk", "packaging", "benchmarks")
        for path in (checkout / folder).rglob("*.py")
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found


def test_quiet_switches_off_telemetry_whatever_was_set(monkeypatch):
    for name in ALWAYS | UNLESS_CHOSEN:
        monkeypatch.setenv(name, "chosen")
    quiet_libraries()
    assert {name: os.environ[name] for name in ALWAYS} == ALWAYS
    assert all(os.environ[name] == "chosen" for name in UNLESS_CHOSEN)


def test_flowers_own_switches_are_the_ones_we_set():
    """Its telemetry and update check are off in a process that was made quiet, by its own account."""
    from flwr.supercore import constant, telemetry

    assert ALWAYS[constant.FLWR_DISABLE_UPDATE_CHECK] == "1"
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"


def test_resources_are_found_and_a_missing_one_is_named():
    assert resource("icons/org.zk0.Desk.svg").is_file()
    with pytest.raises(FileNotFoundError, match="no resource 'nonsense'"):
        resource("nonsense")


@pytest.mark.parametrize("size", [16, 24, 32, 48, 64, 128, 256, 512])
def test_the_icon_is_there_in_every_size_of_the_theme(size):
    from PIL import Image

    with Image.open(resource(f"icons/hicolor/{size}x{size}/apps/org.zk0.Desk.png")) as picture:
        assert picture.size == (size, size)


def test_the_menu_entry_opens_links_and_invitations_of_the_window_that_it_names(checkout):
    entry = resource("org.zk0.Desk.desktop").read_text(encoding="utf-8")
    assert "Exec=zk0desk-window %u" in entry
    assert "MimeType=x-scheme-handler/zk0desk;application/vnd.zk0desk.invitation;" in entry
    assert 'setDesktopFileName("org.zk0.Desk")' in (checkout / "zk0desk" / "ui" / "main.py").read_text(encoding="utf-8")
    assert "StartupWMClass=org.zk0.Desk" in entry


def test_install_puts_the_window_into_the_menu_and_uninstall_takes_all_of_it_out(checkout, tmp_path):
    home = tmp_path / "ho me"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home / "share"), "PATH": "/usr/bin:/bin"}
    script = str(checkout / "packaging" / "desktop.sh")
    subprocess.run([script, "install"], env=environment, check=True, capture_output=True, timeout=60)
    entry = (home / "share/applications/org.zk0.Desk.desktop").read_text(encoding="utf-8")
    assert f'Exec="{checkout}/.venv/bin/zk0desk-window" %u' in entry
    assert (home / ".local/bin/zk0desk").is_symlink()
    subprocess.run([script, "uninstall"], env=environment, check=True, capture_output=True, timeout=60)
    assert not [path for path in home.rglob("*") if "zk0" in path.name]


def test_a_wheel_holds_the_package_its_resources_and_the_licence(checkout, tmp_path):
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=checkout,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("zk0desk-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "zk0desk/cli.py" in names
    assert "zk0desk/_resources/icons/org.zk0.Desk.svg" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "packaging", "benchmarks")) or "__pycache__" in name]
