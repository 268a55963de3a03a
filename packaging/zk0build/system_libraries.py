"""The libraries of a Linux system that an artefact needs, by the Debian packages that have them, and those that it carries itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from zk0build import closure
from zk0build.binaries import elf
from zk0build.interpreter import GLIBC, system_library
from zk0build.recipe import PACKAGING
from zk0build.trouble import BuildError, call, program

TABLE = PACKAGING / "linux" / "system-libraries.txt"


@dataclass(frozen=True)
class SystemLibrary:
    """A library that Qt's wheels load: the Debian `package` that has it; `carried`: the tar and the AppImage bring it along."""

    name: str
    package: str
    carried: bool


def table(path: Path = TABLE) -> dict[str, SystemLibrary]:
    """linux/system-libraries.txt by the library's name."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    return {name: SystemLibrary(name, package, kind == "carried") for name, package, kind in lines}


def needed_by(root: Path) -> list[SystemLibrary]:
    """What the tree at `root` loads of the system, the C library aside; BuildError for what the table does not know."""
    known, foreign = table(), dict[str, Path]()
    for path in closure.libraries([root]):
        about = elf.read(path)
        folders = [Path(part.replace("$ORIGIN", str(path.parent))) for part in about.runpath.split(":") if part]
        if path.parent.name.endswith(".libs"):  # auditwheel's: found by the run path of the module that loads them
            folders.append(path.parent)
        for name in about.needed:
            if name not in GLIBC and not name.startswith("ld-linux") and not any((folder / name).exists() for folder in folders):
                foreign.setdefault(name, path)
    unknown = sorted(set(foreign) - set(known))
    if unknown:
        said = "; ".join(f"{name} (loaded by {foreign[name].relative_to(root)})" for name in unknown)
        raise BuildError(
            f"Libraries are neither in the tree nor in {TABLE.name}: {said}", "", "Add them there, or leave out what loads them."
        )
    return [known[name] for name in sorted(foreign)]


def glibc_floor(root: Path) -> tuple[int, ...]:
    """The oldest glibc that everything in `root` loads on."""
    return max(elf.read(path).glibc() for path in closure.libraries([root]))


def carry(root: Path, qt: Path) -> list[str]:
    """Copy the small libraries that distributions often lack into Qt's own folder `qt`; their names.

    Qt's plugins look there first; the copies find each other by a run path of their own.
    """
    patchelf, carried = program("patchelf", "patchelf"), []
    while todo := [library.name for library in needed_by(root) if library.carried]:
        for name in todo:
            copied = qt / name
            shutil.copyfile(system_library(name), copied)
            call([patchelf, "--set-rpath", "$ORIGIN", copied])
            carried.append(name)
    return carried
