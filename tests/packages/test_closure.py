"""What is kept of Qt: the libraries that the bindings and plugins load, and nothing else."""

import struct

import pytest
from zk0build import closure, recipe, system_libraries
from zk0build.binaries import elf, macho, needed, pe


@pytest.fixture(scope="module")
def qt(site):
    return closure.libraries([site / "PySide6", site / "shiboken6"])


@pytest.fixture(scope="module")
def kept(site, qt):
    described = recipe.read()
    return closure.reached(closure.qt_roots(site, described.bindings, described.plugins, qt), qt)


def test_the_window_keeps_what_it_loads_and_loses_qml_designer_and_sql(kept, qt):
    names = {path.name for path in kept}
    assert {"libQt6Core.so.6", "libQt6Gui.so.6", "libQt6Svg.so.6", "libQt6XcbQpa.so.6", "libicudata.so.73"} <= names
    assert {"libqxcb.so", "libqwayland.so", "libqoffscreen.so", "libqsvgicon.so", "QtWidgets.abi3.so", "Shiboken.abi3.so"} <= names
    gone = {path.name for path in qt} - names
    assert {"libQt6Qml.so.6", "libQt6Designer.so.6", "libQt6Sql.so.6", "QtQml.abi3.so", "libqgtk3.so", "lupdate"} <= gone
    size = sum(path.stat().st_size for path in kept) / sum(path.stat().st_size for path in qt)
    assert 0.3 < size < 0.6


def test_nothing_that_is_kept_loads_what_was_taken_away(kept, qt):
    by_name = {path.name for path in qt}
    for path in kept:
        for name in qt[path]:
            assert name not in by_name or name in {each.name for each in kept}, f"{path.name} loads {name}"


def test_a_library_is_kept_only_for_who_loads_it(site, qt):
    bare = closure.reached(closure.qt_roots(site, ["QtCore"], [], qt), qt)
    names = {path.name for path in bare}
    assert "libQt6Core.so.6" in names and not {"libQt6Gui.so.6", "libQt6Svg.so.6", "libqxcb.so"} & names


def test_every_library_that_qt_takes_from_the_system_has_a_debian_package(kept, site):
    own = {path.name for path in kept}
    foreign = {name for path in kept for name in elf.read(path).needed} - own
    assert foreign - system_libraries.GLIBC - {"ld-linux-x86-64.so.2"} <= set(system_libraries.table())
    assert max(elf.read(path).glibc() for path in kept) == recipe.TARGETS["linux-x86_64"].floor


def test_windows_files_tell_their_imports_linker_and_signature(site):
    stub = site / "setuptools" / "cli-64.exe"
    read = pe.read(stub)
    assert "KERNEL32.dll" in read.imports and read.linker[0] == 14 and not read.signed
    assert needed(stub) == read.imports
    with pytest.raises(ValueError):
        pe.parse(b"MZ" + bytes(200))


def test_macos_files_tell_what_they_load_alone_or_in_a_universal_file(tmp_path):
    def command(kind, name):
        text = name.encode() + b"\0"
        text += bytes(-len(text) % 8)
        return struct.pack("<IIIIII", kind, 24 + len(text), 24, 0, 0, 0) + text

    commands = [
        command(0x0D, "@rpath/own.dylib"),
        command(0x0C, "@rpath/QtCore.framework/Versions/A/QtCore"),
        command(0x80000018, "/usr/lib/libc++.1.dylib"),
    ]
    thin = struct.pack("<IIIIIIII", 0xFEEDFACF, 0x0100000C, 0, 6, len(commands), sum(map(len, commands)), 0, 0) + b"".join(commands)
    file = tmp_path / "own.dylib"
    file.write_bytes(thin)
    assert macho.needed(file) == needed(file) == ["QtCore", "libc++.1.dylib"]
    file.write_bytes(struct.pack(">IIIIIII", 0xCAFEBABE, 1, 0x0100000C, 0, 4096, len(thin), 12).ljust(4096, b"\0") + thin)
    assert macho.needed(file) == ["QtCore", "libc++.1.dylib"]


def test_a_trimmed_folder_holds_what_was_reached(tmp_path, site):
    import shutil

    for path in ("shiboken6/Shiboken.abi3.so", "shiboken6/libshiboken6.abi3.so.6.12", "PySide6/QtCore.abi3.so", "PySide6/QtSql.abi3.so",
                 "PySide6/libpyside6.abi3.so.6.12", "PySide6/Qt/lib/libQt6Sql.so.6", "PySide6/__init__.py"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site / path, tmp_path / path)
    gone = closure.trim(tmp_path, ["QtCore"], [], ["PySide6", "shiboken6"], [])
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Shiboken.abi3.so", "libshiboken6.abi3.so.6.12", "QtCore.abi3.so", "libpyside6.abi3.so.6.12", "__init__.py"}
    assert gone["PySide6"] > 100_000 and gone["shiboken6"] == 0
