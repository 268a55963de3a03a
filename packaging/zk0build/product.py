"""zk0desk itself: its version, its wheel, and the moment from which every file in a package has its date."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from zk0build.recipe import CHECKOUT
from zk0build.trouble import BuildError, call


def version() -> str:
    """The version in pyproject.toml."""
    return str(tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def epoch() -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH, or the last commit's time."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given) if given else int(call(["git", "log", "-1", "--format=%ct"], cwd=CHECKOUT))


def stamps() -> list[str]:
    """Why what is built from this checkout is not for release."""
    changed = call(["git", "status", "--porcelain", "--untracked-files=no"], cwd=CHECKOUT).splitlines()
    return ["the checkout has changes that are not committed"] if changed else []


def wheel(work: Path) -> Path:
    """Build zk0desk's wheel under `work`; its path. The same sources give the same bytes."""
    folder = work / "product"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    call([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=CHECKOUT, env={"SOURCE_DATE_EPOCH": str(epoch())})
    built = list(folder.glob("*.whl"))
    if len(built) != 1:
        raise BuildError("zk0desk's wheel was not built.", f"{folder} holds {len(built)} wheels.")
    return built[0]
