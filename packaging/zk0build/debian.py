"""The Debian package: the tree in /opt, the desktop's files and two links in /usr. It needs no maintainer scripts.

dpkg's own triggers tell the desktop about the menu entry, the MIME type and the icons; homes are never touched.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import time
from pathlib import Path

from zk0build import desktop, system_libraries
from zk0build.recipe import PACKAGING, Recipe
from zk0build.tree import Tree
from zk0build.trouble import call, program

_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
# Debian 13 and Ubuntu 24.04 renamed the packages that changed with 64-bit time; either is right.
_RENAMED = {"libglib2.0-0": "libglib2.0-0 | libglib2.0-0t64"}


def build(tree: Tree, recipe: Recipe, out: Path, work: Path, epoch: int, *, fast: bool = False) -> Path:
    """Build zk0desk_VERSION_ARCH.deb in `out` from `tree`, which is the caller's to change; `work` is an empty folder."""
    root, identity = work / "deb", recipe.identity
    opt = root / identity.opt.lstrip("/")
    opt.parent.mkdir(parents=True)
    tree.describe("deb")
    libraries = system_libraries.needed_by(tree.root)
    floor = system_libraries.glibc_floor(tree.root)
    shutil.move(tree.root, opt)
    desktop.put(root / "usr" / "share", identity)
    (root / "usr" / "bin").mkdir(parents=True)
    for name in ("zk0desk", "zk0desk-window"):
        (root / "usr" / "bin" / name).symlink_to(f"{identity.opt}/bin/{name}")
    _documents(root / "usr" / "share", tree, epoch)
    size = sum(path.stat().st_size // 1024 + 1 for path in root.rglob("*") if not path.is_symlink())
    control = root / "DEBIAN"
    control.mkdir()
    depends = sorted(
        {_RENAMED.get(library.package, library.package) for library in libraries} | {f"libc6 (>= {'.'.join(map(str, floor))})"}
    )
    fields = (PACKAGING / "linux" / "control").read_text(encoding="utf-8")
    fields = fields.format(
        version=tree.version, arch=_ARCH[tree.target.arch], size=size, depends=", ".join(depends), maintainer=identity.maintainer
    )
    (control / "control").write_text(fields, encoding="utf-8")
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and control not in path.parents)
    sums = [f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n" for path in files]
    (control / "md5sums").write_text("".join(sums), encoding="utf-8")
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            if path.is_dir():
                path.chmod(0o755)
            elif identity.opt.lstrip("/") not in path.as_posix():
                path.chmod(0o644)
            os.utime(path, (epoch, epoch))
    package = out / f"zk0desk_{tree.version}_{_ARCH[tree.target.arch]}.deb"
    squeeze = ["-Zxz", "-z1"] if fast else ["-Zxz", "-z9"]
    call([program("dpkg-deb", "dpkg"), "--root-owner-group", "--threads-max=2", *squeeze, "--build", root, package],
         env={"SOURCE_DATE_EPOCH": str(epoch)})  # fmt: skip
    shutil.rmtree(root)
    return package


def _documents(share: Path, tree: Tree, epoch: int) -> None:
    """Copyright, changelog, manual page and lintian's list of exceptions, where Debian wants them."""
    linux = PACKAGING / "linux"
    doc = share / "doc" / "zk0desk"
    doc.mkdir(parents=True)
    shutil.copyfile(linux / "copyright", doc / "copyright")
    when = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(epoch))
    changelog = (linux / "changelog").read_text(encoding="utf-8").format(version=tree.version, date=when)
    (doc / "changelog.gz").write_bytes(gzip.compress(changelog.encode(), mtime=0))
    man = share / "man" / "man1"
    man.mkdir(parents=True)
    page = (linux / "zk0desk.1").read_text(encoding="utf-8").replace("@VERSION@", tree.version)
    (man / "zk0desk.1.gz").write_bytes(gzip.compress(page.encode(), mtime=0))
    (man / "zk0desk-window.1.gz").symlink_to("zk0desk.1.gz")
    overrides = share / "lintian" / "overrides"
    overrides.mkdir(parents=True)
    shutil.copyfile(linux / "lintian-overrides", overrides / "zk0desk")
