"""The Mac's application: the tree as a .app, and on a Mac its disk image."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from zk0build.recipe import PACKAGING
from zk0build.tree import Tree
from zk0build.trouble import BuildError, call


def app(tree: Tree, place: Path) -> Path:
    """Lay `tree` out as the application folder `place` (zk0desk.app). The executable, icon and signatures are dmg.sh's, on a Mac."""
    contents = place / "Contents"
    (contents / "MacOS").mkdir(parents=True)
    (contents / "Resources").mkdir()
    shutil.copytree(tree.root, contents / "Resources", dirs_exist_ok=True, symlinks=True)
    text = (PACKAGING / "macos" / "Info.plist").read_text(encoding="utf-8").replace("@VERSION@", tree.version)
    (contents / "Info.plist").write_text(text, encoding="utf-8")
    return place


def dmg(tree: Tree, out: Path, work: Path) -> Path:
    """Build the disk image in `out`; BuildError on a computer that is no Mac."""
    if sys.platform != "darwin":
        raise BuildError(
            "A disk image can be made on a Mac only.", "codesign and hdiutil are Apple's.", "Build --format dir here, or dmg on a Mac."
        )
    tree.describe("dmg")
    package = out / f"zk0desk-{tree.version}-macos-{tree.target.arch}.dmg"
    call([PACKAGING / "macos" / "dmg.sh", app(tree, work / "zk0desk.app"), package])
    return package
