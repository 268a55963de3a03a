"""The CPython that an artefact carries: a standalone one from an archive, or the running one, made to run from any folder."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from zk0build.binaries import elf, needed
from zk0build.recipe import Target
from zk0build.trouble import BuildError, call, program, say

GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2"}
"""What every Linux of that age has in the version that the C library itself is."""


def put(folder: Path, target: Target, source: str, leave_out: Iterable[str]) -> None:
    """Make `folder` a CPython 3.12 for `target`: from the archive `source`, or the running one for "running".

    `leave_out`: globs of the standard library that are not shipped. BuildError when `source` is no such Python.
    """
    if source == "running":
        _running(folder, target)
    else:
        _archive(folder, Path(source), target)
    library = standard_library(folder, target)
    for pattern in leave_out:
        for path in list(library.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in list(library.rglob("__pycache__")):
        shutil.rmtree(path)
    (library / "site-packages").mkdir(parents=True, exist_ok=True)
    if target.system != "windows":
        _only_the_interpreter(folder)


def standard_library(folder: Path, target: Target) -> Path:
    """The folder of the standard library in the Python at `folder`."""
    return folder / "Lib" if target.system == "windows" else folder / "lib" / "python3.12"


def executable(folder: Path, target: Target) -> Path:
    """The interpreter itself."""
    return folder / "python.exe" if target.system == "windows" else folder / "bin" / "python3.12"


def _only_the_interpreter(folder: Path) -> None:
    """bin holds python3.12 alone: pip, 2to3 and the like carry the path of the computer that built them."""
    for path in (folder / "bin").iterdir():
        if path.name != "python3.12":
            path.unlink()
    for name in ("include", "share", "lib/pkgconfig"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (folder / "lib").iterdir():
        # Tcl and Tk belong to tkinter; libpython3.so is for modules that are linked to the stable interface, which wheels are not.
        if path.name.startswith(("tcl", "tk", "itcl", "thread", "libtcl", "libtk", "libpython3.so", "Tix")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _archive(folder: Path, archive: Path, target: Target) -> None:
    inside = "python.exe" if target.system == "windows" else "bin/python3.12"
    with TemporaryDirectory(prefix="zk0desk-python-", dir=folder.parent) as name:
        unpacked = Path(name)
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as file:
                    file.extractall(unpacked)  # refuses names that leave the folder
            else:
                with tarfile.open(archive) as file:
                    file.extractall(unpacked, filter="tar")
        except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise BuildError(f"{archive} cannot be unpacked.", str(error)) from error
        homes = [path.parents[inside.count("/")] for path in unpacked.rglob(Path(inside).name) if path.as_posix().endswith(f"/{inside}")]
        homes = [home for home in homes if standard_library(home, target).joinpath("os.py").exists()]
        if not homes:
            raise BuildError(
                f"{archive.name} holds no CPython 3.12 for {target.system}.",
                f"There is no {inside} with its standard library in it.",
                "Give a standalone build (`install_only`) or, for Windows, python.org's package with a Lib folder.",
            )
        shutil.move(min(homes, key=lambda home: len(home.parts)), folder)


def _running(folder: Path, target: Target) -> None:
    if target.system != "linux" or sys.platform != "linux" or sys.version_info[:2] != (3, 12):
        raise BuildError(
            "The running Python cannot be taken along.",
            f"It is Python {sys.version_info[0]}.{sys.version_info[1]} for {sys.platform}; the package is for {target.system}.",
            "Give an archive of a standalone CPython 3.12 with --python.",
        )
    home = Path(sys.base_prefix)
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    interpreter = folder / "bin" / "python3.12"
    shutil.copy2(home / "bin" / "python3.12", interpreter)
    library = folder / "lib" / "python3.12"
    shutil.copytree(
        sysconfig.get_path("stdlib"), library, ignore=shutil.ignore_patterns("site-packages", "__pycache__", "test", "config-3.12*")
    )
    for path in library.glob("_sysconfigdata*.py"):  # it names the folders of the computer that built it
        path.write_text(path.read_text(encoding="utf-8").replace(str(home), "/install"), encoding="utf-8")
    strip, patchelf = program("strip", "binutils"), program("patchelf", "patchelf")
    places, carried = _system_libraries(), set[str]()
    open_ = [(interpreter, "$ORIGIN/../lib"), *((path, "$ORIGIN/../..") for path in sorted((library / "lib-dynload").glob("*.so")))]
    for path, runpath in open_:  # grows while it is walked: what a library needs is carried too
        for name in needed(path) or []:
            if name in GLIBC or name.startswith("ld-linux") or name in carried:
                continue
            if path.parent == library / "lib-dynload" and path.name.split(".")[0] in _NOT_SHIPPED:
                continue
            found = home / "lib" / name if (home / "lib" / name).exists() else places.get(name)
            if found is None:
                raise BuildError(f"{name} was not found.", f"{path.name} of the running Python loads it.")
            carried.add(name)
            copied = folder / "lib" / name
            shutil.copy2(found, copied)
            copied.chmod(0o755)
            open_.append((copied, "$ORIGIN"))
        call([strip, "--strip-unneeded", path])
        if any(name in carried for name in needed(path) or []):
            call([patchelf, "--set-rpath", runpath, path])
        elif elf.read(path).runpath:
            call([patchelf, "--remove-rpath", path])
    say(f"  the running Python {sys.version.split()[0]}, with {len(carried)} libraries of this computer")


_NOT_SHIPPED = {"_tkinter", "_curses", "_curses_panel", "readline", "nis", "ossaudiodev", "spwd"}
"""Extension modules that the recipe leaves out: their libraries are not looked for."""


def _system_libraries() -> dict[str, Path]:
    """Libraries that the dynamic linker of this computer knows, by name."""
    found: dict[str, Path] = {}
    for line in call([program("ldconfig", "libc-bin"), "-p"]).splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow and ("x86-64" in name or "AArch64" in name or os.uname().machine not in ("x86_64", "aarch64")):
            found.setdefault(name.split()[0], Path(path))
    return found


def system_library(name: str) -> Path:
    """Where this computer has the library `name`; BuildError when it has not."""
    path = _system_libraries().get(name)
    if path is None:
        raise BuildError(
            f"{name} is not on this computer.",
            "The package carries it.",
            "Install the Debian package that linux/system-libraries.txt names.",
        )
    return path.resolve()
