"""The tree that every package of a system is made from: Python, the window's packages, zk0desk, trimmed and compiled.

bin/                    what a person or a desktop starts (Linux)
python/                 CPython; site-packages holds PySide6, numpy, pyarrow, ... and zk0desk
python/.../zk0desk/_resources/artefact.json, engines/      what this is, and what it can fetch
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from zk0build import bytecode, closure, interpreter, lock, product, system_libraries
from zk0build.recipe import PACKAGING, Recipe, Target, here
from zk0build.trouble import BuildError, call, program, say

ENGINE_PTH = "import zk0desk.engine.activation; zk0desk.engine.activation.activate()\n"
"""Every interpreter of the artefact finds the fetched engine, the children that are started as `sys.executable -c` included."""


@dataclass
class Tree:
    """A tree at `root` for `target`. `version`: zk0desk's; `stamps`: why it is not for release, empty when it is."""

    root: Path
    target: Target
    version: str
    stamps: list[str] = field(default_factory=list)
    wheels: list[lock.Wheel] = field(default_factory=list)

    @property
    def python(self) -> Path:
        return self.root / "python"

    @property
    def site(self) -> Path:
        return interpreter.standard_library(self.python, self.target) / "site-packages"

    @property
    def qt_libraries(self) -> Path:
        return self.site / "PySide6" / "Qt" / "lib"

    def describe(self, form: str, extra_stamps: list[str] | None = None) -> None:
        """Write artefact.json for a package of the format `form`."""
        stamps = self.stamps + (extra_stamps or [])
        file = self.site / "zk0desk" / "_resources" / "artefact.json"
        file.unlink(missing_ok=True)  # a copy of the tree is made of links
        said = {
            "version": self.version,
            "format": form,
            "system": self.target.name,
            "release": not stamps,
            "stamp": f"not for release: {'; '.join(stamps)}" if stamps else "",
            "stamps": self.stamps,
        }
        file.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def tell_needs(self) -> None:
        """Write which of the system's libraries the window needs, for the check at the start."""
        file = self.site / "zk0desk_start.json"
        file.unlink(missing_ok=True)
        needs = {library.name: library.package for library in system_libraries.needed_by(self.root)}
        file.write_text(json.dumps(needs, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())

    def copy(self, root: Path) -> Tree:
        """The same tree at `root`, its files as hard links: replace a file there, never write into it."""
        shutil.copytree(self.root, root, copy_function=_link, symlinks=True)
        return Tree(root, self.target, self.version, list(self.stamps), list(self.wheels))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def load(root: Path, target: Target) -> Tree:
    """The tree that was built at `root` (format `dir`), to be packed after it was signed. BuildError when it is none."""
    tree = Tree(root, target, "")
    try:
        said = json.loads((tree.site / "zk0desk" / "_resources" / "artefact.json").read_text(encoding="utf-8"))
        if said["system"] != target.name:
            raise ValueError(f"it is for {said['system']}")
        tree.version, tree.stamps = said["version"], list(said["stamps"])
    except (OSError, ValueError, KeyError) as error:
        raise BuildError(f"{root} is no tree that was built for {target.name}.", str(error), "Build one with --format dir.") from error
    return tree


def make(root: Path, target: Target, recipe: Recipe, *, python: str, index: str, work: Path) -> Tree:
    """Make the tree at `root` (which must not exist), with what was fetched and built kept under `work`."""
    say(f"Tree for {target.name}")
    tree = Tree(root, target, product.version())
    tree.stamps += product.stamps()
    root.mkdir(parents=True)
    if python == "none":
        tree.stamps.append("no CPython inside")
        tree.site.mkdir(parents=True)
    else:
        interpreter.put(tree.python, target, python, recipe.python_leave_out)
    if python == "running":
        tree.stamps.append("the Python inside is a copy of the one of the computer that built it")
    tree.wheels = [wheel for wheel in lock.resolve(target, index=index) if wheel.name not in recipe.without]
    _install(tree, [wheel.requirement for wheel in tree.wheels], index, "--require-hashes")
    _install(tree, [str(product.wheel(work))], index)
    before = tree.size()
    _leave_out(tree.site, recipe.leave_out, recipe.keep)
    closure.trim(tree.site, recipe.bindings, recipe.plugins, recipe.trimmed, recipe.leave_out_bindings)
    _remove_what_is_empty(tree.site)
    if target.system == "linux":
        strip = program("strip", "binutils")
        for path in closure.libraries(tree.site / name for name in recipe.stripped):
            call([strip, "--strip-unneeded", path])
    say(f"  {len(tree.wheels)} packages; trimmed from {before / 2**20:.0f} to {tree.size() / 2**20:.0f} MiB")
    if target.system == "linux":
        _start(tree)
    if recipe.feed:
        told = json.dumps({"url": recipe.feed, "key": recipe.feed_key}) + "\n"
        (tree.site / "zk0desk" / "_resources" / "feed.json").write_text(told, encoding="utf-8")
    (tree.site / "zk0desk-engine.pth").write_text(ENGINE_PTH, encoding="utf-8")
    refused = bytecode.compile_all(tree.python)
    say(f"  compiled: {tree.size() / 2**20:.0f} MiB" + (f"; without bytecode: {', '.join(refused)}" if refused else ""))
    tree.describe("dir")
    if target == here() and python != "none":
        _try(tree, work)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or _runs(path) else 0o644)
    return tree


