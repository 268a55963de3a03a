"""Build the packages that a robot owner downloads.

    python packaging/build.py --system linux --format deb,tar,appimage --out dist

README.md beside this file says what each system needs, how packages are signed, and what an owner sees.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from zk0build import formats, recipe
from zk0build.trouble import BuildError, say

FORMATS = {"linux": ("deb", "tar", "appimage", "dir"), "windows": ("nsis", "dir"), "macos": ("dmg", "dir")}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--system", choices=FORMATS, required=True)
    found.add_argument(
        "--format", required=True, help="one or more, with commas: " + "; ".join(f"{k}: {','.join(v)}" for k, v in FORMATS.items())
    )
    found.add_argument("--out", type=Path, default=recipe.CHECKOUT / "dist", help="folder for what is built (dist)")
    found.add_argument("--python", default="", help="archive of a standalone CPython 3.12 for the system, or `running`")
    found.add_argument("--index", default="", help="package index; else what uv is configured with")
    found.add_argument(
        "--torch-index", action="append", default=[], metavar="BACKEND=URL", help="index with torch for one more back end, e.g. cpu"
    )
    found.add_argument("--no-engine-lists", action="store_true", help="leave out the engine's lists: nothing can be fetched then")
    found.add_argument("--appimage-runtime", type=Path, help="the AppImage project's type-2 runtime; without it a bare squashfs is made")
    found.add_argument("--tree", type=Path, help="pack this tree (built with --format dir, and signed since) instead of making one")
    found.add_argument("--fast", action="store_true", help="compress quickly: for a look at what comes out, not for release")
    return found


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    wanted = given.format.split(",")
    unknown = [each for each in wanted if each not in FORMATS[given.system]]
    if unknown:
        parser().error(f"{given.system} has no format {', '.join(unknown)}")
    try:
        torch_indexes = dict(each.split("=", 1) for each in given.torch_index)
        target = recipe.target_of(given.system)
        built = formats.build(
            target,
            wanted,
            given.out.resolve(),
            python=given.python or ("none" if recipe.here() != target else ""),
            index=given.index,
            torch_indexes=torch_indexes,
            lists=not given.no_engine_lists,
            appimage_runtime=given.appimage_runtime,
            fast=given.fast,
            built=given.tree,
        )
    except BuildError as error:
        for part in (error.what, error.why, error.remedy):
            if part:
                say(part)
        return 1
    for path in built:
        size = (
            path.stat().st_size
            if path.is_file()
            else sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())
        )
        print(f"{size / 1e6:8.1f} MB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
