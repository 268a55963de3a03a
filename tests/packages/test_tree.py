"""The tree starts wherever it lies, and the same tree packs to the same bytes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from zk0build import appimage, archive, bytecode, debian, recipe
from zk0build.tree import Tree
from zk0build.trouble import BuildError


@pytest.fixture
def start(checkout):
    """The module that a Linux package starts with."""
    spec = importlib.util.spec_from_file_location("zk0desk_start", checkout / "packaging" / "linux" / "zk0desk_start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path, checkout):
    """A tree of the launcher and, in the place of Python, a program that says how it was started."""
    root = tmp_path / "Röbot Ärm 机器人"
    (root / "bin").mkdir(parents=True)
    text = (checkout / "packaging" / "linux" / "launcher.sh").read_text().replace("@GLIBC_MINOR@", "17")
    (root / "bin" / "zk0desk").write_text(text)
    (root / "bin" / "zk0desk").chmod(0o755)
    (root / "bin" / "zk0desk-window").symlink_to("zk0desk")
    python = root / "python" / "bin" / "python3.12"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor each in "$0" "$@"; do printf "%s\\n" "$each"; done; echo --; env\n')
    python.chmod(0o755)
    return root


def _started(command, **environment):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env={**os.environ, **environment})
    arguments, _, rest = done.stdout.partition("--\n")
    return arguments.splitlines(), dict(line.split("=", 1) for line in rest.splitlines() if "=" in line)


def test_the_launcher_keeps_what_belongs_to_other_pythons_and_qts_away(tree):
    spoiled = dict.fromkeys(("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH", "PYTHONPYCACHEPREFIX"), "/elsewhere")
    arguments, environment = _started([tree / "bin" / "zk0desk-window", "zk0desk:join?für=Öl 机"], **spoiled)
    assert arguments == [str(tree / "python/bin/python3.12"), "-s", "-P", "-m", "zk0desk_start", "zk0desk:join?für=Öl 机"]
    assert not set(spoiled) & set(environment)
    assert environment["PYTHONNOUSERSITE"] == environment["PYTHONSAFEPATH"] == "1"
    assert environment["ZK0DESK_LAUNCHER"] == str(tree / "bin" / "zk0desk-window")


def test_a_link_in_the_path_starts_the_tree_and_is_what_started_it(tree, tmp_path):
    links = tmp_path / "usr bin"
    links.mkdir()
    (links / "zk0desk").symlink_to(tree / "bin" / "zk0desk")
    arguments, environment = _started(["zk0desk", "--version"], PATH=f"{links}:{os.environ['PATH']}")
    assert arguments[0] == str(tree / "python/bin/python3.12") and environment["ZK0DESK_LAUNCHER"] == str(links / "zk0desk")


def test_a_moved_tree_starts_from_where_it_is_now(tree, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(tree, moved)
    assert _started([moved / "bin" / "zk0desk"])[0][0] == str(moved / "python/bin/python3.12")


def test_a_linux_that_is_too_old_is_told_so_before_python_fails(tree):
    launcher = tree / "bin" / "zk0desk"
    launcher.write_text(launcher.read_text().replace("-lt 17 ", "-lt 99 "))
    told = subprocess.run([launcher], capture_output=True, text=True, timeout=20, env={"PATH": os.environ["PATH"]})
    assert told.returncode == 1 and "needs a Linux with glibc" in told.stderr


def test_a_missing_library_is_named_with_the_line_that_installs_it(start, tmp_path, monkeypatch, capfd):
    needed = tmp_path / "zk0desk_start.json"
    needed.write_text(json.dumps({"libc.so.6": "libc6", "libxcb-surely-not.so.0": "libxcb-surely-not0"}))
    monkeypatch.setattr(start, "NEEDED", needed)
    monkeypatch.setattr(sys, "argv", ["zk0desk"])
    (tmp_path / "zenity").write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/dialog"\n')
    (tmp_path / "zenity").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert start.main() == 1
    said = capfd.readouterr().err
    assert "lacks libxcb-surely-not.so.0" in said and "libxcb-surely-not0" in said and "libc6" not in said
    assert (not shutil.which("apt-get")) or "sudo apt-get install libxcb-surely-not0" in said
    assert "libxcb-surely-not0" in (tmp_path / "dialog").read_text()


def test_without_a_screen_the_window_says_so_and_commands_work(start, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "there is no screen here" in start.what_is_missing()
    monkeypatch.setattr(start, "what_is_missing", lambda: pytest.fail("a command needs no Qt"))
    monkeypatch.setattr(sys, "argv", ["zk0desk", "--version"])
    assert start.main() == 0


def test_the_same_tree_packs_to_the_same_bytes(tmp_path):
    made = []
    for round_, names in enumerate((["b", "a", "c"], ["c", "b", "a"])):
        root = tmp_path / str(round_) / "tree"
        for name in names:
            (root / name).mkdir(parents=True)
            (root / name / "module.py").write_text(f"NAMES = {{'{name}', 'x', 'y'}}\ndef f(a=1):\n    return a in NAMES\n")
        os.utime(root / "a" / "module.py", (round_, round_))
        assert bytecode.compile_all(root) == []
        made.append(archive.tar_xz(root, tmp_path / f"{round_}.tar.xz", 1_700_000_000, fast=True).read_bytes())
    assert made[0] == made[1]
    listed = subprocess.run(["tar", "-tvf", tmp_path / "0.tar.xz", "--utc"], capture_output=True, text=True, check=True).stdout
    assert "0/0" in listed and "2023-11-14" in listed and listed.index("tree/a/") < listed.index("tree/b/")


def test_shipped_bytecode_is_taken_unseen_and_a_template_stays_without(tmp_path):
    (tmp_path / "module.py").write_text("VALUE = 1\n")
    (tmp_path / "template.py").write_text("{{ name }} = \n")
    assert bytecode.compile_all(tmp_path) == ["template.py"]
    (tmp_path / "module.py").write_text("VALUE = 2\n")
    said = subprocess.run(
        [sys.executable, "-c", "import module; print(module.VALUE, module.__file__)"], capture_output=True, text=True, cwd=tmp_path
    )
    assert said.stdout.split()[0] == "1" and said.stdout.split()[1] == str(tmp_path / "module.py")


def test_an_archive_without_a_python_is_refused(tmp_path):
    from zk0build import interpreter

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.12").write_text("")
    bare = archive.tar_xz(tmp_path / "bin", tmp_path / "bare.tar.xz", 0, fast=True)
    with pytest.raises(BuildError, match=r"bare\.tar\.xz holds no CPython 3\.12 for linux"):
        interpreter.put(tmp_path / "out", recipe.TARGETS["linux-x86_64"], str(bare), [])
    assert not (tmp_path / "out").exists()


def test_every_field_of_the_debian_package_is_filled(checkout):
    fields = (checkout / "packaging" / "linux" / "control").read_text()
    filled = fields.format(version="1", arch="amd64", size=1, depends="libc6", maintainer="A <a@b.example>")
    assert "{" not in filled and "\nDepends: libc6\n" in filled and debian._ARCH["aarch64"] == "arm64"


@pytest.fixture
def small(tmp_path):
    """A tree with nothing in it but the description of the artefact."""
    made = Tree(tmp_path / "small", recipe.TARGETS["linux-x86_64"], "1.2", ["for the test"])
    (made.site / "zk0desk" / "_resources").mkdir(parents=True)
    return made


def test_what_is_not_for_release_says_why_in_its_description(small):
    file = small.site / "zk0desk" / "_resources" / "artefact.json"
    small.describe("tar")
    assert json.loads(file.read_text())["stamp"] == "not for release: for the test"
    copied = small.copy(small.root.parent / "copy")
    copied.stamps.clear()
    copied.describe("deb")
    said = json.loads((copied.site / "zk0desk" / "_resources" / "artefact.json").read_text())
    assert (said["format"], said["release"], said["stamp"]) == ("deb", True, "")
    assert json.loads(file.read_text())["format"] == "tar", "the tree that it was copied from changed with it"


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="squashfs-tools are not installed")
def test_an_appimage_is_its_runtime_with_the_tree_behind_it(small, tmp_path):
    runtime = tmp_path / "runtime"
    shutil.copyfile("/bin/true", runtime)
    package = appimage.build(small, recipe.read(), tmp_path, 1_700_000_000, runtime, fast=True)
    data = package.read_bytes()
    assert package.suffix == ".AppImage" and os.access(package, os.X_OK)
    assert data.startswith(runtime.read_bytes()) and data[runtime.stat().st_size :].startswith(b"hsqs")
    with pytest.raises(BuildError, match="is no AppImage runtime"):
        appimage.build(small, recipe.read(), tmp_path, 0, tmp_path / "small" / "AppRun", fast=True)
