"""From one tree to the packages of a system."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from zk0build import appimage, archive, debian, engine_lists, macos, product, recipe, system_libraries, tree, windows
from zk0build.recipe import Target
from zk0build.trouble import BuildError, say


def build(
    target: Target,
    formats: Sequence[str],
    out: Path,
    *,
    python: str,
    index: str = "",
    torch_indexes: dict[str, str] | None = None,
    lists: bool = True,
    appimage_runtime: Path | None = None,
    fast: bool = False,
    built: Path | None = None,
) -> list[Path]:
    """Build the packages `formats` for `target` into `out`; their paths.

    `python`: the archive of a standalone CPython, "running", or "none" where the target's can only be added elsewhere. `lists`: make
    the engine's lists. `fast`: compress quickly, not for release. `built`: a tree that was built before, and signed since.
    """
    out.mkdir(parents=True, exist_ok=True)
    described, epoch = recipe.read(), product.epoch()
    if built is not None:
        with TemporaryDirectory(prefix="zk0desk-build-", dir=out) as folder:
            made = tree.load(built, target)
            return [_package(each, made, described, out, Path(folder), epoch, appimage_runtime, fast) for each in formats]
    if not python:
        raise BuildError(
            "No Python was given for the package.",
            "It carries a CPython of its own.",
            "Give a standalone CPython 3.12 with --python ARCHIVE; for a trial on Linux --python running takes this computer's.",
        )
    with TemporaryDirectory(prefix="zk0desk-build-", dir=out) as folder:
        work = Path(folder)
        made = tree.make(work / "tree", target, described, python=python, index=index, work=work)
        if fast:
            made.stamps.append("compressed quickly")
        if lists:
            engine_lists.make(made, described, index=index, torch_indexes=torch_indexes or {}, work=work)
        else:
            made.stamps.append("without lists of engines")
        if target.system == "windows":
            windows.finish(made, work)
        if target.system == "macos" and sys.platform != "darwin":
            made.stamps.append("no executable and no icon: a Mac makes them")
        return [_package(each, made, described, out, work, epoch, appimage_runtime, fast) for each in formats]


def _package(
    form: str, made: tree.Tree, described: recipe.Recipe, out: Path, work: Path, epoch: int, runtime: Path | None, fast: bool
) -> Path:
    say(f"Package: {form}")
    stem = f"zk0desk-{made.version}-{made.target.name}"
    own = made.copy(work / form / stem)
    if made.target.system == "linux" and form in ("tar", "appimage"):
        system_libraries.carry(own.root, own.qt_libraries)
        own.tell_needs()
    if form == "deb":
        return debian.build(own, described, out, work / form, epoch, fast=fast)
    if form == "appimage":
        return appimage.build(own, described, out, epoch, runtime, fast=fast)
    if form == "tar":
        own.describe("tar")
        (own.root / "zk0desk").symlink_to("bin/zk0desk")
        return archive.tar_xz(own.root, out / f"{stem}.tar.xz", epoch, fast=fast)
    if form == "nsis":
        return windows.installer(own, described, out, fast=fast)
    if form == "dmg":
        return macos.dmg(own, out, work / form)
    placed = out / stem
    shutil.rmtree(placed, ignore_errors=True)
    own.describe("dir")
    if made.target.system == "macos":
        return macos.app(own, placed / "zk0desk.app")
    shutil.copytree(own.root, placed, symlinks=True)
    return placed
