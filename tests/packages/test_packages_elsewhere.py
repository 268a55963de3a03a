"""What a Linux computer can prove of the packages for Windows and macOS: their trees, on the real wheels. `make test-packages`."""

from __future__ import annotations

import json
import plistlib
import shutil
import subprocess
import sys

import pytest
from zk0build import closure, lock, recipe, tree, windows
from zk0build.binaries import pe

pytestmark = [pytest.mark.packages, pytest.mark.timeout(3600)]

WINDOWS = recipe.TARGETS["windows-x86_64"]


@pytest.fixture(scope="module")
def build(checkout, tmp_path_factory):
    def built(system, form):
        out = tmp_path_factory.mktemp(system)
        command = [sys.executable, checkout / "packaging" / "build.py", "--system", system, "--format", form, "--fast", "--no-engine-lists"]
        done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return out

    return built


def test_the_c_runtime_beside_python_is_as_new_as_every_library_of_torch_was_linked_for(tmp_path):
    wheels = {wheel.name: wheel for wheel in lock.resolve(WINDOWS, extra="engine")}
    made = tree.Tree(tmp_path / "tree", WINDOWS, "0")
    made.site.mkdir(parents=True)
    tree._install(
        made, [wheels[name].requirement for name in ("pyside6-essentials", "shiboken6", "torch", "torchvision")], "", "--require-hashes"
    )
    runtime = windows.one_runtime(made)
    assert {"msvcp140.dll", "vcruntime140.dll", "vcruntime140_1.dll"} <= set(runtime)
    assert not list((made.site / "PySide6").glob("msvcp*")) and (made.python / "msvcp140.dll").exists()
    linked = {path.name: pe.read(path).linker for folder in ("torch", "torchvision") for path in closure.libraries([made.site / folder])}
    assert len(linked) > 10 and "c10.dll" in linked
    too_new = {name: linker for name, linker in linked.items() if linker > runtime["msvcp140.dll"]}
    assert not too_new, f"{runtime['msvcp140.dll']} beside Python is older than what these were linked for: {too_new}"


def test_the_windows_tree_has_launchers_one_runtime_and_qt_cut_to_what_it_loads(build):
    (root,) = build("windows", "dir").iterdir()
    site = root / "python" / "Lib" / "site-packages"
    libraries = {path.name.lower() for path in closure.libraries([site / "PySide6", site / "shiboken6"])}
    assert {"qt6core.dll", "qt6widgets.dll", "qwindows.dll", "qtwidgets.pyd"} <= libraries
    assert not {"qt6qml.dll", "designer.exe", "qt6sql.dll", "opengl32sw.dll", "msvcp140.dll"} & libraries
    wheels = {
        name
        for path, names in closure.libraries([site / "PySide6"]).items()
        for name in names
        if name.lower().startswith(("qt6", "pyside6", "shiboken6"))
    }
    assert {name.lower() for name in wheels} <= libraries, "a library of Qt's is missing that another loads"
    assert (root / "python" / "msvcp140.dll").exists()
    said = json.loads((site / "zk0desk" / "_resources" / "artefact.json").read_text())
    assert not said["release"] and "no CPython inside" in said["stamp"]
    if shutil.which("x86_64-w64-mingw32-gcc"):
        assert "USER32.dll" in pe.read(root / "zk0desk.exe").imports and pe.read(root / "zk0desk-cli.exe").version == (0, 1)
    assert windows.unsigned(root), "torch's and others' libraries carry no signature: a release signs them"


@pytest.mark.skipif(shutil.which("makensis") is None, reason="nsis is not installed")
def test_the_windows_installer_is_made(build):
    (setup,) = build("windows", "nsis").iterdir()
    assert setup.name.endswith("-setup.exe") and setup.stat().st_size > 50e6
    listed = subprocess.run(["file", setup], capture_output=True, text=True).stdout
    assert "Nullsoft Installer" in listed


def test_the_macs_application_holds_qts_frameworks_and_says_what_it_opens(build):
    (place,) = build("macos", "dir").iterdir()
    contents = place / "zk0desk.app" / "Contents"
    plist = plistlib.loads((contents / "Info.plist").read_bytes())
    identity = recipe.read().identity
    assert plist["CFBundleIdentifier"] == identity.id and plist["CFBundleURLTypes"][0]["CFBundleURLSchemes"] == [identity.scheme]
    assert plist["UTExportedTypeDeclarations"][0]["UTTypeTagSpecification"]["public.filename-extension"] == [identity.extension]
    site = contents / "Resources" / "python" / "lib" / "python3.12" / "site-packages"
    libraries = {path.name for path in closure.libraries([site / "PySide6"])}
    assert {"QtCore", "QtWidgets", "libqcocoa.dylib", "QtWidgets.abi3.so"} <= libraries and "QtQml" not in libraries
    assert not list(site.rglob("Designer.app"))
