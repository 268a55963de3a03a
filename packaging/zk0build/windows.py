"""The Windows tree's own parts: one set of the C runtime, the launcher, the installer.

Torch's DLLs fail to load when an older C++ runtime than they were linked for is in the process already; Qt is in it first. So the
runtimes that came with the wheels of Qt go, and the newest of each stands beside python.exe, where every DLL finds it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from zk0build.binaries import pe
from zk0build.recipe import CHECKOUT, PACKAGING, Identity, Recipe
from zk0build.tree import Tree
from zk0build.trouble import BuildError, call, program

_RUNTIMES = ("msvcp140*.dll", "vcruntime140*.dll", "concrt140*.dll", "vccorlib140*.dll")
LONGEST = 259
"""Characters that a path may have on Windows without special care (MAX_PATH less the final zero)."""
_INSTALLED = r"C:\Users\a-name-of-twenty-char\AppData\Local\Programs\zk0desk"


def one_runtime(tree: Tree) -> dict[str, tuple[int, int]]:
    """Keep the newest of each of Qt's C runtimes, beside python.exe; their versions by name."""
    found: dict[str, tuple[tuple[int, int], Path]] = {}
    places = [tree.site / "PySide6", tree.site / "shiboken6", tree.python]
    for path in sorted(path for place in places for pattern in _RUNTIMES for path in place.glob(pattern)):
        version = pe.read(path).version
        if path.name not in found or version > found[path.name][0]:
            found[path.name] = (version, path)
    kept = {name: path.read_bytes() for name, (_, path) in found.items()}
    for place in places:
        for pattern in _RUNTIMES:
            for path in list(place.glob(pattern)):
                path.unlink()
    for name, data in kept.items():
        (tree.python / name).write_bytes(data)
    return {name: version for name, (version, _) in found.items()}


def finish(tree: Tree, work: Path) -> None:
    """Add the launchers and the icon; check that no path is too long. Without a compiler for Windows the tree says that it lacks them."""
    one_runtime(tree)
    icon(tree.root / "zk0desk.ico")
    compiler = shutil.which("x86_64-w64-mingw32-gcc")
    if compiler is None:
        tree.stamps.append("no launcher: there was no compiler for Windows")
    else:
        launchers(tree.root, tree.version, Path(compiler), work)
    too_long = [path for path in tree.root.rglob("*") if len(f"{_INSTALLED}\\{path.relative_to(tree.root)}") > LONGEST]
    if too_long:
        raise BuildError(
            f"A path is too long for Windows: {too_long[0].relative_to(tree.root)}", f"{len(too_long)} are.", "Leave them out."
        )


def icon(file: Path) -> None:
    """Make a .ico of the sizes that Windows shows."""
    from PIL import Image

    pictures = CHECKOUT / "resources" / "icons" / "hicolor"
    with Image.open(next(pictures.glob("256x256/apps/*.png"))) as picture:
        picture.save(file, format="ICO", sizes=[(size, size) for size in (16, 24, 32, 48, 64, 128, 256)])


def launchers(folder: Path, version: str, compiler: Path, work: Path) -> None:
    """Compile zk0desk.exe (the window) and zk0desk-cli.exe (the command line) into `folder`, the same bytes each time."""
    source = PACKAGING / "windows"
    numbers = ",".join([*version.split(".")[:3], "0"])
    resource = work / "zk0desk.res"
    windres = shutil.which("x86_64-w64-mingw32-windres") or program("windres", "binutils-mingw-w64-x86-64")
    call(
        [
            windres,
            f"-DVERSION_NUMBERS={numbers}",
            f'-DVERSION_TEXT=\\"{version}\\"',
            "-I",
            folder,
            source / "zk0desk.rc",
            "-O",
            "coff",
            "-o",
            resource,
        ],
        cwd=folder,
    )
    for name, flags in (("zk0desk.exe", ["-mwindows"]), ("zk0desk-cli.exe", ["-DCONSOLE", "-mconsole"])):
        options = ["-std=c11", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-municode", "-static", "-Wl,--no-insert-timestamp"]
        call([compiler, *options, *flags, source / "zk0desk.c", resource, "-o", folder / name])


def installer(tree: Tree, recipe: Recipe, out: Path, *, fast: bool) -> Path:
    """Build the setup.exe in `out`."""
    identity: Identity = recipe.identity
    bare = unsigned(tree.root)
    tree.describe("nsis", [f"{len(bare)} executables and libraries carry no signature"] if bare else [])
    package = out / f"zk0desk-{tree.version}-windows-{tree.target.arch}-setup.exe"
    said = {
        "TREE": tree.root, "OUT": package, "VERSION": tree.version, "SCHEME": identity.scheme, "EXTENSION": identity.extension,
        "MIME": identity.mime, "ID": identity.id, "STAMP": " - not for release" if tree.stamps or bare else "",
    }  # fmt: skip
    defined = [f"-D{name}={value}" for name, value in said.items()] + (["-DFAST"] if fast else [])
    call([program("makensis", "nsis"), "-V2", *defined, PACKAGING / "windows" / "zk0desk.nsi"])
    return package


def unsigned(root: Path) -> list[Path]:
    """Every executable and library under `root` without a signature: what a release signs, all of it and never over another's."""
    return [path for path in sorted(root.rglob("*")) if path.suffix in (".exe", ".dll", ".pyd") and not pe.read(path).signed]