_EVERYTHING = """
import importlib, pkgutil, sys
import zk0desk.commands, zk0desk.training, zk0desk.ui
from zk0desk.cli import _ENGINE
for package in (zk0desk.ui, zk0desk.commands, zk0desk.training):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _ENGINE:
                raise
exec("from numpy import *")  # scipy does, and it asks for every part of numpy
import av, numpy.testing, pyarrow.compute, pyarrow.csv, pyarrow.dataset, pyarrow.json, pyarrow.parquet
import keyring.backends.SecretService, sqlite3, ssl, lzma, bz2, ctypes, zlib, uuid, multiprocessing.shared_memory
"""


def _try(tree: Tree, work: Path) -> None:
    """Import all that the window can need, in the tree's own Python: what was trimmed too far shows here and not at an owner's."""
    home = work / "home"
    environment = {
        "PATH": os.defpath,
        "HOME": str(home),
        "ZK0DESK_HOME": str(home),
        "QT_QPA_PLATFORM": "offscreen",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(interpreter.executable(tree.python, tree.target)), "-s", "-P", "-c", _EVERYTHING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(
            "The tree does not hold all that zk0desk imports.", done.stderr.strip()[-2000:], "Keep what is missing in recipe.toml."
        )


def _install(tree: Tree, requirements: list[str], index: str, *options: str) -> None:
    listed = tree.root / "requirements.txt"
    listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    command = [lock.UV, "pip", "install", "--quiet", "--no-deps", "--link-mode", "copy", "--target", tree.site, "--only-binary", ":all:",
               "--python", sys.executable, "--python-platform", tree.target.platform, "--python-version", "3.12", *options]  # fmt: skip
    call([*command, *(["--default-index", index] if index else []), "--requirement", listed], env=tree.target.environment)
    listed.unlink()
    for name in ("bin", "Scripts", ".lock"):  # starters that carry a path, and the installer's own
        path = tree.site / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"):
        for path in tree.site.glob(f"*.dist-info/{name}"):  # what was installed how; it is not true any more, or not the same twice
            path.unlink()


def _leave_out(site: Path, patterns: tuple[str, ...], keep: tuple[str, ...]) -> None:
    kept = {site / name for name in keep}
    for pattern in patterns:
        for path in list(site.glob(pattern)):
            for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
                if file not in kept:
                    file.unlink()
    # Of Qt's tools (Designer, lupdate, ...) and data beside the bindings nothing is called.
    qt = site / "PySide6"
    for path in qt.iterdir() if qt.is_dir() else ():
        if path.is_dir() and path.name.endswith(".app"):
            shutil.rmtree(path)
        elif path.is_file() and (path.suffix in (".exe", ".json") or not path.suffix):
            path.unlink()


def _remove_what_is_empty(site: Path) -> None:
    for framework in sorted(site.rglob("*.framework")):
        if not any(path.name == framework.stem for path in framework.rglob("*")):
            shutil.rmtree(framework)
    for folder in sorted((path for path in site.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _start(tree: Tree) -> None:
    """The launcher, under both names, and the check that it makes before the window opens."""
    folder = tree.root / "bin"
    folder.mkdir()
    floor = system_libraries.glibc_floor(tree.root)
    text = (PACKAGING / "linux" / "launcher.sh").read_text(encoding="utf-8").replace("@GLIBC_MINOR@", str(floor[1]))
    (folder / "zk0desk").write_text(text, encoding="utf-8")
    (folder / "zk0desk").chmod(0o755)
    (folder / "zk0desk-window").symlink_to("zk0desk")
    shutil.copyfile(PACKAGING / "linux" / "zk0desk_start.py", tree.site / "zk0desk_start.py")
    tree.tell_needs()


def _runs(path: Path) -> bool:
    with path.open("rb") as file:
        magic = file.read(4)
    return magic[:2] == b"#!" and path.parent.name == "bin" or magic == b"\x7fELF" and path.parent.name == "bin" or path.suffix == ".sh"
