"""The AppImage: one file that mounts itself. Without its runtime, which nothing on a package index has, a bare squashfs is made."""

from __future__ import annotations

import shutil
from pathlib import Path

from zk0build import desktop
from zk0build.recipe import PACKAGING, Recipe
from zk0build.tree import Tree
from zk0build.trouble import BuildError, call, program

NO_RUNTIME = "the AppImage has no runtime: mount it as a squashfs and start AppRun"


def build(tree: Tree, recipe: Recipe, out: Path, epoch: int, runtime: Path | None, *, fast: bool = False) -> Path:
    """Build zk0desk-VERSION-ARCH.AppImage (.squashfs without `runtime`) in `out` from `tree`, which is the caller's to change."""
    name = recipe.identity.id
    if runtime is not None and runtime.read_bytes()[:4] != b"\x7fELF":
        raise BuildError(
            f"{runtime} is no AppImage runtime.",
            "It is no executable for Linux.",
            "Take runtime-x86_64 of the AppImage project's type-2 runtime.",
        )
    tree.describe("appimage", [] if runtime else [NO_RUNTIME])
    root = tree.root
    desktop.put(root / "usr" / "share", recipe.identity)
    shutil.copyfile(PACKAGING / "linux" / "AppRun", root / "AppRun")
    (root / "AppRun").chmod(0o755)
    (root / f"{name}.desktop").symlink_to(f"usr/share/applications/{name}.desktop")
    (root / f"{name}.png").symlink_to(f"usr/share/icons/hicolor/256x256/apps/{name}.png")
    (root / ".DirIcon").symlink_to(f"{name}.png")
    squashfs = out / f"zk0desk-{tree.version}-{tree.target.arch}.squashfs"
    squashfs.unlink(missing_ok=True)
    pressed = ["-comp", "zstd", "-Xcompression-level", "3" if fast else "22", "-b", "1M"]
    dates = ["-mkfs-time", str(epoch), "-all-time", str(epoch)]
    call(
        [
            program("mksquashfs", "squashfs-tools"),
            root,
            squashfs,
            "-noappend",
            "-root-owned",
            "-no-xattrs",
            "-no-progress",
            *pressed,
            *dates,
        ]
    )
    if runtime is None:
        return squashfs
    package = squashfs.with_suffix(".AppImage")
    with package.open("wb") as file:
        for part in (runtime, squashfs):
            with part.open("rb") as read:
                shutil.copyfileobj(read, file)
    package.chmod(0o755)
    squashfs.unlink()
    return package
